"""What a change costs in language: cross-entropy, KL from the plain model, and whether the likeliest token changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.activations.batching import encode, token_batches
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
    for batch in _batches(rows, model, batch_tokens, progress):
        logp = _log_probs(subject, [rows[i] for i in batch])
        for j, i in enumerate(batch):
            nats[i] = _nats(logp[j], rows[i]).sum().item()
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
    as it was and never from the changed model itself.

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
    plain = Subject(model, tokenizer)
    sums = np.zeros((4, len(rows)))
    for batch in _batches(rows, model, batch_tokens, progress):
        chosen = [rows[i] for i in batch]
        p = _log_probs(plain, chosen)
        with applied(edit, model, tokenizer, alpha) as subject:
            placed, shift = subject.put_before(chosen)
            q = _log_probs(subject, placed)
        if q.shape[-1] != p.shape[-1]:
            raise EntangleError(
                f"KL needs one vocabulary; the plain model has {p.shape[-1]} tokens and the changed one {q.shape[-1]}"
            )
        for j, i in enumerate(batch):
            n = len(rows[i]) - 1
            before, after = p[j, :n], q[j, shift : shift + n]
            sums[:, i] = (
                _nats(after, rows[i]).sum().item(),
                _nats(before, rows[i]).sum().item(),
                _kl(before, after).sum().item(),
                (before.argmax(-1) == after.argmax(-1)).sum().item(),
            )
    return LanguageShift(np.array([len(row) - 1 for row in rows]), *sums)


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


@torch.no_grad()
def continuation_nats(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[str]],
    *,
    batch_tokens: int = 8192,
    progress: bool = True,
) -> tuple[Float[np.ndarray, "prompt sample"], Int[np.ndarray, "prompt sample"]]:
    """How unexpected continuations are to a model, such as the plain one reading what a changed one wrote.

    Args:
        subject: Who reads.
        prompts: Rows of token ids.
        continuations: Continuations of each; a blank one has no tokens.
        batch_tokens: Tokens in one batch.
        progress: Show a progress bar.

    Returns:
        Nats summed over each continuation's tokens, and the number of tokens; a token beyond the context is not read.
    """
    context = context_length(subject.model, subject.tokenizer)
    jobs = [(i, k) for i, row in enumerate(continuations) for k, text in enumerate(row) if text.strip()]
    shape = len(continuations), len(continuations[0])
    nats, tokens = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    new = [subject.tokenizer(continuations[i][k], add_special_tokens=False)["input_ids"] for i, k in jobs]
    rows = [[*prompts[i], *ids][:context] for (i, _), ids in zip(jobs, new, strict=True)]
    for batch in _batches(rows, subject.model, batch_tokens, progress):
        logp = _log_probs(subject, [rows[j] for j in batch])
        for place, j in enumerate(batch):
            start = len(prompts[jobs[j][0]])
            tokens[jobs[j]] = len(rows[j]) - start
            nats[jobs[j]] = _nats(logp[place], rows[j])[start - 1 :].sum().item()
    return nats, tokens


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


def _batches(
    rows: Sequence[Sequence[int]], model: PreTrainedModel, batch_tokens: int, progress: bool
) -> tqdm[list[int]]:
    vocabulary = model.config.get_text_config().vocab_size
    budget = max(1, min(batch_tokens, _MAX_LOGITS // vocabulary))
    batches = token_batches([len(row) for row in rows], budget)
    return tqdm(batches, desc="cross-entropy", unit="batch", disable=not progress)


@torch.no_grad()
def _log_probs(subject: Subject, rows: Sequence[Sequence[int]]) -> Float[Tensor, "row pos vocab"]:
    logits = subject.logits(rows)
    check_finite(logits)
    return logits.log_softmax(-1)


def _nats(logp: Float[Tensor, "pos vocab"], row: Sequence[int]) -> Float[Tensor, " predicted"]:
    targets = torch.tensor(row[1:], device=logp.device)
    return -logp[: len(targets)].gather(-1, targets[:, None]).squeeze(-1).double()


def _kl(p: Float[Tensor, "pos vocab"], q: Float[Tensor, "pos vocab"]) -> Float[Tensor, " pos"]:
    """KL(p || q) of log-probabilities; a token that p forbids adds nothing."""
    return torch.where(p > -torch.inf, p.exp() * (p - q), 0.0).sum(-1).double()
