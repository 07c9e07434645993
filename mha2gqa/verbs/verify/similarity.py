"""How alike the KV heads of the original are that a conversion merged, attention module by attention module.

Reads the byte ranges of the heads that the plan of the conversion names, one tensor at a time; no model is loaded.
It explains a result and judges nothing: heads that point in unrelated directions lose much of their length in a mean.

Legend: K KV heads of the original, N numbers of one run of rows of a head.
"""

from collections.abc import Iterator

import torch

from mha2gqa.files.pieces import DTYPES, Merge, Span
from mha2gqa.files.streams import Sources
from mha2gqa.record.pair import Pair
from mha2gqa.targets.plan import Plan, make_plan
from mha2gqa.verbs.verify.outcome import Similarity


def head_similarity(pair: Pair) -> tuple[Similarity, ...]:
    """Return the cosine similarity between the KV heads of each attention module; nothing where none were merged.

    Args:
        pair: The original, and what was done to it.

    Raises:
        CheckpointError: The original is damaged.
    """
    if pair.conversion.method is None or not pair.conversion.change.is_any:
        return ()
    plan = make_plan(pair.original, pair.record.target)
    products: dict[str, torch.Tensor] = {}
    sources = Sources()
    try:
        for module, merges in _runs(plan):
            heads_KN = torch.stack([_read(sources, span, merge.dtype) for merge in merges for span in merge.spans])
            products[module] = products.get(module, 0) + heads_KN @ heads_KN.T
    finally:
        sources.close()
    return tuple(
        Similarity(module=module, values=_cosines(products[module]), groups=pair.conversion.groups.get(module, groups))
        for module, groups in plan.groups.items()
        if module in products
    )


def _runs(plan: Plan) -> Iterator[tuple[str, list[Merge]]]:
    """Yield each attention module with the merges of one run of rows, whose spans are all its heads in order."""
    for tensor in plan.changed:
        module = next((name for name in plan.groups if tensor.name.startswith(f"{name}.")), None)
        by_head: dict[tuple[str, int], list[Merge]] = {}
        for piece in tensor.pieces:
            if isinstance(piece, Merge) and piece.fold is None:
                by_head.setdefault((piece.part, piece.group), []).append(piece)
        for part in dict.fromkeys(part for part, _ in by_head):
            for merges in zip(*(by_head[key] for key in sorted(by_head) if key[0] == part), strict=True):
                if module is not None:
                    yield module, list(merges)


def _read(sources: Sources, span: Span, dtype: str) -> torch.Tensor:
    content = bytearray(span.size)
    sources.read_into(span, memoryview(content))
    return torch.frombuffer(content, dtype=DTYPES[dtype]).double()


def _cosines(products_KK: torch.Tensor) -> tuple[tuple[float, ...], ...]:
    """Return the cosines of vectors by their inner products; 0 for a vector of zeros."""
    lengths_K = products_KK.diagonal().sqrt()
    cosines_KK = products_KK / (lengths_K[:, None] * lengths_K[None, :]).clamp_min(1e-300)
    return tuple(tuple(row) for row in cosines_KK.tolist())
