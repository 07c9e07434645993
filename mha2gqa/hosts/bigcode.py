"""GPTBigCode as a host: GPT-2 with one KV head or with one per query head. Pre-norm, learned positions.

gpt2     Its linear layers are stored transposed, with q, k and v behind one another.
gpt_neo  Where every layer attends to all tokens: no scale of the scores, no biases of q, k and v.

q, k and v become one tensor, head by head, which the row of gpt_bigcode in `families/table.py` takes on to one head.
"""

from collections.abc import Iterator
from functools import partial
from typing import TYPE_CHECKING

from mha2gqa.families.blueprint import Blueprint, ConfigJson
from mha2gqa.hosts.host import Host, Recipe
from mha2gqa.hosts.maths import interleave
from mha2gqa.hosts.recipes import WEIGHT_AND_BIAS, made, named, renamed, zeros

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig

_PARTS = ("q_proj", "k_proj", "v_proj")


_GELUS = ("gelu", "gelu_new", "gelu_fast", "gelu_python", "gelu_pytorch_tanh", "gelu_accurate")


def ends(config: "PreTrainedConfig", groups: int) -> str:
    """Return the objection to any other number of KV heads than 1 and H, and to what engines do not read.

    transformers' class has any activation; llama.cpp's and others have GELU, whatever the config says.
    """
    activation = getattr(config, "activation_function", None) or config.hidden_act
    if activation not in _GELUS:
        return f"engines compute it with GELU alone, and this model has {activation!r}"
    heads = config.num_attention_heads
    return "" if groups in (1, heads) else f"it has one KV head or {heads}, not {groups}"


_GPT2_KEYS = {
    key: key
    for key in (
        *("n_positions", "n_embd", "n_layer", "n_head", "n_inner", "activation_function", "layer_norm_epsilon"),
        *("resid_pdrop", "embd_pdrop", "attn_pdrop", "scale_attn_weights"),
    )
}


def _gpt2_config(config: "PreTrainedConfig") -> ConfigJson:
    return named(_GPT2_KEYS, config) | {"n_inner": config.n_inner or 4 * config.n_embd, "multi_query": False}


def _gpt2_objection(config: "PreTrainedConfig", groups: int) -> str:
    return "it has no cross-attention with one KV head" if config.add_cross_attention else ends(config, groups)


def _gpt2_fused(tensor_NR: "torch.Tensor", heads: int, divisor: int) -> "torch.Tensor":
    """Return q, k and v head by head; the scores are divided by the layer's number where the config says so."""
    q_RN, k_RN, v_RN = (tensor_NR.T if tensor_NR.ndim == 2 else tensor_NR).chunk(3)
    return interleave(q_RN / divisor, k_RN, v_RN, heads)


def _transposed(tensor_NR: "torch.Tensor") -> "torch.Tensor":
    return tensor_NR.t()


def _gpt2_tensors(source: Blueprint) -> Iterator[Recipe]:
    config = source.settings
    same = {"lm_head": "lm_head", "transformer.wte": "transformer.wte", "transformer.wpe": "transformer.wpe"}
    yield from renamed(same, parts=("weight",))
    yield from renamed({"transformer.ln_f": "transformer.ln_f"})
    norms = {"ln_1": "ln_1", "ln_2": "ln_2"}
    for layer in range(config.n_layer):
        path = f"transformer.h.{layer}."
        divisor = layer + 1 if config.scale_attn_by_inverse_layer_idx else 1
        yield from renamed(norms, path, path)
        for part in WEIGHT_AND_BIAS:
            name = f"{path}attn.c_attn.{part}"
            yield made(name, partial(_gpt2_fused, heads=config.n_head, divisor=divisor), name)
        for module in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj"):
            yield made(f"{path}{module}.weight", _transposed, f"{path}{module}.weight")
            yield from renamed({module: module}, path, path, parts=("bias",))


_NEO_KEYS = {
    "n_positions": "max_position_embeddings",
    "n_embd": "hidden_size",
    "n_layer": "num_layers",
    "n_head": "num_heads",
    "activation_function": "activation_function",
    "layer_norm_epsilon": "layer_norm_epsilon",
    "resid_pdrop": "resid_dropout",
    "embd_pdrop": "embed_dropout",
    "attn_pdrop": "attention_dropout",
}


def _neo_config(config: "PreTrainedConfig") -> ConfigJson:
    inner = {"n_inner": config.intermediate_size or 4 * config.hidden_size}
    return named(_NEO_KEYS, config) | inner | {"multi_query": False, "scale_attn_weights": False}


def _neo_objection(config: "PreTrainedConfig", groups: int) -> str:
    local = sum(kind != "global" for kind in config.attention_layers)
    return f"{local} of its layers attend to a window of tokens alone" if local else ends(config, groups)


def _neo_tensors(source: Blueprint) -> Iterator[Recipe]:
    config = source.settings
    same = {"lm_head": "lm_head", "transformer.wte": "transformer.wte", "transformer.wpe": "transformer.wpe"}
    yield from renamed(same, parts=("weight",))
    yield from renamed({"transformer.ln_f": "transformer.ln_f"})
    whole = {name: name for name in ("ln_1", "ln_2", "mlp.c_fc", "mlp.c_proj")}
    for layer in range(config.num_layers):
        path = f"transformer.h.{layer}."
        yield from renamed(whole | {"attn.c_proj": "attn.attention.out_proj"}, path, path)
        yield fused(f"{path}attn.c_attn", f"{path}attn.attention", "weight", config.num_heads)
        yield zeros(f"{path}attn.c_attn.bias", f"{path}attn.attention.q_proj.weight")


def fused(name: str, attention: str, part: str, heads: int) -> Recipe:
    """Give the fused weight or bias of an attention module with `q_proj`, `k_proj` and `v_proj`."""
    sources = (f"{attention}.{projection}.{part}" for projection in _PARTS)
    return made(f"{name}.{part}", partial(interleave, heads=heads), *sources)


_GPT2 = Host(
    model_type="gpt_bigcode",
    config=_gpt2_config,
    tensors=_gpt2_tensors,
    objection=_gpt2_objection,
    architectures={"GPT2LMHeadModel": "GPTBigCodeForCausalLM", "GPT2Model": "GPTBigCodeModel"},
)
_GPT_NEO = Host(
    model_type="gpt_bigcode",
    config=_neo_config,
    tensors=_neo_tensors,
    objection=_neo_objection,
    architectures={"GPTNeoForCausalLM": "GPTBigCodeForCausalLM", "GPTNeoModel": "GPTBigCodeModel"},
    modules=("transformer.h.{}.attn.attention", "transformer.h.{}.attn"),
)

HOSTS = {"gpt2": _GPT2, "gpt_neo": _GPT_NEO}
"""Model type of the source -> its host."""
