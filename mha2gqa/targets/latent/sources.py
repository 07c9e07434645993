"""Which models can be written in latent attention, and how each differs from Llama. NEW FAMILY = ONE ROW.

The host is a Llama but for its attention: RMSNorm with gains before attention and before a gated MLP, nothing behind
them, no biases but those of attention. A family that only multiplies by other numbers on the way (Gemma's gains,
Granite's multipliers) is written there exactly, the numbers folded into weights. Contract tests hold every row against
transformers' own class, and everything without a row must be refused with the reason.

`objection` says why a model cannot be written; `facts` what has to be folded where it can.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mha2gqa.errors import FamilyError
from mha2gqa.families.blueprint import Blueprint
from mha2gqa.families.cache import another
from mha2gqa.families.table import family
from mha2gqa.model.architecture import Architecture
from mha2gqa.targets.latent.widths import Whole

if TYPE_CHECKING:
    from mha2gqa.families.attention import AttentionLayer


def _one(config: Any) -> float:
    return 1.0


def _of(key: str) -> Callable[[Any], float]:
    return lambda config: float(getattr(config, key))


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """What a model type does otherwise than Llama."""

    embedding: Callable[[Any], float] = _one
    """What embeddings are multiplied with behind the table."""
    branch: Callable[[Any], float] = _one
    """What attention and MLP are multiplied with before they are added."""
    logits: Callable[[Any], float] = _one
    """What logits are multiplied with."""
    gain_offset: float = 0.0
    """What is added to the gains of norms."""
    centred: bool = False
    """Its norms have no gains and subtract the mean: where all that is added has none, that is the host's norm."""
    eps: float | None = None
    """Of its norms, where they do not say."""


def _rows(row: SourceRow, model_types: str) -> dict[str, SourceRow]:
    return dict.fromkeys(model_types.split(), row)


ROWS: Mapping[str, SourceRow] = {
    **_rows(
        SourceRow(),
        "cwm ernie4_5 glm helium internlm3 iquestcoder llama ministral mistral phi3 qwen2 seed_oss smollm3",
    ),
    "gemma": SourceRow(embedding=lambda config: float(config.hidden_size) ** 0.5, gain_offset=1.0),
    "granite": SourceRow(
        embedding=_of("embedding_multiplier"),
        branch=_of("residual_multiplier"),
        logits=lambda config: 1 / float(config.logits_scaling),
    ),
    "hyperclovax": SourceRow(
        embedding=_of("embedding_multiplier"), branch=_of("residual_multiplier"), logits=_of("logits_scaling")
    ),
    "olmo": SourceRow(centred=True, eps=1e-5),
}
"""Model type -> row."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """Numbers of a source that the host does not know, and that are folded into its weights."""

    row: SourceRow
    embedding: float
    branch: float
    logits: float
    eps: float
    """Of its norms."""
    tied: bool
    """Embedding and output projection are one table."""
    layers: int


def facts(plan: Blueprint) -> Facts:
    """Return what has to be folded of a source that has no `objection`."""
    config: Any = plan.config
    row = ROWS[config.model_type]
    norm: Any = plan.model.get_submodule("model.norm")
    eps = row.eps or getattr(norm, "variance_epsilon", None) or norm.eps
    return Facts(
        row=row,
        embedding=row.embedding(config),
        branch=row.branch(config),
        logits=row.logits(config),
        eps=float(eps),
        tied=bool(config.tie_word_embeddings),
        layers=int(config.num_hidden_layers),
    )


def source_layers(model: Architecture) -> "list[AttentionLayer]":
    """Return the attention layers of a model, first to last, as they are."""
    # Which tensors depend on the number of KV heads is asked with another number.
    return model.attention_layers([(count, another(count)) for count in model.counts])


def scaling(plan: Blueprint, layer: "AttentionLayer") -> float:
    """Return what a layer's scores are multiplied with before the softmax."""
    attention: Any = plan.model.get_submodule(layer.module)
    return float(attention.scaling)


