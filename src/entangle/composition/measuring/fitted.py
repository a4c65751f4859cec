"""A trained model and what a measurement fits on it: made when first asked for, and once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from entangle.activations import Activations, collect
from entangle.composition.recipe.measurement import MeasuredTexts, Measurement
from entangle.evaluation import baseline_methods
from entangle.models import load


class Fitted:
    """The model in a folder, for whatever is measured of it.

    Args:
        folder: the model and its tokenizer.
        measurement: what is measured.
        texts: on what.
        device: to run on.
        progress: show progress bars.
    """

    def __init__(
        self,
        folder: Path,
        measurement: Measurement,
        texts: MeasuredTexts,
        *,
        device: str | None = None,
        progress: bool = True,
    ) -> None:
        self.folder, self.measurement, self.texts = folder, measurement, texts
        self.device, self.progress = device, progress

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        return load(self.folder, device=self.device)

    @property
    def model(self) -> Any:
        """The model."""
        return self._loaded[0]

    @property
    def tokenizer(self) -> Any:
        """Its tokenizer."""
        return self._loaded[1]

    @property
    def options(self) -> dict[str, Any]:
        """How texts are read."""
        bos = self.tokenizer.bos_token_id is not None
        return {"max_length": self.measurement.max_length, "prepend_bos": bos, "progress": self.progress}

    @cached_property
    def acts(self) -> Activations:
        """Of the labelled texts at their last token: "z" and "resid_post"."""
        texts, sites = self.texts.labelled.texts, ["z", "resid_post"]
        return collect(self.model, self.tokenizer, texts, sites=sites, tokens="last", **self.options)

    @cached_property
    def methods(self) -> dict[str, Any]:
        """ITI and what it must beat (see `entangle.evaluation.baseline_methods`)."""
        labels = torch.from_numpy(self.texts.labelled.labels)
        _, n_layers, n_heads, _ = self.acts["z"].shape
        top_k = self.measurement.heads(n_layers * n_heads)
        return baseline_methods(self.acts, labels, top_k=top_k, seed=self.measurement.seed)
