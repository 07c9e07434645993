"""Attention implementations by name, two of them ours.

`grouped` is SDPA without repeated KV heads: in a decode step the query heads of a group become rows that read one
KV head. transformers' own `sdpa` does that too, but with a mask and `torch.compile` it repeats the heads, which is
the case of a static cache on an accelerator; without a mask it leaves the groups to torch's kernels, which are not
equally good at it everywhere.

`absorbed` is how engines decode latent attention (MLA): queries are taken to the latent, which all heads read as one
KV head, and what they read is taken to values. transformers makes every head's keys and values of the latent in every
step. For classes without a latent it is `sdpa`.
"""

from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import create_position_bias_mask, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from mha2gqa.errors import TimingError
from mha2gqa.model.feed import inputs

GROUPED, ABSORBED = "grouped", "absorbed"


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


def absorbed_attention(
    module: torch.nn.Module,
    query_BHTE: torch.Tensor,
    key_BHSE: torch.Tensor,
    value_BHSF: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """Attend to the latent itself.

    Source: DeepSeek-V2, arXiv 2405.04434, section 2.1.2. F is the width of a value, C that of the latent.

    Args:
        module: With `kv_b_proj`, its keys are the latent and the rotary key of one head, its values the latent, as
            `use_attention` has them made; any other attends as `sdpa` does.
        query_BHTE: Queries; of a latent their rotary part last.
        key_BHSE: Keys.
        value_BHSF: Values.
        attention_mask: As `sdpa` takes it.
        scaling: Of the scores.
        options: As `sdpa` takes them.
    """
    latent: Any = getattr(module, "kv_b_proj", None)
    if latent is None:
        output, _ = sdpa_attention_forward(
            module, query_BHTE, key_BHSE, value_BHSF, attention_mask, scaling=scaling, **options
        )
        return output, None
    width = query_BHTE.shape[-1] - (key_BHSE.shape[-1] - value_BHSF.shape[-1])
    up_HUC = latent.weight.unflatten(0, (query_BHTE.shape[1], -1))
    still_BHTC = query_BHTE[..., :width] @ up_HUC[:, :width]
    read_BHTC = torch.nn.functional.scaled_dot_product_attention(
        torch.cat([still_BHTC, query_BHTE[..., width:]], dim=-1),
        key_BHSE.expand(-1, query_BHTE.shape[1], -1, -1),
        value_BHSF.expand(-1, query_BHTE.shape[1], -1, -1),
        attn_mask=attention_mask,
        scale=scaling,
        is_causal=attention_mask is None and query_BHTE.shape[2] > 1,
    )
    output_BHTF: torch.Tensor = read_BHTC @ up_HUC[:, width:].mT
    return output_BHTF.transpose(1, 2), None


def use_attention(model: PreTrainedModel, name: str | None) -> str:
    """Make a model attend by the implementation `name`, or leave it its own.

    Returns:
        The name of what it now uses.

    Raises:
        TimingError: The class cannot, or a package is missing.
    """
    if name is not None:
        AttentionInterface.register(GROUPED, grouped_attention)
        AttentionInterface.register(ABSORBED, absorbed_attention)
        for own_name in (GROUPED, ABSORBED):
            AttentionMaskInterface.register(own_name, sdpa_mask)
        try:
            run: Any = model
            run.set_attn_implementation(name)
            if name == ABSORBED:
                _keep_latents(model)
            with torch.no_grad():  # some refuse a dtype or a soft-capping only when they meet it
                run(**inputs(model, torch.zeros(1, 2, dtype=torch.int64)))
        except (ValueError, ImportError, RuntimeError) as error:
            raise _refusal(model, name, " ".join(str(error).split())[:200]) from error
        if own(model) != name:
            raise _refusal(model, name, "its attention has one implementation")
    return own(model)


def _keep_latents(model: PreTrainedModel) -> None:
    """Have modules of latent attention hand on the latent, in the place of every head's keys and values."""
    for module in model.modules():
        if hasattr(module, "kv_b_proj") and hasattr(module, "expand_kv"):
            hidden: Any = module  # an attribute of the instance hides the class's method
            hidden.expand_kv = lambda latent, turned: (torch.cat([latent, turned], dim=-1), latent)


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
