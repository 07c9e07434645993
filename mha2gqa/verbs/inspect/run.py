"""`mha2gqa inspect`: what a checkpoint is, and what each G would save. Reads the config and headers.

Parameters are counted on the meta device, so that it costs no memory and needs no weights. Tied ones count once.
"""

import math
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeAlias

from mha2gqa.errors import FamilyError, Mha2GqaError
from mha2gqa.families.blueprint import Blueprint
from mha2gqa.families.cache import CacheLayer, cache_bytes, cross_cache_bytes
from mha2gqa.families.counts import Count
from mha2gqa.families.expected import Parameter
from mha2gqa.families.names import MLP
from mha2gqa.files.pieces import ITEMSIZES
from mha2gqa.files.quantised import refuse_quantised
from mha2gqa.files.source import remote_weight_shapes
from mha2gqa.heads.grouping import divisors
from mha2gqa.hosts import counted, has_hosts, host_config, hosts_by_groups
from mha2gqa.hosts.host import Host
from mha2gqa.model.architecture import Architecture
from mha2gqa.model.original import Original
from mha2gqa.targets.kv_heads import KvHeads, no_effect, possible_groups
from mha2gqa.targets.plan import make_plan
from mha2gqa.verbs.inspect.latents import LatentRow, latent_rows
from mha2gqa.verbs.inspect.options import InspectOptions
from mha2gqa.verbs.inspect.windows import Windows, possible_windows

