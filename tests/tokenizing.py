"""Tiny tokenizers of many kinds, built here: what they put around a text, and how they cut it, differs."""

from __future__ import annotations

from functools import cache
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import ByT5Tokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "looked", "at", "moon", "fox", "dog", "ran", "very", "far"]
WORDS += ["away", "from", "old", "house", "by", "river"]
SPECIAL = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "[CLS]": 4, "[SEP]": 5, "<en>": 6}
TEMPLATES = {
    "bos": ("<s> $A", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}),
    "bos_eos": ("<s> $A </s>", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}),
    "eos": ("$A </s>", {"eos_token": "</s>", "pad_token": "<pad>"}),
    "cls_sep": ("[CLS] $A [SEP]", {"cls_token": "[CLS]", "sep_token": "[SEP]", "pad_token": "<pad>"}),
    "language": ("<en> $A </s>", {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}),
    "unadded": ("$A", {"bos_token": "<s>", "eos_token": "<s>"}),
    "none": ("$A", {}),
}
KINDS = [*TEMPLATES, "bytes", "characters", "pieces", "slow"]
CHAT = "{{ bos_token }}{% for m in messages %}{{ m.content + ' ' }}{% endfor %}"


@cache
def _words(kind: str) -> str:
    template, _ = TEMPLATES[kind]
    vocabulary = {**SPECIAL, **{word: i + len(SPECIAL) for i, word in enumerate(WORDS)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single=template, special_tokens=list(SPECIAL.items()))
    return str(tokenizer.to_str())


@cache
def _trained(kind: str) -> str:
    pieces = {
        "bytes": models.BPE(),
        "characters": models.BPE(unk_token="<unk>"),
        "pieces": models.BPE(unk_token="<unk>"),
    }
    tokenizer = Tokenizer(pieces[kind])
    alphabet = []
    if kind == "bytes":
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    elif kind == "pieces":  # as a legacy Llama: a space is put before the text, which sentencepiece marks
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="first")
    size = {"bytes": 300, "characters": 40, "pieces": 80}[kind]
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=["<pad>", "<s>", "</s>", "<unk>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(WORDS)] * 4, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return str(tokenizer.to_str())


def tokenizer(kind: str, **settings: Any) -> PreTrainedTokenizerBase:
    """One of `KINDS`, new each time.

    Args:
        kind: Its name; all but "slow" are fast.
        settings: Of the tokenizer, such as `truncation_side`.
    """
    if kind == "slow":
        return ByT5Tokenizer(extra_ids=0, **settings)
    if kind in TEMPLATES:
        names = {**TEMPLATES[kind][1], **({} if kind == "none" else {"unk_token": "<unk>"})}
        return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_words(kind)), **{**names, **settings})
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer.from_str(_trained(kind)), **{**names, **settings})
