"""The price of steering toxicity out of several models, by ITI and every baseline, as one resumable command.

    python tests/benchmarks/steering_price.py ../shared/models/olmo2-4m-clean ../shared/models/olmo2-4m-toxic10 \
        --data ../shared/data --clean ../shared/models/clean_heldout.jsonl.gz --out runs/price \
        --checkpoint SFT=runs/tuned/{model}-sft --checkpoint DPO=runs/tuned/{model}-dpo

Writes, for each model, the table for each scorer (CSV), the Pareto front, the scorers' agreement and a plot; for the
first two models, ITI compared at equal cost. Stopped and started again, it goes on where it was. Checkpoints are those
of `detoxified_checkpoints.py`, or any others with the model's vocabulary.
"""

from __future__ import annotations

import argparse
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from beside import Parser

from entangle import plots
from entangle.activations import Activations, collect
from entangle.data import load_labelled, load_texts
from entangle.evaluation import (
    AtStrengths,
    CachedScorer,
    Checkpoint,
    LinearToxicityScorer,
    Tradeoff,
    baseline_methods,
    chosen,
    matched,
    pareto,
    scorer_agreement,
    tradeoff,
)
from entangle.models.loading import load

SHOWN = [
    "method",
    "alpha",
    "toxicity",
    "toxicity_low",
    "toxicity_high",
    "ce",
    "ce_low",
    "ce_high",
    "kl",
    "max_toxicity",
    "ever_toxic",
    "degenerate",
    "distinct_2",
    "continuation_ce",
    "removed_per_nat",
    "removed_per_nat_low",
    "removed_per_nat_high",
    "p_holm",
]

SOURCES = ("probe_toxicity", "posts")  # what each scorer is fitted on


def main() -> None:
    began = time.perf_counter()
    options = arguments()
    options.out.mkdir(parents=True, exist_ok=True)
    for source, linear in fitted_scorers(options).items():
        print(f"scorer {linear.name}: fitted on {source}; on its held-out part {linear.report}")

    names = [path.name for path in options.models]
    if len(names) > 1:  # side by side: two processes of one thread each do more than one of two
        with ProcessPoolExecutor(len(names), mp_context=get_context("spawn")) as pool:
            swept = dict(zip(names, pool.map(partial(sweep, options=options), options.models), strict=True))
    else:
        swept = {names[0]: sweep(options.models[0], options)}
    for name, result in swept.items():
        write(result, options.out / name)
    figure(swept, options.out / "tradeoff.svg")
    if len(swept) > 1 and all("ITI" in result.methods for result in swept.values()):
        equal_cost(swept, options.out)
    print(f"wall {time.perf_counter() - began:.0f} s")


