"""How long an input a model takes."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

UNLIMITED = 1_000_000  # tokenizers without a limit say 1e30


def context_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens in the longest input of this model and tokenizer; `UNLIMITED` where neither says.

    Position tables that begin after the padding index (RoBERTa) hold fewer positions than their size.
    """
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or UNLIMITED
    reserved = max(
        (
            module.padding_idx + 1
            for name, module in model.named_modules()
            if name.endswith("position_embeddings")
            and isinstance(module, nn.Embedding)
            and module.padding_idx is not None
        ),
        default=0,
    )
    return int(min(positions - reserved, tokenizer.model_max_length, UNLIMITED))
