"""Starcoder2 as a host: pre-norm LayerNorms with affines, attention before MLP, half-split rotary over whole heads.

gpt_neox           Without the parallel residual. Where only the first rows of a head are rotated, the rows of queries
                   and keys are re-ordered so that the others stand in rotary planes of frequency 0
                   (`rope_type: proportional`, which transformers knows and other engines may not).
gpt_neox_japanese  The same without biases: they are zero here, but for that of the last layer's attention output.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mha2gqa.families.blueprint import Blueprint, ConfigJson
from mha2gqa.hosts.host import Host, Recipe
from mha2gqa.hosts.maths import cut, order_rows, spread
from mha2gqa.hosts.recipes import linear, made, named, renamed, zeros
from mha2gqa.hosts.rotary import head_width, is_default, rotary_rows, spread_rotary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

_KEYS = {
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_attention_heads",
    "hidden_act": "hidden_act",
    "max_position_embeddings": "max_position_embeddings",
    "norm_epsilon": "layer_norm_eps",
    "residual_dropout": "hidden_dropout",
    "attention_dropout": "attention_dropout",
}


def _config(config: "PreTrainedConfig") -> ConfigJson:
    japanese = config.model_type == "gpt_neox_japanese"
    inner = int(config.hidden_size * config.intermediate_multiple_size) if japanese else config.intermediate_size
    fixed = {
        "intermediate_size": inner,
        "embedding_dropout": 0.0 if japanese else config.hidden_dropout,
        "use_bias": True,
        "sliding_window": None,
    }
    return named(_KEYS, config) | fixed | spread_rotary(config)


def _objection(config: "PreTrainedConfig", groups: int) -> str:
    if getattr(config, "use_parallel_residual", False):
        return "its attention and MLP stand side by side, not behind one another"
    if rotary_rows(config) < head_width(config) and not is_default(config):
        return "it rotates a part of each head with rescaled frequencies"
    return ""


def _part(tensor_RN: "torch.Tensor", part: int, heads: int, order: list[int] | None) -> "torch.Tensor":
    rows_RN = cut(tensor_RN, part, heads)
    return rows_RN if order is None else order_rows(rows_RN, order)


def _attention(config: "PreTrainedConfig", fused: str, new: str, *, has_bias: bool) -> Iterator[Recipe]:
    rows, width = rotary_rows(config), head_width(config)
    for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
        order = spread(rows, width) if name != "v_proj" and rows < width else None
        take = partial(_part, part=part, heads=config.num_attention_heads, order=order)
        yield made(f"{new}.{name}.weight", take, f"{fused}.weight")
        if has_bias:
            yield made(f"{new}.{name}.bias", take, f"{fused}.bias")
        else:
            yield zeros(f"{new}.{name}.bias", f"{fused}.weight")


def _tensors(source: Blueprint) -> Iterator[Recipe]:
    config, layers = source.settings, source.settings.num_hidden_layers
    base, head = source.settings.model_type, "embed_out" if "embed_out.weight" in source.module_shapes else "lm_head"
    has_bias = bool(getattr(config, "attention_bias", False))
    has_inner_bias = base == "gpt_neox"
    yield from renamed({"model.embed_tokens": f"{base}.embed_in", "lm_head": head}, parts=("weight",))
    yield from renamed({"model.norm": f"{base}.final_layer_norm"})
    for layer in range(layers):
        old, new = f"{base}.layers.{layer}.", f"model.layers.{layer}."
        norms = ("input_layernorm", "post_attention_layernorm")
        yield from renamed(dict(zip(norms, norms, strict=True)), old, new)
        yield from _attention(config, f"{old}attention.query_key_value", f"{new}self_attn", has_bias=has_bias)
        yield from linear(f"{new}mlp.c_fc", f"{old}mlp.dense_h_to_4h", has_bias=has_inner_bias)
        yield from linear(f"{new}mlp.c_proj", f"{old}mlp.dense_4h_to_h", has_bias=has_inner_bias)
        if base == "gpt_neox_japanese" and layer == layers - 1:
            yield from renamed({"self_attn.o_proj": "attention.dense"}, old, new, parts=("weight",))
            bias = f"{old}attention.dense_bias"
            yield Recipe(name=f"{new}self_attn.o_proj.bias", sources=(bias,))
        else:
            yield from linear(f"{new}self_attn.o_proj", f"{old}attention.dense", has_bias=has_bias)


_GPT_NEOX = Host(
    model_type="starcoder2",
    config=_config,
    tensors=_tensors,
    objection=_objection,
    architectures={"GPTNeoXForCausalLM": "Starcoder2ForCausalLM", "GPTNeoXModel": "Starcoder2Model"},
    modules=("gpt_neox.layers.{}.attention", "model.layers.{}.self_attn"),
)
_GPT_NEOX_JAPANESE = replace(
    _GPT_NEOX,
    architectures={"GPTNeoXJapaneseForCausalLM": "Starcoder2ForCausalLM", "GPTNeoXJapaneseModel": "Starcoder2Model"},
    modules=("gpt_neox_japanese.layers.{}.attention", "model.layers.{}.self_attn"),
    last_differs=True,
)

HOSTS = {"gpt_neox": _GPT_NEOX, "gpt_neox_japanese": _GPT_NEOX_JAPANESE}
"""Model type of the source -> its host."""
