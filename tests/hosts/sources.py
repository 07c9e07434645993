"""Tiny random models of every class that has a native host, and the oracle: their own K/V pooled and repeated.

    SOURCES                     name -> source
    build(source)               the model: every parameter random, gains and biases too
    pooled(source, model, G)    a copy whose K and V heads are the means of their groups, repeated

The oracle knows only how the source's own class lays out K and V; nothing of mha2gqa is used here.

Legend: H heads, E width of one head, D width of the model.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    BioGptConfig,
    CodeGenConfig,
    GPT2Config,
    GPTJConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    GPTNeoXJapaneseConfig,
    OPTConfig,
    PersimmonConfig,
    PreTrainedConfig,
    PreTrainedModel,
    XGLMConfig,
)

H, E, D, INNER, LAYERS, VOCABULARY, POSITIONS = 8, 8, 64, 96, 2, 128, 64
TOKENS = {"bos_token_id": 1, "eos_token_id": 2}
GPTJ = {"vocab_size": VOCABULARY, "n_positions": POSITIONS, "n_embd": D, "n_layer": LAYERS, "n_head": H, **TOKENS}
PLAIN = {
    "vocab_size": VOCABULARY,
    "hidden_size": D,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": H,
    "max_position_embeddings": POSITIONS,
    **TOKENS,
}
WIDE = PLAIN | {"intermediate_size": INNER}

Views = Callable[[nn.Module], Iterator[torch.Tensor]]
"""Gives, of an attention module, the K and V tensors as views of H·E rows in the order of the heads."""


def separate(attention: nn.Module) -> Iterator[torch.Tensor]:
    for name, parameter in attention.named_parameters():
        if name.startswith(("k_proj", "v_proj")):
            yield parameter


def by_head(attention: nn.Module) -> Iterator[torch.Tensor]:
    for name, parameter in attention.named_parameters():
        if name.startswith("query_key_value"):
            heads = parameter.view(H, 3, E, *parameter.shape[1:])
            yield from (heads[:, 1], heads[:, 2])


def codegen(attention: nn.Module) -> Iterator[torch.Tensor]:
    blocks = attention.get_parameter("qkv_proj.weight").view(4, 3, D // 4, D)
    yield from (blocks[:, 1], blocks[:, 2])


def conv(attention: nn.Module) -> Iterator[torch.Tensor]:
    for name in ("c_attn.weight", "c_attn.bias"):
        parameter = attention.get_parameter(name)
        rows = parameter.t() if parameter.ndim == 2 else parameter
        yield from (rows[D : 2 * D], rows[2 * D :])


@dataclass(frozen=True)
class Source:
    """A model that has a native host."""

    config: PreTrainedConfig
    host: str
    """Model type."""
    views: Views
    groups: tuple[int, ...] = (4, 2, 1)
    """Every G < H worth trying."""
    padded: bool = True
    """A forward pass with left padding gives the same; some classes count positions by the mask, others do not."""


ENDS = (1,)
SOURCES = {
    "gptj": Source(GPTJConfig(**GPTJ, rotary_dim=4, n_inner=INNER), "phi", separate),
    "gptj whole heads": Source(GPTJConfig(**GPTJ, rotary_dim=E), "phi", separate),
    "codegen": Source(CodeGenConfig(**GPTJ, n_ctx=POSITIONS, rotary_dim=4, n_inner=INNER), "phi", codegen),
    "gpt_neox parallel": Source(
        GPTNeoXConfig(
            **WIDE, rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25}
        ),
        "phi",
        by_head,
    ),
    "gpt_neox parallel, tied, no biases": Source(
        GPTNeoXConfig(**WIDE, attention_bias=False, tie_word_embeddings=True, layer_norm_eps=1e-3), "phi", by_head
    ),
    "gpt_neox parallel, rescaled": Source(
        GPTNeoXConfig(
            **WIDE,
            rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4, "partial_rotary_factor": 0.5},
        ),
        "phi",
        by_head,
    ),
    "gpt_neox sequential": Source(
        GPTNeoXConfig(
            **WIDE,
            use_parallel_residual=False,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 1.0},
        ),
        "starcoder2",
        by_head,
    ),
    "gpt_neox sequential, part of a head": Source(
        GPTNeoXConfig(
            **WIDE,
            use_parallel_residual=False,
            attention_bias=False,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5},
        ),
        "starcoder2",
        by_head,
    ),
    "gpt_neox_japanese": Source(GPTNeoXJapaneseConfig(**PLAIN, intermediate_multiple_size=2), "starcoder2", by_head),
    "persimmon": Source(PersimmonConfig(**WIDE, qk_layernorm=False, layer_norm_eps=1e-3), "nemotron", by_head),
    "gpt2": Source(GPT2Config(**GPTJ, n_inner=INNER), "gpt_bigcode", conv, ENDS),
    "gpt2 scaled by layer": Source(
        GPT2Config(**GPTJ, scale_attn_weights=False, scale_attn_by_inverse_layer_idx=True, activation_function="gelu"),
        "gpt_bigcode",
        conv,
        ENDS,
    ),
    "gpt_neo": Source(
        GPTNeoConfig(
            vocab_size=VOCABULARY,
            hidden_size=D,
            num_layers=LAYERS,
            num_heads=H,
            attention_types=[[["global"], LAYERS]],
            max_position_embeddings=POSITIONS,
            intermediate_size=INNER,
            **TOKENS,
        ),
        "gpt_bigcode",
        separate,
        ENDS,
    ),
    "opt": Source(
        OPTConfig(**PLAIN, ffn_dim=INNER, word_embed_proj_dim=D, pad_token_id=0, activation_function="gelu"),
        "gpt_bigcode",
        separate,
        ENDS,
        padded=False,
    ),
    "opt without biases": Source(
        OPTConfig(
            **PLAIN,
            ffn_dim=INNER,
            word_embed_proj_dim=D,
            enable_bias=False,
            layer_norm_elementwise_affine=False,
            activation_function="gelu",
        ),
        "gpt_bigcode",
        separate,
        ENDS,
        padded=False,
    ),
    "biogpt": Source(BioGptConfig(**WIDE, pad_token_id=0), "gpt_bigcode", separate, ENDS, padded=False),
    "biogpt unscaled": Source(
        BioGptConfig(**WIDE, scale_embedding=False, pad_token_id=0), "gpt_bigcode", separate, ENDS, padded=False
    ),
    "xglm": Source(
        XGLMConfig(
            vocab_size=VOCABULARY,
            d_model=D,
            num_layers=LAYERS,
            attention_heads=H,
            ffn_dim=INNER,
            max_position_embeddings=POSITIONS,
            pad_token_id=0,
            **TOKENS,
        ),
        "gpt_bigcode",
        separate,
        ENDS,
    ),
}


def build(source: Source, seed: int = 0, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(seed)
    model: PreTrainedModel = AutoModelForCausalLM.from_config(copy.deepcopy(source.config)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            is_gain = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.2 + is_gain)
    return model.to(dtype)


@torch.no_grad()
def pooled(source: Source, model: PreTrainedModel, groups: int) -> PreTrainedModel:
    result = copy.deepcopy(model)
    for module in result.modules():
        if type(module).__name__.endswith("Attention") and not hasattr(module, "attention"):
            for view in source.views(module):
                heads = view.reshape(groups, H // groups, E, -1)
                view.copy_(heads.mean(1, keepdim=True).expand_as(heads).reshape(view.shape))
    return result
