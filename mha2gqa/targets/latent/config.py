"""The host's config.json: native `deepseek_v3`, every layer dense, queries without a latent of their own.

Every key is written, also where it is the class's default: other engines have other defaults, and some demand keys
that only a mixture of experts needs. A source with biases is written with `attention_bias`; biases of queries have a
place in the host only in front of a latent of the queries, which is then as wide as all of them (`q_lora_rank`).
"""

from dataclasses import dataclass
from typing import Any

from mha2gqa.families.attention import AttentionLayer
from mha2gqa.families.blueprint import Blueprint, ConfigJson
from mha2gqa.families.counts import add_former_keys
from mha2gqa.targets.latent.form import RotaryKey
from mha2gqa.targets.latent.linear import EPS
from mha2gqa.targets.latent.sources import activation

MODEL_TYPE, ARCHITECTURE = "deepseek_v3", "DeepseekV3ForCausalLM"

_KEPT = ("dtype", "torch_dtype", "transformers_version")
"""Keys of the source's config.json that mean the same in every class, and are kept as they stand."""
_VALUES = (
    *("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"),
    *("max_position_embeddings", "initializer_range", "use_cache", "tie_word_embeddings"),
    *("bos_token_id", "eos_token_id", "pad_token_id"),
)
"""Keys that are written as transformers reads them."""
_NO_EXPERTS: ConfigJson = {
    "n_routed_experts": 2,
    "n_shared_experts": 1,
    "num_experts_per_tok": 1,
    "moe_intermediate_size": 8,
    "moe_layer_freq": 1,
    "n_group": 1,
    "topk_group": 1,
    "topk_method": "noaux_tc",
    "scoring_func": "sigmoid",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.0,
    "output_router_logits": False,
}
"""What is said of experts that no layer has: loaders read it."""


@dataclass(frozen=True, kw_only=True)
class HostShape:
    """Widths of the host's attention."""

    inputs: int
    """D: width of the model."""
    heads: int
    """H."""
    width: int
    """E: of a query, rotary part not counted."""
    value_width: int
    """F."""
    rotary: int
    """R."""
    latent: int
    """C."""
    has_bias: bool
    """Whether attention has biases."""
    queries: int | None
    """Width of the queries' own latent, where they have biases; None where they are projected directly."""


def host_shape(layers: list[AttentionLayer], key: RotaryKey, latent: int) -> HostShape:
    """Return the widths of a source's latent attention.

    Args:
        layers: Of the source (`source_layers`).
        key: The shared rotary key.
        latent: C.
    """
    first, (width, value_width) = layers[0], head_widths(layers[0])
    biased = {block.part for layer in layers for block in layer.blocks if block.name.endswith("bias")}
    has_output_bias = any(f"{layer.output.removesuffix('weight')}bias" in layer.shapes for layer in layers)
    return HostShape(
        inputs=first.inputs,
        heads=first.query_heads,
        width=width,
        value_width=value_width,
        rotary=key.width,
        latent=latent,
        has_bias=bool(biased) or has_output_bias,
        queries=first.query_heads * width if "q" in biased else None,
    )


def head_widths(layer: AttentionLayer) -> tuple[int, int]:
    """Return E and F of a layer of the source."""
    width = next(block.before.shape[1] for block in layer.blocks if block.part == "k")
    return width, layer.shapes[layer.output][1] // layer.query_heads


def host_config(config_json: ConfigJson, plan: Blueprint, shape: HostShape, key: RotaryKey) -> ConfigJson:
    """Return the host's config.json.

    Args:
        config_json: Of the source.
        plan: Its blueprint.
        shape: Widths of the host's attention.
        key: The shared rotary key.
    """
    config: Any = plan.config
    kept = {name: config_json[name] for name in _KEPT if name in config_json}
    values = {name: getattr(config, name, None) for name in _VALUES}
    written: ConfigJson = {
        "model_type": MODEL_TYPE,
        "architectures": [ARCHITECTURE],
        **values,
        "hidden_act": activation(plan),
        "rms_norm_eps": EPS,
        "num_key_value_heads": shape.heads,
        "kv_lora_rank": shape.latent,
        "q_lora_rank": shape.queries,
        "qk_rope_head_dim": shape.rotary,
        "qk_nope_head_dim": shape.width,
        "v_head_dim": shape.value_width,
        "attention_bias": shape.has_bias,
        "attention_dropout": float(getattr(config, "attention_dropout", 0.0) or 0.0),
        "rope_parameters": key.parameters,
        "rope_interleave": True,
        "first_k_dense_replace": int(config.num_hidden_layers),
        "num_nextn_predict_layers": 0,
        "pretraining_tp": 1,
        **_NO_EXPERTS,
        **kept,
    }
    add_former_keys(written)
    return written
