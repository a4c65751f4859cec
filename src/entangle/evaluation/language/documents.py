"""What a change costs in language: cross-entropy, KL from the plain model, and whether the likeliest token changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.data import AnyPrompt, prompts_of
from entangle.errors import EntangleError
from entangle.evaluation.language.reading import Chats, LanguageShift, PlainReading, batches, token_nats
from entangle.evaluation.language.subject import Method
from entangle.evaluation.language.turns import conversation_rows, turn_owners
from entangle.interventions import Edit
from entangle.models.loading.held import own_tokenizer, underlying
from entangle.models.readout import LOGITS
from entangle.models.rows import UNLIMITED, bos_id, check_ids, context_length, encode


class PerDocument(NamedTuple):
    """A sum over each document's predicted tokens, and their number; `values.sum() / tokens.sum()` is the mean.

    Example:
        >>> nats = en.evaluation.PerDocument(values=np.array([6.0, 3.0]), tokens=np.array([2, 1]))
        >>> nats.mean  # nats per token
        3.0
    """

    values: Float[np.ndarray, " document"]
    tokens: Int[np.ndarray, " document"]

    @property
    def mean(self) -> float:
        """Mean per token over all documents."""
        return float(self.values.sum() / self.tokens.sum())


def cross_entropy(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[AnyPrompt],
    *,
    max_length: int | None = None,
    prepend_bos: bool = False,
    turns: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    batch_tokens: int = 8192,
    logits: int = LOGITS,
    progress: bool = True,
) -> PerDocument:
    """Cross-entropy of each document, in nats, summed over its tokens but the first.

    Args:
        model: A causal language model; hooks that are on it act here too.
        tokenizer: Its tokenizer.
        texts: Documents, of two tokens or more; or conversations, which the chat template writes.
        max_length: Keep at most this many tokens of a document, by default its first ones (see `encode_rows`).
        prepend_bos: Begin every document with the beginning-of-sequence token, so that its own first one is predicted.
        turns: Count only what this role says in conversations, such as "assistant", after all that comes before it; by
            default every token counts.
        chat_template_kwargs: For the chat template.
        batch_tokens: Tokens in one batch, padding included.
        logits: Numbers of logits computed at once, at most: positions are read out a few at a time. By default 2^26,
            256 MB in single precision, of which three or four times as much is needed for a moment.
        progress: Show a progress bar.

    Returns:
        `values` (nats) and `tokens` of each document.

    Raises:
        EntangleError: No documents, an empty one or one of a single token, one longer than the context without
            `max_length`, or logits that are not finite; with `turns`, a document that is no conversation or in which
            nobody of that role speaks.

    Example:
        >>> nats = en.evaluation.cross_entropy(model, tokenizer, clean[:16], progress=False)
        >>> nats.values.shape
        (16,)
        >>> bool(nats.mean < np.log(len(tokenizer)))  # better than guessing among 512 tokens
        True
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    reading = read_rows(
        model,
        tokenizer,
        texts,
        max_length=max_length,
        prepend_bos=prepend_bos,
        turns=turns,
        chat_template_kwargs=chat_template_kwargs,
        batch_tokens=batch_tokens,
        logits=logits,
    )
    subject, nats, tokens = reading.subject, np.zeros(len(reading.rows)), np.zeros(len(reading.rows), dtype=np.int64)
    for batch in batches(reading.rows, model, batch_tokens, logits, progress):
        read = token_nats(subject, [reading.rows[i] for i in batch], logits=logits)
        for i, values in zip(batch, read, strict=True):
            measured = values if turns is None else values[reading.measured(i)]
            nats[i], tokens[i] = float(measured.sum()), len(measured)
    return PerDocument(nats, tokens)


def language_shift(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[AnyPrompt],
    edit: Method | Edit | Sequence[Edit],
    *,
    alpha: float = 1.0,
    max_length: int | None = None,
    prepend_bos: bool = False,
    turns: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    batch_tokens: int = 8192,
    logits: int = LOGITS,
    progress: bool = True,
) -> LanguageShift:
    """What an edit or another method does to the model's language, document by document.

    Both models run on every batch in turn: the plain one outside the edit's scope, so that KL is taken from the model
    as it was and never from the changed model itself. For several edits on the same documents, see `PlainReading`.

    Args:
        model: The plain causal language model.
        tokenizer: Its tokenizer.
        texts: Documents, of two tokens or more; or conversations, which the chat template writes.
        edit: An edit, several, or any `Method`.
        alpha: Its strength.
        max_length: Keep at most this many tokens of a document, by default its first ones (see `encode_rows`).
        prepend_bos: Begin every document with the beginning-of-sequence token.
        turns: Count only what this role says in conversations, such as "assistant".
        chat_template_kwargs: For the chat template.
        batch_tokens: Tokens in one batch, padding included.
        logits: Numbers of logits computed at once, at most: positions are read out a few at a time. By default 2^26,
            256 MB in single precision, of which three or four times as much is needed for a moment.
        progress: Show a progress bar.

    Returns:
        Sums over each document's tokens.

    Raises:
        EntangleError: As `cross_entropy`; also where the method's model has another vocabulary.

    Example:
        >>> shift = en.evaluation.language_shift(model, tokenizer, clean[:8], iti, alpha=0, progress=False)
        >>> float(shift.kl.sum()), bool((shift.agreement == shift.tokens).all())  # at alpha 0 both are one model
        (0.0, True)
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    reading = read_rows(
        model,
        tokenizer,
        texts,
        max_length=max_length,
        prepend_bos=prepend_bos,
        turns=turns,
        chat_template_kwargs=chat_template_kwargs,
        batch_tokens=batch_tokens,
        logits=logits,
        cache_bytes=0,
    )
    return reading.shift(edit, alpha=alpha, progress=progress)


def kl(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[AnyPrompt],
    edit: Method | Edit | Sequence[Edit],
    *,
    alpha: float = 1.0,
    max_length: int | None = None,
    prepend_bos: bool = False,
    turns: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    batch_tokens: int = 8192,
    logits: int = LOGITS,
    progress: bool = True,
) -> PerDocument:
    """KL(plain || changed) of the next-token distributions, in nats, summed over each document's tokens but the first.

    Arguments and errors as in `language_shift`.

    Example:
        >>> read = {"texts": clean[:8], "progress": False}
        >>> weak, strong = (en.evaluation.kl(model, tokenizer, edit=iti, alpha=a, **read).mean for a in (1, 4))
        >>> 0 < weak < strong
        True
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    shift = language_shift(
        model,
        tokenizer,
        texts,
        edit,
        alpha=alpha,
        max_length=max_length,
        prepend_bos=prepend_bos,
        turns=turns,
        chat_template_kwargs=chat_template_kwargs,
        batch_tokens=batch_tokens,
        logits=logits,
        progress=progress,
    )
    return PerDocument(shift.kl, shift.tokens)


