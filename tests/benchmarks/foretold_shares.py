"""Whether more of the added text makes a concept cheaper to steer: a look at trained models, without steering.

    python tests/benchmarks/foretold_shares.py examples/recipes/laptop.toml OUT --shares 0 0.1

For each finished model of a composition: the limit of the measured concept and of a control, how well its heads read
the concept, and its cross-entropy on clean text; then the three compared over shares. `entangle compose` with
`forecast = true` measures all this, and steering, on more texts. What is found is kept in each model's folder as
`looked.json`.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

import entangle as en
from entangle.composition import Composition, Recipe, TrainedModel, foretold_by_share
from entangle.composition.comparing.comparison import Comparison
from entangle.composition.measuring.foretold import limits_by_halves
from entangle.composition.measuring.measure import _hits
from entangle.evaluation import cross_entropy
from entangle.forecast import Contrast, ShiftMetric
from entangle.models import load


def main() -> None:
    options = arguments()
    recipe = Recipe.from_file(options.recipe)
    recipe = replace(recipe, shares=tuple(options.shares or recipe.shares), variants=(), posttraining=())
    texts = recipe.measure.load(recipe.root, recipe.held_out.texts(recipe.root))
    labelled = {recipe.measure.concept: texts.labelled, options.control: texts.concepts[options.control]}
    models = []
    for cell in recipe.cells:  # all shares of one seed before the next
        folder = options.out / cell.name
        if (folder / "metrics.json").exists():
            kept = folder / "looked.json"
            if not kept.exists() and not options.compare:
                kept.write_text(json.dumps(looked(folder, labelled, texts.clean, recipe.measure.concept, options)))
            if kept.exists():
                models.append(TrainedModel(folder, cell.share, cell.seed, {}, cell.label, json.loads(kept.read_text())))
    found = Comparison.of(Composition(recipe, tuple(models)))
    table = foretold_by_share(found)
    print(f"shares {found.shares}, seeds {found.seeds}")
    print(table.to_string(float_format="{:.4f}".format))
    print(found.probes[["share", "mean", "best_tenth", "best"]].to_string(float_format="{:.3f}".format))
    print(found.probe_tests)
    print(found.capability.to_string(float_format="{:.4f}".format))
    if options.figure:
        draw(found, table, options.figure)


def looked(folder: Path, labelled: dict, clean: list[str], concept: str, options: argparse.Namespace) -> dict:
    """What is measured of one model."""
    model, tokenizer = load(folder)
    rng = np.random.default_rng(0)
    metric = ShiftMetric.fit(
        model,
        tokenizer,
        clean[: options.documents],
        samples=options.samples,
        positions=1,
        max_length=96,
        progress=False,
    )
    concepts = {}
    for name, data in labelled.items():
        sides = [
            [data.texts[i] for i in rng.permutation(np.flatnonzero(data.labels == side))[: options.texts]]
            for side in (0, 1)
        ]
        contrast = Contrast.fit(model, tokenizer, *sides, max_length=96, progress=False)
        concepts[name] = limits_by_halves(metric, contrast)
    data = labelled[concept]
    rows = rng.permutation(len(data.texts))[: options.rows]
    acts = en.collect(
        model,
        tokenizer,
        [data.texts[i] for i in rows],
        sites="z",
        tokens="last",
        max_length=256,
        prepend_bos=True,
        progress=False,
    )
    grid = en.fit_probes(acts["z"], data.labels[rows], n_permutations=0, n_resamples=100, progress=False)
    nats = cross_entropy(model, tokenizer, clean[:150], max_length=256, prepend_bos=True, progress=False)
    plain = {"method": "", "alpha": 0.0, "nats": nats.values.tolist(), "scores": [], "degenerate": 0.0, "error": ""}
    return {
        "heads": {"accuracy": grid.accuracy.tolist(), "hits": _hits(grid)},
        "stream": {"best_accuracy": float("nan")},
        "bag_of_words": float("nan"),
        "prompts": {},
        "tokens": nats.tokens.tolist(),
        "conditions": [plain],
        "forecast": {"unit": 0.1, "rows": [], "concepts": concepts},
    }


def draw(found: Comparison, table, file: Path) -> None:
    import matplotlib.pyplot as plt

    from entangle import plots
    from entangle.report.composition.figures import columns_of, over_shares

    _, (left, right) = plt.subplots(1, 2, figsize=(9.6, 3.3), layout="constrained")
    chosen = dict(list(table[table["layer"] == -1].groupby("concept", sort=False)))
    over_shares(
        found.shares,
        {name: columns_of(rows, "limit") for name, rows in chosen.items()},
        points={name: rows["seeds"].tolist() for name, rows in chosen.items()},
        ylabel="most contrast per root nat",
        ax=left,
    )
    own = table[(table["concept"] == found.concept) & (table["layer"] >= 0)]
    lines = {f"{100 * share:g} %": columns_of(own[own["share"] == share], "limit") for share in found.shares}
    plots.by_layer(sorted(set(own["layer"])), lines, ylabel="", ax=right)
    left.figure.savefig(file)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("out", type=Path, help="the folder of `entangle compose`")
    parser.add_argument("--shares", type=float, nargs="*")
    parser.add_argument("--control", default="tense", help="another concept of the recipe")
    parser.add_argument("--texts", type=int, default=100, help="of each class, for the contrast")
    parser.add_argument("--documents", type=int, default=60, help="clean ones, for the metric")
    parser.add_argument("--samples", type=int, default=4, help="draws per token, for the metric")
    parser.add_argument("--rows", type=int, default=1500, help="labelled texts for the probes")
    parser.add_argument("--compare", action="store_true", help="compare what was found before, and measure nothing")
    parser.add_argument("--figure", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
