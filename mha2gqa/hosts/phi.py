"""Phi as a host: parallel attention and MLP behind one LayerNorm, half-split partial rotary, biases everywhere.

gptj    Its rotary planes are interleaved: the rotated rows of each query and key head are brought into halves. Its
        attention has no biases: they are zero here.
"""

import math
from collections.abc import Iterator
from functools import partial

from transformers import PreTrainedConfig

from mha2gqa.families.blueprint import Blueprint, ConfigJson
from mha2gqa.hosts.host import Host, Recipe
from mha2gqa.hosts.maths import halves, order_rows
from mha2gqa.hosts.recipes import made, renamed, zeros

ROTARY_THETA = 10000.0
"""Base of the rotary frequencies of GPT-J and CodeGen, which their classes write out."""


def _gptj_config(config: PreTrainedConfig) -> ConfigJson:
    return {
        "hidden_size": config.n_embd,
        "intermediate_size": config.n_inner or 4 * config.n_embd,
        "num_hidden_layers": config.n_layer,
        "num_attention_heads": config.n_head,
        "num_key_value_heads": config.n_head,
        "hidden_act": config.activation_function,
        "max_position_embeddings": config.n_positions,
        "layer_norm_eps": config.layer_norm_epsilon,
        "resid_pdrop": config.resid_pdrop,
        "embd_pdrop": config.embd_pdrop,
        "attention_dropout": config.attn_pdrop,
        **rotary(config.rotary_dim or config.n_embd // config.n_head, config.n_embd // config.n_head, ROTARY_THETA),
    }


def rotary(rows: int, width: int, theta: float) -> ConfigJson:
    """Return the keys that rotate the first `rows` of the `width` rows of a head, for old and new loaders."""
    factor = rows / width
    if int(width * factor) < rows:  # loaders multiply and cut off
        factor = math.nextafter(factor, 2.0)
    parameters = {"rope_type": "default", "rope_theta": theta, "partial_rotary_factor": factor}
    return {"rope_parameters": parameters, "rope_theta": theta, "partial_rotary_factor": factor}


def _gptj_tensors(source: Blueprint) -> Iterator[Recipe]:
    config = source.config
    width = config.n_embd // config.n_head
    turn = partial(order_rows, order=halves(config.rotary_dim or width, width))
    yield from renamed({"model.embed_tokens": "transformer.wte"}, parts=("weight",))
    yield from renamed({"model.final_layernorm": "transformer.ln_f", "lm_head": "lm_head"})
    for layer in range(config.n_layer):
        old, new = f"transformer.h.{layer}.", f"model.layers.{layer}."
        yield from renamed({"input_layernorm": "ln_1", "mlp.fc1": "mlp.fc_in", "mlp.fc2": "mlp.fc_out"}, old, new)
        straight = {"self_attn.v_proj": "attn.v_proj", "self_attn.dense": "attn.out_proj"}
        yield from renamed(straight, old, new, parts=("weight",))
        for name in ("q_proj", "k_proj"):
            yield made(f"{new}self_attn.{name}.weight", f"{old}attn.{name}.weight", turn)
        for name, beside in {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "dense": "out_proj"}.items():
            yield zeros(f"{new}self_attn.{name}.bias", f"{old}attn.{beside}.weight")


GPTJ = Host(
    model_type="phi",
    config=_gptj_config,
    tensors=_gptj_tensors,
    architectures={"GPTJForCausalLM": "PhiForCausalLM", "GPTJModel": "PhiModel"},
    modules=("transformer.h.{}.attn", "model.layers.{}.self_attn"),
)
