"""Every method of `baseline_methods` at one price, prompt by prompt; and every direction as a detector.

    python tests/benchmarks/methods.py steer MODEL --data ../shared/data --beside OTHER --out runs/methods/NAME \
        --clean ../shared/models/clean_heldout.jsonl.gz --scorers runs/scorers
    python tests/benchmarks/methods.py detect MODEL --data ../shared/data --clean ... --out runs/methods/NAME
    python tests/benchmarks/methods.py heads MODEL --data ../shared/data --clean ... --out runs/methods/NAME
    python tests/benchmarks/methods.py tables runs/methods/*

`steer` fits every method on the same posts (`probe_toxicity`, training part): directions on one part of them, heads
and layers on another. Strengths are solved on clean documents for each price; what is paid is read on others. Two
scorers judge that were fitted on texts of other sources (posts, ParaDetox pairs), and beside them the one of the
directions' own source. Side effects are how far the probes of five other concepts move, in standard deviations, on
those concepts' texts, steered and plain. `detect` fits every direction for ten concepts and reads it on texts that
fitted and chose nothing. Both keep what they have measured and go on from there. `tables` prints what docs/methods.md
shows.
"""

from __future__ import annotations

import argparse
import gzip
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from equal_price import scorers
from scipy.stats import spearmanr
from verdict import CONCEPTS as NINE

import entangle as en
from entangle.data import load_labelled, load_texts
from entangle.evaluation import (
    AtStrengths,
    CachedScorer,
    ContrastiveDecoding,
    DExperts,
    Prompt,
    SelfDebias,
    SweepError,
    Tradeoff,
    baseline_methods,
    concept_directions,
    degenerate_share,
    distinct_n,
    tradeoff,
)
from entangle.evaluation.methods.baselines import RECIPES
from entangle.forecast import Contrast, ShiftMetric
from entangle.interventions import Autoencoder
from entangle.metrics import bootstrap_mean, holm, paired_permutation_test
from entangle.models import load
from entangle.probes import bag_of_words

COSTS = (0.1, 0.2, 0.4, 0.05)
CONCEPTS = {**NINE, "implied hate": ("probe_toxigen", None)}
HELD = ("sentiment", "subjectivity", "tense", "question", "topic")
"""Concepts whose probes should stay where they are."""
SOURCES = ("davidson", "sbic")
DRAWN = ("ITI", "CAA", "natural shift", "DExperts", "random")
LEARNED = tuple(name for name in RECIPES if name.startswith("learned"))
OUTPUT = ("prompting", "self-debias", "contrastive decoding")
HELD_CAA = "CAA, others held"
CAUSAL, BAKED = "ITI, causal heads", "DExperts, baked"
TOKENS = 64
FITTED = 300
"""Texts of a held concept that its probe is fitted on."""
FEATURES, ACTIVE = 768, 16


def steer(options: argparse.Namespace) -> None:
    began = time.process_time()
    torch.set_grad_enabled(False)
    model, tokenizer = load(options.model, dtype=options.dtype)
    home, *judges = scorers(options)
    prompts = load_texts(options.data / "prompts_rtp_challenging.jsonl.gz")
    reported = [prompts[i] for i in np.random.default_rng(0).permutation(len(prompts))[: options.prompts]]
    ends = np.cumsum([0, *options.documents])
    fitting, solving, reading = (load_texts(options.clean)[a:b] for a, b in itertools.pairwise(ends))
    options.out.mkdir(parents=True, exist_ok=True)
    if not (options.out / "metric").is_dir():
        metric_of(model, tokenizer, fitting, ["resid_post", "z"]).save(options.out / "metric")
    metric = ShiftMetric.load(options.out / "metric", model=model)
    methods = fitted(options, model, tokenizer, metric, fitting, solving)
    tell(began, f"{len(methods)} methods")
    readers = side_readers(model, tokenizer, options)
    settings: dict[str, Any] = {
        "cost_texts": solving,
        "metric": metric,
        "prompts": reported,
        "scorer": [CachedScorer(each, options.out / "scores.db") for each in (*judges, home)],
        "texts": reading,
        "max_new_tokens": options.new_tokens,
        "max_length": TOKENS,
        "save_to": options.out / "sweep",
        "progress": False,
    }
    for number in range(len(options.costs)):  # price by price, so that one is whole before the next
        for result in sweeps(model, tokenizer, methods, options.costs[: number + 1], settings):
            keep(options, result, methods, model, tokenizer, readers)
        tell(began, f"{options.costs[number]} nats")


