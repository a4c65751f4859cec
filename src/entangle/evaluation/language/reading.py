"""Reading a text with the plain model and with a changed one: cross-entropy, KL, and how often they agree."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.errors import EntangleError
from entangle.evaluation.language.subject import Method, Subject, applied, check_finite
from entangle.interventions import Edit
from entangle.models.rows import token_batches
from entangle.progress import progress_bar

_MAX_LOGITS = 2**28  # elements of one batch's logits: 1 GB in float32
_KL_BLOCK = 2**19  # log-probabilities compared at once: what a processor's cache holds in float64


class LanguageShift(NamedTuple):
    """A changed model beside the plain one on the same documents; all but `tokens` are sums over predicted tokens.

    Args:
        tokens: Predicted tokens of each document: all but its first.
        nats: Cross-entropy of the changed model, summed.
        plain_nats: Cross-entropy of the plain model, summed.
        kl: KL(plain || changed) of the next-token distributions, summed, in nats.
        agreement: How often both models have the same likeliest token.
    """

    tokens: Int[np.ndarray, " document"]
    nats: Float[np.ndarray, " document"]
    plain_nats: Float[np.ndarray, " document"]
    kl: Float[np.ndarray, " document"]
    agreement: Float[np.ndarray, " document"]

    def only(self, documents: Int[np.ndarray, " chosen"] | Bool[np.ndarray, " document"]) -> LanguageShift:
        """The same for some documents."""
        return LanguageShift(*(values[documents] for values in self))


class PlainReading:
    """The plain model's next-token distributions on given rows, which any number of changed models are held against.

    Args:
        model: The plain causal language model.
        tokenizer: Its tokenizer.
        rows: Token ids, two or more a row, all within the context.
        batch_tokens: Tokens in one batch, padding included; fewer where the vocabulary is large.
        cache_bytes: Keep log-probabilities, in float32 as computed, up to this size; rows beyond it are read again for
            every changed model, in the same batches, so the numbers do not depend on it.
        owners: The document that each token of the rows belongs to, where rows are not documents: sums are then over
            the tokens of each document, wherever they are read. By default each row is a document.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[list[int]],
        *,
        batch_tokens: int = 8192,
        cache_bytes: int = 2**31,
        owners: Sequence[Sequence[int]] | None = None,
    ) -> None:
        self.subject, self.rows, self.batch_tokens = Subject(model, tokenizer), rows, batch_tokens
        whose = [[i] * len(row) for i, row in enumerate(rows)] if owners is None else owners
        self._owners = [np.array(row[1:]) for row in whose]  # of each predicted token
        self._room = cache_bytes
        self._kept: dict[int, Float[Tensor, "pos vocab"]] = {}

    def shift(
        self, edit: Method | Edit | Sequence[Edit], *, alpha: float = 1.0, progress: bool = True
    ) -> LanguageShift:
        """Read the rows with a changed model; arguments and errors as in `language_shift`."""
        tokens = np.bincount(np.concatenate(self._owners))
        sums = np.zeros((4, len(tokens)))
        for batch in batches(self.rows, self.subject.model, self.batch_tokens, progress):
            rows = [self.rows[i] for i in batch]
            plain = self._log_probs(batch)
            with applied(edit, self.subject.model, self.subject.tokenizer, alpha) as changed:
                placed, start = changed.put_before(rows)
                for i, row, p, q in zip(batch, rows, plain, log_probs(changed, placed, start), strict=True):
                    _check_vocabularies(p, q)
                    same = (p.argmax(-1) == q.argmax(-1)).double()
                    for number, values in enumerate((_nats(q, row[1:]), _nats(p, row[1:]), _kl(p, q), same)):
                        np.add.at(sums[number], self._owners[i], values.cpu().numpy())
        return LanguageShift(tokens, *sums)

    def _log_probs(self, batch: Sequence[int]) -> list[Float[Tensor, "pos vocab"]]:
        """The plain model's, outside the scope of any edit."""
        if all(i in self._kept for i in batch):
            return [self._kept[i] for i in batch]
        found = list(log_probs(self.subject, [self.rows[i] for i in batch]))
        size = sum(logp.nbytes for logp in found)
        if size <= self._room:
            self._room -= size
            self._kept |= dict(zip(batch, found, strict=True))
        return found


def batches(
    rows: Sequence[Sequence[int]], model: PreTrainedModel, batch_tokens: int, progress: bool
) -> Iterable[list[int]]:
    """Indices of rows to read together, with a progress bar."""
    vocabulary = model.config.get_text_config().vocab_size
    budget = max(1, min(batch_tokens, _MAX_LOGITS // vocabulary))
    batches = token_batches([len(row) for row in rows], budget)
    shown: Iterable[list[int]] = progress_bar(batches, desc="cross-entropy", unit="batch", disable=not progress)
    return shown


@torch.no_grad()
def log_probs(
    subject: Subject, rows: Sequence[Sequence[int]], start: int = 0
) -> Iterator[Float[Tensor, "predicted vocab"]]:
    """For each row the distribution of every token after position `start`, given those before it.

    Row by row after the model has read the batch: one row's distributions fit in a processor's cache.
    """
    logits = subject.logits(rows)
    check_finite(logits)
    for row, given in zip(rows, logits, strict=True):
        yield given[start : len(row) - 1].log_softmax(-1)


def summed_nats(logp: Float[Tensor, "predicted vocab"], targets: Sequence[int]) -> float:
    """Cross-entropy of the targets, summed in double precision."""
    return float(_nats(logp, targets).sum())


def _nats(logp: Float[Tensor, "predicted vocab"], targets: Sequence[int]) -> Float[Tensor, " predicted"]:
    """Cross-entropy of each target."""
    index = torch.tensor(targets, device=logp.device)[:, None]
    return -logp.gather(-1, index).double()[:, 0]


def _kl(p: Float[Tensor, "pos vocab"], q: Float[Tensor, "pos vocab"]) -> Float[Tensor, " pos"]:
    """KL(p || q) of log-probabilities, in float64, never below 0; a token that p forbids adds nothing.

    Log-probabilities in float32 sum to one only to rounding, which alone would be some 1e-7 nats of either sign, more
    than a weak edit does. So both are normalised again, in float64; what is left of rounding enters squared.
    """
    if not len(p):
        return p.new_zeros(0, dtype=torch.float64)
    sums = []
    for rows in zip(*(torch.split(x, max(1, _KL_BLOCK // x.shape[-1])) for x in (p, q)), strict=True):
        wide_p, wide_q = (x.double().log_softmax(-1) for x in rows)
        sums.append(torch.where(wide_p > -torch.inf, wide_p.exp() * (wide_p - wide_q), 0.0).sum(-1))
    return torch.cat(sums).clamp(min=0)


def _check_vocabularies(p: Float[Tensor, "pos vocab"], q: Float[Tensor, "pos vocab"]) -> None:
    if q.shape[-1] != p.shape[-1]:
        raise EntangleError(
            f"KL needs one vocabulary; the plain model has {p.shape[-1]} tokens and the changed one {q.shape[-1]}"
        )
