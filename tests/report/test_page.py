"""Bars agree with their numbers, columns link to what they mean, and a large page is small."""

from __future__ import annotations

import math
import re

import pytest
from invented import study

from entangle.report import render
from entangle.study.page import Table
from entangle.study.page.bars import EDGE, WIDTH, Scale, bar
from entangle.study.page.meanings import MEANINGS, meaning_of
from entangle.study.wording import Interval, interval


def drawn(cell: object, scale: Scale | None) -> list[float]:
    """Where a bar begins, has its dot, and ends."""
    line = re.search(r'd="M([\d.]+) 6H([\d.]+)"', bar(cell, scale))
    dot = re.search(r'cx="([\d.]+)"', bar(cell, scale))
    assert line
    assert dot
    return [float(line[1]), float(dot[1]), float(line[2])]


def test_an_interval_is_drawn_where_its_numbers_lie() -> None:
    cells = [interval(0.5, 0.4, 0.6), interval(0.9, 0.8, 1.0), "–"]
    scale = Scale.of(cells)
    assert scale == Scale(0.4, 1.0)
    inner = WIDTH - 2 * EDGE
    expected = [round(EDGE + share * inner, 1) for share in (0, 1 / 6, 1 / 3)]
    assert drawn(cells[0], scale) == pytest.approx(expected)
    assert bar("–", scale) == bar(cells[0], None) == ""


def test_zero_is_marked_where_it_is_near_and_an_unknown_end_runs_out() -> None:
    across = [interval(0.1, -0.1, 0.3), interval(0.2, None, 0.4)]
    scale = Scale.of(across)
    assert scale is not None
    assert scale.mark == 0
    assert drawn(across[1], scale)[0] == 0
    assert across[1].low == -math.inf
    assert Scale.of([interval(0.5, 0.4, 0.6)]) == Scale(0.4, 0.6, None)


def test_an_interval_is_words_that_keep_their_numbers() -> None:
    found = interval(0.5, 0.4, 0.6)
    assert found == "0.500 [0.400, 0.600]"
    assert isinstance(found, Interval)
    assert not isinstance(interval(None, None, None), Interval)


@pytest.mark.parametrize(
    ("column", "name"),
    [
        ("E [95 %]", "entanglement"),
        ("percentile", "percentile"),
        ("percentile, uniform", "percentile"),
        ("removed per nat [95 %]", "price"),
        ("p, corrected", "null"),
        ("prompts", ""),
        ("", ""),
    ],
)
def test_columns_link_to_what_they_mean(column: str, name: str) -> None:
    assert meaning_of(column) == name
    assert not name or name in {each.name for each in MEANINGS}


def test_the_covariance_percentile_leads_and_the_uniform_one_is_folded_away() -> None:
    html = render([study()])
    section = html[html.index('<section id="entanglement">') : html.index('<section id="forecast">')]
    assert section.index("62.0") < section.index("<details>") < section.index("99.9")


def test_wider_tables_need_more_room() -> None:
    few, many = (Table(["a"] * n, [["0.123 [0.100, 0.200]"] * n]) for n in (2, 9))
    assert few.width < many.width


def test_a_large_model_is_still_one_small_file() -> None:
    assert len(render([study(n_layers=32, n_heads=32)])) < 5_000_000


def test_a_conversation_is_shown_turn_by_turn_and_escaped() -> None:
    numbers = study()
    said = "<script>alert(1)</script> & more"
    numbers["samples"][0]["prompt"] = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": said}]
    html = render([numbers])
    assert '<span class="role">system</span> Be kind.' in html
    assert '<span class="role">user</span> &lt;script&gt;alert(1)&lt;/script&gt; &amp; more' in html
    assert said not in html
