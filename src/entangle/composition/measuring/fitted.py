"""A trained model and the study of it: read and measured when first asked for, and once."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

from entangle.composition.recipe.measurement import Measurement
from entangle.errors import EntangleError
from entangle.interventions import ITI
from entangle.models import Atlas, load
from entangle.study import Study, StudyTexts
from entangle.study.steps import StudiedModel

STUDY = "study"


class Fitted:
    """The model in a folder, for whatever is measured of it.

    Args:
        folder: The model and its tokenizer; what is measured is written into it.
        measurement: What is measured.
        texts: On what.
        device: To run on.
        progress: Show progress bars.
    """

    def __init__(
        self,
        folder: Path,
        measurement: Measurement,
        texts: StudyTexts,
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
    def studied(self) -> StudiedModel:
        """The model as a study takes it: its conditions are kept in its folder, its activations nowhere."""
        question = self.measurement.question(prepend_bos=self.tokenizer.bos_token_id is not None)
        return StudiedModel(
            self.model,
            self.tokenizer,
            Atlas(self.model),
            self.folder.name,
            question,
            conditions=self.folder,
            progress=self.progress,
        )

    @cached_property
    def iti(self) -> ITI:
        """The intervention of the study that was saved beside the model.

        Raises:
            EntangleError: There is none, as the model was not steered.
        """
        iti = Study.load(self.folder / STUDY, model=self.model).iti
        if iti is None:
            raise EntangleError(f"{self.folder} holds a study in which nothing was steered: measure it anew")
        return iti