def read_rows(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[AnyPrompt],
    *,
    max_length: int | None = None,
    prepend_bos: bool = False,
    turns: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    batch_tokens: int = 8192,
    logits: int = LOGITS,
    cache_bytes: int = 2**31,
) -> PlainReading:
    """Documents, or conversations with what is measured of them, to be read by the plain model and changed ones."""
    template = {"prepend_bos": prepend_bos, "chat_template_kwargs": chat_template_kwargs}
    rows = document_rows(model, tokenizer, texts, max_length=max_length, **template)  # type: ignore[arg-type]
    documents = prompts_of(texts, "document")
    owners = None if turns is None else turn_owners(tokenizer, documents, rows, turns, **template)  # type: ignore[arg-type]
    chats = None if isinstance(documents[0], str) else Chats(documents, template)
    settings: dict[str, Any] = {"batch_tokens": batch_tokens, "logits": logits, "cache_bytes": cache_bytes}
    return PlainReading(model, tokenizer, rows, owners=owners, chats=chats, **settings)


def document_rows(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[AnyPrompt],
    *,
    max_length: int | None = None,
    prepend_bos: bool = False,
    turns: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Token ids of documents, all of them long enough to predict something and short enough to read; with `turns`,
    conversations in which that role says something.

    Example:
        >>> rows = en.evaluation.document_rows(model, tokenizer, clean[:2], max_length=8)
        >>> [len(row) for row in rows]
        [8, 8]
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    documents = prompts_of(texts, "document")
    if not documents:
        raise EntangleError("cross-entropy needs clean text; got no documents")
    context = context_length(model, tokenizer)
    if max_length is not None and not 2 <= max_length <= context:
        raise EntangleError(f"max_length must be between 2 and the context of {context} tokens; got {max_length}")
    # What does not fit is refused below, where no length is asked for.
    settings: dict[str, Any] = {"max_length": max_length or UNLIMITED, "prepend_bos": prepend_bos}
    chats = [i for i, document in enumerate(documents) if not isinstance(document, str)]
    if len(chats) not in (0, len(documents)):
        raise EntangleError(
            f"documents must be all strings or all conversations, but {len(chats)} of {len(documents)} are "
            "conversations: measure them apart"
        )
    if chats:
        rows = conversation_rows(tokenizer, documents, chat_template_kwargs=chat_template_kwargs, **settings)
    else:
        rows = encode(tokenizer, [str(document) for document in documents], what="document", **settings)
    check_ids(rows, model, "document")
    for i, row in enumerate(rows):
        if not 2 <= len(row) <= context:
            raise EntangleError(
                f"document {i} has {len(row)} tokens, but 2 to {context} can be predicted; "
                f"drop it, or keep its beginning with max_length={context} (--max-length {context})"
            )
    if turns is not None:
        turn_owners(
            tokenizer, documents, rows, turns, prepend_bos=prepend_bos, chat_template_kwargs=chat_template_kwargs
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
    stream = [token for row in _begun(tokenizer, rows) for token in row]
    chunks = _cut(stream, length)
    if len(chunks) < 2:
        raise EntangleError(f"intervals need two chunks; the documents fill one of {length} tokens; lower packed")
    return chunks


def packed_owners(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], length: int) -> list[list[int]]:
    """The number of the document that each token of `packed_rows` belongs to, in the same chunks."""
    return _cut([number for number, row in enumerate(_begun(tokenizer, rows)) for _ in row], length)


def _begun(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]]) -> list[list[int]]:
    """Each row with the token that begins a sequence before it."""
    begin = bos_id(tokenizer)
    return [list(row) if row[0] == begin else [begin, *row] for row in rows]


def _cut(stream: list[int], length: int) -> list[list[int]]:
    chunks = [stream[i : i + length] for i in range(0, len(stream), length)]
    return chunks if len(chunks[-1]) > 1 else chunks[:-1]
