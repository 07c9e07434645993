"""How far two models are apart on the same tokens: `Sums` of what their logits say, `LayerErrors` of their attention.

Logits are taken a few positions at a time: softmaxes in fp32 (fp64 for fp64 models), sums over tokens in fp64. Of each
token only its divergence is kept, in fp32.

Attention outputs are compared module by module, each model on its own inputs. The original's of one batch are kept
until the converted model has passed the same module; then only sums remain. Where those of all layers would not fit
into `_KEPT` numbers, evenly spaced positions stand for all.

Legend: B blocks, C positions of a chunk, D width, P compared positions of a block, T tokens, V vocabulary.
"""

import itertools
import math
from collections import defaultdict, deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mha2gqa.model.divergence import divergence_terms
from mha2gqa.model.feed import Logits
from mha2gqa.verbs.verify.measures import AnswerTokens, Divergence, LayerError, Loss, PositionLoss

_CHUNK = 1 << 24
"""Logits that are looked at together, at least: 32 MB in 16 bits, 64 MB in fp32. The C library gives blocks of that
size back at once; smaller ones fragmented its heap by gigabytes."""
_TOP = 5
_BINS = 32
_EDGES = tuple(10 ** (power / 5) for power in range(-40, 11))
"""Five bins a decade, from 1e-8 to 100 nats."""
_RESAMPLED, _RESAMPLED_AT_ONCE = 2000, 100
_KEPT = 1 << 25
"""Numbers of a batch's attention outputs that are kept: 64 MB in 16 bits."""


@dataclass
class AnswerSums:
    """What has been seen of answers in conversations."""

    tokens: int = 0
    top1: int = 0
    kl: float = 0.0
    losses: tuple[float, float] = (0.0, 0.0)

    def add(
        self,
        counts_BC: torch.Tensor,
        same_BC: torch.Tensor,
        kl_BC: torch.Tensor,
        losses_BC: tuple[torch.Tensor, torch.Tensor],
    ) -> None:
        """Take in the tokens of a chunk that count."""
        self.tokens += int(counts_BC.sum())
        self.top1 += int(same_BC[counts_BC].sum())
        self.kl += float(kl_BC[counts_BC].double().sum())
        first, second = (float(one_BC[counts_BC].sum()) for one_BC in losses_BC)
        self.losses = self.losses[0] + first, self.losses[1] + second

    def result(self) -> AnswerTokens | None:
        """Return the means; None where there were no answers."""
        if not self.tokens:
            return None
        original, converted, kl, top1 = (total / self.tokens for total in (*self.losses, self.kl, self.top1))
        return AnswerTokens(tokens=self.tokens, original=original, converted=converted, kl=kl, top1=top1)


