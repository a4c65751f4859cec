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
    for name in ("index.html", "concepts.html", "gallery/steer_and_pay.html"):
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


def pages(site: Path) -> list[Path]:
    """Where a reader begins, and the gallery."""
    gallery = sorted((site / "gallery").glob("*.html"))
    assert len(gallery) == 9
    return [*(site / f"{name}.html" for name in ("index", "tutorial", "how-to", "believe")), *gallery]


@pytest.mark.parametrize("width", WIDTHS)
def test_pages_fit(browser: Any, site: Path, width: int) -> None:
    for path in pages(site):
        visit = Visit(browser, path, width=width)
        assert visit.page.evaluate("document.documentElement.scrollWidth <= innerWidth"), path
        visit.page.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_no_serious_barrier_is_found_by_axe(browser: Any, site: Path, width: int, dark: bool) -> None:
    for path in pages(site):
        visit = Visit(browser, path, width=width, dark=dark)
        scheme = visit.page.evaluate("document.body.dataset.mdColorScheme")
        assert scheme == ("slate" if dark else "default")
        assert visit.violations() == [], path
        visit.page.close()


def test_the_gallery_has_what_its_cells_gave(site: Path) -> None:
    for path in (site / "gallery").glob("*.html"):
        if path.name == "index.html":
            continue
        html = path.read_text(encoding="utf-8")
        assert "The answer that this page reaches:" in html
        assert html.count("<table") + html.count('<pre class="output"') >= 2
        assert 'alt="png"' not in html
        assert (path.with_suffix(".ipynb")).stat().st_size < 500_000
        assert path.stat().st_size < 300_000


def test_search_finds_something_without_a_network(browser: Any, site: Path) -> None:
    visit = Visit(browser, site / "index.html")
    visit.page.locator("input[name=query]").first.fill("percentile")
    visit.page.locator(".md-search-result__item").first.wait_for(timeout=20_000)
    visit.page.close()
