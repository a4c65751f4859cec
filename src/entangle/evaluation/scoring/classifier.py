"""Any HuggingFace text-classification model as a scorer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.data import AnyPrompt
from entangle.errors import EntangleError
from entangle.evaluation.scoring.pairs import PAIRS, Pairs, pair_rows
from entangle.evaluation.scoring.scorers import beside_texts
from entangle.models.fingerprint import fingerprint, tokenizer_fingerprint
from entangle.models.loading import LOADING_ERRORS, pretrained, refuse_code
from entangle.models.rows import accepts, batch_of, context_length, encode, pad, token_batches
from entangle.models.trace import evaluating
from entangle.storage.digest import digest

MOST_MOVED = 1e-4  # of a logit, by rounding
HEADS = ("classifier", "score", "qa_outputs", "logits_proj", "sequence_summary", "classification_head")
"""What the modules are called whose weights a model without a trained classification head lacks."""


class ClassifierScorer:
    """The probability a text-classification model gives to the labels that count as toxic.

    With a softmax over exclusive labels their probabilities add up; with a sigmoid a label (models trained for several
    labels at once) the largest counts. Texts longer than the model's context are cut as the tokenizer cuts them, their
    closing token kept.

    With `pairs` it reads the prompt too: models of natural language inference (premise and hypothesis), classifiers of
    question and answer, and reward models. A reward model has one logit r, and its score is sigmoid(r): under Bradley
    and Terry (1952), the probability that this answer is preferred to one of reward 0. Rewards have no zero of their
    own, so such scores compare answers and mean nothing as a share.

    Args:
        model_or_path: A model with a classification head, or the directory or hub id of one.
        labels: Names of the labels that count as toxic, as in the model's `config.id2label`; a model of one logit needs
            none.
        pairs: How prompt and answer are read together: "text_pair", as the tokenizer joins two texts, a conversation
            becoming text with a line for each turn; "chat", as the tokenizer's chat template writes a conversation, a
            prompt that is a string being what the user said. By default the answer is read alone.
        tokenizer: The tokenizer, needed beside a model that is given as an object.
        revision: Commit of the hub's repository; pin it, or the scores may change from one day to the next.
        activation: "softmax" or "sigmoid"; by default what the model's config says it was trained with.
        batch_tokens: Tokens in one batch, padding included.
        device: Where to run; by default where the model is.

    Raises:
        EntangleError: No such label, no labels, no classification model there, or another word for `pairs`.

    Example:
        >>> from transformers import AutoModelForSequenceClassification
        >>> config = type(model.config).from_dict({**model.config.to_dict(), "id2label": {0: "polite", 1: "rude"}})
        >>> classifier = AutoModelForSequenceClassification.from_config(config)
        >>> scorer = en.ClassifierScorer(classifier, ["rude"], tokenizer=tokenizer)
        >>> scorer(texts[:3]).shape
        (3,)
        >>> beside = en.ClassifierScorer(classifier, ["rude"], tokenizer=tokenizer, pairs="text_pair")
        >>> beside(["a gem", "a turnip"], prompts=["What are you?", "What am I?"]).shape
        (2,)
    """

    def __init__(
        self,
        model_or_path: PreTrainedModel | str | Path,
        labels: Sequence[str] | None = None,
        *,
        pairs: Pairs | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        revision: str | None = None,
        activation: Literal["softmax", "sigmoid"] | None = None,
        batch_tokens: int = 8192,
        device: str | torch.device | None = None,
    ) -> None:
        if isinstance(model_or_path, (str, Path)):
            self.model, self.tokenizer = _load(str(model_or_path), revision)
            source = str(model_or_path)
        else:
            if tokenizer is None:
                raise EntangleError("a classifier given as an object needs its tokenizer; pass tokenizer=...")
            self.model, self.tokenizer = model_or_path, tokenizer
            source = getattr(model_or_path.config, "_name_or_path", "") or type(model_or_path).__name__
        if device is not None:
            self.model = self.model.to(device)
        self.model.eval()
        if self.model.config.pad_token_id is None:
            raise EntangleError(
                f"{source} has no padding token, so it cannot score a batch; set model.config.pad_token_id and "
                "tokenizer.pad_token to the token it was trained with"
            )
        if pairs is not None and pairs not in PAIRS:
            raise EntangleError(f"pairs must be one of {', '.join(map(repr, PAIRS))}, or None; got {pairs!r}")
        self.pairs = pairs
        self.labels = tuple(_only_label(self.model) if labels is None else labels)
        self.columns = _columns(self.model, self.labels, source)
        self.activation = activation or _activation(self.model)
        self.batch_tokens = batch_tokens
        # A hash too, and not only the path, so that tables tell one checkpoint from another.
        self.name = f"{source}@{revision or digest(fingerprint(self.model))[:8]}[{','.join(self.labels)}]"
        if pairs:
            self.name += f":{pairs}"

    def content(self) -> Any:
        """What decides its scores, for caches: the model as it is now, its tokenizer, and how it is read."""
        how = self.columns, self.activation, context_length(self.model, self.tokenizer)
        both = () if self.pairs is None else (self.pairs,)
        return fingerprint(self.model), tokenizer_fingerprint(self.tokenizer), how + both

    @torch.no_grad()
    def __call__(self, texts: Sequence[str], prompts: Sequence[AnyPrompt] | None = None) -> Float[np.ndarray, " text"]:
        """The probability that each text is toxic: what the model says of the text alone, whatever is beside it, or
        with `pairs` of the text as an answer to its prompt.
        """
        rows = self._rows(texts, beside_texts(texts, prompts))
        scores = np.zeros(len(rows))
        lengths = [len(row["input_ids"]) for row in rows]
        for batch in token_batches(lengths, self.batch_tokens, same_length=not self._padding_is_harmless(rows)):
            logits = self._logits([rows[i] for i in batch])
            if self.activation == "sigmoid":
                chosen = logits[:, self.columns].sigmoid().amax(-1)
            else:
                chosen = logits.softmax(-1)[:, self.columns].sum(-1).clamp(max=1)
            scores[batch] = chosen.cpu().numpy()
        return scores

    def _rows(self, texts: Sequence[str], prompts: Sequence[AnyPrompt] | None) -> list[dict[str, list[int]]]:
        context = context_length(self.model, self.tokenizer)
        if self.pairs is None:
            rows = encode(self.tokenizer, list(texts), model=self.model, max_length=context)
            return [{"input_ids": row} for row in rows]
        if prompts is None:
            raise EntangleError(
                f"{self.name} scores answers beside what was asked, but no prompts arrived: pass prompts=, one a text"
            )
        return pair_rows(self.tokenizer, prompts, texts, self.pairs, context)

    def _logits(self, rows: Sequence[dict[str, list[int]]]) -> Float[torch.Tensor, "row label"]:
        inputs = batch_of(self.model, self.tokenizer, [row["input_ids"] for row in rows])
        device = inputs["input_ids"].device
        for name in rows[0].keys() - inputs.keys():  # which of two texts a token is of, where the tokenizer says so
            inputs[name] = pad([row[name] for row in rows], 0, device=device)["input_ids"]
        with evaluating(self.model):
            output = self.model(**{name: x for name, x in inputs.items() if accepts(self.model, name)})
        logits: torch.Tensor = output.logits.float()
        return logits

    def _padding_is_harmless(self, rows: Sequence[dict[str, list[int]]]) -> bool:
        """Whether the shortest row says the same beside the longest: some heads read the last column, or look for a
        padding token that is none of the embedding's. In half precision rounding hides that, so it is not asked.
        """
        if self.model.dtype not in (torch.float32, torch.float64) or not rows:
            return False
        shortest, longest = (choose(rows, key=lambda row: len(row["input_ids"])) for choose in (min, max))
        if len(shortest["input_ids"]) == len(longest["input_ids"]):
            return True
        alone, beside = self._logits([shortest])[0], self._logits([shortest, longest])[0]
        return torch.allclose(alone, beside, rtol=MOST_MOVED, atol=MOST_MOVED)


def _only_label(model: PreTrainedModel) -> list[str]:
    """The label of a model of one logit, such as a reward model; none of another."""
    return [str(label) for label in model.config.id2label.values()] if model.config.num_labels == 1 else []


def _load(path: str, revision: str | None) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    what = "a text-classification model"
    try:
        model = pretrained(AutoModelForSequenceClassification, path, what=what, revision=revision)
    except EntangleError as error:
        if any(f"lacks {head}" in str(error) for head in HEADS):
            raise EntangleError(f"{path} has no trained classification head; give {what} ({error})") from error
        raise EntangleError(f"{path} is no text-classification model that can be loaded: {error}") from error
    try:
        tokenizer = AutoTokenizer.from_pretrained(path, revision=revision, trust_remote_code=False)
    except LOADING_ERRORS as error:
        refuse_code(path, error)
        reason = str(error).splitlines()[0]
        raise EntangleError(
            f"{path} has no tokenizer that can be loaded ({reason}): save one beside the model"
        ) from error
    return model, tokenizer


def _columns(model: PreTrainedModel, labels: Sequence[str], source: str) -> list[int]:
    known = {str(name): int(column) for column, name in model.config.id2label.items()}
    unknown = [label for label in labels if label not in known]
    if unknown or not labels:
        what = f"has no label {unknown[0]!r}" if unknown else "needs the labels that count as toxic"
        raise EntangleError(f"{source} {what}; its labels are {', '.join(known)}")
    return [known[label] for label in labels]


def _activation(model: PreTrainedModel) -> Literal["softmax", "sigmoid"]:
    several = model.config.problem_type == "multi_label_classification" or model.config.num_labels == 1
    return "sigmoid" if several else "softmax"
