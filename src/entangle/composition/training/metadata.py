"""What is known of a document, said before it: metadata conditioning, and the cooldown that does without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from string import Formatter

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from entangle.composition.training.corpus import Mixture
from entangle.composition.training.stream import Stream
from entangle.errors import EntangleError


@dataclass(frozen=True)
class Prefix:
    """A text to put before documents, in which `{source}` stands for what a document's column `source` says.

    A brace that is meant is doubled: `{{`.
    """

    text: str

    def __post_init__(self) -> None:
        for _, name, form, conversion in self._parts():
            if name is not None and (not name.isidentifier() or form or conversion):
                raise EntangleError(
                    f"the prefix {self.text!r} has {{{name}}}, which is no column: write {{source}} for a column, "
                    "{{ for a brace"
                )

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns it needs, in order."""
        return tuple(dict.fromkeys(name for _, name, *_ in self._parts() if name is not None))

    def before(self, known: Mapping[str, str]) -> str:
        """What it says before a document of which this is known."""
        return "".join(literal + (known[name] if name else "") for literal, name, *_ in self._parts())

    def _parts(self) -> list[tuple[str, str | None, str | None, str | None]]:
        try:
            return list(Formatter().parse(self.text))
        except ValueError as error:
            raise EntangleError(f"the prefix {self.text!r} cannot be read ({error}): double a brace, {{{{") from None


def condition(mixture: Mixture, metadata: Sequence[str], tokenizer: PreTrainedTokenizerBase, cooldown: float) -> Stream:
    """A mixture with metadata before its documents, but for those of the cooldown, which come last (Gao et al. 2025).

    The metadata stands after the token that begins a document. It is read and not predicted: no loss is taken over it.

    Args:
        mixture: The documents, in training order.
        metadata: The metadata of every clean document followed by that of every one of the added corpus.
        tokenizer: Of the mixture.
        cooldown: Share of all tokens at the end without metadata, reached to within one document; 0 has none.
    """
    texts = dict.fromkeys(metadata[i] for i in mixture.origins)
    rows = tokenizer(list(texts), add_special_tokens=False)["input_ids"]
    tokens = {text: np.array(row, dtype=np.int32) for text, row in zip(texts, rows, strict=True)}
    pieces = [tokens[metadata[i]] for i in mixture.origins]
    starts, lengths = mixture.documents.starts, mixture.documents.lengths
    longer = np.array([len(piece) for piece in pieces], dtype=np.int64)
    n = _conditioned_documents(lengths, longer, cooldown)
    places = np.repeat(starts[:n] + 1, longer[:n])
    added = np.concatenate([np.zeros(0, dtype=np.int32), *pieces[:n]])
    bare = mixture.documents.tokens
    return Stream(
        torch.from_numpy(np.insert(bare, places, added)),
        torch.from_numpy(np.insert(np.ones(len(bare), dtype=bool), places, False)),
        int(starts[n]) + len(added) if n < len(pieces) else None,
    )


def _conditioned_documents(lengths: NDArray[np.int64], longer: NDArray[np.int64], cooldown: float) -> int:
    """The most documents from the first that leave the rest the cooldown's share of all tokens.

    Args:
        lengths: Of the documents without metadata.
        longer: By how much metadata lengthens each.
        cooldown: That share.
    """
    conditioned = np.concatenate(([0], (lengths + longer).cumsum()))
    rest = lengths.sum() - np.concatenate(([0], lengths.cumsum()))
    return int(np.flatnonzero(rest >= cooldown * (conditioned + rest))[-1])