@dataclass
class Sums:
    """What has been seen so far."""

    tokens: int = 0
    top1: int = 0
    top5: float = 0.0
    largest: float = 0.0
    divergences: list[torch.Tensor] = field(default_factory=list)
    block_losses: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)
    """Sums over the positions of each block, original and converted, `[B]` each."""
    position_losses: tuple[torch.Tensor, torch.Tensor] | None = None
    """Sums over blocks at each position, original and converted, `[P]` each."""
    blocks: int = 0
    answers: AnswerSums = field(default_factory=AnswerSums)

    def add(
        self,
        original: Logits,
        converted: Logits,
        ids_BT: torch.Tensor,
        *,
        predicts: bool,
        answers_BT: torch.Tensor | None = None,
    ) -> None:
        """Take in one batch.

        Args:
            original: Logits of the original.
            converted: Logits of the converted model.
            ids_BT: The tokens that both have read.
            predicts: Whether the logits at a position are about the next token; its loss is then taken,
                and the last position is left out.
            answers_BT: bool, which tokens are answers.
        """
        blocks, length = ids_BT.shape
        positions = length - 1 if predicts else length
        vocabulary = original(slice(0, 1)).shape[-1]
        step = math.ceil(_CHUNK / (blocks * vocabulary))
        losses: list[tuple[torch.Tensor, torch.Tensor]] = []
        for start in range(0, positions, step):
            span = slice(start, min(start + step, positions))
            targets_BC = ids_BT[:, span.start + 1 : span.stop + 1] if predicts else None
            counts_BC = None if answers_BT is None else answers_BT[:, span.start + 1 : span.stop + 1]
            both_BC = self._take(original(span), converted(span), targets_BC, counts_BC)
            if both_BC is not None:
                losses.append(both_BC)
        self.blocks += blocks
        if losses:
            first, second = (torch.cat(parts, dim=1) for parts in zip(*losses, strict=True))
            self._add_losses(first, second)

    def _take(
        self,
        original_BCV: torch.Tensor,
        converted_BCV: torch.Tensor,
        targets_BC: torch.Tensor | None,
        counts_BC: torch.Tensor | None,
    ) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Take in one chunk, and return both losses of each of its tokens, `[B, C]`; None without targets."""
        wide = torch.float64 if original_BCV.dtype == torch.float64 else torch.float32
        first_BCV = original_BCV.to(wide)
        second_BCV = converted_BCV.to(first_BCV.device, wide)
        top = min(_TOP, first_BCV.shape[-1])
        best_BCK, others_BCK = (logits.topk(top, dim=-1).indices for logits in (first_BCV, second_BCV))
        same_BC = best_BCK[..., 0] == others_BCK[..., 0]
        shared_BC = (best_BCK[..., :, None] == others_BCK[..., None, :]).any(-1).sum(-1) / top
        self.tokens += same_BC.numel()
        self.top1 += int(same_BC.sum())
        self.top5 += float(shared_BC.cpu().double().sum())
        # Classes may mask a part of the vocabulary with -infinity: a difference of two such is none.
        self.largest = max(self.largest, (first_BCV - second_BCV).abs_().nan_to_num_(nan=0.0).max().item())
        first_BCV, second_BCV = first_BCV.log_softmax(-1), second_BCV.log_softmax(-1)
        kl_BC = divergence_terms(first_BCV, second_BCV).sum(-1).float().cpu()
        self.divergences.append(kl_BC.flatten())
        if targets_BC is None:
            return None
        index = targets_BC.to(first_BCV.device)[..., None]
        first_BC, second_BC = (-logs.gather(-1, index)[..., 0].cpu().double() for logs in (first_BCV, second_BCV))
        if counts_BC is not None:
            self.answers.add(counts_BC, same_BC.cpu(), kl_BC, (first_BC, second_BC))
        return first_BC, second_BC

    def _add_losses(self, first_BP: torch.Tensor, second_BP: torch.Tensor) -> None:
        self.block_losses.append((first_BP.sum(1), second_BP.sum(1)))
        sums = first_BP.sum(0), second_BP.sum(0)
        before = self.position_losses
        self.position_losses = sums if before is None else (before[0] + sums[0], before[1] + sums[1])

    def divergence(self) -> Divergence:
        """Return the KL divergence over all tokens."""
        values = torch.cat(self.divergences)
        rank = math.ceil(0.99 * len(values))
        edges = torch.tensor(_EDGES, dtype=values.dtype)
        bins = torch.bucketize(values, edges[1:-1], right=True)
        return Divergence(
            mean=values.double().mean().item(),
            p99=values.kthvalue(rank).values.item(),
            largest=values.max().item(),
            edges=_EDGES,
            counts=tuple(torch.bincount(bins, minlength=len(_EDGES) - 1).tolist()),
        )

    def loss(self, seed: int) -> Loss | None:
        """Return the mean losses, with the bootstrap interval of their difference; None when none were taken."""
        if not self.block_losses:
            return None
        first_N, second_N = (torch.cat(parts) for parts in zip(*self.block_losses, strict=True))
        positions = self.tokens // self.blocks
        differences_N = (second_N - first_N) / positions
        return Loss(
            original=(first_N.sum() / self.tokens).item(),
            converted=(second_N.sum() / self.tokens).item(),
            interval=bootstrap(differences_N, seed),
        )

    def positions(self) -> tuple[PositionLoss, ...]:
        """Return the losses by position, averaged over ranges of positions of about equal length."""
        if self.position_losses is None:
            return ()
        first_P, second_P = (sums / self.blocks for sums in self.position_losses)
        bins = min(_BINS, len(first_P))
        edges = [len(first_P) * number // bins for number in range(bins + 1)]
        return tuple(
            PositionLoss(
                first=start + 1,
                last=stop,
                original=first_P[start:stop].mean().item(),
                converted=second_P[start:stop].mean().item(),
            )
            for start, stop in itertools.pairwise(edges)
        )


def bootstrap(values_N: torch.Tensor, seed: int) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean of N blocks' values, by resampling them; None for a single block.

    Source: Efron and Tibshirani 1993, "An Introduction to the Bootstrap", chapter 13 (percentile interval).
    """
    count = len(values_N)
    if count < 2:
        return None
    generator = torch.Generator().manual_seed(seed)
    means = torch.cat(
        [
            values_N[torch.randint(count, (_RESAMPLED_AT_ONCE, count), generator=generator)].mean(1)
            for _ in range(_RESAMPLED // _RESAMPLED_AT_ONCE)
        ]
    ).sort()[0]
    return means[round(0.025 * _RESAMPLED)].item(), means[round(0.975 * _RESAMPLED) - 1].item()


class LayerErrors:
    """Sums over tokens of the squared differences, by module."""

    def __init__(self, modules: Mapping[str, str], scale: float = 1.0) -> None:
        """Take the names of the attention modules: in the converted model's tree -> in the original's.

        Outputs of the original are multiplied with `scale`.
        """
        self._modules, self._scale = modules, scale
        self._kept: defaultdict[str, deque[torch.Tensor]] = defaultdict(deque)
        self._squares: dict[str, float] = dict.fromkeys(modules, 0.0)
        self._errors: dict[str, float] = dict.fromkeys(modules, 0.0)

    def original(self, model: nn.Module) -> AbstractContextManager[None]:
        """While the block runs, keep what the attention modules of the original give."""
        self._kept.clear()
        return self._hooked(model, self._modules, self._keep)

    def converted(self, model: nn.Module) -> AbstractContextManager[None]:
        """While the block runs, compare what the attention modules of the converted model give with what was kept."""
        return self._hooked(model, {name: name for name in self._modules}, self._compare)

    def results(self) -> tuple[LayerError, ...]:
        """Return the relative errors in the order of the modules; modules that never ran are left out."""
        return tuple(
            LayerError(module=module, error=math.sqrt(self._errors[module] / self._squares[module]))
            for module in self._modules
            if self._squares[module] > 0
        )

    @contextmanager
    def _hooked(
        self, model: nn.Module, paths: Mapping[str, str], see: Callable[[str, torch.Tensor], None]
    ) -> Iterator[None]:
        def hook(name: str) -> Callable[[nn.Module, Any, Any], None]:
            return lambda module, arguments, output: see(name, output[0] if isinstance(output, tuple) else output)

        handles = [model.get_submodule(path).register_forward_hook(hook(name)) for name, path in paths.items()]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _keep(self, name: str, output_BTD: torch.Tensor) -> None:
        self._kept[name].append(self._thinned(output_BTD).clone())  # what follows may add to it in place

    def _compare(self, name: str, output_BTD: torch.Tensor) -> None:
        original_BTD = (
            _wide(self._kept[name].popleft()) * self._scale
        )  # a shared module runs several times, in the same order
        converted_BTD = _wide(self._thinned(output_BTD)).to(original_BTD.device)
        self._squares[name] += original_BTD.square().sum().item()
        self._errors[name] += (converted_BTD - original_BTD).square().sum().item()

    def _thinned(self, output_BTD: torch.Tensor) -> torch.Tensor:
        step = math.ceil(len(self._modules) * output_BTD.numel() / _KEPT)
        return output_BTD[:, ::step]


def _wide(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.float() if tensor.dtype.itemsize < 4 else tensor