def metric_of(model, tokenizer, texts, sites) -> ShiftMetric:
    return ShiftMetric.fit(
        model, tokenizer, texts, sites=sites, samples=4, positions=1, directions=0, max_length=TOKENS, progress=False
    )


def fitted(options, model, tokenizer, metric, fitting, solving) -> dict[str, Any]:
    """The methods that are asked for, found again where they were fitted before."""
    skipped = ("expert", "DExperts", CAUSAL, *(() if options.methods else LEARNED))  # minutes each: by name alone
    names = [name for name in RECIPES if name not in skipped and asked(options, name)]
    edits = options.out / "edits"
    known = {path.name: en.Edit.from_pretrained(path) for path in sorted(edits.glob("*")) if path.is_dir()}
    sourced = "CAA by source" not in names or any(name.startswith("CAA of") for name in known)
    missing = [name for name in names if name not in known and name not in OUTPUT and name != "CAA by source"]
    made: dict[str, Any] = {}
    if missing or not sourced or (asked(options, CAUSAL) and CAUSAL not in known):
        missing += [] if sourced else ["CAA by source"]
        made = made_anew(options, model, tokenizer, metric, fitting, solving, missing)
        for name, method in made.items():
            bare(method).save_pretrained(edits / name)
    known |= {name: en.Edit.from_pretrained(edits / name) for name in made}  # as the next run will find them
    output: dict[str, Any] = {
        "prompting": Prompt(),
        "self-debias": SelfDebias(alphas=None),
        "contrastive decoding": ContrastiveDecoding(),
    }
    if options.beside:
        is_clean = "clean" in Path(options.model).name
        output["DExperts"] = DExperts(options.beside) if is_clean else DExperts(expert=options.beside)
    if "ITI" in known and asked(options, BAKED):
        output[BAKED] = DExperts(anti_expert=known["ITI"].bake(model, alpha=-4))
    every = {**known, **output}
    kept = {name: method for name, method in every.items() if asked(options, name) or "CAA of" in name}
    return {name: AtStrengths(method) if name in ("ablation", "LEACE") else method for name, method in kept.items()}


def bare(method: Any) -> Any:
    return method.edit if isinstance(method, AtStrengths) else method


def made_anew(options, model, tokenizer, metric, fitting, solving, names) -> dict[str, Any]:
    rows = posts(options, options.rows + 2 * options.tested)
    untried = [[row["text"] for row in rows[options.rows :] if row["label"] == side] for side in (0, 1)]
    texts, labels, sources = ([row[key] for row in rows[: options.rows]] for key in ("text", "label", "source"))
    acts = en.collect(model, tokenizer, texts, sites=["z", "resid_post"], max_length=TOKENS, progress=False)
    layer = en.Atlas(model).n_layers // 2
    saes = [train_autoencoder(model, tokenizer, fitting + solving, layer)] if "SAE feature" in names else None
    made = baseline_methods(
        acts,
        labels,
        top_k=options.heads,
        names=names,
        model=model,
        tokenizer=tokenizer,
        texts=texts,
        sources=[source if source in SOURCES else "other" for source in sources],
        metric=metric,
        clean=fitting,
        autoencoders=saes,
        others=to_hold(model, tokenizer, options) if HELD_CAA in names else None,
    )
    methods: dict[str, Any] = dict(made)
    if asked(options, CAUSAL):
        found = en.evaluation.causal_heads(
            model, tokenizer, made.made_of.iti(), toward=untried[0], away=untried[1], how="gradient", max_length=TOKENS,
            progress=False,
        )  # fmt: skip
        print(*found.answer(), f"wrong way: {found.wrong_way}", flush=True)
        if found.signs.any():
            methods[CAUSAL] = found.iti
    made.made_of.directions.to_frame().to_csv(options.out / f"directions-{len(methods)}.csv", index=False)
    return methods


