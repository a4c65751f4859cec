"""What moved: every behaviour of every method with its interval, one number off target, its noise and its null."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any, Literal, NamedTuple, Self, TypeAlias

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float

from entangle.errors import EntangleError
from entangle.evaluation.effects import numbers
from entangle.metrics import Estimate, RootMeanSquare, holm, root_mean_square
from entangle.storage.record import read, taken_apart, write

Scale: TypeAlias = Literal["unit", "spread"]
KIND, VERSION = "Behaviours", 1
SAME = Estimate(0.0, 0.0, 0.0)
ALPHA = 0.05  # of what is said to move


class Measured(NamedTuple):
    """One condition: its values of every behaviour.

    Args:
        method: The method's name; "" for the plain model.
        alpha: Its strength.
        kl: What it costs, nats per token of the documents that prices are read on; NaN without any.
        values: Behaviour -> a value for each item.

    Example:
        >>> en.evaluation.Measured("ITI", 4.0, 0.1, {"length": np.array([0.3, 0.5])}).mean("length")
        0.4
    """

    method: str
    alpha: float
    kl: float
    values: Mapping[str, Float[np.ndarray, " item"]]

    def mean(self, behaviour: str) -> float:
        """The mean over items."""
        return float(np.mean(self.values[behaviour]))


@dataclass(frozen=True)
class Behaviours:
    """Behaviours of a model, plain and changed, item by item; make one with `behaviours`.

    Attributes:
        plain: The plain model.
        changed: The methods, in order.
        null: Of each method, the random directions of its price.
        off_target: The behaviours that count in each method's one number.
        about: Of each behaviour its `unit`, `bounds` and `items`.
        settings: What was measured and how.

    Example:
        >>> plain = en.evaluation.Measured("", 0.0, 0.0, {"a": np.zeros(4), "b": np.array([0.1, 0.2, 0.3, 0.4])})
        >>> steered = {"a": np.ones(4), "b": np.array([0.2, 0.2, 0.3, 0.4])}
        >>> changed = en.evaluation.Measured("edit", 1.0, 0.1, steered)
        >>> result = en.evaluation.Behaviours(plain, (changed,), {}, {"edit": ("b",)})
        >>> round(float(result.rmse()["rmse"][0]), 3)  # of b alone, which a quarter of the items moved by .1
        0.025
        >>> result.save("moved")
        >>> en.evaluation.Behaviours.load("moved").to_frame().equals(result.to_frame())
        True
    """

    plain: Measured
    changed: tuple[Measured, ...]
    null: Mapping[str, tuple[Measured, ...]]
    off_target: Mapping[str, tuple[str, ...]]
    about: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @classmethod
    def of(
        cls,
        plain: Measured,
        changed: Sequence[Measured],
        null: Mapping[str, Sequence[Measured]],
        tasks: Mapping[str, Any],
        off_target: Mapping[str, tuple[str, ...]],
        settings: Mapping[str, Any],
    ) -> Self:
        """The result of what was measured, with what its tasks say of themselves."""
        about = {
            name: {
                "unit": float(getattr(task, "unit", 1.0)),
                "bounds": getattr(task, "bounds", None),
                "items": getattr(task, "items", name),
            }
            for name, task in tasks.items()
        }
        there = {each.method for each in changed}
        return cls(
            plain,
            tuple(changed),
            {name: tuple(draws) for name, draws in null.items() if name in there},
            {name: names for name, names in off_target.items() if name in there},
            about,
            settings,
        )

    @property
    def behaviours(self) -> tuple[str, ...]:
        """Their names."""
        return tuple(self.plain.values)

    def to_frame(self, *, level: float = 0.95, n_resamples: int = 2000, seed: int = 0) -> pd.DataFrame:
        """One row for each method and behaviour.

        Columns: `method`, `alpha`, `kl`, `behaviour`, `off_target`, `n` (items), `plain` and `changed` (means);
        `change` with `change_low` and `change_high`: paired over items, Bonett & Price's interval where values are 0 or
        1 and BCa elsewhere; `p` of the paired permutation test and `p_holm`, Holm's correction over the whole table;
        `null_low` and `null_high`, the least and the greatest change by a random direction of the same price, and
        `p_null`, the share of them (counting the edit) that move the behaviour at least as far.
        """
        rows = []
        for each in self.changed:
            for name in self.behaviours:
                difference = self._difference(each, name)
                change = SAME  # the plain model beside itself: known exactly
                if each.alpha:
                    change = numbers.change(difference, self._bounds(each, name), level, n_resamples, seed)
                drawn: Any = np.array(
                    [np.mean(self._difference(draw, name)) for draw in self.null.get(each.method, ())]
                )
                rows.append(
                    {
                        "method": each.method,
                        "alpha": each.alpha,
                        "kl": each.kl,
                        "behaviour": name,
                        "off_target": name in self.off_target[each.method],
                        "n": len(difference),
                        "plain": self.plain.mean(name),
                        "changed": each.mean(name),
                        **change.columns("change"),
                        "p": numbers.p_value(difference, seed),
                        "null_low": drawn.min(initial=np.inf) if len(drawn) else np.nan,
                        "null_high": drawn.max(initial=-np.inf) if len(drawn) else np.nan,
                        "p_null": numbers.share_beyond(abs(float(np.mean(difference))), np.abs(drawn)),
                    }
                )
        frame = pd.DataFrame(rows)
        frame.insert(list(frame.columns).index("p") + 1, "p_holm", holm(frame["p"].tolist()).numpy())
        return frame

    def rmse(
        self, *, scale: Scale = "unit", level: float = 0.95, n_resamples: int = 2000, seed: int = 0
    ) -> pd.DataFrame:
        """The one number of each method: the root mean square over behaviours off target.

        Columns: `method`, `alpha`, `kl`, `behaviours` (how many); `rmse` as measured, SteeringSafety's; `noise`, what
        it would be if nothing moved; `corrected` without that, with its interval (`root_mean_square`): compare that
        one; `null`, `null_low` and `null_high`: median, least and greatest `corrected` of the random directions, which
        have noise of their own; `p_null`, the share of them (counting the edit) that move as much or more; `n_null`.

        Args:
            scale: Changes in units of each task's own `unit`, or "spread": of the standard deviation between items in
                the plain model.
            level: Coverage of the interval.
            n_resamples: Resamples of the items; tasks of the same items share them.
            seed: Seed of the resamples.

        Raises:
            EntangleError: Another scale, or a spread of 0.
        """
        rows = []
        for each in self.changed:
            names = self.off_target[each.method]
            own, *draws = self._rms([each, *self.null.get(each.method, ())], names, scale, level, n_resamples, seed)
            # Squares without the noise, which may be below zero: their order is kept where roots would all be 0.
            squares: Any = np.array([draw.measured**2 - draw.noise**2 for draw in draws])
            values: Any = np.array([float(draw.corrected.value) for draw in draws])
            rows.append(
                {
                    "method": each.method,
                    "alpha": each.alpha,
                    "kl": each.kl,
                    "behaviours": len(names),
                    "rmse": own.measured,
                    "noise": own.noise,
                    **own.corrected.columns("corrected"),
                    "null": float(np.median(values)) if len(values) else np.nan,
                    "null_low": float(values.min()) if len(values) else np.nan,
                    "null_high": float(values.max()) if len(values) else np.nan,
                    "p_null": numbers.share_beyond(own.measured**2 - own.noise**2, squares),
                    "n_null": len(draws),
                }
            )
        return pd.DataFrame(rows)

    def asymmetry(
        self, *, scale: Scale = "unit", level: float = 0.95, n_resamples: int = 2000, seed: int = 0
    ) -> pd.DataFrame:
        """Of each pair of methods that are named as behaviours: i moves j, and does j move i?

        Columns: `i`, `j`; `i_moves_j` and `j_moves_i`, the changes with their intervals; `gap`, the size of the first
        less that of the second, with its bootstrap interval, and `p`, `p_holm` of no gap; `verdict`. Not seeing a
        change is no evidence that there is none, so the verdict is on the gap.

        Args:
            scale: As for `rmse`.
            level: Coverage of the intervals.
            n_resamples: Resamples of the items.
            seed: Seed of the resamples.

        Raises:
            EntangleError: Fewer than two methods are named as behaviours.
        """
        by_name = {each.method: each for each in self.changed if each.method in self.behaviours}
        if len(by_name) < 2:
            raise EntangleError(
                "asymmetry needs two methods or more that are named as the behaviours they aim at; these are "
                f"{', '.join(each.method for each in self.changed)}, and the behaviours {', '.join(self.behaviours)}"
            )
        rows = []
        pairs = [(i, j) for k, i in enumerate(by_name) for j in list(by_name)[k + 1 :]]
        for i, j in pairs:
            sides = [(by_name[i], j), (by_name[j], i)]
            changes = [self._scaled(each, name, scale) for each, name in sides]
            plain_units = scale == "unit" and all(self._unit(name) == 1 for _, name in sides)
            estimates = [
                numbers.change(difference, self._bounds(each, name) if plain_units else None, level, n_resamples, seed)
                for difference, (each, name) in zip(changes, sides, strict=True)
            ]
            keys = [self._items(name) for _, name in sides]
            gap, p = numbers.gap(changes, keys, level, n_resamples, seed)
            rows.append(
                {
                    "i": i,
                    "j": j,
                    **estimates[0].columns("i_moves_j"),
                    **estimates[1].columns("j_moves_i"),
                    **gap.columns("gap"),
                    "p": p,
                }
            )
        frame = pd.DataFrame(rows)
        frame["p_holm"] = holm(frame["p"].tolist()).numpy()
        frame["verdict"] = [_verdict(row, 1 - level) for row in frame.to_dict("records")]
        return frame

    def plot(self, *, ax: Any = None) -> Any:
        """The change of each behaviour under each method, in units, over what random directions do.

        `describe()` says the same in words.
        """
        from entangle import plots

        frame = self.to_frame()
        series: dict[str, Any] = {}
        bands: dict[str, Any] = {}
        for method, part in frame.groupby("method", sort=False):
            unit = np.array([self._unit(name) for name in part["behaviour"]])
            series[str(method)] = tuple(part[c].to_numpy() / unit for c in ("change", "change_low", "change_high"))
            if part["null_low"].notna().all():
                bands[str(method)] = tuple(part[c].to_numpy() / unit for c in ("null_low", "null_high"))
        return plots.forest(self.behaviours, series, bands=bands, xlabel="change, in units of the behaviour", ax=ax)

    def describe(self) -> str:
        """The figure in words: for each method the one number and what moved most."""
        frame, lines = self.to_frame(), []
        for row in self.rmse().to_dict("records"):
            null = ""
            if row["n_null"]:
                null = (
                    f"; random directions of its price {row['null']:.3g} ({row['null_low']:.3g} to "
                    f"{row['null_high']:.3g}), p = {row['p_null']:.2g}"
                )
            part = frame[(frame["method"] == row["method"]) & frame["off_target"] & (frame["p_holm"] < ALPHA)]
            moved = sorted(part.to_dict("records"), key=lambda each: -abs(each["change"]))
            sentences = [
                f"{each['behaviour']} {each['change']:+.3g} [{each['change_low']:.3g}, {each['change_high']:.3g}]"
                for each in moved
            ]
            lines.append(
                f"{row['method']} at alpha {row['alpha']:.3g}: root mean square off target {row['rmse']:.3g}, without "
                f"noise {row['corrected']:.3g} [{row['corrected_low']:.3g}, {row['corrected_high']:.3g}]{null}. "
                f"Moved beyond chance: {', '.join(sentences) or 'nothing'}."
            )
        return "\n".join(lines)

    def save(self, directory: str | os.PathLike[str]) -> None:
        """Write it as safetensors and JSON."""
        conditions = [self.plain, *self.changed, *(draw for draws in self.null.values() for draw in draws)]
        tensors = {
            f"{k}.{n}": torch.tensor(each.values[name], dtype=torch.float64)
            for k, each in enumerate(conditions)
            for n, name in enumerate(self.behaviours)
        }
        meta = {
            "behaviours": self.behaviours,
            "conditions": [[each.method, each.alpha, None if np.isnan(each.kl) else each.kl] for each in conditions],
            "changed": len(self.changed),
            "null": {name: len(draws) for name, draws in self.null.items()},
            "off_target": self.off_target,
            "about": self.about,
            "settings": self.settings,
        }
        write(directory, KIND, VERSION, tensors, meta)

    @classmethod
    def load(cls, directory: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            EntangleError: Nothing usable is there.
        """
        tensors, meta = read(directory, KIND, VERSION)
        with taken_apart(directory, KIND):
            conditions = [
                Measured(
                    method,
                    alpha,
                    float("nan") if kl is None else kl,
                    {name: tensors[f"{k}.{n}"].numpy() for n, name in enumerate(meta["behaviours"])},
                )
                for k, (method, alpha, kl) in enumerate(meta["conditions"])
            ]
            changed, rest = conditions[1 : 1 + meta["changed"]], iter(conditions[1 + meta["changed"] :])
            null = {name: tuple(next(rest) for _ in range(n)) for name, n in meta["null"].items()}
            off_target = {name: tuple(names) for name, names in meta["off_target"].items()}
            return cls(conditions[0], tuple(changed), null, off_target, meta["about"], meta["settings"])

    def _repr_html_(self) -> str:
        words = escape(self.describe()).replace("\n", "<br>")
        return f"<p>{words}</p>{_table(self.rmse())}{_table(self.to_frame())}"

    def _difference(self, each: Measured, name: str) -> Float[np.ndarray, " item"]:
        difference: np.ndarray[Any, Any] = np.asarray(each.values[name]) - np.asarray(self.plain.values[name])
        return difference

    def _scaled(self, each: Measured, name: str, scale: Scale) -> Float[np.ndarray, " item"]:
        if scale not in ("unit", "spread"):
            raise EntangleError(f'scale must be "unit" or "spread", not {scale!r}')
        by = self._unit(name) if scale == "unit" else float(np.std(self.plain.values[name], ddof=1))
        if not by > 0:
            raise EntangleError(f'{name!r} is the same for all items of the plain model: use scale="unit"')
        return self._difference(each, name) / by

    def _rms(
        self,
        conditions: Sequence[Measured],
        names: Sequence[str],
        scale: Scale,
        level: float,
        n_resamples: int,
        seed: int,
    ) -> list[RootMeanSquare]:
        """Of each condition, over some behaviours."""
        differences = [np.stack([self._scaled(each, name, scale) for each in conditions], 1) for name in names]
        known = scale == "spread" or not conditions[0].alpha
        bounds = [None if known or self._unit(name) != 1 else self._bounds(conditions[0], name) for name in names]
        errors = numbers.errors(differences, [self._items(name) for name in names], bounds, level, n_resamples, seed)
        means = np.stack([difference.mean(0) for difference in differences], 1)
        return [root_mean_square(means[number], errors[:, number], level=level) for number in range(len(conditions))]

    def _bounds(self, each: Measured, name: str) -> tuple[float, float] | None:
        """Between which numbers a change lies: as the task says, or as that of a rate where values are 0 and 1."""
        own = self.about.get(name, {}).get("bounds")
        if own is None:
            hits = all(np.isin(condition.values[name], [0, 1]).all() for condition in (self.plain, each))
            own = (0.0, 1.0) if hits else None
        return None if own is None else (own[0] - own[1], own[1] - own[0])

    def _unit(self, name: str) -> float:
        return float(self.about.get(name, {}).get("unit", 1.0))

    def _items(self, name: str) -> str:
        return str(self.about.get(name, {}).get("items", name))


def _verdict(row: Mapping[Any, Any], alpha: float) -> str:
    if row["p_holm"] > alpha:
        return "no gap is seen"
    more, less = (row["i"], row["j"]) if row["gap"] > 0 else (row["j"], row["i"])
    return f"{more} moves {less} more than {less} moves {more}"


def _table(frame: pd.DataFrame) -> str:
    return str(frame.to_html(index=False, border=0, float_format=lambda x: f"{x:.3g}"))
