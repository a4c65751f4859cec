"""How entangled nine concepts are in some models, layer by layer, what the model makes of it, and what steering costs.

    python tests/benchmarks/concept_report.py ../shared/models/olmo2-4m-clean ../shared/models/olmo2-4m-toxic10 \
        --data ../shared/data --clean ../shared/models/clean_heldout.jsonl.gz --out runs/concepts

For each model and layer: the entanglement report (directions and intervals on the fitting rows), causal cross-talk at
the layers of `--push`, and the price of a shift of four standard deviations along every concept. Then: which numbers of
the report tell the price, over all models and layers, on documents that were not used to choose among them. Stopped and
started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from scipy.stats import spearmanr
from tqdm.auto import tqdm

from entangle import AddDirection, Directions, collect, fit_probes, steer
from entangle.concepts import EntanglementReport, cross_talk, entanglement_report
from entangle.data import load_labelled, load_texts
from entangle.evaluation import cross_entropy
from entangle.models.loading import load
from entangle.probes import ProbeGrid, three_way

CONCEPTS = {
    "toxicity": "probe_toxicity",
    "sentiment": "concept_sentiment",
    "subjectivity": "concept_subjectivity",
    "anger": "concept_anger",
    "tense": "concept_tense",
    "question": "concept_question",
    "topic": "concept_topic",
    "identity": "concept_identity_x_toxicity",
    "profanity": "concept_profanity_x_toxicity",
}
DESIGNS = ("identity", "profanity")  # balanced by construction: their texts carry a human label of toxicity too
PREDICTORS = ["entanglement", "whitened", "component_overlap", "variance_share", "sigma"]


def main() -> None:
    options = arguments()
    texts = {name: examples(options, name, file) for name, file in CONCEPTS.items()}
    documents = load_texts(options.clean)[: options.documents]
    prices, frames = [], []
    for path in options.models:
        model, tokenizer = load(path)
        out = options.out / path.name
        rows = {name: captured(model, tokenizer, *part, out / "activations" / name) for name, part in texts.items()}
        unembedding = model.get_output_embeddings().weight
        for layer in range(model.config.num_hidden_layers):
            found = reported(rows, layer, unembedding, out / f"report-{layer}")
            frames.append(found.to_frame().assign(model=path.name))
            prices.append(priced(model, tokenizer, rows, layer, documents, out / f"price-{layer}.npz", path.name))
            for design in DESIGNS:
                balanced(rows[design], layer, out / f"design-{design}-{layer}")
        readers = {name: reader(x, y, out / "readers" / name) for name, (x, y, _) in rows.items() if options.push}
        for layer in options.push:
            talk(model, tokenizer, rows, readers, layer, documents, options, out)
    table = pd.concat(frames).merge(pd.concat(prices), on=["model", "layer", "concept"])
    table.to_csv(options.out / "cells.csv", index=False)
    summary(table, options.out)


def examples(options, name, file):
    """Equally many texts of both classes, and for a design which of them are toxic."""
    path = options.data / f"{file}.jsonl.gz"
    where = {"balanced": True} if name == "toxicity" else None
    found = load_labelled(path, where=where, drop_duplicates=True)
    rng = np.random.default_rng(0)
    n = min(options.rows // 2, *np.bincount(found.labels))
    chosen = np.sort(np.concatenate([rng.permutation(np.flatnonzero(found.labels == c))[:n] for c in (0, 1)]))
    toxic = {}
    if name in DESIGNS:
        both = load_labelled(path, label="toxic", drop_duplicates=True)
        toxic = dict(zip(both.texts, both.labels.tolist(), strict=True))
    kept = [found.texts[i] for i in chosen]
    return kept, found.labels[chosen], np.array([toxic.get(text, -1) for text in kept])


def captured(model, tokenizer, texts, labels, toxic, directory):
    """The residual stream after every layer at the last token."""
    settings = {"sites": "resid_post", "max_length": 128, "prepend_bos": True, "progress": False}
    acts = collect(model, tokenizer, texts, save_to=directory, **settings)
    return acts["resid_post"], torch.from_numpy(labels), torch.from_numpy(toxic)


def directions(rows, layer):
    """Mean differences on the fitting rows, and those rows."""
    fit = {name: three_way(y).fit for name, (_, y, _) in rows.items()}
    samples = {name: (x[fit[name], layer], y[fit[name]]) for name, (x, y, _) in rows.items()}
    vectors = torch.stack([x[y == 1].mean(0) - x[y == 0].mean(0) for x, y in samples.values()])
    return Directions(vectors, tuple(rows), "resid_post", layer, estimator="mean_difference"), samples


def reported(rows, layer, unembedding, directory):
    if not directory.is_dir():
        found, samples = directions(rows, layer)
        entanglement_report(found, samples, unembedding=unembedding, subspace_dims=2).save(directory)
    return EntanglementReport.load(directory)


def balanced(part, layer, directory):
    """The concept and toxicity, labelled on the same texts with uncorrelated labels."""
    x, y, toxic = part
    fit = three_way(y).fit
    x, labels = x[fit, layer], {"concept": y[fit], "toxicity": toxic[fit]}
    if not directory.is_dir():
        vectors = torch.stack([x[y == 1].mean(0) - x[y == 0].mean(0) for y in labels.values()])
        entanglement_report(vectors, x, labels, estimator="mean_difference").save(directory)


def priced(model, tokenizer, rows, layer, documents, file, name):
    """Cross-entropy paid for a shift of four standard deviations, on either half of the documents."""
    found, _ = directions(rows, layer)
    everyone = torch.cat([x[:, layer] for x, _, _ in rows.values()])
    sigma = found.project(everyone).std(0)
    if not file.exists():
        settings = {"max_length": 96, "prepend_bos": True, "progress": False}
        plain = cross_entropy(model, tokenizer, documents, **settings)
        nats = []
        for vector, s in zip(tqdm(found.vectors, desc=f"price {name} {layer}"), sigma, strict=True):
            with steer(model, AddDirection(4 * float(s) * vector, "resid_post", layer)):
                nats.append(cross_entropy(model, tokenizer, documents, **settings).values - plain.values)
        file.parent.mkdir(parents=True, exist_ok=True)
        np.savez(file, nats=np.stack(nats), tokens=plain.tokens)
    kept = np.load(file)
    halves = {"chosen_on": slice(0, None, 2), "price": slice(1, None, 2)}
    columns = {k: kept["nats"][:, part].sum(1) / kept["tokens"][part].sum() for k, part in halves.items()}
    return pd.DataFrame({"model": name, "layer": layer, "concept": found.names, "sigma": sigma.numpy(), **columns})


def reader(x, y, directory):
    if not directory.is_dir():
        fit_probes(x, y, n_permutations=0, n_resamples=100, progress=False).save(directory)
    return ProbeGrid.load(directory)


def talk(model, tokenizer, rows, readers, layer, documents, options, out):
    file = out / f"crosstalk-{layer}.csv"
    if file.exists():
        return
    found, _ = directions(rows, layer)
    texts = documents[: options.pushed]
    felt = cross_talk(model, tokenizer, found, readers, texts, max_length=48, prepend_bos=True, progress=False)
    correlations = [(to, *felt.correlation(to)) for to in felt.layers if to >= layer]
    table = pd.DataFrame(correlations, columns=["read", "spearman", "p_value"])
    table.to_csv(out / f"crosstalk-{layer}-geometry.csv", index=False)
    kl = dict(zip(("kl", "low", "high"), map(np.asarray, felt.kl), strict=True))
    moved = pd.DataFrame(
        {"concept": felt.names, **kl, "random": float(felt.null_kl.mean()), "sigma": felt.sigma.numpy()}
    )
    moved.to_csv(out / f"crosstalk-{layer}-kl.csv", index=False)
    felt.plot().figure.savefig(out / f"crosstalk-{layer}.svg")
    felt.to_frame().to_csv(file, index=False)
    print(f"{out.name}, pushed at layer {layer}\n{table.to_string(index=False, float_format='{:.3f}'.format)}")


def summary(table, out):
    """Spearman of each predictor with the price; intervals draw whole concepts, whose layers and models go together."""
    rng = np.random.default_rng(0)
    by_concept = [rows for _, rows in table.groupby("concept")]
    n = len(by_concept)
    resamples = [pd.concat([by_concept[i] for i in rng.integers(n, size=n)]) for _ in range(1000)]

    def overall(rows, name, price="price"):
        return spearmanr(rows[name], rows[price]).statistic

    def within(rows, name, price="price"):
        ranked = rows.groupby(["model", "layer"])[[name, price]].rank()
        return np.corrcoef(ranked[name], ranked[price])[0, 1]

    found = []
    for name in PREDICTORS:
        row = {"predictor": name, "chosen_on": overall(table, name, "chosen_on")}
        for label, measure in {"all": overall, "within": within}.items():
            low, high = np.quantile([measure(rows, name) for rows in resamples], [0.025, 0.975])
            row |= {label: measure(table, name), f"{label}_low": low, f"{label}_high": high}
        found.append(row)
    result = pd.DataFrame(found).sort_values("chosen_on", ascending=False)
    result.to_csv(out / "predictors.csv", index=False)
    print(f"Spearman with the price, {len(table)} cells; ordered by the half of the documents they were chosen on")
    print(result.to_string(index=False, float_format="{:.2f}".format))
    shown = ["entanglement", "percentile", "covariance_percentile", "permutation_percentile", "split_half", "whitened"]
    print(table.groupby(["model", "layer"])[shown].median().to_string(float_format="{:.2f}".format))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True, help="documents held out from training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2000, help="texts of each concept, half of either class")
    parser.add_argument("--documents", type=int, default=80, help="to take the price on")
    parser.add_argument("--pushed", type=int, default=60, help="documents for cross-talk")
    parser.add_argument("--push", type=int, nargs="*", default=[2], help="layers to push at for cross-talk")
    return parser.parse_args()


if __name__ == "__main__":
    main()
