"""Another model beside the plain one: given as it is, or read once from where it lies, with the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.errors import EntangleError
from entangle.models import underlying
from entangle.models.fingerprint import fingerprint

Stamps: TypeAlias = tuple[tuple[str, int, int], ...]
COMPARED = 4096
"""Tokens of a larger vocabulary that are compared one by one."""


@dataclass(frozen=True)
class OtherModel:
    """A model, or the directory or hub id of one.

    Args:
        source: The model or where it lies.
        revision: Commit of the hub's repository.
    """

    source: PreTrainedModel | str | Path
    revision: str | None = None

    def beside(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, what: str) -> PreTrainedModel:
        """The other model, in the plain one's dtype and on its device where it is read from somewhere.

        Args:
            model: The plain model.
            tokenizer: Its tokenizer, which reads for both.
            what: What the other model is called in an error.

        Raises:
            EntangleError: Its vocabulary is another one.
        """
        other, theirs = self.read(model.dtype, model.device)
        sizes = [m.config.get_text_config().vocab_size for m in (model, other)]
        if sizes[0] != sizes[1]:
            raise EntangleError(
                f"{what} must share the plain model's vocabulary; it has {sizes[1]} tokens, the plain model {sizes[0]}"
            )
        number = None if theirs is None else _first_difference(tokenizer, theirs, sizes[0])
        if number is not None:
            words = [each.convert_ids_to_tokens(number) for each in (theirs, tokenizer)]
            raise EntangleError(
                f"{what} must share the plain model's vocabulary; its token {number} is {words[0]!r}, the plain "
                f"model's is {words[1]!r}: give one with the plain model's tokenizer"
            )
        return other

    def content(self) -> Any:
        """What a saved sweep knows it by: the model, wherever it lies."""
        return fingerprint(self.read()[0])

    def read(self, dtype: torch.dtype | None = None, device: torch.device | None = None) -> tuple[PreTrainedModel, Any]:
        """The model, and the tokenizer that lies beside it; None beside a model that is given as it is."""
        if isinstance(self.source, str | Path):
            return _loaded(str(self.source), self.revision, dtype, device, _stamps(Path(self.source)))
        return underlying(self.source), None


def _first_difference(one: Any, other: Any, size: int) -> int | None:
    """The first token, of some thousands over the whole vocabulary, that two tokenizers write differently."""
    ids = list(range(0, min(size, len(one), len(other)), max(1, size // COMPARED)))
    pairs = zip(ids, one.convert_ids_to_tokens(ids), other.convert_ids_to_tokens(ids), strict=True)
    return next((number for number, mine, theirs in pairs if mine != theirs), None)


def _stamps(folder: Path) -> Stamps:
    """Name, size and time of the files there, which change where another checkpoint takes the place of one."""
    files = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else [folder]
    files = [path for path in files if path.is_file()]
    return tuple((path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in files)


@lru_cache(maxsize=2)  # an expert and an anti-expert
def _loaded(
    path: str, revision: str | None, dtype: torch.dtype | None, device: torch.device | None, stamps: Stamps
) -> tuple[PreTrainedModel, Any]:
    """The checkpoint, read once and not once a batch."""
    from entangle.models.loading import load

    model, tokenizer = load(path, revision=revision, dtype=dtype, device=device)
    return model, tokenizer
