"""Tiny random models of many architectures, built once and shared by all tests."""

from __future__ import annotations

from functools import cache

import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
    PreTrainedModel,
    RobertaConfig,
    RobertaForCausalLM,
)

VOCABULARY = 96
SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "vocab_size": VOCABULARY,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
# Where a configuration has names of its own, or cannot take one of SIZES.
OWN_SIZES: dict[str, dict[str, object]] = {
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64, "num_key_value_heads": None, "head_dim": None},
    "gpt_neox": {"num_key_value_heads": None, "head_dim": None},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32, "num_key_value_heads": None, "head_dim": None},
    "bert": {"num_key_value_heads": None, "head_dim": None},
    "phi": {"head_dim": None},
    "olmo2": {"head_dim": None},
    "olmo": {"head_dim": None},
    "gemma3_text": {"head_dim": 16, "sliding_window": 16},
    "gemma2": {"head_dim": 16, "sliding_window": 16},
}
CAUSAL = [
    "gpt2",
    "gpt_neox",
    "llama",
    "olmo",
    "olmo2",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3_text",
    "mistral",
    "phi",
    "opt",
]


@cache
def build(model_type: str, seed: int) -> PreTrainedModel:
    sizes = {k: v for k, v in {**SIZES, **OWN_SIZES.get(model_type, {})}.items() if v is not None}
    config = AutoConfig.for_model(model_type, **sizes)
    torch.manual_seed(seed)
    auto = AutoModel if model_type == "bert" else AutoModelForCausalLM
    model = auto.from_config(config).eval()
    return enlarge(model)


def enlarge(model: PreTrainedModel) -> PreTrainedModel:
    """Random models with the usual tiny initialisation are nearly linear: larger weights make a wrong hook show."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def roberta_lm() -> PreTrainedModel:
    """A decoder whose positions begin at 2."""
    config = RobertaConfig(
        vocab_size=96,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=40,
        pad_token_id=1,
        is_decoder=True,
    )
    torch.manual_seed(0)
    model = RobertaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model
