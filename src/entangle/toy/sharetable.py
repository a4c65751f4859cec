"""What the data-share study found: a table of definitions with tests and baselines, and one figure of them all."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr

from entangle.errors import EntangleError
from entangle.metrics import holm, paired_difference, paired_permutation_test
from entangle.toy.files import folder, write_figure, write_text

DEFINITION = ["feature", "direction", "scope", "site", "partners"]
LITERAL = {"feature": "chain, start", "direction": "logistic", "scope": "per token", "partners": "all"}
MOTIVATED = {
    "feature": "chain, token",
    "direction": "mean_difference",
    "scope": "joint",
    "partners": "different next token",
}


@dataclass(frozen=True)
class DataShareStudy:
    """Models trained on minority shares, and their entanglement by every definition.

    Attributes:
        frame: a row per share, seed, step and definition; see `to_frame`.
        settings: everything needed to repeat it.
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
            EntangleError: where nothing was measured by it.
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

        Seeds are the units of both tests, which swap signs (`paired_permutation_test`). Every row is shown, whatever
        it says; `p_holm` corrects `p_difference` for having looked at all of them.

        Columns besides the definition and step: share (the smallest above 0) and there minority, control, difference
        with its 95 % interval over seeds (low, high) and p_difference; trend: mean over seeds of Spearman's
        correlation between share and minority - control, with p_trend; random: the entanglement of random directions;
        untrained: minority minus control before training; loss_correlation: Spearman between the minority's
            entanglement and its loss.
        """
        rows = self.frame[self.frame["role"] == role]
        if rows.empty:
            raise EntangleError(f"there are no seeds to {role}; give some to data_share_study")
        low_share = min(share for share in self.settings["shares"] if share > 0)
        random = (
            rows[rows["direction"] == "random"].groupby(["feature", "scope", "partners"])["minority"].mean().to_dict()
        )
        found = []
        for keys, group in rows[rows["direction"] != "random"].groupby([*DEFINITION, "step"], sort=False):
            definition = dict(zip([*DEFINITION, "step"], keys, strict=True))
            rare = group[group["share"] == low_share].dropna(subset=["minority", "control"])
            if len(rare) < 2:
                continue
            minority, control = rare["minority"].to_numpy(copy=True), rare["control"].to_numpy(copy=True)
            interval = paired_difference(minority, control)
            trends = _trends(group)
            found.append(
                definition
                | {
                    "share": low_share,
                    "minority": minority.mean(),
                    "control": control.mean(),
                    "difference": interval.value,
                    "low": interval.low,
                    "high": interval.high,
                    "p_difference": paired_permutation_test(minority, control, n_permutations=n_permutations),
                    "trend": trends.mean(),
                    "p_trend": paired_permutation_test(trends, np.zeros_like(trends), n_permutations=n_permutations),
                    "random": random[tuple(definition[key] for key in ("feature", "scope", "partners"))],
                    "loss_correlation": _spearman(group["minority"], group["minority_loss"]),
                }
            )
        table = pd.DataFrame(found)
        before = table[table["step"] == 0].set_index(DEFINITION)["difference"].rename("untrained")
        table = table.join(before, on=DEFINITION)
        return table.assign(p_holm=holm(torch.from_numpy(table["p_difference"].to_numpy(copy=True))).numpy())

    def selected(self) -> pd.Series[Any]:
        """The trained definition with the largest effect on the selection seeds, as the reporting seeds have it.

        Raises:
            EntangleError: where the study had no selection seeds.
        """
        chosen = self.table(role="select", n_permutations=100)
        best = chosen[chosen["step"] > 0].sort_values("difference").iloc[-1]
        table = self.table()
        same = (table[[*DEFINITION, "step"]] == best[[*DEFINITION, "step"]]).all(axis=1)
        return table[same].iloc[0]

    def save(self, out: str | os.PathLike[str]) -> None:
        """Write settings and table as JSON, all rows as CSV, and the figures as PNG, into the directory `out`."""
        from entangle.toy import figures

        directory = folder(out)
        table = self.table()
        record = {"settings": self.settings, "table": json.loads(table.to_json(orient="records"))}
        if self.settings["selection_seeds"]:
            record["selected"] = json.loads(self.selected().to_json())
        write_text(directory / "data_share.json", json.dumps(record, indent=1))
        write_text(directory / "data_share.csv", self.frame.to_csv(index=False))
        write_figure(directory / "data_share.png", figures.data_share(self, table))
        write_figure(directory / "budgets.png", figures.budgets(self))


def _trends(group: pd.DataFrame) -> np.ndarray:
    """Per seed, Spearman's correlation of share and minority - control; 0 where either is constant."""
    difference = group.assign(difference=group["minority"] - group["control"]).dropna(subset=["difference"])
    return np.array([_spearman(seed["share"], seed["difference"]) for _, seed in difference.groupby("seed")])


def _spearman(a: pd.Series[float], b: pd.Series[float]) -> float:
    if a.nunique() < 2 or b.nunique() < 2:
        return 0.0
    return float(spearmanr(a, b, nan_policy="omit").statistic)
