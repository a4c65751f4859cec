"""One self-contained HTML page from the numbers of one or several studies."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from zlib import crc32

from markupsafe import Markup

from entangle.study.answer import best_probe, headline, own_row, place, strongest
from entangle.study.page import figures
from entangle.study.page.drawing import Panel, Table, template
from entangle.study.page.foretold import forecast_table, limit_panel
from entangle.study.wording import interval, number

Numbers = Mapping[str, Any]


def render(studies: Sequence[Numbers]) -> str:
    """The page as HTML: no script, no request to anywhere; styles and drawings are inside.

    Args:
        studies: The numbers of each model, as `Study.to_dict` gives them; several stand side by side.

    Returns:
        The page.

    Example:
        >>> from entangle.study import render
        >>> few = {"n_resamples": 100, "n_permutations": 20, "forecast": False, "progress": False}
        >>> study = en.study(model, tokenizer, texts, labels, name="rudeness", **few)
        >>> page = render([study.to_dict()])
        >>> page.count("<svg") == len(study.figures), "<script" in page
        (True, False)
    """
    first = studies[0]
    steered = [study for study in studies if study["tradeoff"]]
    price = figures.tradeoff_panel(steered) if steered else None
    return template("page.html.j2").render(
        concept=first["concept"],
        version=first["versions"]["entangle"],
        made=first["made"],
        split=first["split"],
        labelled=first["data"][0],
        studies=[_shown(study, f"s{index}") for index, study in enumerate(studies)],
        tradeoff=price.drawn("tradeoff") if price else None,
        n_heads=len(steered[0]["intervention"]["heads"]) if steered else None,
        scorer=steered[0]["scorer"]["name"] if steered else None,
        samples=[{"label": study["label"], "samples": _samples(study)} for study in steered],
    )


def render_light(study: Numbers) -> str:
    """What a notebook shows of a study: the answer, its numbers and one picture."""
    panels = figures.panels(study)
    picture = next((panels[name] for name in ("layers", "heads") if name in panels), None)
    name = f"light-{crc32(repr((study['label'], study['made'], study['concept'])).encode())}"
    return template("light.html.j2").render(
        answer=study["answer"],
        notes=_notes(study),
        table=headline_table(study),
        picture=picture.drawn(name).svg if picture else Markup(""),
    )


def headline_table(study: Numbers) -> Table:
    """The numbers that give the answer."""
    rows = [
        [
            row["quantity"],
            row["where"],
            number(row["value"]) if row["low"] is None else interval(row["value"], row["low"], row["high"]),
            f"{number(row['reference'])} ({row['against']})" if row["against"] else "",
        ]
        for row in headline(study)
    ]
    return Table(["", "where", "value [95 %]", "to be read against"], rows)


def _notes(study: Numbers) -> list[str]:
    """What was not measured and why, and what to beware of."""
    return [*(f"Not measured: {what}: {why}" for what, why in study["missing"].items()), *study["notes"]]


def _shown(study: Numbers, name: str) -> dict[str, Any]:
    """One study's part of each section; None where it was not measured."""

    def drawn(panels: Mapping[str, Panel]) -> list[Any]:
        return [panel.drawn(f"{name}-{key}") for key, panel in panels.items()]

    return {
        "label": study["label"],
        "answer": study["answer"],
        "answers": _answers(study),
        "notes": _notes(study),
        "probes": {"drawings": drawn(figures.probe_panels(study)), "tables": figures.probe_tables(study)},
        "entanglement": study["entanglement"]
        and {"drawings": drawn(figures.entanglement_panels(study)), "tables": figures.entanglement_tables(study)},
        "foretold": study["foretold"],
        "forecast": study["forecast"]
        and {
            "drawings": drawn({"forecast": limit_panel(study["forecast"]["rows"])}),
            "tables": [forecast_table(study["forecast"]["rows"], study["forecast"]["settings"]["unit"])],
        },
        "price": study["tradeoff"] and {"drawings": [], "tables": figures.tradeoff_tables(study)},
        "command": study["command"],
        "provenance": figures.provenance_tables(study),
        "atlas": figures.atlas_table(study),
    }


def _answers(study: Numbers) -> list[dict[str, str]]:
    """The few numbers that answer the title, each with what it must be read against."""
    site, grid = best_probe(study)
    best, words = grid["best"], study["baselines"].get("bag_of_words")
    against = (
        f"bag of words {number(words['accuracy'])}" if words else f"shuffled labels {number(grid['null_ceiling'])}"
    )
    answers = [_tile(best, "accuracy", f"accuracy of the best probe ({place(site, best)})", against)]
    own = own_row(study)
    if own:
        against = f"random directions {number(own['null_low'])} to {number(own['null_high'])}"
        value = {"E": own["entanglement"], "E_low": own["low"], "E_high": own["high"]}
        answers.append(_tile(value, "E", f"entanglement E, nearest {own['partner']}", against))
    last = strongest(study)
    if last:
        at = f"at alpha {last['alpha']:g}"
        answers.append(_tile(last, "removed", f"{study['concept']} removed {at}"))
        answers.append(_tile(last, "ce_change", f"nats paid per token {at}"))
    return answers


def _tile(row: Numbers, key: str, meaning: str, against: str = "") -> dict[str, str]:
    detail = interval(row[key], row[f"{key}_low"], row[f"{key}_high"])
    return {"value": number(row[key]), "meaning": meaning, "detail": f"{detail}; {against}" if against else detail}


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