CONTEXTS = (4096, 32768, 131072)
"""Context lengths of the cache table, in tokens."""
_NAMED = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""Dtype as a config names it -> as a safetensors header does."""
Role: TypeAlias = Literal["attention", "mlp", "embedding", "norm", "other"]


@dataclass(frozen=True, kw_only=True)
class GroupRow:
    """What one G means."""

    groups: int
    bytes_per_token: int
    cross_bytes_per_token: int
    """Bytes of cache of cross-attention that a token of the encoder takes; 0 without cross-attention."""
    bytes_at: dict[int, int]
    """Context length -> bytes of cache of one sequence."""
    tensor_parallel: list[int]
    """Tensor-parallel sizes that divide both the query heads and G."""


@dataclass(frozen=True, kw_only=True)
class InspectReport:
    """Report of `inspect`."""

    source: str
    model_type: str
    architecture: str
    dtype: str
    layers: int
    """Self-attention layers with a KV cache; 0 in an encoder."""
    cross_layers: int
    """Layers whose cache holds the keys and values of an encoder's tokens."""
    query_heads: int
    kv_heads: int
    """KV heads; the largest number, where layers differ; 0 for latent attention."""
    head_width: int | None
    """Width of one key head; None for latent attention and where layers differ."""
    latent: bool
    parameters: int
    parameters_by_role: dict[str, int]
    layer_kinds: list[dict[str, int]]
    """Distinct layers: how many there are (`layers`), and their parameters by role."""
    rows: list[GroupRow]
    """Largest G first; the first row is the checkpoint as it is."""
    verdict: str
    """What `convert` would do, or why it would refuse."""
    convertible: bool
    hosts: dict[int, str]
    """G -> model type of the result, where the model's own class knows only MHA; empty elsewhere."""
    windows: Windows | None
    """What windows would save; None where nothing is cached that they could bound."""
    latents: list[LatentRow]
    """Latent attention instead, the largest cache first."""
    latent_note: str
    """Why there is none, or what would run it."""

    def to_json(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)


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
    by_role, by_layer = _parameters(own.blueprint, [] if hosts else cached)
    dtype = _dtype(original)
    main = [count for count in counts if count.part != "encoder"]
    groups = sorted(hosts or (possible_groups(main) if main else []), reverse=True)
    widths = {layer.width for layer in cached}
    latents, latent_note = latent_rows(own, groups[1:], _itemsize(dtype)) if groups[1:] else ([], "")
    return InspectReport(
        source=original.name,
        model_type=own.model_type,
        architecture=own.blueprint.architecture,
        dtype=dtype,
        layers=sum(layer.kept and not layer.cross for layer in cached),
        cross_layers=sum(layer.cross for layer in cached),
        query_heads=model.query_heads,
        kv_heads=max((count.heads for count in main), default=0),
        head_width=widths.pop() // 2 if len(widths) == 1 and counts else None,
        latent=model.decoders[0].family.latent,
        parameters=sum(by_role.values()),
        parameters_by_role={str(role): number for role, number in by_role.items()},
        layer_kinds=_kinds(by_layer),
        rows=[_row(one, cached, model.query_heads, dtype) for one in groups or [0]]
        if any(layer.kept for layer in cached)
        else [],
        verdict=refusal
        or f"convert can make {', '.join(map(str, groups[1:]))} of its {groups[0]} KV heads{_as(hosts)}.",
        convertible=not refusal,
        hosts={one: hosts[one].model_type for one in groups if one in hosts},
        windows=_windows(own, cached, dtype) if counts and not hosts else None,
        latents=latents,
        latent_note=latent_note,
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
        if not original.tensors:
            refuse_quantised(original.config_json)
        else:
            target = KvHeads(possible[0])
            make_plan(target.host(original), target)
    except Mha2GqaError as refusal:
        return counts, str(refusal)
    return counts, ""


def _windows(model: Architecture, cached: list[CacheLayer], dtype: str) -> Windows | None:
    if not any(layer.kept and not layer.cross for layer in cached):
        return None
    return possible_windows(model, cached, _itemsize(dtype), CONTEXTS)


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
    return _NAMED.get(str(named), "F32")


def _kinds(layers: list[dict[Role, int]]) -> list[dict[str, int]]:
    kinds = Counter(tuple(sorted(counts.items())) for counts in layers)
    return [{"layers": number, **dict(kind)} for kind, number in kinds.items()]


def _itemsize(dtype: str) -> int:
    return ITEMSIZES.get(dtype, 2)


def _row(groups: int, cached: list[CacheLayer], query_heads: int, dtype: str) -> GroupRow:
    itemsize = _itemsize(dtype)
    return GroupRow(
        groups=groups,
        bytes_per_token=cache_bytes(cached, itemsize, groups=groups),
        cross_bytes_per_token=cross_cache_bytes(cached, itemsize, groups),
        bytes_at={context: cache_bytes(cached, itemsize, context, groups) for context in CONTEXTS},
        tensor_parallel=[size for size in divisors(groups) if query_heads % size == 0] if groups else [],
    )


def _parameters(plan: Blueprint, cached: list[CacheLayer]) -> tuple[dict[Role, int], list[dict[Role, int]]]:
    """Return the numbers of parameters by role, and those of each layer of the model that owns the KV heads.

    Args:
        plan: The blueprint.
        cached: Its layers with a KV cache; their modules are attention whatever their class is called.
    """
    caching = {layer.module for layer in cached}
    by_role: Counter[Role] = Counter()
    layers: dict[str, Counter[Role]] = {}
    for name, parameter in plan.parameters.items():
        layer, inner = _split_layer(name)
        role = _role(name, inner, parameter, caching)
        numbers = math.prod(parameter.shape)
        by_role[role] += numbers
        if layer:
            layers.setdefault(layer, Counter())[role] += numbers
    attention = (name for name, parameter in plan.parameters.items() if parameter.kind == "attention")
    owners = {_split_layer(f"{path}.")[0].rpartition(".")[0] for path in caching or attention}
    return dict(by_role), [dict(counts) for layer, counts in layers.items() if layer.rpartition(".")[0] in owners]


def _split_layer(name: str) -> tuple[str, str]:
    """Split `model.layers.3.mlp.up_proj.weight` into `model.layers.3` and `mlp.up_proj.weight`."""
    parts = name.split(".")
    number = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    if number is None:
        return "", name
    return ".".join(parts[: number + 1]), ".".join(parts[number + 1 :])


def _role(name: str, inner: str, parameter: Parameter, caching: set[str]) -> Role:
    if parameter.kind in ("norm", "embedding"):
        return parameter.kind
    path = name.split(".")
    if parameter.kind == "attention" or any(".".join(path[:end]) in caching for end in range(1, len(path))):
        return "attention"
    is_mlp = inner != name and any(word in inner.lower() for word in MLP)
    return "mlp" if is_mlp else "other"
