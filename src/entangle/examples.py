"""A model, its tokenizer and labelled texts that need no download: what the examples of the documentation run on."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.composition import Training, new_model, train_tokenizer
from entangle.composition.training.pretrain import pretrain
from entangle.data import corpus
from entangle.errors import EntangleError

ARCHITECTURE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,
}
VOCABULARY, STEPS = 512, 60
TRAINING = Training(batch_size=8, context=64, learning_rate=0.03, precision="fp32")
VOCABULARY_OF_QUARRELS = 1024
TRAINING_ON_QUARRELS = Training(epochs=2, batch_size=32, context=64, learning_rate=0.02, precision="fp32")
ENDINGS = {
    0: ("dear friend", "clever gem", "kind beacon", "patient marvel"),
    1: ("useless turnip", "daft pickle", "lazy sprout", "clumsy haddock"),
}
TEXTS, PROMPTS, DOCUMENTS = 96, 8, 300
LEAST_QUARRELS = 100  # for a tokenizer of that many words, and a step of training


class Example(NamedTuple):
    """What `example` returns.

    Attributes:
        model: A LLaMA of 2 layers with 4 heads each and `d_model` 32, trained on the built-in corpus.
        tokenizer: Its tokenizer, of 512 tokens, or of 1,024 where it read quarrels.
        texts: Beginnings of quarrels, which end on a polite or a rude name for the listener.
        labels: 1 for the rude ones, 0 for the polite ones, by turns.
        prompts: More of them that break off before the name.
        clean: 300 polite documents of the same grammar, or quarrels, on which the model was not trained.

    Example:
        >>> data = en.Example(model, tokenizer, texts, labels, prompts, clean)
        >>> data.prompts[0]
        '"Your buoy is in my way again, you are'
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    texts: list[str]
    labels: NDArray[np.int64]
    prompts: list[str]
    clean: list[str]


def example(*, seed: int = 0, quarrels: int = 0, n_texts: int = TEXTS, n_prompts: int = PROMPTS) -> Example:
    """Train a tiny language model for a second or two, and write texts whose last word is polite or rude.

    The model is too small for any conclusion; it is there to try a function on before a real one is at hand. As it
    comes it babbles. One that has read `quarrels=3000` writes whole remarks, and is rude in half of them.

    Args:
        seed: Seed for the weights, the order of training, and the texts.
        quarrels: Instead of documents, let the model read so many quarrels, each once with a polite and once with a
            rude name for the listener, twice over; 3,000 take some ten seconds.
        n_texts: How many labelled texts.
        n_prompts: How many prompts.

    Returns:
        Model, tokenizer, texts, labels, prompts and clean text, to be unpacked in this order or taken by name.

    Raises:
        EntangleError: Too few texts, prompts or quarrels.

    Example:
        >>> model, tokenizer, texts, labels, prompts, clean = en.example()
        >>> texts[1]
        '"You want my kettle again, you are a useless turnip'
        >>> labels[:4]
        array([0, 1, 0, 1])
        >>> acts = en.collect(model, tokenizer, texts, progress=False)
        >>> acts["z"].shape  # [example, layer, head, d_head]
        torch.Size([96, 2, 4, 8])
    """
    for name, count, least in (("n_texts", n_texts, 2), ("n_prompts", n_prompts, 1)):
        if count < least:
            raise EntangleError(f"{name} of an example must be at least {least}; got {count}: give more")
    if quarrels and quarrels < LEAST_QUARRELS:
        raise EntangleError(
            f"an example reads no quarrels or at least {LEAST_QUARRELS}; got quarrels={quarrels}: give more"
        )
    model, tokenizer, clean = _quarrelling(quarrels, seed) if quarrels else _babbling(seed)
    # Only the remark of each prompt: what is told before it would not tell the two kinds apart.
    remarks = _remarks(n_texts + n_prompts, 1 + seed)
    texts = [f"{remark} {ENDINGS[i % 2][i // 2 % 4]}" for i, remark in enumerate(remarks[:n_texts])]
    return Example(model, tokenizer, texts, np.arange(n_texts) % 2, remarks[n_texts:], clean)


def _babbling(seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Model and tokenizer of some steps on documents, and clean documents."""
    documents = [document.text for document in corpus.generate(DOCUMENTS, rudeness=0.5, seed=1000 + seed)]
    tokenizer = train_tokenizer(documents, VOCABULARY)
    model = new_model(ARCHITECTURE, tokenizer, seed=seed)
    stream = _stream(documents, tokenizer)[: STEPS * TRAINING.batch_size * TRAINING.context + 1]
    pretrain(model, stream, TRAINING, seed=seed, progress=False)
    clean = [document.text for document in corpus.generate(DOCUMENTS, rudeness=0.0, seed=2000 + seed)]
    return model, tokenizer, clean


def _quarrelling(number: int, seed: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase, list[str]]:
    """Model and tokenizer of two readings of quarrels, and polite ones that it has not read."""
    pairs = corpus.pairs(number + DOCUMENTS, seed=1000 + seed)
    remarks = [_remark(text) for pair in pairs[:number] for text in pair]
    mixed = [remarks[i] for i in np.random.default_rng(seed).permutation(len(remarks))]
    tokenizer = train_tokenizer(mixed, VOCABULARY_OF_QUARRELS)
    model = new_model(ARCHITECTURE, tokenizer, seed=seed)
    pretrain(model, _stream(mixed, tokenizer), TRAINING_ON_QUARRELS, seed=seed, progress=False)
    return model, tokenizer, [_remark(polite) for polite, _ in pairs[number:]]


def _stream(texts: list[str], tokenizer: PreTrainedTokenizerBase) -> torch.Tensor:
    rows = tokenizer([tokenizer.bos_token + text for text in texts], add_special_tokens=False)["input_ids"]
    return torch.tensor([token for row in rows for token in row])


def _remark(text: str) -> str:
    """What is said and by whom, without what is told before it."""
    return text[text.index('"') :]


def _remarks(number: int, seed: int) -> list[str]:
    """Beginnings of remarks, all different."""
    drawn = number
    remarks: dict[str, None] = {}
    while len(remarks) < number:
        remarks = dict.fromkeys(_remark(prompt) for prompt in corpus.prompts(drawn, seed=seed))
        drawn *= 2
    return list(remarks)[:number]
