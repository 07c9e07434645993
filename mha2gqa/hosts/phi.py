"""Phi as a host: attention and MLP side by side behind one LayerNorm, half-split partial rotary, biases everywhere.

gptj      Its rotary planes are interleaved: the rotated rows of each query and key head are brought into halves. Its
          attention has no biases: they are zero here.
codegen   The same, with q, v and k in one tensor of four blocks (it was trained on four devices).
gpt_neox  With the parallel residual (Pythia): it has two LayerNorms that normalise the same, so both are folded into
          the layers that read them. q, k and v lie head by head in one tensor.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from mha2gqa.families.blueprint import Blueprint, ConfigJson
from mha2gqa.hosts.host import Host, Recipe
from mha2gqa.hosts.maths import cut, fold_gain, fold_shift, halves, order_rows
from mha2gqa.hosts.recipes import linear, made, named, renamed, zeros
from mha2gqa.hosts.rotary import rotary, same_rotary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

_THETA = 10000.0
"""Base of the rotary frequencies of GPT-J and CodeGen, which their classes write out."""
_BLOCKS, _ORDER = 4, {"q_proj": 0, "k_proj": 2, "v_proj": 1}
"""Blocks of CodeGen's fused tensor, and where the parts of a block stand."""

_GPTJ_KEYS = {
    "hidden_size": "n_embd",
    "num_hidden_layers": "n_layer",
    "num_attention_heads": "n_head",
    "num_key_value_heads": "n_head",
    "hidden_act": "activation_function",
    "max_position_embeddings": "n_positions",
    "layer_norm_eps": "layer_norm_epsilon",
    "resid_pdrop": "resid_pdrop",
    "embd_pdrop": "embd_pdrop",
    "attention_dropout": "attn_pdrop",
}


def _gptj_config(config: "PreTrainedConfig") -> ConfigJson:
    inner = {"intermediate_size": config.n_inner or 4 * config.n_embd}
    width = config.n_embd // config.n_head
    return named(_GPTJ_KEYS, config) | inner | rotary(config.rotary_dim, width, _THETA)


def _gptj_outside_attention(layers: int) -> Iterator[Recipe]:
    yield from renamed({"model.embed_tokens": "transformer.wte"}, parts=("weight",))
    yield from renamed({"model.final_layernorm": "transformer.ln_f", "lm_head": "lm_head"})
    for layer in range(layers):
        old, new = f"transformer.h.{layer}.", f"model.layers.{layer}."
        yield from renamed({"input_layernorm": "ln_1", "mlp.fc1": "mlp.fc_in", "mlp.fc2": "mlp.fc_out"}, old, new)
        yield from linear(f"{new}self_attn.dense", f"{old}attn.out_proj", has_bias=False)


def _halves(config: "PreTrainedConfig") -> list[int]:
    width = config.n_embd // config.n_head
    return halves(config.rotary_dim, width)


def _gptj_tensors(source: Blueprint) -> Iterator[Recipe]:
    config = source.settings
    turn = partial(order_rows, order=_halves(config))
    yield from _gptj_outside_attention(config.n_layer)
    for layer in range(config.n_layer):
        old, new = f"transformer.h.{layer}.attn", f"model.layers.{layer}.self_attn"
        yield from linear(f"{new}.v_proj", f"{old}.v_proj", has_bias=False)
        for name in ("q_proj", "k_proj"):
            yield made(f"{new}.{name}.weight", turn, f"{old}.{name}.weight")
            yield zeros(f"{new}.{name}.bias", f"{old}.{name}.weight")


def _codegen_part(tensor_RN: "torch.Tensor", name: str, order: list[int]) -> "torch.Tensor":
    rows_RN = cut(tensor_RN, _ORDER[name], _BLOCKS)
    return rows_RN if name == "v_proj" else order_rows(rows_RN, order)


def _codegen_tensors(source: Blueprint) -> Iterator[Recipe]:
    config = source.settings
    yield from _gptj_outside_attention(config.n_layer)
    for layer in range(config.n_layer):
        fused = f"transformer.h.{layer}.attn.qkv_proj.weight"
        for name in _ORDER:
            module = f"model.layers.{layer}.self_attn.{name}"
            yield made(f"{module}.weight", partial(_codegen_part, name=name, order=_halves(config)), fused)
            yield zeros(f"{module}.bias", fused)


