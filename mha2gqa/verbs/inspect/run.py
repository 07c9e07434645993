"""`mha2gqa inspect`: what a checkpoint is, and what each G would save. Reads the config and headers."""

from collections import Counter
from typing import Any

from mha2gqa.errors import FamilyError, Mha2GqaError
from mha2gqa.families.anatomy import anatomy
from mha2gqa.families.cache import CacheLayer, cache_bytes, cross_cache_bytes
from mha2gqa.families.counts import Count
from mha2gqa.files.pieces import DTYPES
from mha2gqa.files.source import remote_weight_shapes
from mha2gqa.files.tensors import refuse_quantised
from mha2gqa.heads.grouping import divisors
from mha2gqa.hosts import counted, has_hosts, host_config, hosts_by_groups
from mha2gqa.hosts.host import Host
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.original import Original
from mha2gqa.targets.kv_heads import KvHeads, possible_groups
from mha2gqa.targets.plan import make_plan, no_effect
from mha2gqa.verbs.inspect.options import InspectOptions
from mha2gqa.verbs.inspect.outcome import GroupRow, InspectReport

CONTEXTS = (4096, 32768, 131072)
"""Context lengths of the cache table, in tokens."""


def inspect(options: InspectOptions) -> InspectReport:
    """Describe a checkpoint by its config and the headers of its files.

    Raises:
        Mha2GqaError: The model cannot be found, or its config cannot be read.
    """
    original = Original.sketch(options.model)
    own, hosts = original.architecture, hosts_by_groups(original.architecture)
    model = counted(own)
    counts, refusal = _counts(original, model)
    cached = model.cached if counts or model.is_latent else []
    if not refusal and not cached:
        refusal = str(no_effect(model.model_type))
    parameters = anatomy(own.blueprint, [] if hosts else cached)
    dtype = _dtype(original)
    main = [count for count in counts if count.part != "encoder"]
    groups = sorted(hosts or (possible_groups(main) if main else []), reverse=True)
    widths = {layer.width for layer in cached}
    return InspectReport(
        source=original.name,
        model_type=own.model_type,
        architecture=type(own.outline).__name__,
        dtype=dtype,
        layers=sum(layer.kept and not layer.cross for layer in cached),
        cross_layers=sum(layer.cross for layer in cached),
        query_heads=model.query_heads,
        kv_heads=max((count.heads for count in main), default=0),
        head_width=widths.pop() // 2 if len(widths) == 1 and counts else None,
        latent=model.decoders[0].family.latent,
        parameters=parameters.total,
        parameters_by_role={str(role): number for role, number in parameters.by_role.items()},
        layer_kinds=_kinds(parameters.layers),
        rows=[_row(one, cached, model.query_heads, dtype) for one in groups or [0]]
        if any(layer.kept for layer in cached)
        else [],
        verdict=refusal or f"convert can make {_choices(groups)} of its {groups[0]} KV heads{_as(hosts)}.",
        convertible=not refusal,
        hosts={one: hosts[one].model_type for one in groups if one in hosts},
    )


def _counts(original: Original, model: Architecture) -> tuple[list[Count], str]:
    """Return the numbers of KV heads, and why convert would refuse (empty when it would not)."""
    try:
        if has_hosts(model):
            host_config(model, 1)  # none can express this model: the refusal says why
        counts = model.counts
    except FamilyError as refusal:
        return [], str(refusal)
    possible = possible_groups([count for count in counts if count.part != "encoder"])
    if len(possible) < 2:
        return counts, "There is one KV head, which is the least (MQA)."
    try:
        refuse_quantised(original.config_json)
        if original.tensors:
            target = KvHeads(possible[0])
            make_plan(target.host(original), target)
    except Mha2GqaError as refusal:
        return counts, str(refusal)
    return counts, ""


def _choices(groups: list[int]) -> str:
    return ", ".join(str(one) for one in groups[1:])


def _as(hosts: dict[int, Host]) -> str:
    """Return in which class the result is written, where it is another than the source's."""
    by_type: dict[str, list[int]] = {}
    for groups in sorted(hosts, reverse=True)[1:]:
        by_type.setdefault(hosts[groups].model_type, []).append(groups)
    ships = {host.model_type: " (its code ships with it)" for host in hosts.values() if host.shipped}
    results = [
        f"a {kind!r} model{ships.get(kind, '')}" + (f" for {', '.join(map(str, each))}" if len(by_type) > 1 else "")
        for kind, each in by_type.items()
    ]
    return f". Its own class knows only multi-head attention, so the result is {' and '.join(results)}" * bool(results)


def _dtype(original: Original) -> str:
    """Return the dtype of most of the weights, else what the config says."""
    if original.dtype is not None:
        return original.dtype
    sizes: Counter[str] = Counter()
    for dtype, shape in (remote_weight_shapes(original.source) or {}).values():
        sizes[dtype] += max(1, sum(shape))
    if sizes:
        return sizes.most_common(1)[0][0]
    config = original.config_json
    inner = config.get("text_config") if isinstance(config.get("text_config"), dict) else {}
    named = config.get("dtype") or config.get("torch_dtype") or (inner or {}).get("dtype") or "float32"
    return next((name for name, dtype in DTYPES.items() if str(dtype) == f"torch.{named}"), "F32")


def _kinds(layers: dict[str, dict[Any, int]]) -> list[dict[str, int]]:
    kinds = Counter(tuple(sorted(counts.items())) for counts in layers.values())
    return [{"layers": number, **dict(kind)} for kind, number in kinds.items()]


def _row(groups: int, cached: list[CacheLayer], query_heads: int, dtype: str) -> GroupRow:
    itemsize = DTYPES[dtype].itemsize if dtype in DTYPES else 2
    return GroupRow(
        groups=groups,
        bytes_per_token=cache_bytes(cached, itemsize, groups=groups),
        cross_bytes_per_token=cross_cache_bytes(cached, itemsize, groups),
        bytes_at={context: cache_bytes(cached, itemsize, context, groups) for context in CONTEXTS},
        tensor_parallel=[size for size in divisors(groups) if query_heads % size == 0] if groups else [],
    )
