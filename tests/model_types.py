"""A tiny random config of every model type that transformers maps to a causal language model."""

from __future__ import annotations

from typing import Any

from transformers import CONFIG_MAPPING, PretrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.tiny import SIZES, START_ID

MODEL_TYPES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

_SIZES: dict[str, Any] = {
    **SIZES,
    "bos_token_id": START_ID,
    # experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_intermediate_size": 24,
    "expert_ffn_hidden_size": 24,
    "ffn_hidden_size": 48,
    "shared_expert_intermediate_size": 24,
    "moe_shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    # latent attention
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "index_head_dim": 16,
    "index_n_heads": 8,  # of two, ReLU often makes all zero, and equal scores leave open what is selected
    "index_topk": 4,
    # recurrent layers
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_n_groups": 1,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    # dropout, which would hide that a loss goes down
    **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), 0.0),
}
_VISION = {
    **dict.fromkeys(
        ("hidden_size", "embed_dim", "projection_dim", "vision_output_dim", "output_dim", "out_hidden_size"), 16
    ),
    **dict.fromkeys(("intermediate_size", "mlp_dim"), 24),
    **dict.fromkeys(("num_hidden_layers", "num_attention_heads", "depth", "num_heads", "num_global_layers"), 2),
    "head_dim": 8,
    "image_size": 28,
    "patch_size": 14,
}
_FULL_HEADS = {"num_key_value_heads": 4}
_LINEAR = {"layer_types": ["linear_attention", "full_attention"]}
_GEMMA = {"hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": 300, "num_kv_shared_layers": 0}
_GEMMA |= {"layer_types": ["sliding_attention", "full_attention"]}
_TYPES: dict[str, dict[str, Any]] = {
    **dict.fromkeys(("axk1", "axk2", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots3_note_text"), _FULL_HEADS),
    **dict.fromkeys(("glm4_moe_lite", "glm_moe_dsa", "minicpm3", "youtu"), _FULL_HEADS),
    **dict.fromkeys(("qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"), _LINEAR),
    **dict.fromkeys(("gemma4_text", "gemma4_unified_text"), _GEMMA),
    **{key: {"rotary_dim": 4} for key in ("codegen", "gptj")},
    "gemma3n_text": _GEMMA
    | {"hidden_size_per_layer_input": 8, "laurel_rank": 4, "activation_sparsity_pattern": [0.0, 0.0]},
    "falcon_h1": {"mamba_d_ssm": 64},
    "mamba2": {"num_heads": 4, "head_dim": 16, "n_groups": 1},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "zamba": {"num_hidden_layers": 4, "layer_types": ["mamba", "hybrid"] * 2},
    "zamba2": {"num_hidden_layers": 4, "layers_block_type": ["mamba", "hybrid"] * 2, "n_mamba_heads": 4},
    "longcat_flash": _FULL_HEADS | {"zero_expert_num": 2},
    "zaya": {"num_experts_per_tok": 1},
    "cohere_compass_text": {
        "layer_types": ["full_attention"] * 2,
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}},
    },
    "dots3_note": {
        "vision_config": _VISION | {"mlp_layer_types": ["dense"] * 2, "adapter_in_dim": 16, "adapter_out_dim": 32},
        "audio_config": _VISION | {"adapter_input_size": 16, "adapter_out_dim": 32, "downsample_hidden_size": 16},
    },
    "dbrx": {
        "d_model": 32,
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v4": {
        "compress_rates": {"compressed_sparse_attention": 2, "heavily_compressed_attention": 4},
        "layer_types": ["heavily_compressed_attention", "compressed_sparse_attention"],
        "num_hash_layers": 1,
        "num_key_value_heads": 1,
        "o_groups": 2,
        "o_lora_rank": 16,
        "head_dim": 16,
    },
}
_OMITTED = {"falcon": ("head_dim",), "xlstm": ("v_head_dim",)}
_TEXTS = {
    "dots3_note": "dots3_note_text",
    "emu3": "llama",
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n_text",
    "gemma4": "gemma4_text",
    "gemma4_unified": "gemma4_unified_text",
    "got_ocr2": "qwen2",
    "llama4": "llama4_text",
    "mllama": "llama",
    "qwen3_5": "qwen3_5_text",
    "qwen3_5_moe": "qwen3_5_moe_text",
    "qwen4_exp": "qwen4_exp_text",
}
"""The type of the text model in a type with several modalities."""


def tiny_type_config(model_type: str, **overrides: Any) -> PretrainedConfig:
    """The config of a model of this type of two layers or a few more, 32 features, and four experts if it has any."""
    text = _TEXTS.get(model_type)
    if text is not None:
        parts = {"text_config": _SIZES | _TYPES.get(text, {}), "vision_config": _VISION} | _TYPES.get(model_type, {})
        return CONFIG_MAPPING[model_type](**(parts | overrides))
    values = _SIZES | _TYPES.get(model_type, {}) | overrides
    omitted = _OMITTED.get(model_type, ())
    return CONFIG_MAPPING[model_type](**{name: value for name, value in values.items() if name not in omitted})
