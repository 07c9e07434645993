"""Turns changes into pieces: walks the source's tensors and says what each output tensor is made of.

Legend: K KV heads of the source, G KV heads of the result.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

from mha2gqa.errors import CheckpointError
from mha2gqa.families.blueprint import Shape
from mha2gqa.families.changes import Change
from mha2gqa.families.layouts import HeadRows
from mha2gqa.files.pieces import (
    ITEMSIZES,
    Computed,
    Copy,
    Fold,
    LayerResult,
    Merge,
    OutputTensor,
    Piece,
    Span,
    TensorInfo,
    coalesce,
    path_of,
    whole,
)
from mha2gqa.files.quantised import refuse_packed
from mha2gqa.heads.grouping import Groups, sharing
from mha2gqa.model.original import Original
from mha2gqa.targets.target import Pieces


def rearranged(original: Original, changes: Sequence[Change], layers: Sequence[LayerResult]) -> Pieces:
    """Return the tensors of a model whose heads change.

    Args:
        original: The model.
        changes: Which of its tensors change, by their names in its file.
        layers: Attention layers that a method has changed as a whole; all others are merged head by head.

    Raises:
        CheckpointError: A tensor is missing, has another shape than the config says, or is quantised.
    """
    changed = [name for change in changes for name in change.names]
    refuse_packed(original.config_json, original.tensors, changed)
    builder = _Builder(original.infos, changes, layers)
    tensors = tuple(builder.build())
    return Pieces(tensors, tuple(sorted(builder.dropped)), builder.groups)


class _Builder:
    """Walks the source's tensors in file order and says what each output tensor is made of."""

    def __init__(
        self, infos: Mapping[str, TensorInfo], changes: Sequence[Change], layers: Sequence[LayerResult]
    ) -> None:
        self._computed = {info.name: info for layer in layers for info in layer.tensors}
        chosen = {info.name: layer.groups for layer in layers for info in layer.tensors}
        self._chosen = {
            change.module(name): chosen[name] for change in changes for name in change.names if name in chosen
        }
        self.groups: dict[str, Groups] = dict(self._chosen)
        self.dropped: set[str] = set()
        self._infos = infos
        self._changes = changes
        self._check_present()

    def build(self) -> Iterator[OutputTensor]:
        """Yield the output tensors."""
        for info in self._infos.values():
            yield from self._build(info)

    def _build(self, info: TensorInfo) -> Iterator[OutputTensor]:
        if (found := self._computed.get(info.name)) is not None:
            piece = Computed(Span(found.file, found.offset, found.size), path_of(info.file))
            yield OutputTensor(info.name, found.dtype, found.shape, (piece,))
            return
        for change in self._changes:
            match = change.pattern.search(info.name)
            if match and change.rule.stacked and change.module(info.name) in change.modules:
                yield from self._stack(info, match, change)
                return
            if (shape := change.new_shape(info.name, info.shape)) is not None:
                yield self._rearrange(info, shape, change)
                return
        yield whole(info)

    def _check_present(self) -> None:
        for change in self._changes:
            for name, (before, _) in change.names.items():
                found = self._infos.get(name)
                if before is not None and (found is None or found.shape != before):
                    is_there = "is missing" if found is None else f"has shape {list(found.shape)}"
                    raise CheckpointError(
                        f"Tensor {name!r} {is_there}",
                        expected=f"shape {list(before)}, by transformers' class for this config.json",
                        remedy="Check that config.json and the weights belong together",
                    )

    def _rearrange(self, info: TensorInfo, shape: Shape, change: Change) -> OutputTensor:
        """Walk the rows of the new layout, and take each run from the source heads that it stands for."""
        old, new = change.layouts
        rows = _row_starts(old(info.shape[0], change.before))
        runs = new(shape[0], change.after)
        heads, new_heads = _head_counts(list(rows)), _head_counts([(run.part, run.head) for run in runs])
        shared = {part: sharing(heads[part], new_heads[part]) for part in heads}
        module = change.module(info.name)
        if module in self._chosen:
            shared |= {part: self._chosen[module] for part in shared if part != "q"}
        self.groups[module] = shared.get("kv") or shared["k"]
        pieces = [
            self._piece(info, run, [rows[run.part, head] for head in shared[run.part][run.head]], change)
            for run in runs
        ]
        return OutputTensor(info.name, info.dtype, shape, coalesce(pieces))

    def _piece(self, info: TensorInfo, run: HeadRows, starts: list[int], change: Change) -> Piece:
        size = run.count * info.row_size
        spans = tuple(Span(info.file, info.offset + start * info.row_size, size) for start in starts)
        fold = Fold(change.before.kv_heads, change.after.kv_heads) if change.rule.fold else None
        return _merge(info, run.part, spans, run.head, fold)

    def _stack(self, info: TensorInfo, match: re.Match[str], change: Change) -> Iterator[OutputTensor]:
        """Merge heads that are tensors of their own: all of them where head 0 stands."""
        before, after = info.name[: match.start("head")], info.name[match.end("head") :]
        if int(match["head"]) >= change.after.kv_heads:
            self.dropped.add(info.name)
        if int(match["head"]) != 0:
            return
        groups = self._chosen.get(change.module(info.name)) or sharing(change.before.kv_heads, change.after.kv_heads)
        for head, members in enumerate(groups):
            sources = [self._infos[f"{before}{member}{after}"] for member in members]
            spans = tuple(Span(source.file, source.offset, source.size) for source in sources)
            pieces = (_merge(info, "kv", spans, head, None),)
            yield OutputTensor(f"{before}{head}{after}", info.dtype, info.shape, pieces)


def _merge(info: TensorInfo, part: str, spans: tuple[Span, ...], group: int, fold: Fold | None) -> Piece:
    if len(spans) == 1 and fold is None:
        return Copy(spans[0])
    if info.dtype not in ITEMSIZES:
        raise CheckpointError(
            f"Tensor {info.name!r} has dtype {info.dtype}: the checkpoint is quantised",
            expected=f"K/V in one of {', '.join(ITEMSIZES)}",
            remedy="Convert the unquantised checkpoint, then quantise the result",
        )
    return Merge(info.name, part, info.dtype, spans, group, math.prod(info.shape[1:]), fold)


def _row_starts(runs: list[HeadRows]) -> dict[tuple[str, int], int]:
    starts: dict[tuple[str, int], int] = {}
    row = 0
    for run in runs:
        starts[run.part, run.head] = row
        row += run.count
    return starts


def _head_counts(heads: list[tuple[str, int]]) -> dict[str, int]:
    return Counter(part for part, _ in heads)
