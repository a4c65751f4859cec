"""What the data-share study found: a table of definitions with tests and baselines, and one figure of them all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.stats import rankdata

from entangle.errors import EntangleError
from entangle.metrics import bootstrap_mean, max_statistic_p
from entangle.toy.chains import figures
from entangle.toy.files import write_study

Array = npt.NDArray[np.float64]
DEFINITION = ["feature", "direction", "scope", "site", "partners"]
SIGNIFICANT = 0.05


@dataclass(frozen=True)
class DataShareStudy:
    """Models trained on minority shares, and their entanglement by every definition.

    Attributes:
        frame: A row per share, seed, step and definition; see `to_frame`.
        settings: Everything needed to repeat it.

    Example:
        >>> few = {"shares": [0.1, 1.0], "seeds": 2, "steps": 2, "budgets": [], "n_layers": 1, "length": 4}
        >>> study = en.toy.data_share_study(**few, compile=False, progress=False)
        >>> len(study.of(en.toy.LITERAL))  # the paper's definition by the letter: two shares, two seeds
        4
        >>> study.last_site
        'blocks.0.hook_resid_post'
    """

    frame: pd.DataFrame
    settings: dict[str, Any]

    def to_frame(self) -> pd.DataFrame:
        """A row per model, step and definition.

        Columns: share, seed, role ("report" or "select"), step; the definition: feature, direction ("random" is the
            null),
        scope, site, partners; minority and control: mean entanglement of the minority chain's features and of the other
        chains'; minority_loss and control_loss: nats per token where the next token is determined, best possible 0.
        """
        return self.frame.copy()

    @property
    def last_site(self) -> str:
        """Where the directions of the headline definitions live: the residual stream after the last block."""
        return f"blocks.{self.settings['architecture']['n_layers'] - 1}.hook_resid_post"

    def of(self, definition: dict[str, str], *, step: int | None = None, role: str = "report") -> pd.DataFrame:
        """The rows of one definition, say `LITERAL` or `MOTIVATED`, at the last site unless it names one.

        Raises:
            EntangleError: Where nothing was measured by it.
        """
        wanted = {
            "site": self.last_site,
            "step": self.settings["steps"] if step is None else step,
            "role": role,
        } | definition
        rows = self.frame
        for column, value in wanted.items():
            rows = rows[rows[column] == value]
        if rows.empty:
            raise EntangleError(f"nothing was measured with {wanted}; see to_frame() for what was")
        return rows

    def table(self, *, role: str = "report", n_permutations: int = 10_000) -> pd.DataFrame:
        """One row per definition and budget: is the minority more entangled where it is rare, and does that fade?

        Seeds are the units of both tests, which flip signs. Every row is shown, whatever it says; p_family corrects
        p_difference for having looked at all of them.

        Columns besides the definition and step: share (the smallest above 0) and there minority, control, difference
        with its 95 % interval over seeds (low, high) and p_difference; trend: mean over seeds of Spearman's
        correlation between share and minority - control, with p_trend; random: the entanglement of random directions;
        untrained: minority minus control before training; loss_correlation: Spearman between the minority's
            entanglement and its loss.
        """
        rows = self.frame[self.frame["role"] == role]
        if rows.empty:
            raise EntangleError(f"there are no seeds to {role}; give some to data_share_study")
        random = rows[rows["direction"] == "random"].groupby(["feature", "scope", "partners"])["minority"].mean()
        values = rows[rows["direction"] != "random"].pivot(
            index=[*DEFINITION, "step"], columns=["seed", "share"], values=["minority", "control", "minority_loss"]
        )
        values = values.dropna().sort_index(axis=1)  # definitions that some mixture leaves without partners
        shares = np.array(sorted(rows["share"].unique()))
        rare = int(np.flatnonzero(shares > 0)[0])
        minority, control, loss = (
            values[name].to_numpy().reshape(len(values), -1, len(shares))
            for name in ("minority", "control", "minority_loss")
        )  # [definition, seed, share]
        difference = minority - control
        at_rare = difference[..., rare].T
        interval = bootstrap_mean(at_rare)
        p_difference, p_family = _sign_flips(at_rare, n_permutations)
        trends = _spearman(np.broadcast_to(shares, difference.shape), difference).T
        table = pd.DataFrame(
            {
                "share": shares[rare],
                "minority": minority[..., rare].mean(1),
                "control": control[..., rare].mean(1),
                "difference": interval.value,
                "low": interval.low,
                "high": interval.high,
                "p_difference": p_difference,
                "p_family": p_family,
                "trend": trends.mean(0),
                "p_trend": _sign_flips(trends, n_permutations)[0],
                "loss_correlation": _spearman(minority.reshape(len(values), -1), loss.reshape(len(values), -1)),
            },
            index=values.index,
        ).reset_index()
        before = table[table["step"] == 0].set_index(DEFINITION)["difference"].rename("untrained")
        return table.join(before, on=DEFINITION).join(random.rename("random"), on=["feature", "scope", "partners"])

    def answer(self) -> list[str]:
        """In how many of the definitions and budgets the minority is more entangled where it is rare."""
        table = self.table()
        trained = table[table["step"] > 0]
        larger = trained[(trained["low"] > 0) & (trained["p_family"] <= SIGNIFICANT)]
        smaller = trained[(trained["high"] < 0) & (trained["p_family"] <= SIGNIFICANT)]
        n_seeds = self.frame.loc[self.frame["role"] == "report", "seed"].nunique()
        return [
            f"At a share of {trained['share'].iloc[0]:g}, the minority's features are more entangled than the others' "
            f"in {len(larger)} of {len(trained)} definitions and budgets, less in {len(smaller)}, and in the rest "
            f"{n_seeds} seeds cannot tell (corrected for having looked at all of them)."
        ]

    def selected(self) -> pd.Series:
        """The trained definition with the largest effect on the selection seeds, as the reporting seeds have it.

        Raises:
            EntangleError: Where the study had no selection seeds.
        """
        chosen = self.table(role="select", n_permutations=100)
        best = chosen[chosen["step"] > 0].sort_values("difference").iloc[-1]
        table = self.table()
        same = (table[[*DEFINITION, "step"]] == best[[*DEFINITION, "step"]]).all(axis=1)
        return table[same].iloc[0]

    def save(self, out: str | os.PathLike[str]) -> None:
        """Write settings and table as JSON, all rows as gzipped CSV, and figures as PNG, into the directory `out`."""
        table = self.table()
        record = {"settings": self.settings, "table": json.loads(table.to_json(orient="records"))}
        if self.settings["selection_seeds"]:
            record["selected"] = json.loads(self.selected().to_json())
        drawings = {"data_share.png": figures.data_share(self, table), "budgets.png": figures.budgets(self)}
        write_study(out, "data_share", record, drawings, {"data_share.csv.gz": self.frame.to_csv(index=False)})


def _sign_flips(values: Array, n_permutations: int) -> tuple[Array, Array]:
    """Two-sided p-values of the mean over seeds of [seed, definition], alone and corrected for all definitions.

    Seeds flip their signs together for all definitions, so the correction knows how these move together.
    """
    n = len(values)
    every = 2**n <= n_permutations
    signs = (
        np.array(list(product((1.0, -1.0), repeat=n)))  # each way once: the p-values are exact
        if every
        else np.random.default_rng(0).choice([-1.0, 1.0], (n_permutations, n))
    )
    size = np.abs(values).max(0)
    scaled = values / np.where(size > 0, size, 1.0)  # t has no units, and rounding is to be told from spread

    def t(sums: Array) -> Array:
        # Flipping signs leaves the squares as they are. Values that never vary have no t: call it zero.
        mean, squares = sums / n, (scaled**2).mean(0)
        spread = np.sqrt(np.maximum(squares - mean**2, 1e-12) / (n - 1))
        return np.where(size > 0, np.abs(mean) / spread, 0.0)

    observed, null = t(scaled.sum(0)), t(signs @ scaled)
    reached = (null >= observed * (1 - 1e-9)).sum(0)
    if every:
        largest = (null.max(1)[:, None] >= observed * (1 - 1e-9)).mean(0)
        return reached / len(signs), largest
    return (1 + reached) / (1 + n_permutations), max_statistic_p(observed, null).numpy()


def _spearman(a: Array, b: Array) -> Array:
    """Spearman's correlation along the last axis; 0 where either is constant."""
    ranks = [rankdata(x, axis=-1) for x in (a, b)]
    x, y = (r - r.mean(-1, keepdims=True) for r in ranks)
    norm = np.sqrt((x**2).sum(-1) * (y**2).sum(-1))
    correlation: Array = np.where(norm > 0, (x * y).sum(-1) / np.where(norm > 0, norm, 1), 0.0)
    return correlation
