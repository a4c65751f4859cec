"""What a change costs in language: cross-entropy, KL from the plain model, and whether the likeliest token changes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.activations.batching import bos_id, encode, token_batches
from entangle.errors import EntangleError
from entangle.evaluation.context import context_length
from entangle.evaluation.subject import Method, Subject, applied, check_finite

if TYPE_CHECKING:
    from entangle.interventions import Edit

_MAX_LOGITS = 2**28  # elements of one batch's logits: 1 GB in float32


class PerDocument(NamedTuple):
    """A sum over each document's predicted tokens, and their number; `values.sum() / tokens.sum()` is the mean."""

    values: Float[np.ndarray, " document"]
    tokens: Int[np.ndarray, " document"]

    @property
    def mean(self) -> float:
        """Mean per token over all documents."""
        return float(self.values.sum() / self.tokens.sum())


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


def cross_entropy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    prepend_bos: bool = False,
    batch_tokens: int = 8192,
    progress: bool = True,
) -> PerDocument:
    """Cross-entropy of each document, in nats, summed over its tokens but the first.

    Args:
        model: A causal language model; hooks that are on it act here too.
        tokenizer: Its tokenizer.
        texts: Documents, of two tokens or more.
        max_length: Keep at most this many tokens of a document, its first ones.
        prepend_bos: Begin every document with the beginning-of-sequence token, so that its own first one is predicted.
        batch_tokens: Tokens in one batch, padding included; fewer where the vocabulary is large.
        progress: Show a progress bar.

    Returns:
        `values` (nats) and `tokens` of each document.

    Raises:
        EntangleError: No documents, an empty one or one of a single token, one longer than the context without
            `max_length`, or logits that are not finite.
    """
    rows = document_rows(model, tokenizer, texts, max_length=max_length, prepend_bos=prepend_bos)
    subject = Subject(model, tokenizer)
    nats = np.zeros(len(rows))
    for batch in batches(rows, model, batch_tokens, progress):
        chosen = [rows[i] for i in batch]
        for i, logp in zip(batch, log_probs(subject, chosen), strict=True):
            nats[i] = summed_nats(logp, rows[i][1:])
    return PerDocument(nats, np.array([len(row) - 1 for row in rows]))


def language_shift(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    edit: Method | Edit | Sequence[Edit],
    *,
    alpha: float = 1.0,
    max_length: int | None = None,
    prepend_bos: bool = False,
    batch_tokens: int = 8192,
    progress: bool = True,
) -> LanguageShift:
    """What an edit or another method does to the model's language, document by document.

    Both models run on every batch in turn: the plain one outside the edit's scope, so that KL is taken from the model
    as it was and never from the changed model itself. For several edits on the same documents, see `PlainReading`.

    Args:
        model: The plain causal language model.
        tokenizer: Its tokenizer.
        texts: Documents, of two tokens or more.
        edit: An edit, several, or any `Method`.
        alpha: Its strength.
        max_length: Keep at most this many tokens of a document, its first ones.
        prepend_bos: Begin every document with the beginning-of-sequence token.
        batch_tokens: Tokens in one batch, padding included; fewer where the vocabulary is large.
        progress: Show a progress bar.

    Returns:
        Sums over each document's tokens.

    Raises:
        EntangleError: As `cross_entropy`; also where the method's model has another vocabulary.
    """
    rows = document_rows(model, tokenizer, texts, max_length=max_length, prepend_bos=prepend_bos)
    reading = PlainReading(model, tokenizer, rows, batch_tokens=batch_tokens, cache_bytes=0)
    return reading.shift(edit, alpha=alpha, progress=progress)


def kl(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    edit: Method | Edit | Sequence[Edit],
    *,
    alpha: float = 1.0,
    max_length: int | None = None,
    prepend_bos: bool = False,
    batch_tokens: int = 8192,
    progress: bool = True,
) -> PerDocument:
    """KL(plain || changed) of the next-token distributions, in nats, summed over each document's tokens but the first.

    Arguments and errors as in `language_shift`.
    """
    shift = language_shift(
        model,
        tokenizer,
        texts,
        edit,
        alpha=alpha,
        max_length=max_length,
        prepend_bos=prepend_bos,
        batch_tokens=batch_tokens,
        progress=progress,
    )
    return PerDocument(shift.kl, shift.tokens)


