"""What foretells the price of steering a concept out? Predictors against what is paid, by concept, layer and model.

    python tests/benchmarks/verdict.py measure MODEL --data ../shared/data --clean CLEAN.jsonl --out runs/NAME.json
    python tests/benchmarks/verdict.py judge runs/*.json

`measure` takes nine binary concepts and three layers of the residual stream. Half of a concept's texts give its
direction (the mean difference), the other half the probe, the contrast and the limit; the metric of shifts comes from
clean documents, and what is paid is read on others. Along each direction the price is read at three strengths; what is
paid at another strength lies on the curve through them. With `--prompts` the model also goes on from openings of each
concept's own texts at the two cheaper strengths, and a scorer fitted on further texts says what was removed.

`judge` says how well each predictor ranks what is paid, with intervals that resample concepts and models, and how near
forecasts come. A predictor's sign is chosen on one half of the concepts and used on the other.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import rankdata

import entangle as en
from entangle.data import load_labelled, load_texts
from entangle.evaluation import LinearToxicityScorer, continuations
from entangle.evaluation.language.reading import PlainReading
from entangle.forecast import Contrast, NaturalShift, ShiftMetric, limit_of
from entangle.metrics import random_entanglement_cdf, whitened_cosines
from entangle.models import load

CONCEPTS = {
    "toxicity": ("probe_toxicity", {"balanced": True}),
    "sentiment": ("concept_sentiment", None),
    "subjectivity": ("concept_subjectivity", None),
    "anger": ("concept_anger", None),
    "tense": ("concept_tense", None),
    "question": ("concept_question", None),
    "topic": ("concept_topic", None),
    "identity": ("concept_identity_x_toxicity", None),
    "profanity": ("concept_profanity_x_toxicity", None),
}
READ_AT = (0.1, 0.3, 1.2)
TOKENS = 96
KEPT = ("value", "paid_low", "paid_high", "low", "high", "off", "holds")
NORM = 0.25
"""Shifts of equal norm are this share of the stream's root mean square at the last tokens of texts."""
OPENING = 8
"""Words of a text that the model goes on from."""
SCORED = 400
"""Texts of each class that fit a scorer of continuations, at most."""


class Reading:
    """Documents as the plain model reads them; what a shift costs on them, in nats per token."""

    def __init__(self, model, tokenizer, texts) -> None:
        self.model, self.tokenizer = model, tokenizer
        rows = [tokenizer(t, truncation=True, max_length=TOKENS)["input_ids"] for t in texts]
        self.rows = [row for row in rows if len(row) > 1]
        self.plain = PlainReading(model, tokenizer, self.rows, batch_tokens=1024)

    def kl(self, edit, alpha: float) -> float:
        return self.plain.price(edit, alpha=alpha)

    def gain(self, edit, alpha: float) -> float:
        """Change of mean log p of the texts themselves."""
        shift = self.plain.shift(edit, alpha=alpha, progress=False)
        return float((shift.plain_nats - shift.nats).sum() / shift.tokens.sum())


class Speech:
    """What the model says after the openings of a concept's texts, and how much of the concept a scorer finds in it."""

    def __init__(self, model, tokenizer, texts, scored, n_prompts: int) -> None:
        """Texts of label 1, that give openings, and of both labels, that fit the scorer; none took part elsewhere."""
        self.model, self.tokenizer = model, tokenizer
        openings = (" ".join(text.split()[:OPENING]) for text in texts)
        self.prompts = [each for each in dict.fromkeys(openings) if each][:n_prompts]
        labels = [side for side, own in enumerate(scored) for _ in own]
        self.scorer = LinearToxicityScorer.fit([text for own in scored for text in own], labels)
        self.plain = self.scores()

    def scores(self) -> np.ndarray:
        """One number per prompt."""
        said = continuations(self.model, self.tokenizer, self.prompts, samples=2, max_new_tokens=16, progress=False)
        return np.array([np.mean(self.scorer(each)) for each in said])

    def removed(self, edit, strengths, paid) -> tuple[float, float]:
        """Score removed per root of twice the nats, a line through nothing removed for nothing, and its error."""
        roots = np.sqrt(2 * np.maximum(paid, 0))
        removed = []
        for alpha in strengths:
            with en.steer(self.model, edit, alpha=alpha):
                removed.append(self.plain - self.scores())
        slopes = roots @ np.array(removed) / (roots @ roots)
        return float(slopes.mean()), float(slopes.std(ddof=1) / len(slopes) ** 0.5)