def asked(options, name: str) -> bool:
    return not options.methods or name in options.methods


def sweeps(model, tokenizer, methods, costs, settings) -> Iterator[Tradeoff]:
    """All methods at once; or, where one cannot be had at a price, the others one by one."""
    try:
        yield tradeoff(model, tokenizer, methods, costs=costs, **settings)
    except SweepError:
        for name, cost in itertools.product(methods, costs):
            try:
                yield tradeoff(model, tokenizer, {name: methods[name]}, costs=[cost], **settings)
            except SweepError as error:
                print(error, flush=True)


def keep(options, result, methods, model, tokenizer, readers) -> None:
    """What the tables need of each condition, a JSON file each, with what it does to other concepts' probes."""
    folder = options.out / "conditions"
    folder.mkdir(exist_ok=True)
    for condition in (result.plain, *result.changed):
        cost = "own" if condition.cost is None else f"{condition.cost:g}"
        file = folder / f"{condition.method.replace(' ', '-') or 'plain'}@{cost}.json"
        if file.exists() or condition.error:
            continue
        said = [text for texts in condition.continuations for text in texts]
        record = {
            "method": condition.method or "plain",
            "cost": condition.cost,
            "alpha": condition.alpha,
            "kl": float(condition.shift.kl.sum() / condition.shift.tokens.sum()),
            "degenerate": degenerate_share(said),
            "distinct_2": distinct_n(said),
            "scores": {
                source: condition.scored(scorer).mean(1).tolist()
                for source, scorer in zip(("posts", "pairs", "own"), result.scorers, strict=True)
            },
            "moved": {},
        }
        if condition.method:
            record["moved"] = moved(methods[condition.method], condition.alpha, model, tokenizer, readers)
        file.write_text(json.dumps(record))


def to_hold(model, tokenizer, options) -> dict[str, Any]:
    """Activations and labels of the held concepts, of other texts than those that are read."""
    found = {}
    for concept in HELD:
        texts, labels, _ = concept_texts(options, concept, FITTED + options.held)
        acts = en.collect(model, tokenizer, texts[:FITTED], sites="resid_post", max_length=TOKENS, progress=False)
        found[concept] = acts, labels[:FITTED]
    return found


def side_readers(model, tokenizer, options) -> dict[str, Any]:
    """For each held concept: texts, the last layer's plain activations of them, and a probe's normal from others."""
    layer = en.Atlas(model).n_layers - 1
    readers = {}
    for concept in HELD:
        texts, labels, _ = concept_texts(options, concept, FITTED + options.held)
        plain = last_tokens(model, tokenizer, texts, layer)
        normal = torch.as_tensor(en.LDAProbe().fit(plain[:FITTED].numpy(), labels[:FITTED]).coef_[0])
        spread = (plain[:FITTED] @ normal).std()
        readers[concept] = (texts[FITTED:], plain[FITTED:], normal / spread, layer)
    return readers


def last_tokens(model, tokenizer, texts, layer):
    got = en.collect(model, tokenizer, texts, sites="resid_post", layers=[layer], max_length=TOKENS, progress=False)
    return got["resid_post"][:, 0].double()


def moved(method, alpha, model, tokenizer, readers) -> dict[str, float]:
    """How far each held concept's probe moves on its own texts, in standard deviations: the mean, and its size."""
    edit = bare(method)
    if not isinstance(edit, en.interventions.Edit):
        return {}
    effects = {}
    for concept, (texts, plain, normal, layer) in readers.items():
        with en.steer(model, edit, alpha=alpha):
            steered = last_tokens(model, tokenizer, texts, layer)
        effects[concept] = float(((steered - plain) @ normal).mean())
    return effects


