"""What latent attention makes of one original: the host's config, and every tensor as pieces of the original's.

Three kinds of tensors: copied as they are, made of the original's when they are read (a stream in other units, gains,
halves of a fused projection: `tensors.py`), and those of attention, which a fit has computed layer by layer.

Legend: as in `widths.py` and `target.py`.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

from mha2gqa.errors import CheckpointError, GroupsError
from mha2gqa.files.dtypes import DTYPES
from mha2gqa.files.pieces import (
    Computed,
    LayerResult,
    Made,
    OutputTensor,
    Span,
    TensorInfo,
    path_of,
    whole,
)
from mha2gqa.hosts.rehost import Written, tokenizer_class, tokenizer_files, written
from mha2gqa.model.original import Original
from mha2gqa.targets.latent.form import RotaryKey
from mha2gqa.targets.latent.host import LatentHost, LatentSource
from mha2gqa.targets.latent.rope import named_key
from mha2gqa.targets.latent.tensors import Folding
from mha2gqa.targets.latent.widths import CHOSEN, Widths, divisions, latent_change
from mha2gqa.targets.target import Aim, Pieces


def as_source(original: Original) -> Original:
    """Return an original with what is written beside it, and what its attention outputs are multiplied with.

    Raises:
        FamilyError: The model cannot be written in latent attention.
        CheckpointError: The weights are quantised.
    """
    fold = Folding.of(LatentSource.of(original.architecture).facts)
    scale = None if fold.centred else fold.branch
    return replace(
        original, origin=replace(original.origin, files=tokenizer_files(original.checkpoint), output_scale=scale)
    )


def aim_at_latent(original: Original, target: Widths) -> Aim:
    """Return what becomes of an original that `as_source` gave.

    Raises:
        GroupsError: The widths cannot be.
        FamilyError: The model cannot be written in latent attention.
        CheckpointError: The weights are quantised.
    """
    source = LatentSource.of(original.architecture)
    possible = divisions(source.whole, target)
    latent, width = possible[len(possible) // 2]
    host = host_of(original, source, latent, planned_key(source, target, width))
    return Aim(
        original=original,
        result=host.model,
        change=latent_change(source.whole.numbers, latent, width),
        pieces=partial(_pieces, original, host),
        layers=lambda: [*source.layers],
    )


def host_of(original: Original, source: LatentSource, latent: int, key: RotaryKey) -> LatentHost:
    """Return the host of an original for a rotary key and a width of the latent, in the dtype of the file."""
    if original.dtype not in DTYPES:
        raise CheckpointError(
            f"Most of the weights have dtype {original.dtype}",
            expected=f"one of {', '.join(DTYPES)}",
            remedy="Convert the unquantised checkpoint, then quantise the result",
        )
    return LatentHost(source, key, latent, DTYPES[original.dtype], tokenizer_class(original.checkpoint))


def planned_key(source: LatentSource, target: Widths, width: int) -> RotaryKey:
    """Return the rotary key that a target names; where text has yet to choose, the source's fastest planes.

    Raises:
        GroupsError: There is no such key.
    """
    planes, known = width // 2, len(source.rotary.frequencies)
    name = f"ladder:{min(planes, known)}" if target.frequencies in CHOSEN else target.frequencies
    try:
        return named_key(name, source.rotary, planes, theta=source.theta, context=source.context)
    except ValueError as error:
        raise GroupsError(
            f"--rope-frequencies: {error}", expected=f"{', '.join(CHOSEN)}, or a key that a record names"
        ) from error


def _pieces(original: Original, host: LatentHost, layers: Sequence[LayerResult]) -> Pieces:
    """Return the tensors of the host; those of attention hold nothing yet where no layers are given."""
    known = {info.name: info for layer in layers for info in layer.tensors}
    others = written(original, host.others(), host.model.blueprint)
    places = {info.name: place for place, info in enumerate(original.tensors)}
    placed = [(places[one.sources[0].name], _as_piece(one)) for one in others]
    for first, info in _attention(original, host, {one.info.name for one in others}):
        found = known.get(info.name, info)
        piece = Computed(Span(found.file, found.offset, found.size), path_of(first.file))
        placed.append((places[first.name], OutputTensor(info.name, info.dtype, info.shape, (piece,))))
    tensors = tuple(tensor for _, tensor in sorted(placed, key=lambda one: one[0]))
    names = {tensor.name for tensor in tensors}
    return Pieces(tensors, tuple(info.name for info in original.tensors if info.name not in names))


def _as_piece(one: Written) -> OutputTensor:
    info = one.info
    if one.is_same:
        return whole(info)
    return OutputTensor(info.name, info.dtype, info.shape, (Made(Span(info.file, info.offset, info.size)),))


def _attention(original: Original, host: LatentHost, others: set[str]) -> Iterator[tuple[TensorInfo, TensorInfo]]:
    """Yield the tensors of the host's attention, each with the source's tensor in whose place it stands."""
    dtype = str(original.dtype)
    for layer in host.source.layers:
        first = next(info for info in original.tensors if f"{layer.module}." in f"model.{info.name}")
        for name, shape in host.model.blueprint.module_shapes.items():
            if name.startswith(f"{layer.module}.") and name not in others:
                size = math.prod(shape) * DTYPES[dtype].itemsize
                yield first, TensorInfo(name, dtype, shape, first.file, 0, size)