def measure(options: argparse.Namespace) -> None:
    began = time.process_time()
    torch.set_grad_enabled(False)
    model, tokenizer = load(options.model, dtype=options.dtype)
    clean = load_texts(options.clean)
    order = np.random.default_rng(options.seed).permutation(len(clean))
    fitting, reading = (
        [clean[i] for i in part] for part in np.split(order[: options.fit + options.read], [options.fit])
    )
    n_layers = en.Atlas(model).n_layers
    layers = sorted({round(share * (n_layers - 1)) for share in (0.2, 0.5, 0.8)})
    halves, spoken = {}, {}
    for name, (file, where) in CONCEPTS.items():
        data = load_labelled(options.data / f"{file}.jsonl.gz", where=where)
        y = np.asarray(data.labels)
        rng = np.random.default_rng(options.seed + 1)
        shuffled = [rng.permutation(np.flatnonzero(y == side)) for side in (0, 1)]
        sides = [side[: 2 * options.texts] for side in shuffled]
        cut = min(len(side) for side in sides) // 2
        further = [[data.texts[i] for i in side[2 * options.texts :]] for side in shuffled]
        halves[name] = [
            [[data.texts[i] for i in side[part]] for side in sides] for part in (slice(0, cut), slice(cut, 2 * cut))
        ]
        own, n_scored = further[1][: 2 * options.prompts], SCORED + 2 * options.prompts
        scored = [side[2 * options.prompts : n_scored] for side in further]
        if options.prompts and min(map(len, scored)) >= 50:
            spoken[name] = Speech(model, tokenizer, own, scored, options.prompts)
    kwargs = {"max_length": TOKENS, "progress": False}
    metric = ShiftMetric.fit(model, tokenizer, fitting, layers=layers, samples=options.samples, **kwargs)
    said = Reading(model, tokenizer, reading)
    print(f"metric and plain readings: {time.process_time() - began:.0f} s", flush=True)
    last = n_layers - 1
    above = [*layers, last]

    def last_tokens(side, where=above):
        got = en.collect(model, tokenizer, side, sites="resid_post", layers=where, tokens="last", **kwargs)
        return got["resid_post"].double()

    acts = {name: [[last_tokens(side) for side in part] for part in parts] for name, parts in halves.items()}
    contrasts = {
        name: Contrast.fit(model, tokenizer, *parts[1], layers=layers, **kwargs) for name, parts in halves.items()
    }
    texts = {
        name: [Reading(model, tokenizer, side[: options.told]) for side in parts[0]] for name, parts in halves.items()
    }
    heard = [side[i] for parts in halves.values() for side in parts[1] for i in range(4)]  # texts of all concepts
    plain_last = en.collect(model, tokenizer, heard, sites="resid_post", layers=[last], tokens="last", **kwargs)[
        "resid_post"
    ][:, 0].double()
    readers = {name: lda(*(part[:, -1] for part in x[1])) for name, x in acts.items()}
    print(f"activations and contrasts: {time.process_time() - began:.0f} s", flush=True)
    unembed = model.get_output_embeddings().weight.detach().double()
    rows = []
    for index, layer in enumerate(layers):
        here = metric.at(layers=[layer])
        directions = {name: unit(x[0][0][:, index].mean(0) - x[0][1][:, index].mean(0)) for name, x in acts.items()}
        probes = {name: lda(*(part[:, index] for part in x[1])) for name, x in acts.items()}
        stack = torch.stack(list(directions.values()))
        pooled = torch.cat([side[:, index] for x in acts.values() for side in x[0]])
        covariance = torch.cov(pooled.T)
        shrunk = 0.9 * covariance + 0.1 * covariance.trace() / len(covariance) * torch.eye(len(covariance))
        cosines = (stack @ stack.T - torch.eye(len(stack))).abs().amax(1)
        white = whitened_cosines(stack, shrunk)
        white = (white - torch.diag(white.diagonal())).abs().amax(1)
        components = torch.linalg.eigh(covariance)[1][:, -5:]
        scale = float(pooled.square().mean() ** 0.5)
        for number, (name, u) in enumerate(directions.items()):
            edit = en.AddDirection(u.float(), "resid_post", layer)
            (a0, a1), (b0, b1) = ([side[:, index] for side in part] for part in acts[name])
            own = torch.cov(torch.cat([a0, a1]).T)
            w = probes[name]
            others = [probes[other] / (pooled @ probes[other]).std() for other in directions if other != name]
            gap = float((b0.mean(0) - b1.mean(0)) @ w)
            unit_price = here.price(edit).value
            spread = (torch.cat([a0, a1]) @ u).std()
            lengths = {
                "probe": gap / float(w @ u),
                "norm": NORM * scale * len(u) ** 0.5,
                "four": 4 * float(spread),
            }
            row = {
                "layer": layer,
                "concept": name,
                "E": float(cosines[number]),
                "E percentile": float(random_entanglement_cdf(float(cosines[number]), len(stack), len(u))),
                "whitened E": float(white[number]),
                "variance share, own": float(u @ own @ u / own.trace()),
                "variance share, all": float(u @ covariance @ u / covariance.trace()),
                "five components": float((components.T @ u).norm()),
                "probe accuracy": accuracy(w, (b0, b1), (a0, a1)),
                "cross-talk": float(np.mean([abs(float(o @ u)) for o in others]) * float(spread)),
                "logit lens": float((unembed @ u).std() / (unembed.std() * len(u) ** 0.5)),
                "agreement": float(
                    torch.nn.functional.cosine_similarity(a0[: len(a1)] - a1[: len(a0)], u[None]).mean()
                ),
                "separation": float(((a0.mean(0) - a1.mean(0)) @ u) / spread),
                "Fisher": unit_price,
                "gain": metric.gain(edit, contrasts[name]),
                **{f"length {key}": value for key, value in lengths.items()},
            }
            found = limit_of(here, contrasts[name])
            row |= {"limit": found.value, "limit low": found.low, "limit high": found.high}
            row |= paid(here, edit, said, "mean difference")
            alpha = row["strengths"][0]
            toward, away = (each.gain(edit, alpha) for each in texts[name])
            if name in spoken:
                few = slice(0, 2)  # beyond these prices little that is said is language
                row["removed"], row["removed error"] = spoken[name].removed(
                    edit, row["strengths"][few], row["paid"][few]
                )
            row["gained"] = (toward - away) / (2 * row["paid"][0]) ** 0.5
            with en.steer(model, edit, alpha=alpha):
                moved = last_tokens(heard, [last])[:, 0]
            row["side effects"] = float(np.mean([
                abs(float(((moved - plain_last) @ reader).mean() / (plain_last @ reader).std()))
                for other, reader in readers.items() if other != name
            ]))  # fmt: skip
            rows.append(row)
        for kind, edit in others_of(metric, contrasts, pooled, layer):
            rows.append({"layer": layer, "concept": kind, **paid(here, edit, said, kind, (0.1, 0.3))})
        print(f"layer {layer}: {time.process_time() - began:.0f} s of processor time", flush=True)
    record = {
        "model": Path(options.model).name,
        "rows": rows,
        "seconds": time.process_time() - began,
        "read_on": len(said.rows),
    }
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(record, indent=1))


