"""One self-contained HTML page from the numbers of one or several studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Template

from entangle.report.drawing import interval, number
from entangle.report.study import figures

Numbers = Mapping[str, Any]


def template(name: str) -> Template:
    """A page of this room to be filled in; a value that is missing is an error."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("entangle", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def render(studies: Sequence[Numbers]) -> str:
    """The report as HTML: no script, no request to anywhere; styles and drawings are inside.

    Args:
        studies: The numbers of each model, as `report.json` holds them; several stand side by side.

    Returns:
        The page.
    """
    first = studies[0]
    steered = [study for study in studies if study["tradeoff"]]
    return template("page.html.j2").render(
        concept=first["concept"],
        version=first["versions"]["entangle"],
        made=first["made"],
        split=first["split"],
        labelled=first["data"][0],
        studies=[_shown(study, f"s{index}") for index, study in enumerate(studies)],
        tradeoff=figures.tradeoff_drawing(steered) if steered else None,
        n_heads=len(steered[0]["intervention"]["heads"]) if steered else None,
        scorer=steered[0]["scorer"]["name"] if steered else None,
        samples=[{"label": study["label"], "samples": _samples(study)} for study in steered],
    )


def _shown(study: Numbers, name: str) -> dict[str, Any]:
    """One study's part of each section; None where it was not measured."""
    entanglement = study["entanglement"] and {
        "drawings": figures.entanglement_drawings(study, name),
        "tables": figures.entanglement_tables(study),
    }
    return {
        "label": study["label"],
        "answers": _answers(study),
        "notes": study["notes"],
        "probes": {"drawings": figures.probe_drawings(study, name), "tables": figures.probe_tables(study)},
        "entanglement": entanglement,
        "price": study["tradeoff"] and {"drawings": [], "tables": figures.tradeoff_tables(study)},
        "command": study["command"],
        "provenance": figures.provenance_tables(study),
        "atlas": figures.atlas_table(study),
    }


def _answers(study: Numbers) -> list[dict[str, str]]:
    """The few numbers that answer the title, each with what it must be read against."""
    best, words = study["probes"]["resid_post"]["best"], study["baselines"]["bag_of_words"]
    answers = [
        {
            "value": number(best["accuracy"]),
            "meaning": f"accuracy of the best layer's probe (layer {best['layer']})",
            "detail": f"{interval(best['accuracy'], best['accuracy_low'], best['accuracy_high'])}; bag of words "
            f"{number(words['accuracy'])}",
        }
    ]
    if study["entanglement"]:
        found = study["entanglement"]
        own = next(
            row for row in found["rows"] if row["layer"] == found["best_layer"] and row["concept"] == study["concept"]
        )
        answers.append(
            {
                "value": number(own["entanglement"]),
                "meaning": f"entanglement E, nearest {own['partner']}",
                "detail": f"{interval(own['entanglement'], own['low'], own['high'])}; random directions "
                f"{number(own['null_low'])} to {number(own['null_high'])}",
            }
        )
    if study["tradeoff"]:
        strongest = study["tradeoff"][-1]
        for key, meaning in (("removed", f"{study['concept']} removed"), ("ce_change", "nats paid a token")):
            answers.append(
                {
                    "value": number(strongest[key]),
                    "meaning": f"{meaning} at alpha {strongest['alpha']:g}",
                    "detail": interval(strongest[key], strongest[f"{key}_low"], strongest[f"{key}_high"]),
                }
            )
    return answers


def _samples(study: Numbers) -> list[dict[str, Any]]:
    return [
        {
            "prompt": sample["prompt"],
            "sides": [
                {
                    "label": "not steered" if side["alpha"] == 0 else f"alpha {side['alpha']:g}",
                    "score": number(side["score"], 2),
                    "text": side["text"] or "(nothing)",
                }
                for side in sample["sides"]
            ],
        }
        for sample in study["samples"]
    ]
