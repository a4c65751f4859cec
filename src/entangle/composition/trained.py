"""The models of a recipe that are finished."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from entangle.composition.recipe.recipe import Recipe
from entangle.errors import EntangleError


@dataclass(frozen=True)
class TrainedModel:
    """One finished model.

    Attributes:
        path: Its folder, for `from_pretrained`; holds the tokenizer too.
        share: Share of added tokens that was asked for.
        seed: The seed.
        metrics: `share` as trained, `clean_tokens`, `added_tokens`, `steps`, `final_loss`, `held_out_ce` and
            `unigram_ce` (nats per token), `losses`.
        variant: The name of its variant or posttraining, "" for the mixture as it is.
        measured: What `entangle.composition.measuring.measure` found, where the recipe measures.

    Example:
        >>> from pathlib import Path
        >>> trained = en.composition.TrainedModel(Path("share-0.1-seed-0"), 0.1, seed=0, metrics={"held_out_ce": 2.6})
        >>> trained.posttrained
        False
    """

    path: Path
    share: float
    seed: int
    metrics: dict[str, Any]
    variant: str = ""
    measured: dict[str, Any] | None = None

    @property
    def posttrained(self) -> bool:
        """Whether it was trained on pairs, starting from the model of its share and seed."""
        return "pairs" in self.metrics

    @property
    def n_parameters(self) -> int:
        """How many parameters it has, from its configuration alone."""
        config = AutoConfig.from_pretrained(self.path, trust_remote_code=False)
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
        return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True)
class Composition:
    """The models of a recipe that are finished.

    Example:
        >>> from pathlib import Path
        >>> models = tuple(en.composition.TrainedModel(Path(f"{s}"), s, 0, {"held_out_ce": 2.6}) for s in (0.0, 0.1))
        >>> found = en.composition.Composition(en.composition.demo_recipe(), models)
        >>> found.model(0.1).path.name, len(found.to_frame())
        ('0.1', 2)
    """

    recipe: Recipe
    models: tuple[TrainedModel, ...]

    def model(self, share: float, seed: int | None = None, *, variant: str = "") -> TrainedModel:
        """The model of a share, and of a seed where there are several; or of a variant.

        Raises:
            EntangleError: Where there is no such model.
        """
        for trained in self.models:
            if trained.share == share and seed in (None, trained.seed) and trained.variant == variant:
                return trained
        raise EntangleError(
            f"no model with share {share} and seed {seed}: shares {self.recipe.shares}, seeds {self.recipe.seeds}"
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each model with its numbers (without the losses of every step)."""
        rows = [
            {
                "share": m.share,
                "seed": m.seed,
                "variant": m.variant,
                **{
                    k: v
                    for k, v in m.metrics.items()
                    if k not in ("losses", "share", "seed", "recipe", "pairs", "key", "texts")
                },
            }
            for m in self.models
        ]
        return pd.DataFrame(rows)