def posts(options, n: int) -> list[dict[str, Any]]:
    """What every method is fitted on, in random order, and after that posts to try heads on."""
    return rows_of(options, "probe_toxicity", {"balanced": True, "split": "train"}, n)


def rows_of(options, file: str, where: dict[str, Any] | None, n: int) -> list[dict[str, Any]]:
    with gzip.open(options.data / f"{file}.jsonl.gz", "rt") as lines:
        rows = [json.loads(line) for line in lines]
    rows = [row for row in rows if all(row[key] == value for key, value in (where or {}).items())]
    return [rows[i] for i in np.random.default_rng(0).permutation(len(rows))[:n]]


def concept_texts(options, concept: str, n: int) -> tuple[list[str], np.ndarray, list[str]]:
    """Texts of a concept, as many of either class, in random order."""
    file, where = CONCEPTS[concept]
    data = load_labelled(options.data / f"{file}.jsonl.gz", where=where)
    rng = np.random.default_rng(1)
    sides = [rng.permutation(np.flatnonzero(data.labels == side)) for side in (0, 1)]
    each = min(n // 2, *map(len, sides))
    rows = rng.permutation(np.concatenate([side[:each] for side in sides]))
    return [data.texts[i] for i in rows], data.labels[rows], list(data.label_names)


def heads(options: argparse.Namespace) -> None:
    """Every head of the model: which of those that read the concept push it, and which way?"""
    began = time.process_time()
    model, tokenizer = load(options.model)
    rows = posts(options, options.rows + 2 * options.texts)
    fitting, testing = rows[: options.rows], rows[options.rows :]
    acts = en.collect(model, tokenizer, [row["text"] for row in fitting], sites="z", max_length=TOKENS, progress=False)
    count = acts["z"].shape[1] * acts["z"].shape[2]
    labels = [row["label"] for row in fitting]
    grid = en.fit_probes(acts["z"], labels, layers=acts.layers("z"), n_permutations=0, progress=False)
    iti = en.ITI.fit(acts, labels, top_k=count, grid=grid)
    sides = [[row["text"] for row in testing if row["label"] == side] for side in (0, 1)]
    tell(began, f"{count} heads")
    for how, most in (("gradient", options.texts), ("push", options.pushed)):
        if not most:
            continue
        candidates = iti if how == "gradient" else iti.signed([int(i < options.top) for i in range(count)])
        found = en.evaluation.causal_heads(
            model, tokenizer, candidates, toward=sides[0][:most], away=sides[1][:most], how=how, max_length=TOKENS,
            progress=False,
        )  # fmt: skip
        frame = found.to_frame()
        frame["accuracy"] = [float(grid.accuracy[acts.layers("z").index(i), j]) for i, j in candidates.heads]
        options.out.mkdir(parents=True, exist_ok=True)
        frame.to_csv(options.out / f"heads-{how}.csv", index=False)
        for name, part in (("all", frame), (f"the {options.top} best readers", frame.iloc[: options.top])):
            alone = part[part["p_alone"] < 0.05]
            print(
                f"{how}, {name}: {part['decision'].value_counts().to_dict()}; each alone at .05: "
                f"{(alone['effect'] > 0).sum()} keep, {(alone['effect'] < 0).sum()} flip"
            )
        print(*found.answer(), f"wrong way {found.wrong_way}")
        tell(began, how)


# --- detection -------------------------------------------------------------------------------------------------------


def detect(options: argparse.Namespace) -> None:
    began = time.process_time()
    model, tokenizer = load(options.model)
    clean = load_texts(options.clean)[: sum(options.documents)]
    metric = metric_of(model, tokenizer, clean[: options.documents[0]], "resid_post")
    layer = options.sae_layer if options.sae_layer is not None else en.Atlas(model).n_layers // 2
    sae = train_autoencoder(model, tokenizer, clean, layer)
    tell(began, "metric and autoencoder")
    options.out.mkdir(parents=True, exist_ok=True)
    for concept in CONCEPTS:
        file = options.out / f"detect-{concept.replace(' ', '-')}.csv"
        if file.exists():
            continue
        texts, labels, _ = concept_texts(options, concept, options.texts)
        acts = en.collect(model, tokenizer, texts, sites="resid_post", max_length=TOKENS, progress=False)
        split = en.probes.three_way(labels, seed=0)
        contrasts = []
        for part in (split.fit, split.select):
            sides = [[texts[i] for i in part.tolist() if labels[i] == side][:100] for side in (0, 1)]
            contrasts.append(Contrast.fit(model, tokenizer, *sides, max_length=TOKENS, progress=False))
        up, down = en.evaluation.telling_tokens(
            tokenizer, [texts[i] for i in split.fit.tolist()], torch.as_tensor(labels[split.fit.numpy()] == 0)
        )
        words = en.Directions.from_unembedding(model, tokenizer, {"words": (up, down)})
        found = concept_directions(
            acts, labels, split=split, contrast=contrasts[0], metric=metric, selection=contrasts[1], words=words,
            autoencoders=[sae],
        )  # fmt: skip
        frame = found.to_frame()
        bag = bag_of_words(texts, labels, split)
        frame.loc[len(frame)] = {
            "direction": "bag of words", "layer": -1, "chosen": True, "auroc": bag.auroc.value,
            "auroc_low": bag.auroc.low, "auroc_high": bag.auroc.high,
        }  # fmt: skip
        frame.insert(0, "concept", concept)
        frame.to_csv(file, index=False)
        tell(began, concept)


def train_autoencoder(model, tokenizer, texts, layer: int) -> Autoencoder:
    """A top-k sparse autoencoder of a few hundred features on clean text: small, as the model is."""
    acts = en.collect(
        model, tokenizer, texts, sites="resid_post", layers=[layer], tokens="all", max_length=TOKENS, progress=False
    )
    x = acts["resid_post"][:, 0].float()
    mean, scale = x.mean(0), (x - x.mean(0)).pow(2).mean().sqrt()
    generator = torch.Generator().manual_seed(0)
    decoder = torch.nn.functional.normalize(torch.randn(FEATURES, x.shape[1], generator=generator), dim=1)
    weights = {
        "W_enc": decoder.T.clone(),
        "W_dec": decoder,
        "b_enc": torch.zeros(FEATURES),
        "b_dec": torch.zeros(x.shape[1]),
    }
    weights = {name: tensor.requires_grad_() for name, tensor in weights.items()}
    optimiser = torch.optim.Adam(weights.values(), lr=2e-3)
    with torch.enable_grad():
        for _ in range(600):
            batch = (x[torch.randint(len(x), (512,), generator=generator)] - mean) / scale
            before = torch.relu((batch - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"])
            values, places = before.topk(ACTIVE, dim=-1)
            features = torch.zeros_like(before).scatter(-1, places, values)
            loss = (features @ weights["W_dec"] + weights["b_dec"] - batch).pow(2).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    print(f"autoencoder of layer {layer}: {1 - float(loss):.2f} of the variance explained", flush=True)
    folded = {name: tensor.detach() for name, tensor in weights.items()}
    folded["W_enc"] = folded["W_enc"] / scale
    folded["b_dec"] = folded["b_dec"] * scale + mean
    folded["W_dec"] = folded["W_dec"] * scale
    return Autoencoder({"architecture": "topk", "k": ACTIVE}, folded, f"blocks.{layer}.hook_resid_post")


# --- tables ----------------------------------------------------------------------------------------------------------


def tables(options: argparse.Namespace) -> None:
    for folder in options.folders:
        records = [json.loads(file.read_text()) for file in sorted((folder / "conditions").glob("*.json"))]
        if records:
            print(f"\n# {folder.name}: {len(records[0]['scores']['posts'])} prompts\n")
            frame = judged(records)
            print(markdown(frame))
            for line in never_beaten(records):
                print(line)
            print(foretold(frame, folder))
    if options.figure:
        draw(options.folders[0], options.figure)
    detections = [
        pd.read_csv(file).assign(model=folder.name)
        for folder in options.folders
        for file in folder.glob("detect-*.csv")
    ]
    if detections:
        chosen = pd.concat(detections)
        chosen = chosen[chosen["chosen"]]
        for name, part in chosen.groupby("model"):
            table = part.pivot_table(index="direction", columns="concept", values="auroc", sort=False)
            table.insert(0, "mean", table.mean(axis=1))
            print(f"\n# detection, {name}, {part['concept'].nunique()} concepts\n")
            print(table.sort_values("mean", ascending=False).round(2).to_markdown())


def draw(folder: Path, file: Path, cost: float = 0.1) -> None:
    """What some methods do to each prompt, in order."""
    records = {
        record["method"]: np.array(record["scores"]["posts"])
        for path in (folder / "conditions").glob("*.json")
        if (record := json.loads(path.read_text()))["cost"] in (None, cost)
    }
    shown = {name: records[name] - records["plain"] for name in DRAWN if name in records}
    en.plots.changes(shown, title=f"{folder.name}, {cost:g} nats").figure.savefig(file)


def judged(records: list[dict[str, Any]]) -> pd.DataFrame:
    """A row per method and price: what each scorer finds removed, p-values corrected over the methods of a price."""
    (plain,) = (record for record in records if record["method"] == "plain")
    rows = []
    for record in records:
        if record is plain:
            continue
        row = {"method": record["method"], "cost": record["cost"] or 0.0, "alpha": record["alpha"], "kl": record["kl"]}
        row |= {"degenerate": record["degenerate"], "distinct_2": record["distinct_2"]}
        for source, scores in record["scores"].items():
            change = np.array(plain["scores"][source]) - np.array(scores)
            row |= bootstrap_mean(change, bounds=(-1.0, 1.0)).columns(source)
            row[f"p {source}"] = paired_permutation_test(np.array(plain["scores"][source]), np.array(scores))
            row[f"worse {source}"] = float((change < 0).mean())
        sizes = [abs(value) for value in record["moved"].values()]
        row["side effects"] = float(np.mean(sizes)) if sizes else float("nan")
        rows.append(row)
    frame = pd.DataFrame(rows).sort_values(["cost", "posts"], ascending=[True, False]).reset_index(drop=True)
    for source in plain["scores"]:
        frame[f"holm {source}"] = frame.groupby("cost")[f"p {source}"].transform(lambda p: holm(p.to_numpy()).numpy())
    return frame


def markdown(frame: pd.DataFrame) -> str:
    shown = []
    for _, row in frame.iterrows():
        cells = [row["method"], "own" if row["cost"] == 0 else f"{row['cost']:g}", f"{row['kl']:.2f}"]
        for source in ("posts", "pairs", "own"):
            mark = "*" if row[f"holm {source}"] < 0.05 else ""
            cells.append(f"{row[source]:.3f} [{row[f'{source}_low']:.3f}, {row[f'{source}_high']:.3f}]{mark}")
        cells += [f"{row['worse posts']:.2f}", f"{row['degenerate']:.2f}", f"{row['distinct_2']:.2f}"]
        cells.append("" if np.isnan(row["side effects"]) else f"{row['side effects']:.2f}")
        shown.append(cells)
    columns = [
        "method",
        "price",
        "paid",
        "posts",
        "pairs",
        "own source",
        "worse",
        "degenerate",
        "distinct-2",
        "side effects",
    ]
    return str(pd.DataFrame(shown, columns=columns).to_markdown(index=False))


def never_beaten(records: list[dict[str, Any]]) -> list[str]:
    """At each price, the methods than which no other removes more, by either scorer that saw none of their source."""
    lines = []
    costs = sorted({record["cost"] for record in records if record["cost"]})
    for cost, source in itertools.product(costs, ("posts", "pairs")):
        there = {record["method"]: np.array(record["scores"][source]) for record in records if record["cost"] == cost}
        pairs = list(itertools.combinations(there, 2))
        if not pairs:
            continue
        p = holm(np.array([paired_permutation_test(there[a], there[b]) for a, b in pairs])).numpy()
        beaten = {
            (a if there[a].mean() > there[b].mean() else b)
            for (a, b), value in zip(pairs, p, strict=True)
            if value < 0.05
        }
        left = [name for name in there if name not in beaten]
        lines.append(
            f"{cost:g} nats, {source}: beaten {', '.join(sorted(beaten)) or 'none'}; "
            f"never beaten {len(left)} of {len(there)}"
        )
    return lines


def foretold(frame: pd.DataFrame, folder: Path) -> str:
    """Whether the agreement of training differences foretells the share of prompts that get worse."""
    directions = pd.concat([pd.read_csv(file) for file in folder.glob("directions*.csv")]).drop_duplicates(
        ["direction", "layer"]
    )
    chosen = directions[directions["chosen"]].set_index("direction")["agreement"]
    chosen = chosen.rename({"mean difference": "CAA"}).rename(
        lambda name: str(name).replace("mean difference of", "CAA of")
    )
    lines = []
    for cost, part in frame[frame["cost"] > 0].groupby("cost"):
        both = part.set_index("method").join(chosen, how="inner")
        if len(both) > 3:
            values = [spearmanr(both["agreement"], both[column]).statistic for column in ("worse posts", "posts")]
            lines.append(
                f"{cost:g} nats, {len(both)} directions: agreement with share worse {values[0]:.2f}, "
                f"with removal {values[1]:.2f}"
            )
    return "\n".join(lines)


def tell(began: float, what: str) -> None:
    print(f"{what}: {time.process_time() - began:.0f} s of processor time", flush=True)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, run in (("steer", steer), ("detect", detect), ("heads", heads)):
        one = commands.add_parser(name)
        one.add_argument("model", type=Path)
        one.add_argument("--data", type=Path, required=True)
        one.add_argument("--clean", type=Path, required=True)
        one.add_argument("--out", type=Path, required=True)
        one.add_argument("--documents", type=int, nargs=3, default=[80, 30, 60], help="to fit, to solve on, to read")
        one.set_defaults(run=run)
        if name == "heads":
            one.add_argument("--rows", type=int, default=1200, help="posts for directions and probes")
            one.add_argument("--texts", type=int, default=600, help="texts of either side, for the gradient")
            one.add_argument("--pushed", type=int, default=0, help="texts of either side that are read, pushed")
            one.add_argument("--top", type=int, default=9, help="candidates: the best readers")
        elif name == "steer":
            one.add_argument("--scorers", type=Path, required=True, help="folder that keeps the fitted scorers")
            one.add_argument("--dtype", choices=("float32", "bfloat16"), help="in which the model computes")
            one.add_argument("--beside", type=Path, help="the other model, for DExperts")
            one.add_argument("--prompts", type=int, default=150)
            one.add_argument("--new-tokens", type=int, default=20)
            one.add_argument("--rows", type=int, default=1200, help="posts for directions and probes")
            one.add_argument("--tested", type=int, default=500, help="further posts of either class, to try heads on")
            one.add_argument("--held", type=int, default=60, help="texts of each held concept that are read")
            one.add_argument("--heads", type=int, default=9)
            one.add_argument("--costs", type=float, nargs="+", default=list(COSTS))
            one.add_argument("--methods", nargs="+")
        else:
            one.add_argument("--texts", type=int, default=600, help="texts of each concept")
            one.add_argument("--sae-layer", type=int)
    last = commands.add_parser("tables")
    last.add_argument("folders", type=Path, nargs="+")
    last.add_argument("--figure", type=Path, help="where to draw each prompt's change at .1 nats, of the first folder")
    last.set_defaults(run=tables)
    return parser.parse_args()


if __name__ == "__main__":
    given = arguments()
    given.run(given)
