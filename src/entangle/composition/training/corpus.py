"""Pretraining text: documents to token streams, and mixtures with a stated share of another corpus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from entangle.errors import EntangleError


@dataclass(frozen=True)
class TokenisedDocuments:
    """Documents as token ids, each beginning with the tokenizer's beginning-of-text token.

    Attributes:
        tokens: All ids, one document after the other, int32 [token].
        starts: Where each document begins, with the total at the end [document + 1].
    """

    tokens: NDArray[np.int32]
    starts: NDArray[np.int64]

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each document."""
        return np.diff(self.starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def take(self, documents: NDArray[np.int64]) -> TokenisedDocuments:
        """The named documents, in the order named."""
        lengths = self.lengths[documents]
        starts = np.concatenate(([0], lengths.cumsum()))
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], lengths)
        return TokenisedDocuments(self.tokens[np.repeat(self.starts[documents], lengths) + within], starts)


@dataclass(frozen=True)
class Mixture:
    """What one model is trained on.

    Attributes:
        documents: In training order.
        origins: Which document each is, of all clean ones followed by all of the added corpus [document].
        n_clean: Clean documents there are to draw from.
    """

    documents: TokenisedDocuments
    origins: NDArray[np.int64]
    n_clean: int

    @property
    def clean_tokens(self) -> int:
        """Tokens of clean documents."""
        return int(self.documents.lengths[self.origins < self.n_clean].sum())

    @property
    def added_tokens(self) -> int:
        """Tokens of the added corpus."""
        return len(self.documents.tokens) - self.clean_tokens

    @property
    def share(self) -> float:
        """Share of the added corpus among all tokens."""
        return self.added_tokens / len(self.documents.tokens)

    def keep(self, kept: NDArray[np.bool_]) -> Mixture:
        """The same without some documents, in the same order.

        Args:
            kept: For every clean document followed by every one of the added corpus, whether it stays.
        """
        stay = np.flatnonzero(kept[self.origins])
        return Mixture(self.documents.take(stay), self.origins[stay], self.n_clean)


def tokenise(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, chunk: int = 4096) -> TokenisedDocuments:
    """Texts as token ids, the tokenizer's beginning-of-text token (else its end-of-text token) before each.

    Raises:
        EntangleError: Where there are no texts, or the tokenizer has neither token.
    """
    separator = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if separator is None:
        raise EntangleError(
            "documents are packed with a token between them, but this tokenizer has neither bos_token nor eos_token"
        )
    if not texts:
        raise EntangleError("no documents to tokenise")
    pieces: list[NDArray[np.int32]] = []
    lengths: list[int] = []
    for first in range(0, len(texts), chunk):
        rows = tokenizer(list(texts[first : first + chunk]), add_special_tokens=False, verbose=False)["input_ids"]
        rows = [row if row[:1] == [separator] else [separator, *row] for row in rows]  # one that is written is enough
        lengths.extend(map(len, rows))
        pieces.append(np.fromiter((token for row in rows for token in row), dtype=np.int32))
    return TokenisedDocuments(np.concatenate(pieces), np.concatenate(([0], np.cumsum(lengths))).astype(np.int64))


def check_share(share: float, design: str) -> None:
    """Refuse a share that no mixture has.

    Raises:
        EntangleError: It is no share, or all of the tokens where the clean ones stay.
    """
    if not 0 <= share < 1 and not (share == 1 and design == "replaced"):
        raise EntangleError(f"a share of added tokens is at least 0 and below 1, not {share} (10 % is 0.1)")


def mix(
    clean: TokenisedDocuments,
    added: TokenisedDocuments | None,
    share: float,
    *,
    seed: int = 0,
    design: str = "added",
) -> Mixture:
    """Clean documents and as many of the added corpus as make `share` of all tokens, shuffled together.

    By default all clean documents, whatever the share, as in the paper (Li et al. 2025, section 4): n added tokens on c
    clean ones make a share of n / (n + c). The documents of the added corpus at a smaller share are among those at a
    larger one with the same seed.

    Args:
        clean: The clean documents.
        added: Documents to add from; may be `None` at share 0.
        share: Share of the added corpus among all tokens, in [0, 1); 1 too where it is replaced.
        seed: Which documents are drawn, and the training order.
        design: "added": all clean documents; "replaced": as many tokens in all as there are clean ones, those of the
            added corpus in the place of clean ones.

    Raises:
        EntangleError: Where `share` is out of range, or the added corpus is too small for it.
    """
    check_share(share, design)
    rng = np.random.default_rng(seed)
    total = len(clean.tokens)
    wanted = round(share * total if design == "replaced" else share / (1 - share) * total)
    available = 0 if added is None else len(added.tokens)
    if wanted > available:
        raise EntangleError(
            f"a share of {share:.3g} with {total:,} clean tokens needs {wanted:,} of the added corpus, "
            f"which has {available:,}: lower the share or give more text"
        )
    chosen = np.arange(len(clean))
    joined = clean
    if added is not None and wanted:
        joined = TokenisedDocuments(
            np.concatenate([clean.tokens, added.tokens]),
            np.concatenate([clean.starts, added.starts[1:] + clean.starts[-1]]),
        )
        extra = _draw(added.lengths, wanted, rng)
        if design == "replaced":
            chosen = _draw(clean.lengths, total - wanted, rng)
        chosen = np.concatenate([chosen, extra + len(clean)])
    order = rng.permutation(chosen)
    return Mixture(joined.take(order), order, len(clean))


def _draw(lengths: NDArray[np.int64], wanted: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Documents in random order, until they hold so many tokens."""
    order = rng.permutation(len(lengths))
    if wanted == 0:
        return order[:0]
    return order[: int(np.searchsorted(lengths[order].cumsum(), wanted)) + 1]
