"""What is known of the inputs of each layer without any text: which directions the weights write into.

The residual stream holds embeddings and what the layers before have added. Its second moment is guessed as
that of the embedding rows plus, for each attention layer before, that of its output projection, all scaled
to the same size; the norm in front of a layer then scales the channels. It is only the metric in which
`aligned` gives something up: a bad guess makes the result less close, never wrong.

Legend: D model width, X inputs of a layer (D, and one more that is 1 where it has biases), V vocabulary.
"""

from collections.abc import Mapping

import torch
from torch import nn

from mha2gqa.heads import Statistics

_SHARE = 0.5
"""Size of what an attention layer adds, beside that of the embeddings."""
_ROWS = 8192
"""Embedding rows that are looked at, evenly spaced."""
_NORMS = (
    *("input_layernorm", "operator_norm", "temporal_pre_norm", "self_attn_layer_norm", "pre_attention_layernorm"),
    *("pre_self_attn_layernorm", "attn_norm", "norm_1", "ln_1", "input_norm", "norm", "layer_norm", "layernorm_before"),
)
"""Names of the norm in front of attention, among the children of a block."""


class Prior:
    """Collects what was written into the residual stream, layer by layer.

    Args:
        embedding_VD: The input embedding; None where there is none of the model's width.
        width: D.
        device: Where to compute.
    """

    def __init__(self, embedding_VD: torch.Tensor | None, width: int, device: torch.device) -> None:
        self._moment_DD = torch.eye(width, device=device)
        if embedding_VD is not None and embedding_VD.shape[1] == width:
            rows = embedding_VD[:: max(1, len(embedding_VD) // _ROWS)].float()
            self._moment_DD = _sized(rows.mT @ rows)

    def statistics(self, gain_D: torch.Tensor | None, *, has_bias: bool) -> Statistics:
        """Return the guess for a layer whose norm has these gains."""
        moment = _sized(self._moment_DD).double()
        if gain_D is not None:
            gain = gain_D.to(moment)
            moment = gain[:, None] * moment * gain
        if has_bias:
            moment = torch.block_diag(moment, moment.new_ones(1, 1))
        return Statistics(moment, moment)

    def add(self, output_DZ: torch.Tensor) -> None:
        """Take in an output projection that writes into the stream."""
        if len(output_DZ) == len(self._moment_DD):
            rows = output_DZ.float()
            self._moment_DD = self._moment_DD + _SHARE * _sized(rows @ rows.mT)


def norm_name(model: nn.Module, module: str) -> str | None:
    """Return the path of the norm in front of an attention module, where a block names one."""
    block, _, attention = module.rpartition(".")
    children = dict(model.get_submodule(block).named_children())
    found = next((name for name in _NORMS if name in children and name != attention), None)
    return None if found is None else f"{block}.{found}"


def norm_gains(norm: nn.Module, tensors: Mapping[str, torch.Tensor], width: int) -> torch.Tensor | None:
    """Return what a norm multiplies each channel with, `[D]`: asked of the module itself, which may add 1 to its gains.

    Args:
        norm: The module, without weights (on the meta device).
        tensors: Its parameters.
        width: D.
    """
    shapes = {name: tuple(parameter.shape) for name, parameter in norm.named_parameters()}
    if shapes != {name: tuple(tensor.shape) for name, tensor in tensors.items()} or (width,) not in shapes.values():
        return None
    even = torch.ones(width)
    even[1::2] = -1  # of mean 0 and variance 1, so that every kind of norm leaves it as it is
    both = torch.stack([even, -even])
    answer = torch.func.functional_call(norm, {name: tensor.float() for name, tensor in tensors.items()}, (both,))
    gains: torch.Tensor = (answer[0] - answer[1]) / 2 * even
    return gains


def _sized(moment_DD: torch.Tensor) -> torch.Tensor:
    return moment_DD * (len(moment_DD) / moment_DD.trace())
