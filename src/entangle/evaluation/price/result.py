"""The result of a sweep: a row for each condition, with intervals, paired with the plain model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int

from entangle.data import AnyPrompt, prompt_text
from entangle.errors import EntangleError
from entangle.evaluation.price.conditions import Condition
from entangle.evaluation.price.estimates import row
from entangle.evaluation.price.logs import rows_of
from entangle.metrics.statistics import holm


@dataclass(frozen=True)
class Tradeoff:
    """Toxicity against the cost in language, for each method and strength of a sweep.

    Args:
        plain: The plain model.
        changed: The other conditions, in the order asked for.
        prompts: The prompts that were continued.
        scorers: Names of the scorers; the first is the one shown.
        settings: What was measured and how: fingerprint of the model, sampling, hashes of prompts and texts.

    Example:
        >>> scorer, few = en.LinearToxicityScorer.fit(texts, labels), {"max_new_tokens": 2, "progress": False}
        >>> sweep = en.tradeoff(
        ...     model, tokenizer, iti, alphas=[4], prompts=prompts, scorer=scorer, texts=clean[:8], **few
        ... )
        >>> sweep.methods, len(sweep.changed), len(sweep.prompts)
        (['ITI'], 1, 8)
        >>> len(sweep.only([0, 1]).to_frame(n_resamples=100))  # of two of the prompts: unsteered, and at alpha 4
        2
    """

    plain: Condition
    changed: tuple[Condition, ...]
    prompts: tuple[AnyPrompt, ...]
    scorers: tuple[str, ...]
    settings: Mapping[str, Any] = field(repr=False, default_factory=dict)

    @property
    def methods(self) -> list[str]:
        """Names of the methods, in order."""
        return list(dict.fromkeys(condition.method for condition in self.changed))

    def to_frame(
        self, *, scorer: str | None = None, level: float = 0.95, n_resamples: int = 2000, seed: int = 0
    ) -> pd.DataFrame:
        """One row for each method and strength; the plain model is each method's row at alpha 0.

        Columns, each with `_low` and `_high` beside it unless it says otherwise:

        - `method`, `alpha`, and the `cost` in nats per token that alpha was solved for, if it was (no interval);
        - `toxicity`: mean score of the continuations; `toxic_share`: share of them above .5;
        - `max_toxicity`, `ever_toxic` (with several samples per prompt): the mean over prompts of the highest score,
          and the share of prompts with a score above .5 (Gehman et al. 2020: expected maximum toxicity, and toxicity
          probability);
        - `ce`, `perplexity`: cross-entropy of the documents, nats per token, and its exponential; `kl`: KL(plain ||
          changed) per token; `agreement`: how often the likeliest token is the plain model's;
        - `packed_ce` and so on (where asked for): the same of the documents end to end, chunk by chunk, over documents;
        - `continuation_ce`: cross-entropy of the continuations as the plain model reads them, nats per token;
        - `degenerate`: share of continuations that are blank or loop; `distinct_2`: share of word bigrams that are
          distinct (no interval);
        - `toxicity_change`, `ce_change`: changed minus plain, paired; `p`, `p_holm`: the permutation test of the
          toxicity change, and that after Holm's correction over the whole sweep (no interval);
        - `worse`: share of prompts whose score rises, however little; `change_spread`: standard deviation over prompts
          of the change of their score (no interval). Sampling alone changes scores both ways, so read both beside a
          random direction's at the same price;
        - `removed_per_nat`: toxicity removed for each nat of cross-entropy paid (see `removed_per_nat`);
        - `sites`, `layers`, `heads`: where the method acts: "z", "1 3 4", the number of heads; blank where it does not
          say (no interval);
        - `error`: why a condition has no numbers, else "".

        Intervals are BCa bootstraps over prompts or documents, never narrower than so few bounded scores allow, and
        wider where neighbouring documents are alike; Wilson's for rates, with several samples of a prompt counted for
        as many as they are worth; Fieller's for the ratio. Of the plain model beside itself all is known exactly.

        Args:
            scorer: Which scorer's scores; the first by default.
            level: Coverage of the intervals.
            n_resamples: Resamples of the bootstrap.
            seed: Seed of the resamples.

        Raises:
            EntangleError: No such scorer.
        """
        name = self.scorer(scorer)
        options = {"level": level, "n_resamples": n_resamples, "seed": seed}
        plain = row(self.plain, self.plain, name, options)
        rows = []
        for method in self.methods:
            rows.append({**plain, "method": method, "alpha": 0.0})
            rows += [row(c, self.plain, name, options) for c in self.changed if c.method == method]
        return _corrected(pd.DataFrame(rows or [plain]))

    def only(
        self,
        prompts: Sequence[int] | Bool[np.ndarray, " prompt"],
        *,
        documents: Sequence[int] | Bool[np.ndarray, " document"] | None = None,
    ) -> Tradeoff:
        """The same sweep on some of its prompts, such as the toxic or the challenging ones.

        Args:
            prompts: Their indices, or a mask.
            documents: Likewise; all by default. Of some alone, packed text is dropped.

        Raises:
            EntangleError: Fewer than two of either.
        """
        chosen = _indices(prompts, len(self.prompts), "prompts")
        n_documents = 0 if self.plain.shift is None else len(self.plain.shift.tokens)
        read = None if documents is None else _indices(documents, n_documents, "documents")

        def cut(condition: Condition) -> Condition:
            if condition.error or condition.shift is None:
                return condition
            nats, tokens = condition.fluency
            kept = replace(
                condition,
                continuations=[condition.continuations[i] for i in chosen],
                fluency=([nats[i] for i in chosen], [tokens[i] for i in chosen]),
                scores={name: [rows[i] for i in chosen] for name, rows in condition.scores.items()},
            )
            return kept if read is None else replace(kept, shift=condition.shift.only(read), packed=None)

        return replace(
            self,
            plain=cut(self.plain),
            changed=tuple(map(cut, self.changed)),
            prompts=tuple(self.prompts[i] for i in chosen),
        )

    def by_class(
        self,
        classes: Sequence[str],
        *,
        scorer: str | None = None,
        level: float = 0.95,
        n_resamples: int = 2000,
        seed: int = 0,
    ) -> pd.DataFrame:
        """The table for each class of prompts (toxic, non-toxic, challenging), as RealToxicityPrompts reports it.

        Args:
            classes: The class of each prompt.
            scorer: Which scorer's scores; the first by default.
            level: Coverage of the intervals.
            n_resamples: Resamples of the bootstrap.
            seed: Seed of the resamples.

        Returns:
            `to_frame` of each class below the other, with `prompts` (the class) and `n_prompts` before it; `p_holm`
            is corrected over all classes. Language is that of all documents, alike in every class.

        Raises:
            EntangleError: Another number of classes than of prompts, or a class of one prompt.
        """
        if len(classes) != len(self.prompts):
            raise EntangleError(
                f"by_class needs one class a prompt; got {len(classes)} for {len(self.prompts)} prompts"
            )
        labels = np.array(classes)
        frames = []
        for name in dict.fromkeys(classes):
            part = self.only(labels == name)
            frame = part.to_frame(scorer=scorer, level=level, n_resamples=n_resamples, seed=seed)
            frame.insert(0, "n_prompts", len(part.prompts))
            frame.insert(0, "prompts", name)
            frames.append(frame)
        return _corrected(pd.concat(frames, ignore_index=True))

    def samples(self, n: int = 5, *, scorer: str | None = None) -> pd.DataFrame:
        """Continuations side by side, for the `n` prompts whose plain continuation scores highest.

        The first sample of each condition is shown. Chosen this way, the plain ones are worse than its average.

        Returns:
            `prompt`, `method`, `alpha`, `continuation` and `score`, prompt by prompt.
        """
        name = self.scorer(scorer)
        worst = np.argsort(-self.plain.scored(name)[:, 0], kind="stable")[:n]
        rows = [
            {
                "prompt": prompt_text(self.prompts[i]),
                "method": condition.method or "plain",
                "alpha": condition.alpha,
                "continuation": condition.continuations[i][0],
                "score": condition.scores[name][i][0],
            }
            for i in worst
            for condition in (self.plain, *self.changed)
            if not condition.error
        ]
        return pd.DataFrame(rows)

    def by_prompt(self, *, scorer: str | None = None) -> pd.DataFrame:
        """What each condition does to each prompt: `prompt`, `method`, `alpha`, `cost`, `before`, `after`, `change`.

        Scores are means over a prompt's samples.
        """
        name = self.scorer(scorer)
        before = self.plain.scored(name).mean(1)
        frames = [
            pd.DataFrame(
                {
                    "prompt": self.prompts,
                    "method": condition.method,
                    "alpha": condition.alpha,
                    "cost": float("nan") if condition.cost is None else condition.cost,
                    "before": before,
                    "after": condition.scored(name).mean(1),
                }
            )
            for condition in self.changed
            if not condition.error
        ]
        if not frames:
            raise EntangleError("no condition but the plain one was measured, so no prompt changed")
        frame = pd.concat(frames, ignore_index=True)
        return frame.assign(change=frame["after"] - frame["before"])

    def plot_prompts(self, *, scorer: str | None = None, cost: float | None = None, ax: Any = None) -> Any:
        """The change of every prompt's score, prompts in order of it: what an average hides.

        Args:
            scorer: Which scorer's scores; the first by default.
            cost: Only conditions whose strength was solved for this price; else each method at its strongest.
            ax: Axes to draw on, else new ones.
        """
        from entangle import plots

        frame = self.by_prompt(scorer=scorer)
        if cost is not None and not (frame["cost"] == cost).any():
            raise EntangleError(f"no condition was solved for {cost:g} nats; there are {sorted(set(frame['cost']))}")
        if cost is not None:
            frame = frame[frame["cost"] == cost]
        size = frame["alpha"].abs()  # a strength below 0 steers the other way, as far
        shown = frame[size == size.groupby(frame["method"], sort=False).transform("max")]
        changes = {str(name): each["change"].to_numpy() for name, each in shown.groupby("method", sort=False)}
        axes = plots.changes(changes, ax=ax)
        return axes

    def plot(self, *, scorer: str | None = None, ax: Any = None) -> Any:
        """Toxicity against cross-entropy, one line a method and one point a strength, with intervals."""
        from entangle import plots

        frame = self.to_frame(scorer=scorer)
        measured = frame[frame["error"] == ""]
        curves = {
            str(name): {str(column): curve[column].to_numpy() for column in curve.select_dtypes("number")}
            for name, curve in measured.groupby("method", sort=False)
        }
        axes = plots.tradeoff(curves, ax=ax)
        return axes

    def to_html(self, *, scorer: str | None = None) -> str:
        """The table as HTML."""
        return str(self.to_frame(scorer=scorer).to_html(index=False, float_format=lambda x: f"{x:.3g}", border=0))

    def to_rows(
        self, *, model: str = "model", task: str = "continuations", scorer: str | None = None
    ) -> list[dict[str, Any]]:
        """Every number as a row of its own, for evaluation tools (see `entangle.evaluation.write_rows`).

        Args:
            model: What to call the model.
            task: What to call the prompts.
            scorer: Which scorer's scores; the first by default.

        Returns:
            Rows of `model`, `edit`, `alpha`, `task`, `metric`, `score`, `low`, `high` and `n`.
        """
        n_texts = 0 if self.plain.shift is None else len(self.plain.shift.tokens)
        frame = self.to_frame(scorer=scorer)
        return rows_of(frame, model=model, task=task, n_prompts=len(self.prompts), n_texts=n_texts)

    def scorer(self, scorer: str | None = None) -> str:
        """The name of a scorer, checked; the first by default."""
        if scorer is not None and scorer not in self.scorers:
            raise EntangleError(f"no scorer {scorer!r} in this trade-off; it has {', '.join(self.scorers)}")
        return self.scorers[0] if scorer is None else scorer


def _indices(chosen: Sequence[int] | Bool[np.ndarray, " n"], n: int, what: str) -> Int[np.ndarray, " chosen"]:
    """Indices or a mask as indices."""
    indices: np.ndarray[Any, Any] = np.arange(n)[np.asarray(chosen) if len(chosen) else []]
    if len(indices) < 2:
        raise EntangleError(f"intervals need two {what}; got {len(indices)}")
    return indices


def _corrected(frame: pd.DataFrame) -> pd.DataFrame:
    """With Holm's correction over all the tests in a table."""
    tested = frame["p"].notna()
    corrected = np.full(len(frame), np.nan)
    if tested.any():
        corrected[tested] = holm(frame.loc[tested, "p"].tolist()).numpy()
    return frame.assign(p_holm=corrected)
