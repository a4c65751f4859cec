"""Does a shift that is fitted to what the model says itself remove more, at the same price, than one fitted to posts?

    python tests/benchmarks/equal_price.py MODEL --data ../shared/data --clean ../shared/models/clean_heldout.jsonl.gz \
        --out runs/equal-price/NAME

(`methods.py` beside it compares all that `baseline_methods` hands out, where their selection rows put them.)

Every method is fitted on the same posts (`probe_toxicity`, training part), its layer chosen by what its shift is
foretold to gain, per root nat, of the contrast of the model's own polite and rude continuations of other prompts (the
rude ones told by a scorer fitted on the same posts). Strengths are solved on clean documents for each price; what is
paid is read on others. Two scorers judge: one fitted on posts of other sources, one on ParaDetox's pairs; the one that
chose is shown beside them.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
import torch

import entangle as en
from entangle.data import load_labelled, load_pairs, load_texts
from entangle.evaluation import (
    CachedScorer,
    LinearToxicityScorer,
    Prompt,
    Tradeoff,
    continuations,
    score,
    tradeoff,
)
from entangle.forecast import Contrast, NaturalShift, ShiftMetric
from entangle.interventions import Edit
from entangle.metrics import bootstrap_counts
from entangle.models import load

COSTS = (0.05, 0.1, 0.2, 0.4)
USUAL = ("ITI", "CAA")
FIRST = (
    *USUAL,
    "natural shift of what is said",
    "natural shift",
    "random",
    "prompting",
    "contrast gradient",
    "gradient of what is said",
    "probe normal",
    "whitened CAA",
)
SHIFT_TOKENS = 64


def main() -> None:
    options = arguments()
    began = time.process_time()
    torch.set_grad_enabled(False)
    model, tokenizer = load(options.model)
    home, *judges = scorers(options)
    prompts = load_texts(options.data / "prompts_rtp_challenging.jsonl.gz")
    order = np.random.default_rng(0).permutation(len(prompts))
    reported, choosing = ([prompts[i] for i in part] for part in np.split(order, [options.prompts]))
    clean = load_texts(options.clean)
    ends = np.cumsum([0, *options.documents])
    fitting, solving, reading = (clean[a:b] for a, b in itertools.pairwise(ends))
    texts, labels = posts(options)
    metric = ShiftMetric.fit(
        model, tokenizer, fitting, sites=["resid_post", "z"], samples=6, positions=1, max_length=SHIFT_TOKENS,
        progress=False,
    )  # fmt: skip
    polite, rude = ([t for t, y in zip(texts, labels, strict=True) if y == side][: options.posts] for side in (0, 1))
    contrast = Contrast.fit(model, tokenizer, polite, rude, sites=["resid_post", "z"], max_length=64, progress=False)
    print(f"metric and contrast of posts: {time.process_time() - began:.0f} s of processor time", flush=True)
    fit, choose = said(model, tokenizer, choosing, home, options)
    print(f"contrasts of what is said: {time.process_time() - began:.0f} s; {len(fit.toward)} polite, {len(fit.away)}")
    candidates = dict(every(model, tokenizer, texts, labels, metric, contrast, fit, choose, options.rows))
    table = pd.DataFrame(
        [
            {"method": method, "place": place, "posts": metric.gain(edit, contrast), "said": metric.gain(edit, choose)}
            for (method, place), edit in candidates.items()
        ]
    )
    options.out.mkdir(parents=True, exist_ok=True)
    table.to_csv(options.out / "candidates.csv", index=False)
    best = table.loc[table.groupby("method", sort=False)["said"].idxmax()]
    print(best.round(3).to_string(index=False), flush=True)
    methods: dict[str, Edit | Prompt] = {row.method: candidates[row.method, row.place] for row in best.itertuples()}
    methods["prompting"] = Prompt()
    wanted = {name: methods[name] for name in options.methods or FIRST}
    for number in range(len(options.costs)):  # price by price, so that one is whole before the next
        result = tradeoff(
            model,
            tokenizer,
            wanted,
            costs=options.costs[: number + 1],
            cost_texts=solving,
            metric=metric,
            prompts=reported,
            scorer=[CachedScorer(each, options.out / "scores.db") for each in (*judges, home)],
            texts=reading,
            samples=options.samples,
            max_length=SHIFT_TOKENS,
            save_to=options.out / "sweep",
            progress=False,
        )
        judged = table_of(result, dict(zip(result.scorers, ("posts", "pairs", "chose"), strict=True)))
        judged.to_csv(options.out / "equal-price.csv", index=False)
        print(judged.round(3).to_string(index=False), flush=True)
    print(f"{time.process_time() - began:.0f} s of processor time")


def scorers(options: argparse.Namespace) -> Iterator[LinearToxicityScorer]:
    """One of the contrast's own source, for choosing; two of others, for the report."""

    def pairs() -> tuple[list[str], list[int]]:
        file = options.data / "pairs_paradetox.jsonl.gz"
        rows = load_pairs(file, chosen="neutral", rejected="toxic", where={"in_other_file": False})
        return [each for row in rows for each in row], [0, 1] * len(rows)

    def others() -> tuple[list[str], list[int]]:
        toxic, rest = (load_texts(options.data / f"posts_{kind}.jsonl.gz")[:12_000] for kind in ("toxic", "nontoxic"))
        return toxic + rest, [1] * len(toxic) + [0] * len(rest)

    for name, data in {"home": lambda: posts(options), "posts": others, "pairs": pairs}.items():
        folder = options.scorers / name
        if not folder.is_dir():
            LinearToxicityScorer.fit(*data()).save(folder)
        scorer = LinearToxicityScorer.load(folder)
        print(f"scorer {name}: {scorer.name}, {scorer.report}", flush=True)
        yield scorer


