"""By which method heads were merged, told by the bytes of keys and values, whatever the record claims.

A pooling is told by its result (`told_by_heads`); a layer method that reads no text is told by making layers again
(`remake`).
"""

import contextlib
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from mha2gqa.families.names import KEYS_AND_VALUES
from mha2gqa.files.merging import single_torch_thread
from mha2gqa.files.pieces import LayerResult, Merge, OutputTensor, Span, TensorInfo, whole
from mha2gqa.files.pool import Pool
from mha2gqa.files.streams import Sources
from mha2gqa.methods import AUTO_METHOD, METHODS, streamed
from mha2gqa.model.devices import float64_device
from mha2gqa.model.layers import LayerFiles
from mha2gqa.progress import QUIET
from mha2gqa.record.conversion import Conversion
from mha2gqa.refine.merge import LayerMerge
from mha2gqa.targets.plan import Plan
from mha2gqa.verbs.convert.layerwise import Layerwise
from mha2gqa.verbs.verify.tensors import views

_PART = re.compile(rf"(?:^|\.)({'|'.join(map(re.escape, KEYS_AND_VALUES))})(?:\.linear)?\.weight$")
"""Projections of keys alone, or of values alone."""
_PROBED = 2
"""Layers that are made again before all are."""


def told_by_heads(plan: Plan, tensors: Sequence[TensorInfo], conversion: Conversion) -> str | None:
    """Return the pooling of which keys and values of some layers are the result, byte for byte; None without one.

    A tensor tells nothing where several poolings give the same: where the heads that were merged were equal. What the
    record says is no contradiction where that method itself pools so, and heads were sorted before, or values refitted,
    or training gained nothing in some layers, which then stay as they were merged: of it, all layers have to tell.
    """
    own, owned = conversion.method, dict[str, bool]()
    poolings = [name for name, method in METHODS.items() if method.streams]
    found = {info.name: info for info in tensors}
    merged = [one for one in plan.changed if len(one.shape) > 1 and one.name in found]
    seed, told = int(conversion.options.get("seed", 0) or 0), dict[str, set[str]]()
    with contextlib.closing(Sources()) as sources, single_torch_thread():
        for tensor in merged:
            same = [
                name for name in poolings if is_made(found[tensor.name], tensor, Pool(streamed(name), seed), sources)
            ]
            owned[tensor.name] = same == [own]
            if len(same) == 1 and same[0] != own:
                parts = told.setdefault(same[0], set())
                parts |= parts_of(tensor)
                if is_telling(parts):
                    return same[0]
    is_own = own in poolings and conversion.refinement and _is_untrained(conversion, owned, _parts(plan))
    return own if is_own else None


def remake(
    plan: Plan, tensors: Sequence[TensorInfo], conversion: Conversion, directory: Path
) -> tuple[Plan, str] | None:
    """Make the layers again by a layer method that had no text, and return the plan with them, and the method.

    Two layers are made first. Another machine, or another version of its libraries, may give other last bits, and other
    signs with them: what keys and values of these do not show byte for byte is told by nothing, and the answer is None.
    """
    grouping = str(conversion.options.get("grouping", "contiguous"))
    claimed = conversion.method if conversion.method in METHODS else None
    seed, found = int(conversion.options.get("seed", 0) or 0), {info.name: info for info in tensors}
    for method, chosen in dict.fromkeys([(claimed or AUTO_METHOD, grouping), (AUTO_METHOD, "contiguous")]):
        layerwise = Layerwise(
            files=LayerFiles(plan.original, directory / f"{method}-{chosen}"),
            plan=plan,
            merge=LayerMerge(method=method, grouping=chosen, seed=seed),
            progress=QUIET,
            device=float64_device(None),
        )
        layers = layerwise.planned()
        if not layers or sum(one.size for layer in layers for one in layer.tensors) > shutil.disk_usage(directory).free:
            continue
        layerwise.files.directory.mkdir()
        layerwise.from_weights(_PROBED)
        if not is_telling(_same_parts(plan, layerwise.results(), found)[0]):
            continue
        layerwise.from_weights()
        same = _same_parts(plan, layerwise.results(), found)[1]
        if method != claimed or _is_untrained(conversion, same, _parts(plan)):
            return plan.with_layers(layerwise.results()), method
    return None


def _same_parts(
    plan: Plan, layers: Sequence[LayerResult], found: Mapping[str, TensorInfo]
) -> tuple[set[str], dict[str, bool]]:
    """Return the parts, keys and values, of layers that were made again and are the same; and which tensors are."""
    merged = _parts(plan)
    made = [info for layer in layers for info in layer.tensors if info.name in merged and info.name in found]
    with contextlib.closing(Sources()) as sources:
        same = [one for one in made if is_made(found[one.name], whole(one), Pool(streamed(None), 0), sources)]
    return {part for info in same for part in merged[info.name]}, {info.name: info in same for info in made}


def _is_untrained(conversion: Conversion, same: Mapping[str, bool], parts: Mapping[str, set[str]]) -> bool:
    """Return whether layers are as they were merged, whatever refinement is claimed.

    Args:
        conversion: What the record says.
        same: Name of each tensor of keys or values -> whether it is what the method gives.
        parts: Name -> which of both it holds.
    """
    if conversion.refinement is None:  # groups that text has chosen are those of the weights in some layers alone
        return not conversion.text or all(same.values())
    layers: dict[str, dict[str, bool]] = {}
    for name, is_same in same.items():
        layers.setdefault(name.rpartition(".")[0].rpartition(".")[0], {}).update(dict.fromkeys(parts[name], is_same))
    # Every refinement changes values, and `distil` and `joint` then train keys and values of a layer or leave both.
    is_mixed = any(found.get("v") and not found.get("k", True) for found in layers.values())
    return is_mixed or (bool(same) and all(same.values()))


def _parts(plan: Plan) -> dict[str, set[str]]:
    """Return which parts of a layer the matrices hold that were merged, by name."""
    return {tensor.name: parts_of(tensor) for tensor in plan.changed if len(tensor.shape) > 1}


def parts_of(tensor: OutputTensor) -> set[str]:
    """Return which of a layer's parts were merged in a tensor: `k`, `v`, or `kv`."""
    if (part := _PART.search(tensor.name)) is not None:
        return {KEYS_AND_VALUES[part[1]]}
    return {piece.part for piece in tensor.pieces if isinstance(piece, Merge)}


def is_telling(parts: set[str]) -> bool:
    """Return whether tensors of these parts tell how they were made: two methods may treat keys, or values, alike."""
    return {"k", "v"} <= parts or "kv" in parts


def is_made(info: TensorInfo, tensor: OutputTensor, pool: Pool, sources: Sources) -> bool:
    """Return whether a tensor is what its pieces make; the first slice that differs ends it."""
    if info.size != tensor.size:
        return False
    place = info.offset
    for view in views(tensor, sources, pool):
        own = memoryview(bytearray(len(view)))
        sources.read_into(Span(info.file, place, len(view)), own)
        if own != view.cast("B"):
            return False
        place += len(view)
    return True