def others_of(metric, contrasts, pooled, layer):
    """Directions that are no concept's: the first component both ways, a random one, and two natural shifts."""
    component = torch.linalg.eigh(torch.cov(pooled.T))[1][:, -1].float()
    at = ("resid_post", layer)
    yield "first component", en.AddDirection(component, *at)
    yield "first component, other way", en.AddDirection(-component, *at)
    yield "random", en.AddDirection(torch.randn(len(component), generator=torch.Generator().manual_seed(layer)), *at)
    for name in ("toxicity", "sentiment"):
        yield f"natural shift, {name}", NaturalShift.fit(metric, contrasts[name], layers=[layer])


def paid(metric, edit, reading, kind, targets=READ_AT) -> dict:
    """Foretold and paid at strengths that would cost the targets if prices were quadratic; each edit is read itself."""
    per = metric.price(edit).value
    strengths = [(target / per) ** 0.5 for target in targets]
    given = {"model": reading.model, "tokenizer": reading.tokenizer, "read_on": len(reading.rows)}
    prices = [metric.price(edit, alpha, **given) for alpha in strengths]
    return {
        "kind": kind,
        "strengths": strengths,
        "paid": [reading.kl(edit, alpha) for alpha in strengths],
        **{name: [getattr(price, name) for price in prices] for name in KEPT},
    }


def unit(v):
    return v / v.norm()


