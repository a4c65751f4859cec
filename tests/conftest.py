"""What every test may use: tiny random models of many architectures, a tiny tokenizer, the data beside the project."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("ENTANGLE_SHARED", REPOSITORY.parent / "shared"))

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
    "gpt2": {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_positions": 64},
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
def _tiny(model_type: str, seed: int) -> PreTrainedModel:
    sizes = {k: v for k, v in {**SIZES, **OWN_SIZES.get(model_type, {})}.items() if v is not None}
    config = AutoConfig.for_model(model_type, **sizes)
    torch.manual_seed(seed)
    auto = AutoModel if model_type == "bert" else AutoModelForCausalLM
    model = auto.from_config(config).eval()
    # Random models with the usual tiny initialisation are nearly linear: larger weights make a wrong hook show.
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(5)
            else:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., PreTrainedModel]:
    """`tiny_model("llama")`: a random model of that type, 3 layers, d_model 32; shared, so leave it unchanged."""
    return lambda model_type="llama", seed=0: _tiny(model_type, seed)


@pytest.fixture(params=CAUSAL)
def causal_lm(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Each of the tiny causal language models in turn."""
    return _tiny(request.param, 0)


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of `VOCABULARY` tokens, trained here; pads, begins and ends as SIZES says."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>", "<unk>"])
    tokenizer.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog", "a cat sat on the mat and looked at the moon"] * 4, trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real data and models; tests that use it are marked `shared`."""
    if not (SHARED / "models").is_dir():
        pytest.skip(f"needs the data and models beside the project; none at {SHARED} (set ENTANGLE_SHARED)")
    return SHARED


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    """Figures that a test drew are closed after it."""
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")
