"""Which rotary key and which division of a cache lose the least, on text that no statistics have seen.

Loss decides between widths of the rotary key. Between keys of one width (portable ladders) the fit's own objective
does, on a few layers: there it puts them in the order of their loss, and no model has to be run.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from mha2gqa.families.attention import AttentionLayer
from mha2gqa.heads.attention import Statistics
from mha2gqa.refine.latent.student import build_latent_student
from mha2gqa.refine.student import install, own_tensors
from mha2gqa.targets.latent.fit import Fitted, fit
from mha2gqa.targets.latent.form import RotaryKey
from mha2gqa.targets.latent.host import LatentHost, LatentSource
from mha2gqa.targets.latent.planes import plane_gains
from mha2gqa.targets.latent.rope import free_key, portable_keys
from mha2gqa.texts.blocks import mean_loss

_SAMPLED = 4
"""Layers, evenly spaced, on which keys of one width are compared."""


@dataclass(frozen=True)
class Trial:
    """One division of a cache, and what it loses."""

    key: RotaryKey
    latent: int
    """C."""
    loss: float
    """Nats a token on the text that was kept aside."""


@dataclass(frozen=True)
class Known:
    """A source in memory, and what text tells of it."""

    original: PreTrainedModel
    source: LatentSource
    statistics: Mapping[str, Statistics]
    """Of each attention module."""

    def fitted(self, layer: AttentionLayer, key: RotaryKey, latent: int) -> Fitted:
        """Return the latent form of a layer."""
        heads = self.source.heads(layer, own_tensors(self.original, layer))
        return fit(heads, self.statistics[layer.module], key, latent, self.source.scaling(layer))

    def gains(self) -> list[torch.Tensor]:
        """Return what rotary planes are worth to each layer that rotates."""
        return [
            plane_gains(
                self.source.heads(layer, own_tensors(self.original, layer)),
                self.statistics[layer.module],
                self.source.scaling(layer),
            )
            for layer in self.source.layers
            if layer.rotary.width
        ]

    def student(self, host: LatentHost) -> PreTrainedModel:
        """Return the host in memory, every layer fitted by the statistics."""
        student = build_latent_student(self.original, host)
        for layer in self.source.layers:
            module = student.get_submodule(layer.module)
            dtype, known = next(module.parameters()).dtype, self.statistics[layer.module]
            heads = self.fitted(layer, host.key, host.latent).heads
            install(module, host.attention(layer, heads, known, dtype))
        return student


def score(known: Known, key: RotaryKey, latent: int, aside_BT: Sequence[torch.Tensor]) -> Trial:
    """Fit every layer and run the model.

    Args:
        known: The source, and what text tells of it.
        key: The rotary key.
        latent: C.
        aside_BT: Text that no statistics have seen.
    """
    return Trial(key, latent, mean_loss(known.student(LatentHost(known.source, key, latent)), aside_BT))


def choose(
    known: Known,
    cache: int,
    widths: Sequence[int],
    aside_BT: Sequence[torch.Tensor],
    tell: Callable[[Trial], object],
    *,
    free: bool,
) -> Trial:
    """Try widths of the rotary key, and return what loses the least.

    Args:
        known: The source, and what text tells of it.
        cache: C + R.
        widths: R that are tried (`rotary_widths`).
        aside_BT: Text that no statistics have seen.
        tell: Told of each trial.
        free: Whether rotary speeds are free (transformers alone), or those that every engine knows.
    """
    trials = []
    gains = known.gains() if free else []
    for width in widths:
        key = _free(known.source, gains, width) if free else best_portable(known, width, cache - width)
        if key.width < cache:
            trials.append(score(known, key, cache - key.width, aside_BT))
            tell(trials[-1])
    return min(trials, key=lambda trial: trial.loss)


def _free(source: LatentSource, gains: Sequence[torch.Tensor], width: int) -> RotaryKey:
    return free_key(source.rotary, gains, width // 2, theta=source.theta, context=source.context)


def best_portable(known: Known, width: int, latent: int) -> RotaryKey:
    """Return the portable key of a width that the fit prefers on a few layers."""
    layers = [layer for layer in known.source.layers if layer.rotary.width]
    sampled = layers[:: max(1, len(layers) // _SAMPLED)]

    def lost(key: RotaryKey) -> float:
        return sum(known.fitted(layer, key, latent).lost for layer in sampled)

    return min(portable_keys(known.source.rotary, width // 2, context=known.source.context), key=lost)
