"""GPTBigCode as a host for decoders in the manner of BART: OPT, BioGPT, XGLM. See `bigcode.py` for the host.

opt     Positions begin at row 2 of their table. Pre-norm models without projected embeddings.
biogpt  The same; the scale of the embedding is multiplied in, so embedding and head are no longer one tensor.
xglm    The same; its positions are sinusoids, written out for as many tokens as the config says.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from mha2gqa.families.blueprint import Blueprint, ConfigJson
from mha2gqa.hosts.bigcode import ends, fused
from mha2gqa.hosts.host import Host, Recipe
from mha2gqa.hosts.recipes import WEIGHT_AND_BIAS, made, named, renamed

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

_OFFSET = 2
"""Row of the first position in the tables of these classes."""
_EPSILON = 1e-5
"""Of their LayerNorms: the classes take torch's default whatever the config says."""


def _positions(table_RD: "torch.Tensor") -> "torch.Tensor":
    return table_RD[_OFFSET:]


@dataclass(frozen=True)
class _Decoder:
    """Where such a class keeps its tensors."""

    base: str
    """What comes before the names of everything but the head."""
    norm: str
    """The last LayerNorm."""
    head: str


_OPT = _Decoder("model.decoder.", "final_layer_norm", "lm_head")
_BIOGPT = _Decoder("biogpt.", "layer_norm", "output_projection")
_XGLM = _Decoder("model.", "layer_norm", "lm_head")

_LAYER = {
    "attn.c_proj": "self_attn.out_proj",
    "ln_1": "self_attn_layer_norm",
    "ln_2": "final_layer_norm",
    "mlp.c_fc": "fc1",
    "mlp.c_proj": "fc2",
}


def _scale(config: "PreTrainedConfig") -> float:
    return math.sqrt(config.hidden_size) if getattr(config, "scale_embedding", False) else 1.0


def _decoder_config(config: "PreTrainedConfig") -> ConfigJson:
    kind = config.model_type
    dropout, act, inner = {
        "opt": ("dropout", "activation_function", "ffn_dim"),
        "biogpt": ("hidden_dropout_prob", "hidden_act", "intermediate_size"),
        "xglm": ("dropout", "activation_function", "ffn_dim"),
    }[kind]
    keys = {
        "n_positions": "max_position_embeddings",
        "n_embd": "hidden_size",
        "n_layer": "num_hidden_layers",
        "n_head": "num_attention_heads",
        "n_inner": inner,
        "activation_function": act,
        "resid_pdrop": dropout,
        "embd_pdrop": dropout,
        "attn_pdrop": "attention_probs_dropout_prob" if kind == "biogpt" else "attention_dropout",
    }
    tied = config.tie_word_embeddings and _scale(config) == 1.0
    fixed = {"layer_norm_epsilon": _EPSILON, "multi_query": False, "tie_word_embeddings": tied}
    return named(keys, config) | fixed


def _opt_objection(config: "PreTrainedConfig", groups: int) -> str:
    if not config.do_layer_norm_before or config._remove_final_layer_norm:
        return "its LayerNorms stand behind attention and MLP, or the last one is missing"
    if config.word_embed_proj_dim != config.hidden_size:
        return "its embeddings are projected"
    return ends(config, groups)


def _xglm_objection(config: "PreTrainedConfig", groups: int) -> str:
    return "it has no cross-attention with one KV head" if config.add_cross_attention else ends(config, groups)


def _decoder_tensors(decoder: _Decoder, source: Blueprint) -> Iterator[Recipe]:
    config = source.settings
    known = source.module_shapes.keys() | {f"{source.prefix}.{name}" for name in source.module_shapes}
    for recipe in _decoder_recipes(decoder, config):
        # OPT can do without biases, and without gains and biases of its norms.
        if recipe.sources[0] in known:
            yield recipe
        else:
            fill = 1.0 if recipe.name.endswith("weight") else 0.0
            yield Recipe(name=recipe.name, sources=(_embedding(decoder),), fill=fill)


def _embedding(decoder: _Decoder) -> str:
    return f"{decoder.base}embed_tokens.weight"


def _decoder_recipes(decoder: _Decoder, config: "PreTrainedConfig") -> Iterator[Recipe]:
    embedding, factor = _embedding(decoder), _scale(config)
    yield _scaled("transformer.wte.weight", embedding, factor)
    yield Recipe(name="lm_head.weight", sources=(f"{decoder.head}.weight",))
    yield from renamed({"transformer.ln_f": f"{decoder.base}{decoder.norm}"})
    yield _wpe(decoder, config)
    for layer in range(config.num_hidden_layers):
        old, new = f"{decoder.base}layers.{layer}.", f"transformer.h.{layer}."
        yield from renamed(_LAYER, old, new)
        for part in WEIGHT_AND_BIAS:
            yield fused(f"{new}attn.c_attn", f"{old}self_attn", part, config.num_attention_heads)


def _times(tensor_RN: "torch.Tensor", factor: float) -> "torch.Tensor":
    return tensor_RN.mul(factor)


def _scaled(name: str, source: str, factor: float) -> Recipe:
    return Recipe(name=name, sources=(source,), make=None if factor == 1.0 else partial(_times, factor=factor))


def _wpe(decoder: _Decoder, config: "PreTrainedConfig") -> Recipe:
    if config.model_type != "xglm":
        return made("transformer.wpe.weight", _positions, f"{decoder.base}embed_positions.weight")
    beside = f"{decoder.base}{decoder.norm}.weight"
    table = partial(_sinusoids, count=config.max_position_embeddings, width=config.hidden_size)
    return made("transformer.wpe.weight", table, beside)


def _sinusoids(beside: "torch.Tensor", count: int, width: int) -> "torch.Tensor":
    from transformers.models.xglm.modeling_xglm import XGLMSinusoidalPositionalEmbedding

    table_RD: torch.Tensor = XGLMSinusoidalPositionalEmbedding.get_embedding(count + _OFFSET, width)
    return _positions(table_RD)


_HOST = Host(
    model_type="gpt_bigcode",
    config=_decoder_config,
    tensors=partial(_decoder_tensors, _OPT),
    objection=_opt_objection,
    architectures={"OPTForCausalLM": "GPTBigCodeForCausalLM"},
    modules=("model.decoder.layers.{}.self_attn", "transformer.h.{}.attn"),
)

HOSTS = {
    "opt": _HOST,
    "biogpt": replace(
        _HOST,
        tensors=partial(_decoder_tensors, _BIOGPT),
        objection=ends,
        architectures={"BioGptForCausalLM": "GPTBigCodeForCausalLM"},
        modules=("biogpt.layers.{}.self_attn", "transformer.h.{}.attn"),
    ),
    "xglm": replace(
        _HOST,
        tensors=partial(_decoder_tensors, _XGLM),
        objection=_xglm_objection,
        architectures={"XGLMForCausalLM": "GPTBigCodeForCausalLM"},
        modules=("model.layers.{}.self_attn", "transformer.h.{}.attn"),
    ),
}
"""Model type of the source -> its host."""
