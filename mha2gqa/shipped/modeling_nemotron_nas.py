"""Llama with a number of key/value heads for each layer, in the form of Nemotron-NAS (DeciLM); windows, too.

This file lies beside a checkpoint and is loaded with `trust_remote_code=True`; it needs transformers 5 alone. It is
transformers' own Llama but for the width of `k_proj` and `v_proj`, which `block_configs` says layer by layer. Engines
with a DeciLM of their own (vLLM, llama.cpp, TensorRT-LLM) read the same config and need no code.

    block_configs[layer].attention.n_heads_in_group    query heads that share one key/value head
    block_configs[layer].ffn.ffn_mult                  3 I / (2 D), the same I in every layer
    sliding_window, layer_types                        as Ministral has them: tokens that a sliding layer sees

    D model width · I width of the MLP
"""

import copy
import functools
from typing import Any

import transformers

if int(transformers.__version__.partition(".")[0]) < 5:
    raise ImportError(f"The code of this checkpoint needs transformers 5, and this is {transformers.__version__}")

from transformers.models.llama.modeling_llama import LlamaAttention
from transformers.models.ministral.modeling_ministral import MinistralModel


class Block(dict):  # type: ignore[type-arg]
    """A JSON object whose keys are attributes as well: engines read `block.attention.n_heads_in_group`."""

    def __init__(self, content: dict[str, Any]) -> None:
        super().__init__({key: Block(value) if isinstance(value, dict) else value for key, value in content.items()})

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def __deepcopy__(self, memo: Any) -> "Block":
        return Block(self)


class DeciLMConfig(transformers.LlamaConfig):
    """Llama's config with one block for each layer, and with a window for some."""

    model_type = "nemotron-nas"
    block_configs: list[dict[str, Any]] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.block_configs = [Block(block) for block in self.block_configs or ()]

    def key_value_heads(self, layer: int) -> int:
        """Return the number of key/value heads of a layer, and refuse blocks that are no plain Llama layer."""
        blocks: Any = self.block_configs
        block = blocks[layer]
        parts = (block.attention, block.ffn)
        if any(part.get(key) for part in parts for key in ("no_op", "replace_with_linear")):
            raise ValueError(f"block {layer} leaves out attention or MLP, which this class does not")
        if int(2 * block.ffn.ffn_mult * self.hidden_size / 3) != self.intermediate_size:
            raise ValueError(f"block {layer} has an MLP of another width than intermediate_size")
        return self.num_attention_heads // block.attention.n_heads_in_group


class LayerAttention(LlamaAttention):
    """Llama's attention, which tells kernels that read no mask of the layer's window."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Attend."""
        kinds: Any = getattr(self.config, "layer_types", None)
        is_sliding = bool(kinds) and kinds[self.layer_idx] == "sliding_attention"
        return super().forward(*args, sliding_window=self.config.sliding_window if is_sliding else None, **kwargs)


class LayeredModel:
    """What both classes have in common."""

    config_class = DeciLMConfig


class DeciLMModel(LayeredModel, transformers.LlamaModel):
    """The body: a Llama whose layers have attention with key/value heads of their own number."""

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)
        for layer, block in enumerate(self.layers):
            own = copy.copy(config)
            own.num_key_value_heads = config.key_value_heads(layer)
            block.self_attn = LayerAttention(own, layer)
            block.self_attn.config = config  # which attention is used is said there, also later
        self.post_init()

    @functools.wraps(transformers.LlamaModel.forward)
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run all layers; where there are windows as Ministral does, which gives each layer the mask of its kind."""
        own: Any = MinistralModel if getattr(self.config, "sliding_window", None) else transformers.LlamaModel
        return own.forward(self, *args, **kwargs)


class DeciLMForCausalLM(LayeredModel, transformers.LlamaForCausalLM):
    """The language model."""

    def __init__(self, config: DeciLMConfig) -> None:
        super().__init__(config)
        self.model = DeciLMModel(config)
        self.post_init()
