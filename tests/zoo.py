"""Tiny random models of every family in the installed transformers, from the defaults of its own configurations."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from tiny import enlarge

D_MODEL, HEADS, D_HEAD, D_MLP, LAYERS, VOCABULARY = 32, 4, 8, 48, 2, 96

# Attributes of configurations, by what they mean.
SMALL: dict[str, Any] = {}
for names, value in {
    (
        "hidden_size d_model n_embd dim hidden_dim embed_dim embedding_size d_embed word_embed_proj_dim emb_dim "
        "projection_dim encoder_hidden_dim attention_hidden_size lru_width output_dim residual_dim"
    ): D_MODEL,
    (
        "intermediate_size d_ff ffn_dim n_inner decoder_ffn_dim encoder_ffn_dim d_inner moe_intermediate_size "
        "ffn_hidden_size "
        "shared_expert_intermediate_size mlp_hidden_size feed_forward_size dff intermediate_size_mlp"
    ): D_MLP,
    (
        "num_hidden_layers n_layer n_layers num_layers encoder_layers decoder_layers num_decoder_layers "
        "num_encoder_layers "
        "num_local_layers"
    ): LAYERS,
    (
        "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads attention_heads "
        "num_encoder_attention_heads num_decoder_attention_heads"
    ): HEADS,
    "num_key_value_heads num_kv_heads n_head_kv multi_query_group_num": 2,
    "head_dim d_kv kv_channels v_head_dim qk_nope_head_dim attention_head_dim": D_HEAD,
    "qk_rope_head_dim": 4,
    "kv_lora_rank q_lora_rank": 16,
    "vocab_size vocab_size_per_layer_input": VOCABULARY,
    "max_position_embeddings n_positions max_sequence_length n_ctx": 64,
    "num_experts num_local_experts n_routed_experts moe_num_experts num_routed_experts": 4,
    "num_experts_per_tok moe_k moe_top_k top_k_experts num_selected_experts": 2,
    "n_group topk_group": 1,
    "image_size": 16,
    "patch_size": 8,
    "num_frames": 4,
    "tubelet_size": 2,
    "num_mel_bins": 16,
    "max_length": 32,
    "max_source_positions": 32,
    "num_conv_pos_embeddings": 4,
    "num_conv_pos_embedding_groups": 2,
}.items():
    SMALL |= dict.fromkeys(names.split(), value)

# What a family needs besides.
MLA = {"head_dim": 4, "num_key_value_heads": 4}
HYBRID = {"layer_types": ["linear_attention", "full_attention"]}
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1}
OWN: dict[str, dict[str, Any]] = {
    "axk1": MLA,
    "axk2": MLA,
    "bailing_hybrid": {**MLA, **HYBRID},
    "bamba": {**MAMBA, "attn_layer_indices": [1]},
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {"layer_types": ["sliding_attention", "full_attention"]},
    "deepseek_v2": {**MLA, "num_experts_per_tok": 2, "n_routed_experts": 4},
    "deepseek_v3": MLA,
    "deepseek_v32": MLA,
    "dots1": {"n_shared_experts": 1, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "glm4_moe_lite": MLA,
    "glm_moe_dsa": MLA,
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 4},
    "granitemoehybrid": {**MAMBA, "layer_types": ["mamba", "attention"]},
    "hunyuan_v1_dense": {"head_dim": D_HEAD},
    "hunyuan_v1_moe": {"head_dim": D_HEAD},
    "ministral": {"head_dim": D_HEAD},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "use_mamba_kernels": False},
    "kimi_linear": {**MLA, **HYBRID, "num_experts": 8, "num_experts_per_token": 2},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "lfm3": {"layer_types": ["conv", "full_attention"]},
    "longcat_flash": MLA,
    "mamba2": {"num_heads": 8},
    "minicpm3": MLA,
    "nemotron": {"num_key_value_heads": 2},
    "qwen3_5": {"text_config": HYBRID},
    "qwen3_5_moe": {"text_config": HYBRID},
    "qwen3_5_moe_text": HYBRID,
    "qwen3_5_text": HYBRID,
    "qwen3_next": HYBRID,
    "recurrent_gemma": {"block_types": ["recurrent", "attention"]},
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "sarvam_mla": MLA,
    "xmod": {"default_language": "en_XX"},
    "youtu": MLA,
    "zamba": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"]},
    "zamba2": {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"], "mamba_d_state": 8},
    "zaya": {"num_experts_per_tok": 1},
}


def shrink(config: PreTrainedConfig, own: dict[str, Any]) -> dict[str, Any]:
    """The keyword arguments for a small configuration of the same class."""
    small: dict[str, Any] = {}
    for name, value in config.to_dict().items():
        nested = vars(config).get(name)
        if isinstance(nested, PreTrainedConfig):
            small[name] = shrink(nested, own.get(name, {}))
        elif name in SMALL and type(value) is int:
            small[name] = SMALL[name]
    tokens = {"pad_token_id": 0, "bos_token_id": 1, "decoder_start_token_id": 1, "eos_token_id": 2}
    small |= {name: token for name, token in tokens.items() if hasattr(config, name)}
    return {**small, **{k: v for k, v in own.items() if not isinstance(v, dict) or k not in small}}


def tiny(model_type: str, auto: Any, seed: int = 0, **settings: Any) -> PreTrainedModel:
    """A random model of the family, with weights large enough that a wrong hook shows."""
    default = AutoConfig.for_model(model_type)
    config = AutoConfig.for_model(model_type, **shrink(default, {**OWN.get(model_type, {}), **settings}))
    torch.manual_seed(seed)
    return enlarge(auto.from_config(config).eval())