def rotary_size(plan: Blueprint) -> float:
    """Return what the rotary embedding multiplies rotated rows with besides turning them, mostly 1."""
    embedding: Any = plan.model.get_submodule("model.rotary_emb")
    return float(getattr(embedding, "attention_scaling", 1.0))


def whole(model: Architecture) -> Whole:
    """Return what a model caches for a token in a layer.

    Raises:
        FamilyError: It cannot be written in latent attention.
        CheckpointError: Its config is malformed.
    """
    if reason := objection(model):
        raise FamilyError(
            f"A model of type {model.model_type!r} cannot be written in latent attention: {reason}",
            remedy="Convert what it was made of"
            if model.is_latent
            else "Give it fewer KV heads instead, with --groups",
        )
    if model.blueprint.is_like_llama:
        width = getattr(model.settings, "head_dim", None) or model.settings.hidden_size // model.query_heads
        return Whole(model.kv_heads, width, width, width)
    return whole_of(source_layers(model))


def whole_of(layers: "Sequence[AttentionLayer]") -> Whole:
    """Return what the layers of a source cache for a token."""
    first = layers[0]
    width = next(block.before.shape[1] for block in first.blocks if block.part == "k")
    rotary = next((layer.rotary for layer in layers if layer.rotary.width), first.rotary)
    value_width = first.shapes[first.output][1] // first.query_heads
    return Whole(max(layer.kv_heads for layer in layers), width, value_width, rotary.width)


def activation(plan: Blueprint) -> str:
    """Return the name of a source's activation."""
    config: Any = plan.settings
    return str(getattr(config, "hidden_act", None) or config.hidden_activation)


def has_bias(plan: Blueprint) -> bool:
    """Return whether a source that has no objection has biases in its attention."""
    return any(re.search(r"\.self_attn\..*bias$", name) for name in plan.parameters)


def elsewhere(plan: Blueprint, *, has_bias: bool, has_free_key: bool) -> list[str]:
    """Return why vLLM and llama.cpp cannot take a model in this form; nothing where nothing is known.

    By their sources they know no biases in latent attention, no activation but SiLU in this class, and
    no speeds but those of plain rope and yarn.
    """
    return [
        reason
        for reason, holds in (
            ("attention has biases", has_bias),
            (f"the MLP's activation is {activation(plan)}", activation(plan) != "silu"),
            ("rotary speeds are free", has_free_key),
        )
        if holds
    ]


def objection(model: Architecture) -> str:
    """Return why a model cannot be written in latent attention, as the end of a sentence; empty where it can."""
    if model.is_latent:
        return "its attention is latent already"
    plan = model.blueprint
    found = (check(plan) for check in (_kind, _settings, _tensors, _rotary, _family))
    return next(filter(None, found), "") or _layers(model)


def _kind(plan: Blueprint) -> str:
    if plan.settings.is_encoder_decoder:
        return "it has an encoder and cross-attention, and the host neither"
    row = family(plan.settings.model_type)
    if row.encoder:
        return "it is an encoder, which caches nothing"
    if row.refusal:
        return row.refusal
    if any(getattr(plan.settings, key, None) is not None for key in plan.settings.sub_configs):
        return "its text model is a part of one that reads other things, and the host reads text alone"
    name = plan.architecture
    return "" if name.endswith("ForCausalLM") else f"it was written by {name}, and the host is a causal language model"


_CAPS = ("attn_logit_softcapping", "final_logit_softcapping", "logit_cap", "attn_logit_cap")


def _settings(plan: Blueprint) -> str:
    config: Any = plan.settings
    if any(getattr(config, key, None) for key in _CAPS):
        return "its scores or logits have soft caps, and the host's have none"
    if getattr(config, "alibi", False):
        return "its positions are biases of the scores (ALiBi), and the host's are rotations"
    if getattr(config, "clip_qkv", None):
        return "its queries, keys and values are clipped, which a latent cannot be"
    return ""