def posts(options: argparse.Namespace) -> tuple[list[str], list[int]]:
    """What every method is fitted on, in random order."""
    data = load_labelled(options.data / "probe_toxicity.jsonl.gz", where={"balanced": True})
    train = [i for i in np.random.default_rng(0).permutation(len(data.texts)) if data.splits[i] == "train"]
    return [data.texts[i] for i in train], [int(data.labels[i]) for i in train]


def said(model, tokenizer, prompts, scorer, options) -> tuple[Contrast, Contrast]:
    """Contrasts of the model's own continuations, of one half of the prompts and of the other."""
    contrasts = []
    for half in (prompts[::2], prompts[1::2]):
        told = continuations(model, tokenizer, half, samples=options.draws, progress=False, seed=1)
        pairs = [(p, t) for p, many in zip(half, told, strict=True) for t in dict.fromkeys(many) if t.strip()]
        scores = score(scorer, [t for _, t in pairs])
        sides = [[pair for pair, s in zip(pairs, scores, strict=True) if (s > 0.5) == rude] for rude in (False, True)]
        contrasts.append(
            Contrast.fit(
                model,
                tokenizer,
                *([t for _, t in side] for side in sides),
                prompts=tuple([p for p, _ in side] for side in sides),
                sites=["resid_post", "z"],
                progress=False,
            )
        )
    return contrasts[0], contrasts[1]


