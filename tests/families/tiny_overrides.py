"""The tables of the tiny model factory (`tiny.py`): no code, only values.

`GENERIC` gives a config field its value by name, in every family. `OVERRIDES` is what a model type needs besides; its
keys are the `model_type` of the config class, sub-configs included. `CLASSES` names the model class where the first
auto mapping that knows the type would give one without the part under test.
"""

from types import MappingProxyType
from typing import Any

OMIT = object()
"""Value of a field that must not be passed to the config class."""

_BY_VALUE: tuple[tuple[Any, str], ...] = (
    # widths
    (64, "hidden_size d_model n_embd embed_dim emb_dim embedding_size attention_hidden_size lru_width"),
    (64, "hidden_size_global cross_attention_hidden_size text_hidden_size out_hidden_size projection_dim"),
    (64, "output_dim vision_output_dim encoder_hidden_size adapter_out_dim output_proj_dims adapter_in_dim"),
    (64, "adapter_input_size codebook_size codebook_dim audio_vocab_size projector_hidden_size"),
    (64, "projection_hidden_dim projector_input_dim projector_output_dim alignment_intermediate_size"),
    (64, "mm_embed_dim output_channels ext_pw_out_channel depthwise_separable_out_channel nemo_conv_channels"),
    (64, "pronunciation_embed_dim shape_embed_dim"),
    (16, "downsample_hidden_size o_lora_rank"),
    (96, "intermediate_size d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim n_inner hidden_dim d_inner"),
    (96, "intermediate_size_mlp dff dim_ff dense_intermediate_size mlp_dim"),
    (32, "shared_intermediate_size moe_intermediate_size shared_expert_intermediate_size"),
    (32, "shared_experts_intermediate_size"),
    # layers
    (2, "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_decoder_layers"),
    (2, "num_encoder_layers encoder_num_hidden_layers decoder_num_hidden_layers depth"),
    # heads
    (4, "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads"),
    (4, "attention_heads encoder_num_attention_heads decoder_num_attention_heads swa_num_attention_heads"),
    (4, "cross_num_attention_heads num_key_value_heads swa_num_key_value_heads encoder_num_key_value_heads"),
    (4, "decoder_num_key_value_heads cross_num_key_value_heads num_kv_heads"),
    (16, "head_dim d_kv dim_head swa_head_dim cross_head_dim d_head attention_head_dim"),
    # vocabulary and positions
    (128, "vocab_size vocab_size_per_layer_input"),
    (64, "max_position_embeddings n_positions max_seq_len n_ctx max_target_positions max_source_positions"),
    (64, "num_position_embeddings position_embedding_size mm_posemb_size pronunciation_vocab_size"),
    (64, "shape_vocab_size"),
    (32, "original_max_position_embeddings"),
    (8, "window_size sliding_window sliding_window_size local_attention num_buckets"),
    (8, "relative_attention_num_buckets"),
    (2, "type_vocab_size"),
    # experts
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (2, "num_experts_per_tok moe_k moe_topk"),
    (1, "n_group topk_group first_k_dense_replace max_window_layers"),
    # compressed, linear and state-space attention
    (16, "kv_lora_rank v_head_dim index_head_dim query_pre_attn_scalar linear_key_head_dim"),
    (16, "linear_value_head_dim mamba_d_state mamba_d_head mamba_chunk_size mamba_head_dim ssm_state_size"),
    (16, "state_size chunk_size"),
    (24, "q_lora_rank"),
    (8, "qk_rope_head_dim qk_nope_head_dim rotary_dim index_topk mamba_n_heads mamba_num_heads"),
    (2, "index_n_heads linear_num_key_heads n_mamba_heads"),
    (4, "linear_num_value_heads mamba_dt_rank time_step_rank block_size"),
    (1, "mamba_n_groups mamba_ngroups n_groups"),
    # per-layer embeddings and learned relations
    (16, "hidden_size_per_layer_input d_rel"),
    (8, "laurel_rank adapter_rank"),
    (32, "rel_extent"),
    # vision and audio towers
    (32, "image_size max_image_size"),
    (8, "patch_size"),
    (3, "num_channels"),
    (80, "num_mel_bins"),
    (2, "num_codebooks spatial_merge_size"),
    (4, "mm_tokens_per_image prompt_length"),
    # extra heads and shared layers
    (0, "num_mtp_layers num_nextn_predict_layers num_kv_shared_layers"),
    # no dropout
    (0.0, "hidden_dropout_prob attention_probs_dropout_prob dropout attention_dropout activation_dropout"),
    (0.0, "resid_pdrop embd_pdrop attn_pdrop encoder_layerdrop decoder_layerdrop layerdrop dropout_rate"),
    (0.0, "hidden_dropout emb_pdrop"),
)
GENERIC: dict[str, Any] = {name: value for value, names in _BY_VALUE for name in names.split()}
"""Value of a config field by its name, in every family."""

