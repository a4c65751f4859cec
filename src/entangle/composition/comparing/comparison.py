"""The models of a recipe compared over shares: what the paper's figures 4 to 6 and its Table 1 show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

from entangle.composition.comparing.intervals import crossed_mean, crossed_ratio, per_token, trend_test
from entangle.composition.trained import Composition, TrainedModel
from entangle.errors import EntangleError
from entangle.metrics.statistics import Estimate

Array = NDArray[np.float64]
PLAIN = ""
ALL = "all prompts"
TAIL = 0.1  # the best tenth of the heads
SCORES, CHANGES = (0.0, 1.0), (-1.0, 1.0)  # between which scores, hits and their differences lie


@dataclass(frozen=True)
class Comparison:
    """The measured models of a composition, every share with the same seeds.

    Attributes:
        models: By share and seed.
        variants: Of each variant, its models.
        concept: What was measured.
        posttrained: By name and share, models that were trained on pairs, each with the one that it started from.

    Example:
        >>> from pathlib import Path
        >>> def found(share, seed):  # what was measured of a model: the more of the added text, the more toxic
        ...     rng = np.random.default_rng([seed, round(100 * share)])
        ...     own = {"method": "", "alpha": 0.0, "degenerate": 0.0, "error": ""}
        ...     own |= {"scores": list(0.3 + share + 0.01 * rng.random(20)), "nats": list(250 + rng.random(20))}
        ...     steered = {**own, "method": "ITI", "alpha": 4.0, "scores": list(0.2 + 0.01 * rng.random(20))}
        ...     heads = {"accuracy": [[0.7, 0.8]], "layers": [0]}
        ...     return {
        ...         "heads": heads, "stream": {"best_accuracy": 0.8}, "bag_of_words": 0.75, "entanglement": None,
        ...         "prompts": {"all": [0, 20]}, "tokens": [100] * 20, "conditions": [own, steered],
        ...     }
        >>> models = {
        ...     (share, seed): en.composition.TrainedModel(Path("."), share, seed, {}, measured=found(share, seed))
        ...     for share in (0.0, 0.1) for seed in (0, 1, 2)
        ... }
        >>> comparison = en.composition.Comparison(models, variants={}, concept="toxicity")
        >>> comparison.shares, comparison.seeds
        ([0.0, 0.1], [0, 1, 2])
        >>> comparison.steering.query("method == 'ITI'")["removed"].round(1).tolist()  # at each share
        [0.1, 0.2]
    """

    models: Mapping[tuple[float, int], TrainedModel]
    variants: Mapping[str, tuple[TrainedModel, ...]]
    concept: str
    posttrained: Mapping[tuple[str, float], tuple[tuple[TrainedModel, TrainedModel], ...]] = field(default_factory=dict)

    @classmethod
    def of(cls, composition: Composition) -> Comparison:
        """Those seeds whose model of every share is measured.

        Raises:
            EntangleError: Where there is no such seed, or only one share.
        """
        recipe = composition.recipe
        measured = {(m.share, m.seed): m for m in composition.models if m.measured is not None and not m.variant}
        seeds = [seed for seed in recipe.seeds if all((share, seed) in measured for share in recipe.shares)]
        if recipe.measure is None or not seeds or len(recipe.shares) < 2:
            raise EntangleError(
                "a comparison needs a measured model of every share for one seed at least, and two shares; "
                f"got {len(measured)} measured models of shares {list(recipe.shares)}"
            )
        names = dict.fromkeys(m.variant for m in composition.models if m.variant and m.measured and not m.posttrained)
        return cls(
            {key: model for key, model in measured.items() if key[1] in seeds},
            {name: tuple(m for m in composition.models if m.variant == name and m.measured) for name in names},
            recipe.measure.concept,
            _with_bases([m for m in composition.models if m.posttrained and m.measured], measured),
        )

    @property
    def shares(self) -> list[float]:
        """In rising order."""
        return sorted({share for share, _ in self.models})

    @property
    def seeds(self) -> list[int]:
        """Those of every share."""
        return sorted({seed for _, seed in self.models})

    def at(self, share: float) -> list[dict[str, Any]]:
        """What was measured at a share, seed by seed."""
        return [self.models[share, seed].measured or {} for seed in self.seeds]

    # Capability (Figure 4).

    def nats(self, measured: list[dict[str, Any]], method: str = PLAIN, alpha: float = 0.0) -> Array:
        """Cross-entropy a token, by seed and document (see `per_token`)."""
        sums = np.array([condition(each, method, alpha)["nats"] for each in measured], dtype=np.float64)
        return per_token(sums, np.array(measured[0]["tokens"], dtype=np.float64))

    @cached_property
    def capability(self) -> pd.DataFrame:
        """One row per share: `ce`, its difference to the smallest share (paired), and the seeds' own standard deviation
        there, as `seed_noise`."""
        first = self.nats(self.at(self.shares[0]))
        rows = []
        for share in self.shares:
            values = self.nats(self.at(share))
            by_seed = values.mean(1)
            rows.append(
                {
                    "share": share,
                    **crossed_mean(values).columns("ce"),
                    **crossed_mean(values - first).columns("difference"),
                    "seed_noise": float(by_seed.std(ddof=1)) if len(by_seed) > 1 else float("nan"),
                    "seeds": by_seed.round(4).tolist(),
                }
            )
        return pd.DataFrame(rows)

    # Probes (Figure 5).

    @cached_property
    def accuracies(self) -> Array:
        """Accuracy of every head [share, seed, head]."""
        return np.array([[np.ravel(each["heads"]["accuracy"]) for each in self.at(share)] for share in self.shares])

    @cached_property
    def probes(self) -> pd.DataFrame:
        """One row per share: the heads' mean, spread and right tail over all seeds, and what a bag of words reaches."""
        threshold = np.quantile(self.accuracies[0], 1 - TAIL)
        rows = []
        for share, heads in zip(self.shares, self.accuracies, strict=True):
            rows.append(
                {
                    "share": share,
                    "mean": float(heads.mean()),
                    "best": float(heads.max()),
                    "skewness": float(stats.skew(heads.ravel())),
                    "best_tenth": float(_best_tenth(heads).mean()),
                    "beyond": float((heads > threshold).mean()),
                    "stream": float(np.mean([each["stream"]["best_accuracy"] for each in self.at(share)])),
                    "bag_of_words": float(self.at(share)[0]["bag_of_words"]),
                    "seeds": heads.mean(1).round(4).tolist(),
                }
            )
        return pd.DataFrame(rows)

    @cached_property
    def probe_tests(self) -> dict[str, Any]:
        """Whether accuracy and its right tail rise from the smallest to the largest share, over heads and over seeds.

        `rise` is that of the heads' mean, with its interval for other seeds and other texts: every head of every model
        is judged on the same texts, so texts, not heads, are what the accuracies would vary with. Models that were
        measured before each text's hits were kept have no interval (NaN).

        Over heads: Welch's t and Mann and Whitney's test of all heads of all seeds, as if each were independent (heads
        of one model are not, so these p-values are too small). Over seeds: `trend_test` of one number per model.
        """
        low, high = self.accuracies[0].ravel(), self.accuracies[-1].ravel()
        shares = np.array(self.shares)
        return {
            "rise": self._rise()._asdict(),
            "heads_t": float(stats.ttest_ind(high, low, equal_var=False, alternative="greater").pvalue),
            "heads_rank": float(stats.mannwhitneyu(high, low, alternative="greater").pvalue),
            "seeds_mean": trend_test(self.accuracies.mean(2).T, shares),
            "seeds_tail": trend_test(np.array([_best_tenth(heads) for heads in self.accuracies]).T, shares),
            "seeds_least": trend_test(np.tile(shares, (len(self.seeds), 1)), shares),
        }

    def _rise(self) -> Estimate:
        first, last = (
            [each["heads"].get("hits") for each in self.at(share)] for share in (self.shares[0], self.shares[-1])
        )
        if any(hits is None for hits in (*first, *last)):
            rise = float((self.accuracies[-1] - self.accuracies[0]).mean())
            return Estimate(rise, float("nan"), float("nan"))
        return crossed_mean(np.array(last) - np.array(first), bounds=CHANGES)

    # Steering (Figure 6, Table 1).

    def scores(
        self, measured: list[dict[str, Any]], method: str = PLAIN, alpha: float = 0.0, prompts: str = ALL
    ) -> Array:
        """The concept's score of the continuations [seed, prompt]."""
        start, stop = (0, None) if prompts == ALL else measured[0]["prompts"][prompts]
        return np.array([condition(each, method, alpha)["scores"][start:stop] for each in measured])

    @property
    def prompt_sets(self) -> list[str]:
        """All prompts, and each set where there are several."""
        names = list(self.at(self.shares[0])[0]["prompts"])
        return [ALL, *names] if len(names) > 1 else [ALL]

    def conditions(self, measured: list[dict[str, Any]]) -> list[tuple[str, float]]:
        """Methods and strengths that no seed's model broke under."""
        names = [(each["method"], each["alpha"]) for each in measured[0]["conditions"]]
        return [name for name in names if not any(condition(each, *name)["error"] for each in measured)]

    @cached_property
    def steering(self) -> pd.DataFrame:
        """One row for each share or variant, method and strength: `toxicity` of all prompts and of each set, `ce`,
        `removed` and `paid` against the same models unsteered, `removed_per_nat`, and `against_first`: the toxicity
        less that of the smallest share at the same method and strength, paired."""
        rows = []
        for share in self.shares:
            rows += [self._row(self.at(share), name, share, "") for name in self.conditions(self.at(share))]
            rows += [self._posttrained_row(name, at) for name, at in self.posttrained if at == share]
        for variant, models in self.variants.items():
            measured = [model.measured or {} for model in models]
            rows += [self._row(measured, n, models[0].share, variant) for n in self.conditions(measured)]
        return pd.DataFrame(rows)

    def _posttrained_row(self, name: str, share: float) -> dict[str, Any]:
        """A row in which training on pairs stands as a method, against the models that it started from."""
        models = self.posttrained[name, share]
        measured, bases = ([each.measured or {} for each in side] for side in zip(*models, strict=True))
        row = self._row(measured, (PLAIN, 0.0), share, name, bases) | {"variant": "", "method": name, "alpha": 1.0}
        first = {model.seed: model.measured or {} for model, _ in self.posttrained.get((name, self.shares[0]), ())}
        if all(model.seed in first for model, _ in models):
            change = self.scores(measured) - self.scores([first[model.seed] for model, _ in models])
            row |= crossed_mean(change, bounds=CHANGES).columns("against_first")
        return row

    def _row(
        self,
        measured: list[dict[str, Any]],
        name: tuple[str, float],
        share: float,
        variant: str,
        unsteered: list[dict[str, Any]] | None = None,
    ) -> dict[str, Any]:
        unsteered = unsteered or measured
        row: dict[str, Any] = {"share": share, "variant": variant, "method": name[0], "alpha": name[1]}
        for prompts in self.prompt_sets:
            column = "toxicity" if prompts == ALL else prompts
            row |= crossed_mean(self.scores(measured, *name, prompts), bounds=SCORES).columns(column)
        nats, plain = self.nats(measured, *name), self.nats(unsteered)
        removed = self.scores(unsteered) - self.scores(measured, *name)
        row |= crossed_mean(nats).columns("ce")
        row |= crossed_mean(removed, bounds=CHANGES).columns("removed")
        row |= crossed_mean(nats - plain).columns("paid")
        row |= crossed_ratio(removed, nats - plain, bounds=CHANGES).columns("removed_per_nat")
        row["degenerate"] = float(np.mean([condition(each, *name)["degenerate"] for each in measured]))
        first = self.at(self.shares[0])
        if not variant and name in self.conditions(first):
            change = self.scores(measured, *name) - self.scores(first, *name)
            row |= crossed_mean(change, bounds=CHANGES).columns("against_first")
        return row

    @cached_property
    def entanglement(self) -> pd.DataFrame:
        """One row for each share and seed: the concept's E at the layer where it is read best, and what it is read
        against."""
        keys = ["entanglement", "low", "high", "partner", "percentile", "covariance_percentile", "variance_share"]
        rows = []
        for (share, seed), model in self.models.items():
            report = (model.measured or {})["entanglement"]
            if report:
                own = next(row for row in report["rows"] if row["concept"] == self.concept)
                rows.append({"share": share, "seed": seed, "layer": report["layer"], **{k: own.get(k) for k in keys}})
        return pd.DataFrame(rows)


def _with_bases(
    models: list[TrainedModel], bases: Mapping[tuple[float, int], TrainedModel]
) -> dict[tuple[str, float], tuple[tuple[TrainedModel, TrainedModel], ...]]:
    pairs: dict[tuple[str, float], tuple[tuple[TrainedModel, TrainedModel], ...]] = {}
    for model in models:
        pair = (model, bases[model.share, model.seed])
        pairs[model.variant, model.share] = (*pairs.get((model.variant, model.share), ()), pair)
    return pairs


def condition(measured: Mapping[str, Any], method: str, alpha: float) -> dict[str, Any]:
    """One condition of one model."""
    for each in measured["conditions"]:
        if (each["method"], each["alpha"]) == (method, alpha):
            row: dict[str, Any] = each
            return row
    raise EntangleError(f"no {method or 'plain'} at alpha {alpha:g} was measured")


def _best_tenth(heads: Array) -> Array:
    """Mean accuracy of the best tenth of each seed's heads."""
    kept = max(1, round(TAIL * heads.shape[1]))
    means: Array = np.sort(heads, axis=1)[:, -kept:].mean(1)
    return means