_TENSORS = (
    (
        r"router|experts?\.|moe|mlp\.gate\.|shared_mlp",
        "its MLP is a mixture of experts, which the host routes otherwise",
    ),
    (r"sinks?\b", "its attention has sinks, and the host's has none"),
    (r"mamba|conv|linear_attn|recurrent|rg_lru|temporal_block", "not all of its layers are attention"),
    (r"self_attn\.(gate|g_proj)", "the output of its attention is gated, and the host's is not"),
    (
        r"(q|k|v|query|key|sub)_(layer)?norm|attn_sub_norm|(q|k)_l2",
        "its queries, keys or values have norms of their own, which a latent that all heads share cannot have",
    ),
    (r"relative|rel_|position_bias|wpe|embed_positions", "its positions are not rotations"),
    (r"norm\w*\.bias", "its norms have biases (LayerNorm), and the host's have none"),
    (r"\bmlp\..*bias|fc\d.*bias|c_fc", "its MLP has biases, and the host's has none"),
    (r"lm_head\.bias", "its output projection has a bias, and the host's has none"),
    (r"norm", "it has norms where the host has none"),
)
"""Pattern of the name of a tensor that a Llama does not have -> what it means."""
_LLAMA = re.compile(
    r"model\.embed_tokens\.weight|model\.norm\.weight|lm_head\.weight|"
    r"model\.layers\.\d+\.((input|post_attention)_layernorm\.weight|mlp\.(gate|up|down|gate_up)_proj\.weight|"
    r"self_attn\.(qkv|q|k|v|o)_proj\.(weight|bias))"
)


def _tensors(plan: Blueprint) -> str:
    names = [*plan.parameters]
    foreign = [name for name in names if not _LLAMA.fullmatch(name)]
    for pattern, meaning in _TENSORS:
        if any(re.search(pattern, name) for name in foreign):
            return meaning
    if foreign:
        return f"it has tensors that no part of the host is for: {foreign[0]}"
    return "" if any("mlp.gate" in name for name in names) else "its MLP has no gate, and the host's has one"


def _family(plan: Blueprint) -> str:
    model_type = plan.settings.model_type
    if model_type in ROWS:
        return ""
    if plan.final_norm.endswith("LayerNorm"):
        return "its norms subtract the mean (LayerNorm), and the host's do not"
    return f"it is not known that the host computes what its class does: {model_type!r} has no row in sources.py"


def _rotary(plan: Blueprint) -> str:
    parameters = getattr(plan.settings, "rope_parameters", None) or {}
    if any(isinstance(value, dict) for value in parameters.values()):
        return "its layers rotate at several sets of speeds, and the host's share one"
    kind = parameters.get("rope_type", "default")
    if kind == "dynamic" or (kind == "longrope" and parameters.get("short_factor") != parameters.get("long_factor")):
        return f"its rotary embedding turns at other speeds in longer contexts (rope_type {kind!r})"
    if parameters.get("llama_4_scaling_beta"):
        return "its queries grow with their position"
    return ""


def _layers(model: Architecture) -> str:
    if any(layer.window for layer in model.cached):
        return "it has layers with a sliding window, and the host's see everything"
    if model.blueprint.is_like_llama:
        return ""
    from torch import nn

    plan, layers = model.blueprint, source_layers(model)
    if len(layers) != plan.config.num_hidden_layers:
        return "the projections of its attention are not all found, or it has one head"
    if any((layer.keys, layer.values) != ("free", "free") for layer in layers):
        return "its keys or values cannot be mixed freely"
    if any(layer.rotary.width and not layer.rotary.frequencies for layer in layers):
        return "the speeds of its rotary embedding are not known"
    is_linear = all(isinstance(plan.model.get_submodule(f"{one.module}.o_proj"), nn.Linear) for one in layers)
    return "" if is_linear else "its projections are not linear layers"
