"""Reading a text with the plain model and with a changed one: cross-entropy, KL, and how often they agree."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.data import AnyPrompt
from entangle.errors import EntangleError
from entangle.evaluation.language.subject import Method, Placed, Predictions, Subject, applied, check_finite
from entangle.evaluation.language.turns import NOBODY, after_instruction
from entangle.interventions import Edit
from entangle.metrics import compared, kl_of, nats_of
from entangle.models.readout import LOGITS, batch_budget, check_logits
from entangle.models.rows import token_batches
from entangle.progress import progress_bar

_kl = kl_of  # its name before version 0.2, for code that reached this far in

Owners: TypeAlias = Int[np.ndarray, " token"]
"""The document of each token, or `NOBODY`."""


class LanguageShift(NamedTuple):
    """A changed model beside the plain one on the same documents; all but `tokens` are sums over predicted tokens.

    Args:
        tokens: Predicted tokens of each document: all but its first.
        nats: Cross-entropy of the changed model, summed.
        plain_nats: Cross-entropy of the plain model, summed.
        kl: KL(plain || changed) of the next-token distributions, summed, in nats.
        agreement: How often both models have the same likeliest token.

    Example:
        >>> shift = en.evaluation.language_shift(model, tokenizer, clean[:8], iti, alpha=4, progress=False)
        >>> paid = (shift.nats - shift.plain_nats).sum() / shift.tokens.sum()  # nats per token
        >>> shift.only([0, 1]).tokens.shape
        (2,)
    """

    tokens: Int[np.ndarray, " document"]
    nats: Float[np.ndarray, " document"]
    plain_nats: Float[np.ndarray, " document"]
    kl: Float[np.ndarray, " document"]
    agreement: Float[np.ndarray, " document"]

    def only(self, documents: Int[np.ndarray, " chosen"] | Bool[np.ndarray, " document"]) -> LanguageShift:
        """The same for some documents."""
        return LanguageShift(*(values[documents] for values in self))


class Chats(NamedTuple):
    """Conversations that rows were made of, and how.

    Args:
        conversations: One for each row.
        template: `prepend_bos` and `chat_template_kwargs`.
    """

    conversations: Sequence[AnyPrompt]
    template: Mapping[str, Any]


class PlainReading:
    """The plain model's next-token distributions on given rows, which any number of changed models are held against.

    Args:
        model: The plain causal language model.
        tokenizer: Its tokenizer.
        rows: Token ids, two or more a row, all within the context.
        batch_tokens: Tokens in one batch, padding included.
        logits: Numbers of logits computed at once, at most (one position's, if those are more).
        cache_bytes: Keep the plain model's hidden states up to this size; rows beyond it are read again for every
            changed model, in the same batches, so the numbers do not depend on it.
        owners: The document that each token of the rows belongs to, where rows are not documents: sums are then over
            the tokens of each document, wherever they are read, and tokens of `NOBODY` are not measured. By default
            each row is a document.
        chats: The conversations that the rows were made of, if they were.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[list[int]],
        *,
        batch_tokens: int = 8192,
        logits: int = LOGITS,
        cache_bytes: int = 2**31,
        owners: Sequence[Sequence[int]] | None = None,
        chats: Chats | None = None,
    ) -> None:
        check_logits(logits)
        self.subject, self.rows, self.batch_tokens, self.logits = Subject(model, tokenizer), rows, batch_tokens, logits
        whose = [[i] * len(row) for i, row in enumerate(rows)] if owners is None else owners
        self._owners = [np.array(row[1:]) for row in whose]  # of each predicted token
        self._chats = chats
        self._room = cache_bytes
        self._kept: dict[int, Predictions] = {}  # by the batch's first row

    def shift(
        self, edit: Method | Edit | Sequence[Edit], *, alpha: float = 1.0, progress: bool = True
    ) -> LanguageShift:
        """Read the rows with a changed model; arguments and errors as in `language_shift`."""
        tokens = self._tokens()
        sums = np.zeros((4, len(tokens) + 1))  # the last, which is also the one before the first, is nobody's

        def add(owners: Owners, targets: Tensor, p: Tensor, q: Tensor) -> None:
            for number, values in enumerate(compared(p, q, targets)):
                np.add.at(sums[number], owners, values.cpu().numpy())

        self._hand_over(edit, alpha, add, progress)
        return LanguageShift(tokens, *sums[:, :-1])

    def price(self, edit: Method | Edit | Sequence[Edit], *, alpha: float = 1.0) -> float:
        """KL(plain || changed) per token, in nats: what `shift` says of it, in two thirds of the time."""
        sums: list[float] = []

        def add(owners: Owners, _: Tensor, p: Tensor, q: Tensor) -> None:
            sums.append(float(kl_of(p, q).cpu().numpy()[owners != NOBODY].sum()))

        self._hand_over(edit, alpha, add, progress=False)
        return sum(sums) / int(self._tokens().sum())

    def _tokens(self) -> Int[np.ndarray, " document"]:
        """Measured tokens of each document."""
        every = np.concatenate(self._owners)
        tokens: Int[np.ndarray, " document"] = np.bincount(every[every != NOBODY])
        return tokens

    @torch.no_grad()
    def _hand_over(
        self,
        edit: Method | Edit | Sequence[Edit],
        alpha: float,
        take: Callable[[Owners, Tensor, Tensor, Tensor], None],
        progress: bool,
    ) -> None:
        """Some predicted tokens after the others: whose each is, which it is, and both models' logits."""
        for batch in batches(self.rows, self.subject.model, self.batch_tokens, self.logits, progress):
            plain = self._plain(batch)
            owners = np.concatenate([self._owners[i] for i in batch])
            with applied(edit, self.subject.model, self.subject.tokenizer, alpha) as changed:
                # At strength 0 the changed model is the plain one, which has read them.
                read = self.read_by(changed, batch) if alpha else plain
                for part, p, q in _beside(plain, read, self.logits):
                    take(owners[part], plain.targets[part], p, q)

    def measured(self, i: int) -> Bool[np.ndarray, " token"]:
        """Which predicted tokens of a row count."""
        measured: np.ndarray = self._owners[i] != NOBODY
        return measured

    def read_by(self, changed: Subject, batch: Sequence[int]) -> Predictions:
        """What a changed model says of some rows, as it reads them: with its prefix, or that of another who reads."""
        reader, rows = self.reader(changed, batch), [self.rows[i] for i in batch]
        return reader.predictions(*reader.put_before(rows))

    def reader(self, changed: Subject, batch: Sequence[int]) -> Subject:
        """A changed model that knows where a prefix goes in these rows, if they are conversations."""
        if self._chats is None:
            return changed
        conversations = [self._chats.conversations[i] for i in batch]
        owners = [[NOBODY, *self._owners[i].tolist()] for i in batch]
        template, tokenizer = self._chats.template, self.subject.tokenizer

        def placing(rows: Sequence[list[int]], prefix: str) -> Placed:
            return after_instruction(tokenizer, conversations, rows, owners, prefix, **template)

        return replace(changed, placing=placing)

    def _plain(self, batch: Sequence[int]) -> Predictions:
        """The plain model's, outside the scope of any edit."""
        if batch[0] in self._kept:
            return self._kept[batch[0]]
        read = self.subject.predictions([self.rows[i] for i in batch])
        if read.nbytes <= self._room:
            self._room -= read.nbytes
            self._kept[batch[0]] = read
        return read


