"""Six public chat templates, tiny tokenizers that know their marks, and a tiny model that reads them."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

import tokenizing
from tiny import enlarge

FOLDER = Path(__file__).parent / "evaluation" / "chat_templates"
TEMPLATES = ["chatml", "llama3", "gemma", "mistral", "phi", "zephyr"]
ENDS = {
    "chatml": "<|im_end|>",
    "llama3": "<|eot_id|>",
    "gemma": "<end_of_turn>",
    "mistral": "</s>",
    "phi": "<|end|>",
    "zephyr": "</s>",
}
MARKS = [
    *("<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"),
    *("<start_of_turn>", "<end_of_turn>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
]
BEGUN = {"llama3", "gemma", "mistral"}  # templates that write the beginning of a sequence themselves
SYSTEM = {"chatml", "llama3", "phi", "zephyr"}  # templates that take a system turn
KINDS = ["begins", "bare", "slow"]  # the tokenizer puts a beginning before texts by itself; it does not; no fast one
VOCABULARY = 400

FEW_SHOT = [
    {"role": "user", "content": "the cat sat"},
    {"role": "assistant", "content": "on a mat"},
    {"role": "user", "content": "the fox ran"},
]
ASKED = [{"role": "user", "content": "where is the moon"}]
TOLD = [{"role": "system", "content": "by the river"}, *FEW_SHOT]
ANSWERED = [*FEW_SHOT, {"role": "assistant", "content": "very far away"}]


def conversations(template: str) -> list[list[dict[str, str]]]:
    """Prompts that a template takes."""
    return [FEW_SHOT, ASKED, *([TOLD] if template in SYSTEM else [])]


def chat_tokenizer(template: str, kind: str = "begins") -> PreTrainedTokenizerBase:
    """A tokenizer of `KINDS` with one of the templates."""
    tokenizer: Any = tokenizing.tokenizer("slow" if kind == "slow" else "bytes")
    if kind == "slow":
        tokenizer.add_special_tokens({"bos_token": "<s>"})
    elif kind == "bare":
        tokenizer.backend_tokenizer.post_processor = _no_frame()
    tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    tokenizer.chat_template = (FOLDER / f"{template}.jinja").read_text()
    assert len(tokenizer) <= VOCABULARY
    return tokenizer


def _no_frame() -> Any:
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(single="$A", special_tokens=[])


@cache
def chat_model() -> PreTrainedModel:
    """A random LLaMA of two layers; shared, so leave it unchanged."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        vocab_size=VOCABULARY,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return enlarge(LlamaForCausalLM(config).eval())
