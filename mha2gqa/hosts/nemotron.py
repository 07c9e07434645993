"""Nemotron as a host for Persimmon without norms of queries and keys: squared ReLU, half-split partial rotary.

Nemotron's LayerNorm adds 1 to its gain, so 1 is taken from Persimmon's: rounded once to the dtype of the file, where
a gain near 0 loses digits. q, k and v lie head by head in one tensor.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from mha2gqa.families.blueprint import Blueprint, ConfigJson
from mha2gqa.hosts.host import Host, Recipe
from mha2gqa.hosts.maths import cut
from mha2gqa.hosts.recipes import WEIGHT_AND_BIAS, made, named, renamed
from mha2gqa.hosts.rotary import head_width, same_rotary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

_KEYS = {
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_hidden_layers": "num_hidden_layers",
    "num_attention_heads": "num_attention_heads",
    "num_key_value_heads": "num_attention_heads",
    "hidden_act": "hidden_act",
    "max_position_embeddings": "max_position_embeddings",
    "norm_eps": "layer_norm_eps",
    "attention_dropout": "attention_dropout",
}


def _config(config: "PreTrainedConfig") -> ConfigJson:
    fixed = {"head_dim": head_width(config), "attention_bias": True, "mlp_bias": True}
    return named(_KEYS, config) | fixed | same_rotary(config)


def _objection(config: "PreTrainedConfig", groups: int) -> str:
    return "it normalises queries and keys (qk_layernorm)" if config.qk_layernorm else ""


def _less_one(gain_D: "torch.Tensor") -> "torch.Tensor":
    return gain_D - 1


def _norm(name: str, source: str) -> Iterator[Recipe]:
    yield made(f"{name}.weight", _less_one, f"{source}.weight")
    yield from renamed({name: source}, parts=("bias",))


def _tensors(source: Blueprint) -> Iterator[Recipe]:
    config = source.settings
    same = {"model.embed_tokens": "model.embed_tokens", "lm_head": "lm_head"}
    yield from renamed(same, parts=("weight",))
    yield from _norm("model.norm", "model.final_layernorm")
    linears = {
        "self_attn.o_proj": "self_attn.dense",
        "mlp.up_proj": "mlp.dense_h_to_4h",
        "mlp.down_proj": "mlp.dense_4h_to_h",
    }
    for layer in range(config.num_hidden_layers):
        path = f"model.layers.{layer}."
        for norm in ("input_layernorm", "post_attention_layernorm"):
            yield from _norm(f"{path}{norm}", f"{path}{norm}")
        yield from renamed(linears, path, path)
        for number, name in enumerate(("q_proj", "k_proj", "v_proj")):
            take = partial(cut, part=number, blocks=config.num_attention_heads)
            for part in WEIGHT_AND_BIAS:
                yield made(f"{path}self_attn.{name}.{part}", take, f"{path}self_attn.query_key_value.{part}")


_PERSIMMON = Host(
    model_type="nemotron",
    config=_config,
    tensors=_tensors,
    objection=_objection,
    architectures={"PersimmonForCausalLM": "NemotronForCausalLM", "PersimmonModel": "NemotronModel"},
)

HOSTS = {"persimmon": _PERSIMMON}
"""Model type of the source -> its host."""
