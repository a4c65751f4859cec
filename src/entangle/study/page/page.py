"""One self-contained HTML page from the numbers of one or several studies."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import replace
from typing import Any
from zlib import crc32

from markupsafe import Markup

from entangle.data import AnyPrompt, content_text, messages_of
from entangle.study.answer import answered, best_probe, compared, headline, own_row, place, steered_row
from entangle.study.page import figures, tables
from entangle.study.page.bars import Scale, bar
from entangle.study.page.drawing import Panel, Table, template
from entangle.study.page.entangled import entanglement_panels, entanglement_table
from entangle.study.page.foretold import forecast_table, limit_panel
from entangle.study.wording import interval, number, strength

Numbers = Mapping[str, Any]


def render(studies: Sequence[Numbers]) -> str:
    """The page as HTML, the answer first: no request to anywhere; styles, drawings and the one script are inside.

    Args:
        studies: The numbers of each model, as `Study.to_dict` gives them; several stand side by side.

    Returns:
        The page.

    Example:
        >>> from entangle.study import render
        >>> few = {"n_resamples": 100, "n_permutations": 20, "forecast": False, "progress": False}
        >>> study = en.study(model, tokenizer, texts, labels, name="rudeness", **few)
        >>> page = render([study.to_dict()])
        >>> "<svg" in page, 'src="http' in page  # figures are inside; nothing is fetched from anywhere
        (True, False)
    """
    first = studies[0]
    steered = [study for study in studies if study["tradeoff"]]
    pictures = figures.first_panels(studies)
    return template("page.html.j2").render(
        concept=first["concept"],
        version=first["versions"]["entangle"],
        made=first["made"],
        compared=compared(studies),
        split=first["split"],
        labelled=first["data"][0],
        studies=[
            _shown(study, f"s{index}", {*pictures} - ({"entanglement"} if len(studies) > 1 else set()))
            for index, study in enumerate(studies)
        ],
        pictures=[panel.drawn(name) for name, panel in pictures.items()],
        steered=bool(steered),
        chosen=any(study["best_method"] for study in steered),
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
        # Without the page's styles and script nothing could be pointed at.
        picture=replace(picture, spots=()).drawn(name).svg if picture else Markup(""),
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


def _shown(study: Numbers, name: str, shown: Container[str]) -> dict[str, Any]:
    """One study's part of each section, without the pictures at the page's beginning; None where not measured."""

    def drawn(panels: Mapping[str, Panel]) -> list[Any]:
        return [
            panel.drawn(f"{name}-{key}")
            for key, panel in panels.items()
            if key not in shown and f"{name}-{key}" not in shown
        ]

    forecast = study["forecast"]
    return {
        "label": study["label"],
        "answered": answered(study),
        "tiles": _tiles(study),
        "notes": _notes(study),
        "probes": {"drawings": drawn(figures.probe_panels(study)), "tables": tables.probe_tables(study)},
        "entanglement": study["entanglement"]
        and {"drawings": drawn(entanglement_panels(study)), "tables": [entanglement_table(study["entanglement"])]},
        "foretold": study["foretold"],
        "forecast": forecast
        and {
            "drawings": drawn({"forecast": limit_panel(forecast["rows"])}),
            "tables": [forecast_table(forecast["rows"], forecast["settings"]["unit"])],
        },
        "price": study["tradeoff"] and {"tables": tables.tradeoff_tables(study)},
        "command": study["command"],
        "provenance": tables.provenance_tables(study),
        "atlas": tables.atlas_table(study),
    }


def _tiles(study: Numbers) -> list[dict[str, Any]]:
    """The few numbers that answer the title, each as a picture too, with what it must be read against."""
    site, grid = best_probe(study)
    words = study["baselines"].get("bag_of_words")
    mark, against = (words["accuracy"], "a bag of words") if words else (grid["null_ceiling"], "shuffled labels")
    where = f"accuracy of the best probe ({place(site, grid['best'])})"
    tiles = [_tile(grid["best"], "accuracy", where, mark, f"dashed: {against}, {number(mark)}")]
    own = own_row(study)
    if own:
        value = {"E": own["entanglement"], "E_low": own["low"], "E_high": own["high"]}
        percentile = own["covariance_percentile"]
        detail = "" if percentile is None else f"percentile {number(100 * percentile, 0)} of random directions"
        tiles.append(_tile(value, "E", f"entanglement E, nearest {own['partner']}", None, detail))
    last = steered_row(study)
    if last:
        by = f"by {last['method']} " if study["best_method"] else ""
        at = f"{by}at alpha {strength(last['alpha'])}"
        tiles.append(_tile(last, "removed", f"{study['concept']} removed {at}", 0.0, "dashed: no change"))
        tiles.append(_tile(last, "ce_change", f"nats paid per token {at}", 0.0, "dashed: no change"))
    return tiles


def _tile(row: Numbers, key: str, meaning: str, mark: float | None, against: str) -> dict[str, Any]:
    cell = interval(row[key], row[f"{key}_low"], row[f"{key}_high"])
    return {
        "value": number(row[key]),
        "bar": bar(cell, Scale.of([cell], mark)),
        "meaning": meaning,
        "detail": f"[{cell.partition(' [')[2]}" + (f"; {against}" if against else ""),
    }


def _turns(prompt: AnyPrompt) -> list[dict[str, str]]:
    """Who says what in a prompt; a text is nobody's."""
    messages = messages_of(prompt)
    if messages is None:
        return [{"role": "", "text": str(prompt)}]
    return [{"role": str(message["role"]), "text": content_text(message)} for message in messages]


def _samples(study: Numbers) -> list[dict[str, Any]]:
    return [
        {
            "turns": _turns(sample["prompt"]),
            "sides": [
                {
                    "label": "not steered" if side["alpha"] == 0 else f"alpha {strength(side['alpha'])}",
                    "score": number(side["score"], 2),
                    "text": side["text"] or "(nothing)",
                }
                for side in sample["sides"]
            ],
        }
        for sample in study["samples"]
    ]
