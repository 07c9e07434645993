"""Heads by layer: Llama as `nemotron-nas`, whose `block_configs` say each layer's number of KV heads.

transformers takes `per_layer_config` in every config, and no model class reads it; this form is one that vLLM,
llama.cpp and TensorRT-LLM read, and a class that ships lets transformers read it, too.

Legend: D model width, H query heads, I width of the MLP, K KV heads.
"""

import math
from typing import TYPE_CHECKING

from mha2gqa.families.blueprint import ConfigJson
from mha2gqa.hosts.host import Host, same_tensors

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_ROUNDED = 256
"""Engines round the width of an MLP that they compute from `ffn_mult` up to a multiple of this."""


def _config(config: "PreTrainedConfig") -> ConfigJson:
    shared = config.num_attention_heads // config.num_key_value_heads
    whole = {"no_op": False, "replace_with_linear": False}
    blocks = [
        {"attention": {"n_heads_in_group": shared, **whole}, "ffn": {"ffn_mult": _multiple(config), **whole}}
        for _ in range(config.num_hidden_layers)  # each its own object: they will differ
    ]
    ignored = {key: None for key in ("sliding_window", "layer_types") if getattr(config, key, None)}  # by Llama
    return {"block_configs": blocks, **ignored}


def _multiple(config: "PreTrainedConfig") -> float:
    """Return 3 I / (2 D), so that the way back, cut off to a whole number, gives I."""
    inner, width = int(config.intermediate_size), int(config.hidden_size)
    multiple = 3 * inner / (2 * width)
    while int(2 * multiple * width / 3) < inner:
        multiple = math.nextafter(multiple, math.inf)
    return multiple


def engines(config: "PreTrainedConfig") -> str:
    """Return which engines read the heads of each layer, as sentences."""
    inner = config.intermediate_size
    rounded = f"; vLLM and llama.cpp round the width of the MLP, {inner:,}, up to a multiple of {_ROUNDED}"
    return (
        "transformers reads the heads of each layer by the code beside the weights, vLLM, llama.cpp and TensorRT-LLM "
        f"by a DeciLM of their own{rounded * bool(inner % _ROUNDED)}; SGLang does not serve it. "
        "vLLM and llama.cpp were run on a tiny one; of the others the sources were read."
    )


LLAMA = Host(
    model_type="nemotron-nas",
    config=_config,
    tensors=same_tensors,
    architectures={"LlamaForCausalLM": "DeciLMForCausalLM", "LlamaModel": "DeciLMModel"},
    shipped=True,
)
"""The only host: other families have no class whose layers differ in KV heads, of transformers or of an engine."""
