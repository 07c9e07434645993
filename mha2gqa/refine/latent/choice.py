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
from mha2gqa.refine.latent.files import LatentFiles
from mha2gqa.refine.latent.student import build_latent_student
from mha2gqa.refine.student import install, own_tensors
from mha2gqa.targets.latent.fit import Fitted, fit
from mha2gqa.targets.latent.form import RotaryKey
from mha2gqa.targets.latent.host import LatentSource
from mha2gqa.targets.latent.planes import plane_gains
from mha2gqa.targets.latent.rope import free_key, portable_keys

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


Score = Callable[[RotaryKey, int], Trial]
"""Fits every layer for a rotary key and a width C, and runs the model on text that no statistics have seen."""


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

    def student(self, files: LatentFiles, tell: Callable[[int, int], object]) -> PreTrainedModel:
        """Return the host in memory, every layer fitted by the statistics and written, one after the other.

        Args:
            files: Where layers are written; those that are there already are taken over.
            tell: Told of every layer that was fitted.
        """
        host, layers = files.host, self.source.layers
        student = build_latent_student(self.original, host)
        for number, layer in enumerate(layers):
            if not files.has(number):
                found = self.fitted(layer, host.key, host.latent)
                tensors = host.attention(layer, found.heads, self.statistics[layer.module])
                files.write(number, tensors, {"module": layer.module, "errors": {}, **found.losses})
                tell(1, len(layers))
            install(student.get_submodule(layer.module), files.read(number))
        return student

    def key(self, width: int, latent: int, *, free: bool) -> RotaryKey:
        """Return the best rotary key of a width: any (`free`), or of those that every engine knows."""
        source = self.source
        if free:
            return free_key(source.rotary, self.gains(), width // 2, theta=source.theta, context=source.context)
        layers = [layer for layer in source.layers if layer.rotary.width]
        sampled = layers[:: max(1, len(layers) // _SAMPLED)]

        def lost(key: RotaryKey) -> float:
            return sum(self.fitted(layer, key, latent).lost for layer in sampled)

        return min(portable_keys(source.rotary, width // 2, context=source.context), key=lost)


def choose(known: Known, divisions: Sequence[tuple[int, int]], score: Score, *, free: bool) -> Trial:
    """Try divisions of a cache, and return what loses the least.

    Args:
        known: The source, and what text tells of it.
        divisions: C and R of each.
        score: Measures one of them with a rotary key.
        free: Whether rotary speeds are free (transformers alone), or those that every engine knows.
    """
    trials = [score(known.key(width, latent, free=free), latent) for latent, width in divisions]
    return min(trials, key=lambda trial: trial.loss)