def lda(zero, one):
    """The normal of a linear discriminant with a shrunk covariance, toward class 0."""
    within = torch.cat([zero - zero.mean(0), one - one.mean(0)])
    covariance = torch.cov(within.T)
    shrunk = 0.8 * covariance + 0.2 * covariance.trace() / len(covariance) * torch.eye(len(covariance))
    return torch.linalg.solve(shrunk, zero.mean(0) - one.mean(0))


def accuracy(w, fitted, others) -> float:
    middle = float((fitted[0].mean(0) + fitted[1].mean(0)) @ w / 2)
    return float(torch.cat([others[0] @ w > middle, others[1] @ w < middle]).double().mean())


# --- judging ---------------------------------------------------------------------------------------------------------

GEOMETRY = (
    "E",
    "E percentile",
    "whitened E",
    "variance share, own",
    "variance share, all",
    "five components",
    "probe accuracy",
    "cross-talk",
    "logit lens",
    "agreement",
    "separation",
    "Fisher",
    "limit",
)
OUTCOMES = {"probe": "equal probe shift", "norm": "equal norm", "four": "four standard deviations"}


def judge(options: argparse.Namespace) -> None:
    records = [json.loads(path.read_text()) for path in options.files]
    accuracy_tables(records)
    cells = pd.DataFrame(
        [{"model": r["model"], **row} for r in records for row in r["rows"] if row["kind"] == "mean difference"]
    )
    for key in OUTCOMES:
        cells[f"nats {key}"] = [curve(row, row[f"length {key}"]) for _, row in cells.iterrows()]
        cells[f"forecast {key}"] = cells["Fisher"] * cells[f"length {key}"] ** 2
        cells[f"length only {key}"] = cells[f"length {key}"] ** 2
    print(f"{len(cells)} cells: {cells['model'].nunique()} models, {cells['concept'].nunique()} concepts")
    tables = {}
    for key, outcome in OUTCOMES.items():
        predictors = {name: name for name in GEOMETRY} | {
            "length of the shift": f"length only {key}",
            "forecast": f"forecast {key}",
        }
        tables[f"nats paid at {outcome}"] = table(cells, f"nats {key}", predictors)
    cells["gain forecast"] = cells["gain"]
    tables["contrast gained per root nat"] = table(
        cells, "gained", {name: name for name in GEOMETRY} | {"forecast": "gain"}
    )
    tables["side effects at .1 nats"] = table(
        cells, "side effects", {name: name for name in GEOMETRY} | {"forecast": "gain"}
    )
    if "removed" in cells:
        said = cells[cells["removed"].notna()]
        reliable = 1 - (said["removed error"] ** 2).mean() / said["removed"].var()
        print(f"score removed per root nat: {len(said)} cells, of whose variance {reliable:.2f} is not sampling error")
        tables["score removed from continuations per root nat"] = table(
            cells, "removed", {name: name for name in GEOMETRY} | {"forecast": "gain", "gained of texts": "gained"}
        )
    for name, each in tables.items():
        print(f"\n{name}: Spearman's rho")
        print(each.round(2).to_string())
    if options.out:
        options.out.write_text(
            json.dumps({name: each.reset_index().to_dict("records") for name, each in tables.items()}, indent=1)
        )


def curve(row, length: float) -> float:
    """Nats at a length, on the curve through what was read, straight in logarithms; NaN where it is not positive."""
    if not length > 0:
        return float("nan")
    x, y = np.log(row["strengths"]), np.log(np.maximum(row["paid"], 1e-9))
    at = np.log(length)
    if at < x[0]:
        return float(np.exp(y[0] + 2 * (at - x[0])))
    if at > x[-1]:
        return float(np.exp(y[-1] + (y[-1] - y[-2]) / (x[-1] - x[-2]) * (at - x[-1])))
    return float(np.exp(np.interp(at, x, y)))