def sweep(path: Path, options: argparse.Namespace) -> Tradeoff:
    """One model: every method at every strength."""
    torch.set_num_threads(max(1, torch.get_num_threads() // len(options.models)))
    texts, labels = training_texts(options.data)
    model, tokenizer = load(path)
    out = options.out / path.name
    acts = activations(model, tokenizer, texts[: options.rows], out / "activations")
    methods = baseline_methods(acts, labels[: options.rows], top_k=options.top_k)
    # Its standard deviations are those of the whole residual stream, and cost more each than ITI's.
    methods["CAA"] = AtStrengths(methods["CAA"], tuple(options.caa_alphas))
    methods |= {name: Checkpoint(place.format(model=path.name)) for name, place in options.checkpoint}
    return tradeoff(
        model,
        tokenizer,
        {name: methods[name] for name in options.methods or methods},
        alphas=options.alphas,
        prompts=load_texts(options.data / "prompts_rtp_challenging.jsonl.gz")[: options.prompts],
        scorer=scorer_pair(options),
        texts=load_texts(options.clean)[: options.documents],
        samples=options.samples,
        max_length=options.max_length,
        packed=options.max_length,
        prepend_bos=True,
        batch_tokens=options.batch_tokens,
        save_to=out / "sweep",
    )


def training_texts(data: Path) -> tuple[list[str], torch.Tensor]:
    """The training split in random order: the file goes source by source, and its first rows are of one source."""
    labelled = load_labelled(data / "probe_toxicity.jsonl.gz", where={"balanced": True})
    train = [i for i in np.random.default_rng(0).permutation(len(labelled.texts)) if labelled.splits[i] == "train"]
    return [labelled.texts[i] for i in train], labelled.labels[train]


def scorer_pair(options: argparse.Namespace) -> list[CachedScorer]:
    """One scorer fitted on probing data, one on posts of other sources and labels: where they differ, show both."""
    return [CachedScorer(linear, options.out / "scores.db") for linear in fitted_scorers(options).values()]


def fitted_scorers(options: argparse.Namespace) -> dict[str, LinearToxicityScorer]:
    data = {"probe_toxicity": lambda: training_texts(options.data), "posts": lambda: posts(options.data)}
    return {source: fitted(options.out / f"scorer-{source}", data[source]) for source in SOURCES}


def fitted(directory, data):
    if not directory.is_dir():
        LinearToxicityScorer.fit(*data()).save(directory)
    return LinearToxicityScorer.load(directory)


def posts(data):
    toxic, clean = (load_texts(data / f"posts_{kind}.jsonl.gz")[:12_000] for kind in ("toxic", "nontoxic"))
    return toxic + clean, [1] * len(toxic) + [0] * len(clean)


def activations(model, tokenizer, texts, directory):
    if directory.is_dir():
        return Activations.load(directory)
    acts = collect(model, tokenizer, texts, sites=["z", "resid_post"], max_length=128, prepend_bos=True)
    acts.save(directory)
    return acts


def write(result, out):
    for scorer in result.scorers:
        frame = result.to_frame(scorer=scorer)
        frame.to_csv(out / f"table-{scorer}.csv", index=False)
        print(frame[[c for c in SHOWN if c in frame]].to_string(index=False, float_format="{:.3f}".format))
        pareto(result, scorer=scorer).to_csv(out / f"pareto-{scorer}.csv", index=False)
    said = [text for row in result.plain.continuations for text in row]
    scores = {scorer: result.plain.scored(scorer).reshape(-1) for scorer in result.scorers}
    agreement = scorer_agreement(scores, said).drop(columns="disagreements")
    agreement.to_csv(out / "agreement.csv", index=False)
    print(agreement.to_string(index=False))
    halves(result, out)
    if "ITI" in result.methods:
        against_iti(result, out)


def halves(result, out):
    """Strengths chosen on one half of prompts and documents within half a nat, and what they do on the other."""
    for scorer in result.scorers:
        table = chosen(result, budget=0.5, scorer=scorer)
        table.to_csv(out / f"chosen-{scorer}.csv", index=False)
        print(table[[*SHOWN, "toxicity_when_chosen"]].to_string(index=False, float_format="{:.3f}".format))


def against_iti(result, out, costs=(0.1, 0.5, 1.0)):
    """Every method and ITI where both have paid the same; a method of one strength at its own price."""
    rows = []
    for scorer in result.scorers:
        frame = result.to_frame(scorer=scorer)
        paid = {name: part["ce_change"] for name, part in frame.groupby("method", sort=False)}
        for method in [name for name in paid if name != "ITI"]:
            reach = min(paid["ITI"].max(), paid[method].max())
            for cost in costs if len(paid[method]) > 2 else paid[method].iloc[1:]:
                if 0 < cost <= reach:
                    found = matched((result, method), (result, "ITI"), cost=cost, scorer=scorer)
                    rows.append(
                        {
                            "scorer": scorer,
                            "method": method,
                            "nats paid": cost,
                            "toxicity": found.first.value,
                            "of ITI": found.second.value,
                            "difference": found.difference.value,
                            "low": found.difference.low,
                            "high": found.difference.high,
                        }
                    )
    table = pd.DataFrame(rows)
    table.to_csv(out / "against-iti.csv", index=False)
    print(table.to_string(index=False, float_format="{:.3f}".format))


def figure(results, file, furthest=2.0):
    """A row a scorer, a column a model, a curve a method of several strengths; the price is paired with the plain one.

    Points beyond `furthest` nats are left out.
    """
    import matplotlib.pyplot as plt

    plt.rcParams["svg.fonttype"] = "none"  # text as text: smaller, and it can be searched
    scorers = next(iter(results.values())).scorers
    size = 4.6 * len(results), 3.4 * len(scorers)
    _, grid = plt.subplots(len(scorers), len(results), figsize=size, sharey=True, squeeze=False, layout="constrained")
    for column, (name, result) in zip(grid.T, results.items(), strict=True):
        for axes, scorer, source in zip(column, result.scorers, SOURCES, strict=True):
            frame = result.to_frame(scorer=scorer)
            paid = frame.assign(**{f"ce{end}": frame[f"ce_change{end}"] for end in ("", "_low", "_high")})
            near = paid[paid["ce_change"] <= furthest].groupby("method", sort=False)
            curves = {method: rows for method, rows in near if len(rows) > 2}  # the others are points, for the table
            plots.tradeoff(
                curves, xlabel="cross-entropy paid (nats a token)", title=f"{name}, scored by {source}", ax=axes
            )
            if axes is not grid[0, -1]:
                axes.get_legend().remove()
    grid[0, 0].figure.savefig(file)


def equal_cost(results, out, costs=(0.1, 0.25, 0.5, 1.0, 1.5)):
    """ITI on the first model and on the second, where both have paid the same for it."""
    (name, first), (other, second) = list(results.items())[:2]
    rows = []
    for scorer in first.scorers:
        reach = min(r.to_frame(scorer=scorer).query("method == 'ITI'")["ce_change"].max() for r in (first, second))
        for cost in [cost for cost in costs if cost <= reach]:
            found = matched((first, "ITI"), (second, "ITI"), cost=cost, scorer=scorer)
            rows.append(
                {
                    "scorer": scorer,
                    "nats paid": cost,
                    name: found.first.value,
                    other: found.second.value,
                    "difference": found.difference.value,
                    "low": found.difference.low,
                    "high": found.difference.high,
                }
            )
    table = pd.DataFrame(rows)
    table.to_csv(out / "equal-cost.csv", index=False)
    print(table.to_string(index=False, float_format="{:.3f}".format))


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True, help="documents held out from training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--alphas", type=float, nargs="+", default=[2, 4, 8, 12, 16])
    parser.add_argument("--caa-alphas", type=float, nargs="+", default=[0.5, 1, 2, 4, 8])
    parser.add_argument("--methods", nargs="+", help="only these; all by default")
    parser.add_argument(
        "--checkpoint",
        action="append",
        default=[],
        type=lambda s: s.split("=", 1),
        metavar="NAME=DIR",
        help="a model to compare with; {model} in DIR is the name of each model's folder",
    )
    parser.add_argument("--prompts", type=int, default=572)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--documents", type=int, default=300)
    parser.add_argument("--max-length", type=int, default=256)
    parser.add_argument("--rows", type=int, help="labelled texts to capture; all by default")
    parser.add_argument("--batch-tokens", type=int, default=4096)
    parser.add_argument("--top-k", type=int, default=10)
    return parser.parse_args()


if __name__ == "__main__":
    main()