def batches(
    rows: Sequence[Sequence[int]], model: PreTrainedModel, batch_tokens: int, logits: int, progress: bool
) -> Iterable[list[int]]:
    """Indices of rows to read together, with a progress bar.

    A model whose head cannot be taken from its body makes all logits of a batch at once, so its batches have fewer
    tokens.
    """
    budget = batch_budget(model, batch_tokens, next(model.parameters()).device, logits)
    batches = token_batches([len(row) for row in rows], budget)
    shown: Iterable[list[int]] = progress_bar(batches, desc="cross-entropy", unit="batch", disable=not progress)
    return shown


def row_nats(
    subject: Subject, rows: Sequence[Sequence[int]], starts: Sequence[int] | int = 0, *, logits: int = LOGITS
) -> list[float]:
    """Cross-entropy of each row's tokens, summed in double precision.

    Args:
        subject: Who reads.
        rows: Rows of token ids that are read together.
        starts: A position for all rows, or one for each, after which tokens count.
        logits: Numbers of logits computed at once, at most.

    Returns:
        Nats of each row.

    Example:
        >>> rows = en.models.encode(tokenizer, clean[:2])
        >>> nats = en.evaluation.row_nats(en.evaluation.Subject(model, tokenizer), rows)
        >>> np.allclose(nats, en.evaluation.cross_entropy(model, tokenizer, clean[:2], progress=False).values)
        True
    """
    return [float(values.sum()) for values in token_nats(subject, rows, starts, logits=logits)]


@torch.no_grad()
def token_nats(
    subject: Subject, rows: Sequence[Sequence[int]], starts: Sequence[int] | int = 0, *, logits: int = LOGITS
) -> list[Float[np.ndarray, " token"]]:
    """Cross-entropy of each row's tokens after position `start`, given those before them, in double precision.

    Args:
        subject: Who reads.
        rows: Rows of token ids that are read together.
        starts: A position for all rows, or one for each.
        logits: Numbers of logits computed at once, at most.

    Returns:
        Nats of each row's tokens.
    """
    read = subject.predictions(rows, starts)
    nats = [nats_of(_finite(read.logits(part)), read.targets[part]) for part in read.parts(logits)]
    every = torch.cat(nats) if nats else torch.zeros(0, dtype=torch.float64)
    return [values.cpu().numpy() for values in torch.split(every, read.counts)]


def _beside(
    plain: Predictions, changed: Predictions, logits: int
) -> Iterator[tuple[slice, Float[Tensor, "token vocab"], Float[Tensor, "token vocab"]]]:
    """Both models' logits of some predicted tokens after the others."""
    for part in plain.parts(logits):
        p = _finite(plain.logits(part))
        q = p if changed is plain else _finite(changed.logits(part))
        if q.shape[-1] != p.shape[-1]:
            raise EntangleError(
                f"KL needs one vocabulary; the plain model has {p.shape[-1]} tokens and the changed one {q.shape[-1]}"
            )
        yield part, p, q


def _finite(logits: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"]:
    check_finite(logits)
    return logits
