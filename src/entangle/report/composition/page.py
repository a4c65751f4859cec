"""A recipe from end to end: its models trained, measured, compared over shares, and written as one page."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from entangle.composition import Composition, Recipe, run_each
from entangle.composition.comparing.attacks import attacks, attacks_by_share
from entangle.composition.comparing.claims import claims
from entangle.composition.comparing.comparison import Comparison
from entangle.composition.comparing.displacement import displacement
from entangle.composition.comparing.foretold import foretold_by_share
from entangle.composition.training.processes import Processes
from entangle.errors import EntangleError
from entangle.report.composition import figures
from entangle.report.composition.attacks import red_teaming
from entangle.report.composition.foretold import foretold
from entangle.report.composition.posttraining import posttraining
from entangle.report.write import NAMES, write_pages
from entangle.study.numbers import plain
from entangle.study.page import Table, template
from entangle.study.wording import number

PACKAGES = ("entangle", "torch", "transformers", "tokenizers", "scikit-learn", "numpy", "scipy")
DESIGNS = {"added": "added to constant clean text", "replaced": "in the place of clean text"}
SECTIONS = (
    (
        figures.capability,
        "Capability",
        "price",
        "What all models should do equally well: read clean text. The paper's Figure 4.",
    ),
    (figures.probes, "Where it is read", "probe", "One linear probe for every head. The paper's Figure 5."),
    (
        figures.toxicity,
        "What is written",
        "steering",
        "Continuations scored by a linear model that has seen only the probes' fitting texts. The paper's Figure 6.",
    ),
    (
        figures.price,
        "The price",
        "price",
        "At one strength two models are not moved equally far: what counts is what is removed for what is paid.",
    ),
    (
        foretold,
        "The price, foretold",
        "forecast",
        "What a constant shift buys of each concept at most and what it costs at least, from gradients alone.",
    ),
    (figures.table_one, "Every method", "steering", "The paper's Table 1."),
    (
        posttraining,
        "Trained on pairs",
        "",
        "What was trained after pretraining, on a preferred text and one that is not, moved these pairs so far.",
    ),
    (
        red_teaming,
        "Red-teaming",
        "",
        "Suffixes searched for by greedy coordinate gradient (Zou et al. 2023) against each model as it is steered.",
    ),
    (
        figures.entanglement,
        "Entanglement",
        "entanglement",
        "How far the concept's direction lies along those of others, model by model.",
    ),
)

LEADING = {figures.capability: 0, figures.probes: -1, figures.toxicity: 0, figures.price: 0}
"""Which drawing of a section stands at the page's beginning."""


def compose(recipe: Recipe, out: Path | str, *, device: str | None = None, progress: bool = True) -> list[Path]:
    """Run a recipe, and write the comparison of its models as soon as there is one, anew after every further model.

    Args:
        recipe: What to train and to measure.
        out: Folder for the models and for `report.html` and `report.json`; what is finished in it stays.
        device: Where to run; a GPU where there is one.
        progress: Whether to show bars.

    Returns:
        The models' folders, and the report where the recipe measures; nothing in any but the first of several processes
        (see `entangle.composition.run`).

    Raises:
        EntangleError: Whatever `entangle.composition.run` refuses.

    Example:
        >>> from entangle.report import compose
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> texts_of = [en.composition.Source(documents=n, seed=n) for n in (40, 20, 10)]  # clean, added, held out
        >>> training = en.composition.Training(batch_size=8, context=64, precision="fp32")
        >>> fields = {"vocab_size": 400, "architecture": {"model_type": "gpt_neox", **size}, "training": training}
        >>> paths = compose(en.composition.Recipe(*texts_of, **fields), "out", progress=False)
        >>> [path.name for path in paths]  # and report.html where the recipe measures
        ['share-0-seed-0', 'share-0.1-seed-0']
    """
    out = Path(out)
    main = Processes.here(device).main
    written: list[Path] = []
    for finished in run_each(recipe, out, device=device, progress=progress):
        try:
            comparison = Comparison.of(finished)
        except EntangleError:  # too few models as yet, or nothing measured
            continue
        if main:
            written = write_comparison(finished, comparison, out)
    return [] if not main else [*(model.path for model in finished.models), *written]