TOKEN_IDS = MappingProxyType({"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1})
"""Special tokens, inside the tiny vocabulary."""

OFF_BY_DEFAULT = frozenset({"sliding_window", "sliding_window_size", "num_experts"})
"""Fields whose default of None switches something off: they stay None."""

AT_MOST = frozenset({"first_k_dense_replace", "num_mtp_layers", "num_nextn_predict_layers", "num_kv_shared_layers"})
"""Fields that only shrink."""

_MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_SLIDING = {"layer_types": ["sliding_attention", "full_attention"] * 2}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"] * 2}
_CONV = {"layer_types": ["conv", "full_attention"] * 2}
_GEMMA4_TEXT = _SLIDING | {
    "global_head_dim": 16,
    "num_global_key_value_heads": 4,
    "num_kv_shared_layers": 0,
    "use_double_wide_mlp": False,
}
_DRAFTER = {
    "backbone_hidden_size": 64,
    "text_config": {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 0},
}
_SMALL_CODEC = {"num_filters": 4, "downsampling_ratios": [2, 2], "depths": [1, 1, 1]}

OVERRIDES: dict[str, dict[str, Any]] = {
    "bailing_hybrid": _LINEAR | {"num_hidden_layers": 4, "num_local_experts": 4, "head_dim": 16},
    "bamba": {"num_hidden_layers": 4, "attn_layer_indices": [1, 3]},
    "blt": {"encoder_hash_byte_group_vocab": 64, "encoder_hash_byte_group_size": [3, 4]},
    "cohere2": _SLIDING,
    "cohere2_moe": _SLIDING,
    "cohere_compass_text": _SLIDING | {"rope_parameters": {"full_attention": _ROPE, "sliding_attention": _ROPE}},
    "dbrx": {
        "attn_config": {"kv_n_heads": 4, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"hidden_size": 64, "ffn_hidden_size": 96},
    },
    "dia": {"delay_pattern": [0, 1, 2, 3, 4, 5, 6, 7, 8]},
    "dia_decoder": {"num_channels": 9, "cross_hidden_size": 64},
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2},
    "dots3_note_text": {
        "num_hidden_layers": 4,
        "layer_types": ["indexed_attention", "sliding_attention"] * 2,
        "per_layer_config": {},
        "n_shared_experts": 1,
        "n_group": 1,
    },
    "dots3_note_audio_encoder": {"per_layer_config": {}},
    "dots3_note_vision_encoder": {"per_layer_config": {}},
    "emu3": {"vocabulary_map": {"<image>": 100}},
    "emu3_vqgan": {"base_channels": 32, "channel_multiplier": [1, 1]},
    "encodec": {"num_filters": 4},
    "exaone4": _SLIDING,
    "exaone_moe": _SLIDING,
    "falcon": {"multi_query": False, "new_decoder_architecture": False},
    "falcon_h1": {"mamba_d_ssm": 128},
    "gemma3_text": _SLIDING,
    "gemma3n_text": _SLIDING
    | {"num_kv_shared_layers": 0, "activation_sparsity_pattern": [0.0] * 4, "intermediate_size": 96},
    "gemma4_assistant": _DRAFTER,
    "gemma4_text": _GEMMA4_TEXT,
    "gemma4_unified_assistant": _DRAFTER,
    "gemma4_unified_text": _GEMMA4_TEXT,
    "glm4v_moe_text": {
        "rope_parameters": {**_MROPE, "partial_rotary_factor": 0.5, "mrope_section": [1, 1, 2]},
    },
    "glm4v_text": {"rope_parameters": _MROPE},
    "glm_ocr_text": {"rope_parameters": _MROPE},
    "gpt_bigcode": {"multi_query": False},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "attention_layers": OMIT, "num_layers": 2},
    "gpt_oss": _SLIDING,
    "granitemoehybrid": _LINEAR | {"num_hidden_layers": 4},
    "hunyuan_vl_text": {"rope_parameters": _MROPE},
    "jamba": {"num_hidden_layers": 4, "attn_layer_period": 2, "attn_layer_offset": 1},
    "kimi_linear": _LINEAR
    | {
        "num_hidden_layers": 4,
        "q_lora_rank": None,
        "linear_head_dim": 16,
        "linear_num_heads": 4,
        "num_local_experts": 4,
    },
    "lfm2": _CONV,
    "lfm2_moe": _CONV,
    "longcat_flash": {
        "head_dim": 8,
        "ffn_hidden_size": 96,
        "expert_ffn_hidden_size": 32,
        "zero_expert_num": 2,
        "num_hidden_layers": OMIT,
    },
    "mamba2": {"num_heads": 8, "head_dim": 16},
    "mimo_v2_flash": _SLIDING
    | {
        "num_key_value_heads": 2,
        "v_head_dim": 8,
        "head_dim": 16,
        "rope_parameters": {
            "full_attention": _ROPE | {"partial_rotary_factor": 0.5},
            "sliding_attention": _ROPE | {"partial_rotary_factor": 0.5},
        },
    },
    "minimax": _LINEAR | {"block_size": 4},
    "modernbert-decoder": _SLIDING,
    "molmo2_adapter": {"vision_feature_layer": [1, 0], "vit_layers": [1, 0]},
    "molmo2_vision": {"image_size": [32, 32]},
    "mpt": {"attn_config": {"attn_impl": "torch"}},
    "nemotron_h": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "attention", "mlp", "attention"]},
    "olmo3": _SLIDING,
    "olmo_hybrid": _LINEAR,
    "paddleocr_vl_text": {"rope_parameters": _MROPE},
    "phi": {"partial_rotary_factor": 0.5},
    "qwen2_5_omni_text": {"rope_parameters": _MROPE},
    "qwen2_5_vl_text": {"rope_parameters": _MROPE},
    "qwen2_vl_text": {"rope_parameters": _MROPE},
    "qwen3_5_moe_text": _LINEAR,
    "qwen3_5_text": _LINEAR,
    "qwen3_next": _LINEAR,
    "qwen4_exp_text": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "hc_lowrank": 8,
        "ngram_vocab_size_base": 64,
        "make_ngram_vocab_size_divisible_by": 8,
        "heads_per_ngram": 2,
        "split_ngram_parts": 2,
    },
    "recurrent_gemma": {
        "num_hidden_layers": 3,
        "attention_window_size": 8,
        "sliding_window": OMIT,
        "block_types": ["recurrent", "attention", "attention"],
    },
    "reformer": {
        "is_decoder": True,
        "attn_layers": ["local", "local"],
        "axial_pos_shape": [8, 8],
        "axial_pos_embds_dim": [32, 32],
        "feed_forward_size": 96,
        "attention_head_size": 16,
    },
    "smollm3": {"no_rope_layers": [1, 0, 1, 0]},
    "step3p5": {"sliding_window": 8},
    "vibevoice_acoustic_tokenizer": _SMALL_CODEC,
    "vibevoice_acoustic_tokenizer_encoder": _SMALL_CODEC,
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "zamba": {
        "num_hidden_layers": 6,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "attention_hidden_size": 128,
        "attention_head_dim": 32,
        "layers_block_type": ["mamba", "hybrid", "mamba"] * 2,
    },
    "zamba2": {
        "num_hidden_layers": 4,
        "layers_block_type": ["mamba", "hybrid"] * 2,
        "n_mamba_heads": 8,
        "num_mem_blocks": 1,
        "attention_head_dim": 32,
    },
    "zaya": {"num_experts_per_tok": 1},
}
"""What a model type needs besides `GENERIC`, by the `model_type` of its config class."""

CLASSES: dict[str, str] = {
    "dots3_note": "Dots3NoteForConditionalGeneration",
    "emu3": "Emu3ForConditionalGeneration",
    "llama4": "Llama4ForConditionalGeneration",
    "musicgen": "MusicgenForConditionalGeneration",
    "musicgen_melody": "MusicgenMelodyForConditionalGeneration",
    "mllama": "MllamaForConditionalGeneration",
    "qwen3_5": "Qwen3_5ForConditionalGeneration",
    "qwen3_5_moe": "Qwen3_5MoeForConditionalGeneration",
    "higgs_audio_v2": "HiggsAudioV2ForConditionalGeneration",
    "qwen4_exp": "Qwen4ExpForConditionalGeneration",
}
"""Model classes that the auto mappings would not give."""