def every(
    model, tokenizer, texts, labels, metric, contrast, fit, choose, n_rows
) -> Iterator[tuple[tuple[str, str], Edit]]:
    """Each method at each of its places."""
    some, y = texts[:n_rows], torch.tensor(labels[:n_rows])
    acts = en.collect(model, tokenizer, some, sites=["z", "resid_post"], tokens="last", max_length=128, progress=False)
    heads = acts["z"].shape[1] * acts["z"].shape[2]
    for top_k in (heads // 8, heads // 4, heads // 2):
        yield ("ITI", f"{top_k} heads"), en.ITI.fit(acts, labels[:n_rows], top_k=top_k)
    layers = acts.layers("resid_post")
    grid = en.fit_probes(acts["resid_post"].float(), y.tolist(), n_permutations=0, layers=layers, progress=False)
    lda = en.LDAProbe().fit(acts["resid_post"].float().numpy(), y.numpy())
    generator = torch.Generator().manual_seed(0)
    for index, layer in enumerate(layers):
        x, at = acts["resid_post"][:, index].float(), ("resid_post", layer)

        def add(vector, at=at) -> Edit:
            return en.AddDirection(vector / vector.norm(), *at)

        yield ("CAA", f"layer {layer}"), add(x[y == 0].mean(0) - x[y == 1].mean(0))
        yield ("probe normal", f"layer {layer}"), add(-grid.directions[index].float())
        yield ("whitened CAA", f"layer {layer}"), add(-torch.as_tensor(lda.coef_[index]).float())
        yield ("random", f"layer {layer}"), add(torch.randn(x.shape[1], generator=generator))
        yield ("contrast gradient", f"layer {layer}"), add(contrast.at([at]).gradient.float())
        yield ("gradient of what is said", f"layer {layer}"), add(fit.at([at]).gradient.float())
    places: Mapping[str, dict] = {f"layer {layer}": {"sites": "resid_post", "layers": [layer]} for layer in layers}
    places = {**places, "all layers": {"sites": "resid_post"}, "all heads": {"sites": "z"}}
    for place, where in places.items():
        for name, source in (("natural shift", contrast), ("natural shift of what is said", fit)):
            yield (name, place), NaturalShift.fit(metric, source, selection=choose, **where)


def table_of(result: Tradeoff, names: Mapping[str, str]) -> pd.DataFrame:
    """What each method removes at each price, and how that compares with the better of the usual ones, paired."""
    rows = []
    usual = {
        (scorer, cost): min(
            (each for each in result.changed if each.method in USUAL and each.cost == cost),
            key=lambda each: each.scored(scorer).mean(),
            default=None,
        )
        for scorer in result.scorers
        for cost in {each.cost for each in result.changed}
    }
    for scorer, source in names.items():
        before = result.plain.scored(scorer).mean(1)
        counts = bootstrap_counts(len(before), 2000, seed=0).double().numpy() / len(before)
        for each in result.changed:
            after, other = each.scored(scorer).mean(1), usual[scorer, each.cost]
            row = {
                "scorer": source,
                "method": each.method,
                "cost": each.cost,
                "alpha": each.alpha,
                "kl": each.shift.kl.sum() / each.shift.tokens.sum(),
                "plain": before.mean(),
                "toxicity": after.mean(),
                "removed": (before - after).mean(),
            }
            row["removed_low"], row["removed_high"] = np.quantile(counts @ (before - after), [0.025, 0.975])
            if other is not None:
                best = other.scored(scorer).mean(1)
                row["more than usual"] = (best - after).mean()
                row["more_low"], row["more_high"] = np.quantile(counts @ (best - after), [0.025, 0.975])
                row["times usual"] = (before - after).mean() / (before - best).mean()
            rows.append(row)
    return pd.DataFrame(rows)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--scorers", type=Path, required=True, help="folder that keeps the fitted scorers")
    parser.add_argument("--prompts", type=int, default=300)
    parser.add_argument("--samples", type=int, default=4)
    parser.add_argument("--draws", type=int, default=8, help="continuations per prompt that choose")
    parser.add_argument("--rows", type=int, default=3000, help="posts for directions and probes")
    parser.add_argument("--documents", type=int, nargs=3, default=[180, 80, 140], help="to fit, to solve on, to read")
    parser.add_argument("--posts", type=int, default=1000, help="posts per side of the contrast")
    parser.add_argument("--costs", type=float, nargs="+", default=list(COSTS))
    parser.add_argument("--methods", nargs="+")
    return parser.parse_args()


if __name__ == "__main__":
    main()