def write_comparison(composition: Composition, comparison: Comparison, out: Path) -> list[Path]:
    """Write `report.html` and `report.json`, both or neither.

    Args:
        composition: The models that are finished.
        comparison: Those of them that are measured, compared.
        out: The folder.

    Raises:
        EntangleError: The folder cannot be written to, or files of these names in it are not of a report.
    """
    judged = [claim.__dict__ for claim in claims(comparison)]
    tables = {
        name: json.loads(frame.to_json(orient="records"))
        for name, frame in (
            ("capability", comparison.capability),
            ("probes", comparison.probes),
            ("steering", comparison.steering),
            ("entanglement", comparison.entanglement),
            ("foretold", foretold_by_share(comparison)),
            ("posttraining", displacement(composition.models)),
            ("attacks", attacks(composition.models)),
            ("attacks_by_share", attacks_by_share(comparison)),
            ("models", composition.to_frame()),
        )
    }
    numbers = plain({"answer": answer(judged), "claims": judged, "probe_tests": comparison.probe_tests, **tables})
    recipe = composition.recipe.to_dict()
    contents = (render(composition, comparison), json.dumps({"recipe": recipe, **numbers}, indent=1))
    return write_pages(out, dict(zip(NAMES, contents, strict=True)))


def render(composition: Composition, comparison: Comparison) -> str:
    """The comparison as one HTML page, the answer first: no request to anywhere.

    Args:
        composition: The models that are finished.
        comparison: Those of them that are measured, compared.
    """
    recipe = composition.recipe
    done = {model.path.name for model in composition.models if model.measured}
    sections, pictures = [], []
    for show, title, means, text in SECTIONS:
        drawings, tables = show(comparison)
        if show in LEADING and drawings:
            pictures.append(drawings[LEADING[show]])
            drawings = [drawing for drawing in drawings if drawing is not pictures[-1]]
        if drawings or tables:
            section = {"name": show.__name__, "title": title, "means": means, "text": text}
            sections.append({**section, "drawings": drawings, "tables": tables})
    judged = claims(comparison)
    return template("composition.html.j2", "report").render(
        version=version("entangle"),
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        concept=comparison.concept,
        n_models=len(done),
        n_parameters=composition.models[0].n_parameters,
        shares=", ".join(f"{100 * share:.3g} %" for share in comparison.shares),
        design=DESIGNS[recipe.design],
        seeds=", ".join(map(str, comparison.seeds)),
        several_seeds=len(comparison.seeds) > 1,
        missing=", ".join(cell.name for cell in recipe.cells if cell.name not in done),
        answer=answer([vars(each) for each in judged]),
        claims=Table(
            ["claim", "verdict", "here", "paper", "replication"],
            [[each.claim, each.verdict, each.ours, each.paper, each.replication] for each in judged],
            prose=True,
        ),
        pictures=pictures,
        sections=sections,
        command="entangle compose RECIPE.toml --out DIR",
        models=_models(composition.to_frame()),
        recipe=json.dumps(recipe.to_dict(), indent=1),
        versions=Table(["version", ""], [["python", platform.python_version()], *([p, version(p)] for p in PACKAGES)]),
    )


def answer(judged: Sequence[Mapping[str, str]]) -> list[str]:
    """What the claims come to: how many have which verdict, and which have one at all.

    Args:
        judged: The fields of each claim.
    """
    by_verdict: dict[str, list[str]] = {}
    for each in judged:
        by_verdict.setdefault(each["verdict"], []).append(each["claim"])
    counts = ", ".join(f"{verdict}: {len(claims)}" for verdict, claims in by_verdict.items())
    return [f"Of {len(judged)} claims, {counts}."] + [
        f"{verdict[:1].upper()}{verdict[1:]}: {'; '.join(claims)}."
        for verdict, claims in by_verdict.items()
        if not verdict.startswith("cannot")
    ]


def _models(frame: pd.DataFrame) -> Table:
    """What was trained."""
    columns = ["share", "clean_tokens", "added_tokens", "steps", "tokens_per_second", "held_out_ce", "unigram_ce"]
    rows = [
        [row["variant"] or "the mixture", str(row["seed"]), number(row["share"], 4)]
        + [number(row[column], 0 if "second" in column else 3) for column in columns[1:]]
        for row in frame.to_dict("records")
    ]
    words = [
        "share, as trained",
        "clean tokens",
        "added tokens",
        "steps",
        "tokens/s",
        "held-out nats per token",
        "unigrams",
    ]
    return Table(["", "seed", *words], rows, "The models.")
