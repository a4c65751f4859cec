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
ENDINGS = {
    0: ("dear friend", "clever gem", "kind beacon", "patient marvel"),
    1: ("useless turnip", "daft pickle", "lazy sprout", "clumsy haddock"),
}
TEXTS, PROMPTS, DOCUMENTS = 96, 8, 300


class Example(NamedTuple):
    """What `example` returns.

    Attributes:
        model: A LLaMA of 2 layers with 4 heads each and `d_model` 32, trained for 60 steps on the built-in corpus.
        tokenizer: Its tokenizer, of 512 tokens.
        texts: 96 beginnings of quarrels, which end on a polite or a rude name for the listener.
        labels: 1 for the rude ones, 0 for the polite ones, by turns.
        prompts: 8 more of them that break off before the name.
        clean: 300 polite documents of the same grammar, on which the model was not trained.

    Example:
        >>> data = en.Example(model, tokenizer, texts, labels, prompts, clean)
        >>> data.prompts[0]
        '"You forgot the dumpling again, you'
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    texts: list[str]
    labels: NDArray[np.int64]
    prompts: list[str]
    clean: list[str]


def example(*, seed: int = 0) -> Example:
    """Train a tiny language model for a second or two, and write texts whose last word is polite or rude.

    The model is too small for any conclusion; it is there to try a function on before a real one is at hand.

    Args:
        seed: Seed for the weights, the order of training, and the texts.

    Returns:
        Model, tokenizer, texts, labels, prompts and clean text, to be unpacked in this order or taken by name.

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
    documents = [document.text for document in corpus.generate(DOCUMENTS, rudeness=0.5, seed=1000 + seed)]
    tokenizer = train_tokenizer(documents, VOCABULARY)
    rows = tokenizer([tokenizer.bos_token + text for text in documents], add_special_tokens=False)["input_ids"]
    stream = torch.tensor([token for row in rows for token in row])
    model = new_model(ARCHITECTURE, tokenizer, seed=seed)
    pretrain(model, stream[: STEPS * TRAINING.batch_size * TRAINING.context + 1], TRAINING, seed=seed, progress=False)
    # Only the remark of each prompt: what is told before it would not tell the two kinds apart.
    remarks = ['"' + prompt.split('"')[1] for prompt in corpus.prompts(TEXTS + PROMPTS, seed=1 + seed)]
    texts = [f"{remark} {ENDINGS[i % 2][i // 2 % 4]}" for i, remark in enumerate(remarks[:TEXTS])]
    clean = [document.text for document in corpus.generate(DOCUMENTS, rudeness=0.0, seed=2000 + seed)]
    return Example(model, tokenizer, texts, np.arange(TEXTS) % 2, remarks[TEXTS:], clean)
