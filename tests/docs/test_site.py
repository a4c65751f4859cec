"""The documentation as it was built: it asks nobody for anything, fits every window, and its formulae are readable.

`mkdocs build --site-dir SITE && ENTANGLE_SITE=SITE pytest -m browser tests/docs`
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from browsing import WIDTHS, Visit, started

pytestmark = pytest.mark.browser


@pytest.fixture(scope="module")
def site() -> Path:
    folder = os.environ.get("ENTANGLE_SITE")
    if not folder:
        pytest.skip("needs the built documentation: mkdocs build --site-dir SITE, then ENTANGLE_SITE=SITE")
    return Path(folder).resolve()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started() as found:
        yield found


def test_pages_ask_nobody_but_their_own_folder(browser: Any, site: Path) -> None:
    for name in ("index.html", "concepts.html"):
        visit = Visit(browser, site / name)
        visit.page.wait_for_load_state("networkidle")
        assert [url for url in visit.asked if not url.startswith("file://")] == []
        visit.page.close()


def test_formulae_are_mathml_and_nothing_of_tex_is_left(site: Path) -> None:
    for name in ("concepts.html", "metrics.html", "forecast.html"):
        html = (site / name).read_text(encoding="utf-8")
        assert "<math" in html
        assert 'class="arithmatex"' not in html
        assert not re.search(r"<mi>\\", html)


def test_the_start_page_fits_and_has_no_serious_barrier(browser: Any, site: Path) -> None:
    for width in WIDTHS:
        visit = Visit(browser, site / "index.html", width=width)
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        visit.page.close()
    visit = Visit(browser, site / "index.html")
    assert visit.violations() == []
    visit.page.close()


def test_search_finds_something_without_a_network(browser: Any, site: Path) -> None:
    visit = Visit(browser, site / "index.html")
    visit.page.locator("input[name=query]").first.fill("percentile")
    visit.page.locator(".md-search-result__item").first.wait_for(timeout=20_000)
    visit.page.close()
