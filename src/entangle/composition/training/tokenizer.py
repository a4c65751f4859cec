"""The tokenizer of a recipe: a byte-level BPE trained on the corpus itself, or one that is given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from entangle.errors import EntangleError
from entangle.models.loading import LOADING_ERRORS, refuse_code

END_OF_TEXT = "<|endoftext|>"
N_BYTES = 256


def train_tokenizer(texts: Iterable[str], vocab_size: int = 2048) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer whose one special token begins every document, and pads.

    Every string can be encoded, since all 256 bytes are in the vocabulary.

    Args:
        texts: What to learn merges from.
        vocab_size: Tokens, the bytes and `<|endoftext|>` included; fewer come out where the texts hold no more merges.

    Raises:
        EntangleError: Where `vocab_size` has no room for the bytes.

    Example:
        >>> tokenizer = en.composition.train_tokenizer(texts, vocab_size=300)
        >>> len(tokenizer)
        300
        >>> tokenizer.decode(tokenizer("daft pickle")["input_ids"])
        'daft pickle'
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    if vocab_size <= N_BYTES + 1:
        raise EntangleError(f"a byte-level vocabulary needs more than {N_BYTES + 1} tokens, not {vocab_size}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT
    )


def load_tokenizer(folder: str | Path) -> PreTrainedTokenizerBase:
    """A tokenizer that is given, which must be able to part documents.

    Raises:
        EntangleError: Where the folder holds none, or it has neither a beginning- nor an end-of-text token.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)
    except LOADING_ERRORS as error:
        refuse_code(str(folder), error)
        raise EntangleError(f"{folder} holds no tokenizer ({str(error).splitlines()[0]})") from None
    if tokenizer.bos_token_id is None and tokenizer.eos_token_id is None:
        raise EntangleError(f"the tokenizer in {folder} has neither bos_token nor eos_token to part documents with")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.bos_token
    return tokenizer