_NEOX_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_attention_heads",
    "hidden_act": "hidden_act",
    "max_position_embeddings": "max_position_embeddings",
    "layer_norm_eps": "layer_norm_eps",
    "resid_pdrop": "hidden_dropout",
    "embd_pdrop": "hidden_dropout",
    "attention_dropout": "attention_dropout",
}


def _neox_config(config: "PreTrainedConfig") -> ConfigJson:
    return named(_NEOX_KEYS, config) | same_rotary(config)


def _neox_objection(config: "PreTrainedConfig", groups: int) -> str:
    return "" if config.use_parallel_residual else "its attention and MLP stand behind one another, not side by side"


def _neox_tensors(source: Blueprint) -> Iterator[Recipe]:
    config = source.settings
    yield from renamed({"model.embed_tokens": "gpt_neox.embed_in"}, parts=("weight",))
    yield from renamed({"model.final_layernorm": "gpt_neox.final_layer_norm"})
    yield from renamed({"lm_head": "lm_head"}, parts=("weight",))
    yield zeros("lm_head.bias", "gpt_neox.embed_in.weight")
    for layer in range(config.num_hidden_layers):
        old, new = f"gpt_neox.layers.{layer}.", f"model.layers.{layer}."
        norm = f"{old}input_layernorm"
        yield Recipe(name=f"{new}input_layernorm.weight", sources=(f"{norm}.weight",), fill=1.0)
        yield zeros(f"{new}input_layernorm.bias", f"{norm}.bias")
        yield from _neox_attention(config, old, new)
        yield from linear(f"{new}self_attn.dense", f"{old}attention.dense", has_bias=config.attention_bias)
        norm, reader = f"{old}post_attention_layernorm", f"{old}mlp.dense_h_to_4h"
        yield made(f"{new}mlp.fc1.weight", fold_gain, f"{reader}.weight", f"{norm}.weight")
        yield made(f"{new}mlp.fc1.bias", fold_shift, f"{reader}.weight", f"{norm}.bias", f"{reader}.bias")
        yield from renamed({"mlp.fc2": "mlp.dense_4h_to_h"}, old, new)


def _neox_attention(config: "PreTrainedConfig", old: str, new: str) -> Iterator[Recipe]:
    heads, fused, norm = config.num_attention_heads, f"{old}attention.query_key_value", f"{old}input_layernorm"
    biases = (f"{fused}.bias",) if config.attention_bias else ()
    for part, name in enumerate(("q_proj", "k_proj", "v_proj")):
        module = f"{new}self_attn.{name}"
        yield made(f"{module}.weight", partial(_part_gain, part=part, heads=heads), f"{fused}.weight", f"{norm}.weight")
        shifted = partial(_part_shift, part=part, heads=heads)
        yield made(f"{module}.bias", shifted, f"{fused}.weight", f"{norm}.bias", *biases)


def _part_gain(weight_RD: "torch.Tensor", gain_D: "torch.Tensor", part: int, heads: int) -> "torch.Tensor":
    return fold_gain(cut(weight_RD, part, heads), gain_D)


def _part_shift(
    weight_RD: "torch.Tensor", shift_D: "torch.Tensor", bias_R: "torch.Tensor | None" = None, *, part: int, heads: int
) -> "torch.Tensor":
    return fold_shift(cut(weight_RD, part, heads), shift_D, None if bias_R is None else cut(bias_R, part, heads))


_GPTJ = Host(
    model_type="phi",
    config=_gptj_config,
    tensors=_gptj_tensors,
    architectures={"GPTJForCausalLM": "PhiForCausalLM", "GPTJModel": "PhiModel"},
    modules=("transformer.h.{}.attn", "model.layers.{}.self_attn"),
)
_CODEGEN_CLASSES = {"CodeGenForCausalLM": "PhiForCausalLM", "CodeGenModel": "PhiModel"}
_GPT_NEOX = Host(
    model_type="phi",
    config=_neox_config,
    tensors=_neox_tensors,
    objection=_neox_objection,
    architectures={"GPTNeoXForCausalLM": "PhiForCausalLM", "GPTNeoXModel": "PhiModel"},
    modules=("gpt_neox.layers.{}.attention", "model.layers.{}.self_attn"),
)

HOSTS = {
    "gptj": _GPTJ,
    "codegen": replace(_GPTJ, tensors=_codegen_tensors, architectures=_CODEGEN_CLASSES),
    "gpt_neox": _GPT_NEOX,
}
"""Model type of the source -> its host."""
