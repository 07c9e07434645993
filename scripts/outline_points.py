"""What `make_outlines.py` tries: sizes at a few points, and other values of everything else."""

from collections.abc import Mapping, Sequence
from typing import Any

_DEPTHS, _HEADS, _WIDTHS = (2, 3, 5, 2, 4, 1), (4, 6, 8, 12, 10, 16), (14, 22, 8, 26, 34, 64)
_HIDDEN = (64, 72, 144, 168, 220, 512)
_INNER, _ROWS = (74, 118, 86, 206, 142, 1234), (131, 173, 149, 157, 191, 1009)
_EXPERTS, _SHARED = (4, 7, 5, 9, 11, 16), (106, 82, 122, 166, 134, 444)
_PLACES = (138, 62, 98, 178, 194, 1100)
SIZES: Mapping[str, Sequence[int]] = {
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers", "encoder_layers"), _DEPTHS),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads", "attention_heads"), _HEADS),
    "encoder_attention_heads": _HEADS,
    "num_key_value_heads": (2, 3, 8, 1, 5, 2),
    "decoder_key_value_heads": (2, 1, 4, 3, 5, 8),
    "cross_key_value_heads": (1, 3, 2, 6, 1, 4),
    "encoder_key_value_heads": (1, 6, 4, 3, 2, 4),
    **dict.fromkeys(("head_dim", "d_kv"), _WIDTHS),
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "dim"), _HIDDEN),
    **dict.fromkeys(("intermediate_size", "n_inner", "d_ff", "ffn_dim", "hidden_dim", "ffn_hidden_size"), _INNER),
    "encoder_ffn_dim": _INNER,
    **dict.fromkeys(("num_decoder_layers", "decoder_layers"), (3, 2, 4, 5, 1, 2)),
    "decoder_attention_heads": (2, 3, 4, 6, 5, 8),
    "decoder_ffn_dim": (78, 110, 94, 202, 146, 1230),
    "vocab_size": _ROWS,
    **dict.fromkeys(("num_local_experts", "num_experts"), _EXPERTS),
    "moe_intermediate_size": (46, 38, 62, 94, 58, 333),
    **dict.fromkeys(("shared_expert_intermediate_size", "shared_intermediate_size"), _SHARED),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "max_source_positions"), _PLACES),
    "max_target_positions": (134, 58, 102, 182, 190, 1104),
    "type_vocab_size": (3, 2, 5, 7, 4, 1),
    **dict.fromkeys(("embedding_size", "word_embed_proj_dim"), (30, 26, 34, 42, 50, 90)),
    "relative_attention_num_buckets": (16, 28, 36, 48, 20, 32),
    "num_mel_bins": (40, 24, 54, 80, 66, 128),
    "classifier_proj_size": (27, 31, 39, 45, 51, 57),
}
"""Sizes, and what they are at each point; the last point is for comparison alone."""
LABELS = (3, 7, 4, 9, 5, 6)
POINTS = range(5)
PAIRS = (("embedding_size", "hidden_size"), ("word_embed_proj_dim", "hidden_size"))
"""Sizes between which a class has a projection, unless they are equal."""
ACTIVATIONS = ("silu", "gelu", "gelu_new", "gelu_pytorch_tanh", "gelu_fast", "relu", "relu2", "swish")
ACTIVATION_KEYS = ("hidden_act", "hidden_activation", "activation_function", "activation")
CHOICES: Mapping[str, Sequence[str]] = {"feed_forward_proj": ("relu", "gated-gelu", "gated-silu")}
"""Words that a class takes tensors by."""
IMPLIED = ("is_gated_act", "dense_act_fn")
"""Keys that say a part of such a word again."""
GENERAL = ("is_encoder_decoder", "return_dict", "output_hidden_states", "chunk_size_feed_forward")
"""Keys of all classes that may have the default of a class."""
ROTATIONS = (("rope_theta", "partial_rotary_factor"), ("rotary_emb_base", "rotary_pct"))
"""Former names of the base of the rotation, and of the part of a head that is rotated."""
COUNTS = (
    *("sliding_window", "max_window_layers", "num_experts_per_tok", "pretraining_tp", "rotary_dim", "n_ctx"),
    *("original_max_position_embeddings", "query_pre_attn_scalar", "decoder_sparse_step", "max_seq_len"),
    *("relative_attention_max_distance", "num_kv_heads"),
)
"""Keys of whole numbers besides sizes and tokens that are tried."""
ROTARY = ("rope_parameters", "rope_scaling")
ROPES: tuple[Any, ...] = (
    {"rope_type": "default", "rope_theta": 5000.0},
    {"type": "linear", "factor": 2.0},
    {
        "rope_type": "llama3",
        "rope_theta": 5e5,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
    },
)
KINDS = ("full_attention", "sliding_attention")
READ = (
    *("model_type", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_size", "num_hidden_layers"),
    *("vocab_size", "max_position_embeddings", "layer_types", "sliding_window", "attention_chunk_size", "is_decoder"),
    *("is_encoder_decoder", "tie_word_embeddings", "num_kv_shared_layers", "attn_config", "rope_parameters"),
    *("attention_bias", "mlp_bias", "bos_token_id", "eos_token_id", "pad_token_id", "hidden_act", "hidden_activation"),
    *("clip_qkv", "alibi", "attn_logit_softcapping", "final_logit_softcapping", "logit_cap", "attn_logit_cap"),
    *("use_qk_norm", "activation_function", "encoder_attention_heads", "decoder_attention_heads", "scale_embedding"),
    *("initializer_range", "use_parallel_residual"),
)
"""What conversion and inspection read of a config, besides the keys of its class."""
TRIED: Mapping[str, Sequence[tuple[str, Sequence[Any]]]] = {
    "token": (("ids", (5, None, 10**6, [5, 6])), ("id", (5, None, 10**6)), ("token", (5, None)), ("index", (5, 10**6))),
    "list": (("numbers", (None, [], [1, 2])),),
    "count": (("size?", (1, 64, 1000, None)), ("size", (1, 64, 1000))),
    "share": (("share", (0.0, 0.5, 1.0, 0)), ("part", (0.0, 0.5, 1.0))),
    "activation": (("activation", ("relu", "silu")),),
    "float": (
        ("real", (7.5, 1e-6, 2, 0.0, 0)),
        ("decimal", (7.5, 1e-6, 0.0)),
        ("number", (7.5, 1e-6, 2)),
        ("float", (7.5, 1e-6)),
        ("share", (0.0, 0.5, 1.0, 0)),
        ("part", (0.0, 0.5, 1.0)),
    ),
}
"""Form of a key -> domains of `tried.py`, widest first, and the values by which each is tried."""
UNREAD: Mapping[str, tuple[str, Any]] = {
    **dict.fromkeys(("is_llama_config", "rope_interleaved", "use_mrope", "unsloth_fixed"), ("switch", True)),
    **dict.fromkeys(("gradient_checkpointing", "output_past", "use_sliding_window"), ("switch", False)),
    **dict.fromkeys(
        ("tie_word_embeddings", "tie_weights_", "scale_decoder_outputs", "slow_but_exact"), ("switch", False)
    ),
    **dict.fromkeys(("normalize_before", "add_bias_logits", "add_final_layer_norm"), ("switch", False)),
    **dict.fromkeys(("normalize_embedding", "static_position_embeddings"), ("switch", True)),
    **dict.fromkeys(("attention_softmax_in_fp32", "bias_dropout_fusion", "masked_softmax_fusion"), ("switch", True)),
    **dict.fromkeys(("skip_bias_add", "skip_bias_add_qkv"), ("switch", False)),
    **dict.fromkeys(("pretraining_tp", "max_window_layers", "model_max_length", "n_ctx", "n_positions"), ("size", 7)),
    **dict.fromkeys(("seq_length", "offset_alibi", "pooler_num_attention_heads", "pooler_num_fc_layers"), ("size", 7)),
    "pooler_size_per_head": ("size", 7),
    **dict.fromkeys(("tokenizer_class", "unsloth_version", "pooler_type", "directionality"), ("text", "x")),
    "position_embedding_type": ("choice", "absolute"),
    "unk_token_id": ("token", 1),
    "bos_token_id": ("id", 1),
    **dict.fromkeys(("id2label", "label2id", "task_specific_params"), ("any", {"0": "x", "1": "y"})),
}
"""Keys that configs of other classes have, or other programs: their domains, and a value by which they are tried."""
TWINS = {"decoder_vocab_size": "vocab_size"}
"""Sizes that a class may have apart, and another that they are equal to nearly everywhere."""
NAMED: Mapping[str, tuple[str, Sequence[Any]]] = {"decoder_start_token_id": ("id", (5, None, 10**6))}
"""Keys of a class that are none of its fields: their domains, and the values by which they are tried."""
SPELLED = {"n_embed": "hidden_size"}
"""Former names of keys, besides those that a class has in its `attribute_map`."""
CHECKED: Mapping[str, Sequence[Any]] = {
    "switch": (False, True),
    "share": (0.0, 0.25),
    "part": (0.0, 0.25),
    **dict.fromkeys(("real", "decimal"), (0.0, 3.0)),
    "number": (0.5, 3.0),
    "float": (0.5, 3.0),
    "size": (17, 300),
    "size?": (17, 300),
    "token": (0, 7),
    "id": (0, 10**6),
    "ids": (0, [1, 10**6]),
    "index": (0, 10**6),
    "numbers": (None, [3, 1]),
    "text": ("x", "y"),
}
"""Domain -> values that are chosen of."""