def document_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_length: int | None = None,
    prepend_bos: bool = False,
) -> list[list[int]]:
    """Token ids of documents, all of them long enough to predict something and short enough to read."""
    if not texts:
        raise EntangleError("cross-entropy needs clean text; got no documents")
    context = context_length(model, tokenizer)
    if max_length is not None and not 2 <= max_length <= context:
        raise EntangleError(f"max_length must be between 2 and the context of {context} tokens; got {max_length}")
    rows = encode(tokenizer, texts, max_length=max_length, prepend_bos=prepend_bos)
    for i, row in enumerate(rows):
        if not 2 <= len(row) <= context:
            raise EntangleError(
                f"document {i} has {len(row)} tokens, but 2 to {context} can be predicted; "
                "drop it, or pass max_length to keep its beginning"
            )
    return rows


def packed_rows(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], length: int
) -> list[list[int]]:
    """Documents end to end, each begun by the token that begins a sequence, cut into chunks of `length` tokens.

    The last chunk is shorter, unless it would have nothing to predict.

    Raises:
        EntangleError: A length out of range, or fewer than two chunks.
    """
    context = context_length(model, tokenizer)
    if not 2 <= length <= context:
        raise EntangleError(f"chunks must have from 2 tokens to the context's {context}; got packed={length}")
    begin = bos_id(tokenizer)
    stream = [token for row in rows for token in (row if row[0] == begin else [begin, *row])]
    chunks = [stream[i : i + length] for i in range(0, len(stream), length)]
    chunks = chunks if len(chunks[-1]) > 1 else chunks[:-1]
    if len(chunks) < 2:
        raise EntangleError(f"intervals need two chunks; the documents fill one of {length} tokens; lower packed")
    return chunks


class PlainReading:
    """The plain model's next-token distributions on given rows, which any number of changed models are held against.

    Args:
        model: The plain causal language model.
        tokenizer: Its tokenizer.
        rows: Token ids, two or more a row, all within the context.
        batch_tokens: Tokens in one batch, padding included; fewer where the vocabulary is large.
        cache_bytes: Keep log-probabilities, in float32 as computed, up to this size; rows beyond it are read again for
            every changed model, in the same batches, so the numbers do not depend on it.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[list[int]],
        *,
        batch_tokens: int = 8192,
        cache_bytes: int = 2**31,
    ) -> None:
        self.subject, self.rows, self.batch_tokens = Subject(model, tokenizer), rows, batch_tokens
        self._room = cache_bytes
        self._kept: dict[int, Float[Tensor, "pos vocab"]] = {}

    def shift(
        self, edit: Method | Edit | Sequence[Edit], *, alpha: float = 1.0, progress: bool = True
    ) -> LanguageShift:
        """Read the rows with a changed model; arguments and errors as in `language_shift`."""
        sums = np.zeros((4, len(self.rows)))
        for batch in batches(self.rows, self.subject.model, self.batch_tokens, progress):
            rows = [self.rows[i] for i in batch]
            plain = self._log_probs(batch)
            with applied(edit, self.subject.model, self.subject.tokenizer, alpha) as changed:
                placed, start = changed.put_before(rows)
                for i, row, p, q in zip(batch, rows, plain, log_probs(changed, placed, start), strict=True):
                    _check_vocabularies(p, q)
                    sums[:, i] = (
                        summed_nats(q, row[1:]),
                        summed_nats(p, row[1:]),
                        _kl(p, q).sum().item(),
                        (p.argmax(-1) == q.argmax(-1)).sum().item(),
                    )
        return LanguageShift(np.array([len(row) - 1 for row in self.rows]), *sums)

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
) -> tqdm[list[int]]:
    """Indices of rows to read together, with a progress bar."""
    vocabulary = model.config.get_text_config().vocab_size
    budget = max(1, min(batch_tokens, _MAX_LOGITS // vocabulary))
    batches = token_batches([len(row) for row in rows], budget)
    return tqdm(batches, desc="cross-entropy", unit="batch", disable=not progress)


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
    index = torch.tensor(targets, device=logp.device)[:, None]
    return -float(logp.gather(-1, index).double().sum())


def _kl(p: Float[Tensor, "pos vocab"], q: Float[Tensor, "pos vocab"]) -> Float[Tensor, " pos"]:
    """KL(p || q) of log-probabilities; a token that p forbids adds nothing."""
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1).double()


def _check_vocabularies(p: Float[Tensor, "pos vocab"], q: Float[Tensor, "pos vocab"]) -> None:
    if q.shape[-1] != p.shape[-1]:
        raise EntangleError(
            f"KL needs one vocabulary; the plain model has {p.shape[-1]} tokens and the changed one {q.shape[-1]}"
        )
