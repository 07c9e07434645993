"""Attention implementations by name, one of them ours.

`grouped` is SDPA without repeated KV heads: in a decode step the query heads of a group become rows that read one
KV head. transformers' own `sdpa` does that too, but with a mask and `torch.compile` it repeats the heads, which is
the case of a static cache on an accelerator; without a mask it leaves the groups to torch's kernels, which are not
equally good at it everywhere.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import create_position_bias_mask, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mha2gqa.errors import TimingError
from mha2gqa.model.feed import inputs

GROUPED = "grouped"


def grouped_attention(
    module: torch.nn.Module,
    query_BHTE: torch.Tensor,
    key_BGSE: torch.Tensor,
    value_BGSE: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as `sdpa` does, without repeating KV heads where one token is decoded.

    B sequences, H query heads, G KV heads, R of the former for one of the latter, T = 1 query tokens, S cached tokens.

    Returns:
        The output `[B, T, H, E]`, and no attention weights.
    """
    batch, heads, length, width = query_BHTE.shape
    groups = key_BGSE.shape[1]
    is_plain = options.get("softcap") is None
    shares_mask = attention_mask is None or attention_mask.shape[1] == 1
    if length != 1 or groups == heads or not (is_plain and shares_mask):
        output, _ = sdpa_attention_forward(
            module, query_BHTE, key_BGSE, value_BGSE, attention_mask, scaling=scaling, **options
        )
        return output, None
    packed_BGRE = query_BHTE.reshape(batch, groups, heads // groups, width)
    if (bias := options.get("position_bias")) is not None:  # T5's; each query head has its own
        mask_BHTS = create_position_bias_mask(bias, attention_mask, False, query_BHTE, key_BGSE)
        attention_mask = mask_BHTS.reshape(len(mask_BHTS), groups, heads // groups, -1)
    output_BGRE = torch.nn.functional.scaled_dot_product_attention(
        packed_BGRE, key_BGSE, value_BGSE, attn_mask=attention_mask, scale=scaling
    )
    return output_BGRE.reshape(batch, 1, heads, value_BGSE.shape[-1]), None


def use_attention(model: PreTrainedModel, name: str | None) -> str:
    """Make a model attend by the implementation `name`, or leave it its own.

    Returns:
        The name of what it now uses.

    Raises:
        TimingError: The class cannot, or a package is missing.
    """
    if name is not None:
        AttentionInterface.register(GROUPED, grouped_attention)
        AttentionMaskInterface.register(GROUPED, sdpa_mask)
        try:
            run: Any = model
            run.set_attn_implementation(name)
            with torch.no_grad():  # some refuse a dtype or a soft-capping only when they meet it
                run(**inputs(model, torch.zeros(1, 2, dtype=torch.int64)))
        except (ValueError, ImportError, RuntimeError) as error:
            raise _refusal(model, name, " ".join(str(error).split())[:200]) from error
        if own(model) != name:
            raise _refusal(model, name, "its attention has one implementation")
    return own(model)


def own(model: PreTrainedModel) -> str:
    """Return the name of the implementation that a model uses."""
    return str(model.config.get_text_config(decoder=True)._attn_implementation)


def repeats_heads(attention: str, *, masked: bool, compiled: bool) -> bool:
    """Return whether an implementation of transformers writes out a KV head for each query head in a decode step.

    Read from transformers 5.23: `eager` always does, `sdpa` where it is compiled and has a mask.
    """
    return attention == "eager" or (attention == "sdpa" and masked and compiled)


def _refusal(model: PreTrainedModel, name: str, reason: str) -> TimingError:
    return TimingError(
        f"{type(model).__name__} cannot use --attention {name}: {reason}",
        remedy="Leave --attention out, or name another",
    )