def table(cells: pd.DataFrame, outcome: str, predictors: dict[str, str]) -> pd.DataFrame:
    """Rank correlations of predictors with an outcome, cells whose outcome is not defined left out."""
    cells = cells[cells[outcome].notna()].reset_index(drop=True)
    models, concepts = cells["model"].unique(), cells["concept"].unique()
    where = {key: part.index.to_numpy() for key, part in cells.groupby(["model", "concept"])}
    rng = np.random.default_rng(0)
    resamples = []
    for _ in range(1000):
        pairs = itertools.product(rng.choice(models, len(models)), rng.choice(concepts, len(concepts)))
        resamples.append(np.concatenate([where[pair] for pair in pairs if pair in where]))
    every = np.arange(len(cells))
    half = np.isin(cells["concept"], concepts[::2])
    by_model = [np.flatnonzero(cells["model"] == model) for model in models]
    by_place = [part.index.to_numpy() for _, part in cells.groupby(["model", "layer"])]
    y = cells[outcome].to_numpy(float)
    rows = {}
    for name, column in predictors.items():
        x = cells[column].to_numpy(float)

        def rho(index, x=x) -> float:
            kept = index[np.isfinite(x[index])]
            ranks = rankdata(x[kept]), rankdata(y[kept])
            return float(np.corrcoef(*ranks)[0, 1]) if len(kept) > 2 and all(r.std() > 0 for r in ranks) else np.nan

        told = [np.sign(rho(every[one])) * rho(every[~one]) for one in (half, ~half)]
        sign = np.sign(rho(every)) or 1.0
        draws = [rho(index) for index in resamples]
        low, high = np.nanquantile(draws, [0.025, 0.975])
        without = [rho(np.setdiff1d(every, one)) for one in by_model] if len(models) > 1 else [np.nan]
        rows[name] = {
            "rho": rho(every),
            "low": low,
            "high": high,
            "sign from other concepts": np.mean(told),
            "within model and layer": np.nanmean([rho(index) for index in by_place]),
            "worst model": min((rho(index) for index in by_model), key=lambda r: sign * r),
            "one model left out, worst": min(without, key=lambda r: sign * r),
            "cells": int(np.isfinite(x).sum()),
        }
    return pd.DataFrame(rows).T


def accuracy_tables(records) -> None:
    rows = []
    for record, row in ((each, row) for each in records for row in each["rows"]):
        targets = READ_AT if len(row["paid"]) == len(READ_AT) else (0.1, 0.3)
        for number, target in enumerate(targets):
            cell = {name: row[name][number] for name in ("paid", *KEPT)}
            rows.append(
                {
                    "model": record["model"],
                    "layer": row["layer"],
                    "kind": row["kind"].split(",")[0],
                    "target": target,
                    "ratio": cell["paid"] / cell["value"],
                    "inside": cell["paid_low"] <= cell["paid"] <= cell["paid_high"],
                    "mean inside": cell["low"] <= cell["paid"] <= cell["high"],
                    "holds": cell["holds"],
                }
            )
    frame = pd.DataFrame(rows)

    def told(part):
        ratio = part["ratio"]
        numbers = {
            "cells": len(part),
            "5 %": ratio.quantile(0.05),
            "median": ratio.median(),
            "95 %": ratio.quantile(0.95),
            "within 15 %": (ratio - 1).abs().le(0.15).mean(),
            "in paid interval": part["inside"].mean(),
            "in the mean's": part["mean inside"].mean(),
            "said to hold": part["holds"].mean(),
        }
        return pd.Series(numbers)

    upto = frame[frame["target"] <= 0.3]
    concepts = upto[~upto["kind"].str.startswith("natural")]
    print("paid over foretold, all but natural shifts, up to .3 nats")
    print(concepts.groupby("model").apply(told, include_groups=False).round(2).to_string())
    print(upto.groupby(["kind", "target"]).apply(told, include_groups=False).round(2).to_string())
    said = frame.assign(said=frame["holds"]).groupby(["target", "said"])
    print(said.apply(told, include_groups=False).round(2).to_string())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("measure")
    one.add_argument("model")
    one.add_argument("--data", type=Path, required=True)
    one.add_argument("--clean", required=True)
    one.add_argument("--out", type=Path, required=True)
    one.add_argument("--fit", type=int, default=220, help="clean documents for the metric")
    one.add_argument("--read", type=int, default=140, help="clean documents on which prices are read")
    one.add_argument("--texts", type=int, default=300, help="texts of each class, in each half")
    one.add_argument("--told", type=int, default=60, help="texts of each class on which the contrast is read")
    one.add_argument("--samples", type=int, default=12)
    one.add_argument("--prompts", type=int, default=0, help="openings of each concept that the model goes on from")
    one.add_argument("--dtype", help="compute in this type")
    one.add_argument("--seed", type=int, default=0)
    one.set_defaults(run=measure)
    other = commands.add_parser("judge")
    other.add_argument("files", type=Path, nargs="+")
    other.add_argument("--out", type=Path)
    other.set_defaults(run=judge)
    given = parser.parse_args()
    given.run(given)
