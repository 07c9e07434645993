"""What transformers' classes call things, whatever the family: the only place that knows these names.

A name here means the same wherever it stands, and most families use a few of them; what is true of one family alone is
in its row of `table.py`. A class that calls a thing by another name adds it to the list of that thing: until then its
layers are found where transformers itself finds them (`changes.py`), and merged head by head.

Names of submodules are those within an attention module or a block, without the path before them.
"""

from collections.abc import Mapping
from typing import Literal

PLAIN = r"(k_proj|v_proj)(\.linear)?\.(weight|bias)"
"""Tensors `[K·E, ...]` that are keys or values in every family; a pattern as those of a row's `tensors`."""

QUERIES = ("q_proj", "self.query", "q_lin", "q")
"""Projections of queries that are modules of their own."""
KEYS_AND_VALUES: Mapping[str, Literal["k", "v"]] = {
    **dict.fromkeys(("k_proj", "self.key", "k_lin", "k"), "k"),
    **dict.fromkeys(("v_proj", "self.value", "v_lin", "v"), "v"),
}
"""Projections of keys and of values: whole layers are merged by methods where both can be told apart."""
OUTPUTS = ("o_proj", "out_proj", "dense", "c_proj", "output.dense", "out_lin", "o")
"""Output projections, which take up what values are multiplied with; the first that a module has is meant."""
WEIGHTS = (".weight", ".linear.weight")
"""What a projection's matrix is called below it: some are wrapped (`linear`)."""

QUERY_AND_KEY_NORMS = (("q_norm", "k_norm"), ("q_layernorm", "k_layernorm"), ("query_layernorm", "key_layernorm"))
"""Norms behind the projections of queries and of keys, which leave keys less freedom."""
INPUT_NORMS = (
    *("input_layernorm", "operator_norm", "temporal_pre_norm", "self_attn_layer_norm", "pre_attention_layernorm"),
    *("pre_self_attn_layernorm", "attn_norm", "norm_1", "ln_1", "input_norm", "norm", "layer_norm", "layernorm_before"),
)
"""The norm in front of attention, among the children of a block: its gains say how large inputs are, channel by
channel, where there is no text to measure it. Without one, they count as equal."""

CROSS_ATTENTION = ("cross_attn", "encoder_attn", "crossattention", "cross_attention", "encdecattention")
"""Parts of the lower-case path of an attention module that reads the keys and values of another sequence."""
WINDOWS = {
    "sliding_attention": "sliding_window",
    "hybrid_sliding": "sliding_window",
    "chunked_attention": "attention_chunk_size",
}
"""Kind of a layer in a config's `layer_types` -> config key of its window; layers of other kinds keep every token."""

MLP = ("mlp", "ffn", "feed_forward", "ff", "moe", "expert", "fc", "dense", "gate", "router", "ffw")
"""Parts of the lower-case name of what is neither attention, norm nor embedding and counts as MLP."""
