"""Pages in a real browser: nothing foreign runs, nothing is fetched, nothing is cut, everybody can read them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from invented import forecast, study

from browsing import WIDTHS, Visit, started
from entangle.report import render
from entangle.report.forecast import page

pytestmark = pytest.mark.browser

HOSTILE = """</title></style></script><script>window.ran = 1</script><img src=x onerror="window.ran = 1">
<svg onload="window.ran = 1">{{ 7 * 7 }} {% raw %} $\\frac{1}{0}$ &lt; "' onmouseover="window.ran = 1"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with started() as found:
        yield found


def foretold_page() -> str:
    """The page of a forecast, of hostile names."""
    found = forecast([HOSTILE, "tense"], 4)
    numbers = {
        **{name: HOSTILE for name in ("model", "command", "made")},
        "answer": [HOSTILE],
        "versions": {"entangle": HOSTILE},
        "rows": found["rows"],
    }
    return page(SimpleNamespace(settings=found["settings"]), numbers)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Pages by name: of one model, of two, of one that is large and not steered, and of hostile names and texts."""
    folder = tmp_path_factory.mktemp("pages")
    large = study(n_layers=24, n_heads=16, others=("a", "b", "c", "d", "e", "f"), steered=False)
    hostile = study(label=HOSTILE, concept=HOSTILE, others=(HOSTILE + "2", "x"), text=HOSTILE)
    made = {
        "one": [study()],
        "two": [study(label="first"), study(label="second-with-a-rather-long-name", seed=1)],
        "large": [large],
        "hostile": [hostile],
    }
    for name, studies in made.items():
        (folder / f"{name}.html").write_text(render(studies), encoding="utf-8")
    (folder / "forecast.html").write_text(foretold_page(), encoding="utf-8")
    return {name: folder / f"{name}.html" for name in (*made, "forecast")}


@pytest.fixture(scope="module")
def screenshots(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where pictures of the pages are kept: pytest's folder, or the one that ENTANGLE_SCREENSHOTS names."""
    kept = os.environ.get("ENTANGLE_SCREENSHOTS")
    folder = Path(kept) if kept else tmp_path_factory.mktemp("screenshots")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.mark.parametrize("name", ["one", "two", "large", "hostile", "forecast"])
def test_nothing_runs_and_nothing_is_fetched(browser: Any, pages: dict[str, Path], name: str) -> None:
    visit = Visit(browser, pages[name])
    visit.unfold()
    visit.page.mouse.move(300, 300)
    assert visit.page.evaluate("window.ran") is None
    assert visit.complaints == []
    assert visit.asked == []
    visit.page.close()


def test_a_page_that_does_not_escape_would_be_noticed(browser: Any, tmp_path: Path) -> None:
    (tmp_path / "bare.html").write_text(f"<main>{HOSTILE}</main><p style='width: 3000px'>wide</p>")
    visit = Visit(browser, tmp_path / "bare.html")
    visit.page.wait_for_function("window.ran === 1")
    assert visit.asked  # the picture that is not there
    assert visit.too_wide()
    visit.page.close()


def test_what_a_text_says_is_shown_as_it_is(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["hostile"])
    visit.unfold()
    for place in (".sample .text", "h1", "td", "#answer dd"):
        words = " ".join(visit.page.locator(place).all_text_contents())
        assert "<script>window.ran = 1</script>" in words, place
        assert "{{ 7 * 7 }}" in words
        assert r"$\frac{1}{0}$" in words
    assert any(words.startswith("</title></style>") for words in visit.page.locator("svg text").all_text_contents())
    visit.page.close()


def test_the_policy_alone_would_stop_a_script(browser: Any, pages: dict[str, Path], tmp_path: Path) -> None:
    """Even where an escape were forgotten."""
    html = pages["one"].read_text(encoding="utf-8").replace("</main>", f"{HOSTILE}</main>")
    (tmp_path / "leaky.html").write_text(html, encoding="utf-8")
    visit = Visit(browser, tmp_path / "leaky.html")
    visit.page.wait_for_timeout(100)
    assert visit.page.evaluate("window.ran") is None
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)
    visit.page.close()


@pytest.mark.parametrize("width", WIDTHS)
def test_nothing_is_cut_and_nothing_scrolls_sideways(
    browser: Any, pages: dict[str, Path], screenshots: Path, width: int
) -> None:
    for name, path in pages.items():
        visit = Visit(browser, path, width=width, dark=name == "two")
        visit.page.screenshot(path=screenshots / f"{name}-{width}.png", full_page=True)
        visit.unfold()
        assert visit.too_wide() == [], name
        visit.page.close()


def test_the_answer_comes_first_and_four_figures_after_it(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["one"])
    order = visit.page.evaluate("[...document.querySelectorAll('main > section')].map((each) => each.id)")
    assert order[:2] == ["answer", "pictures"]
    assert visit.page.locator("#answer dd").count() == 6
    assert visit.page.locator("#pictures figure").count() == 4
    top = visit.page.locator("#answer").bounding_box()
    assert top["y"] < 200
    visit.page.close()


def test_pointing_tells_the_numbers_and_clicking_keeps_them(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["one"])
    figure = visit.page.locator("#pictures figure").first
    cell = figure.locator(".spots rect").nth(5)
    cell.scroll_into_view_if_needed()
    cell.hover()
    numbers = study()["probes"]["z"]
    accuracy = f"{numbers['accuracy'][1][1]:.3f} [{numbers['accuracy_low'][1][1]:.3f}"
    assert accuracy in visit.page.locator("#tip").inner_text()
    cell.click()
    card = figure.locator(".card").inner_text()
    assert accuracy in card
    assert "AUROC" in card
    assert figure.locator(".card .bar").count() == 2
    visit.page.keyboard.press("ArrowRight")
    assert accuracy not in visit.page.locator("#tip").inner_text()
    point = visit.page.locator("#pictures figure").last.locator(".spots circle").nth(1)
    point.hover()
    assert "alpha 4" in visit.page.locator("#tip").inner_text()
    assert "3.200 [3.170, 3.230]" in visit.page.locator("#tip").inner_text()
    visit.page.close()


def test_a_page_says_the_same_without_script(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["one"], java_script_enabled=False)
    assert visit.page.locator("#tip").is_hidden()
    cell = visit.page.locator(".spots a").first
    cell.click()
    row = visit.page.locator(f"[id='{cell.get_attribute('href')[1:]}']")
    assert row.is_visible()  # the fold that it lies in has opened
    visit.page.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_no_serious_barrier_is_found_by_axe(browser: Any, pages: dict[str, Path], dark: bool) -> None:
    for name in ("one", "two", "forecast"):
        visit = Visit(browser, pages[name], dark=dark, bypass_csp=True)
        visit.unfold()
        assert visit.violations() == [], name
        visit.page.close()


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", WIDTHS)
def test_pages_that_commands_wrote_fit_and_have_no_serious_barrier(
    browser: Any, screenshots: Path, width: int, dark: bool
) -> None:
    """What ENTANGLE_PAGES names: in continuous integration, the demo's page of two models and a recipe's."""
    written = [Path(each) for each in os.environ.get("ENTANGLE_PAGES", "").split(os.pathsep) if each]
    if not written:
        pytest.skip(f"needs pages: ENTANGLE_PAGES=DEMO/report.html{os.pathsep}SMOKE/report.html")
    for path in written:
        visit = Visit(browser, path.resolve(), width=width, dark=dark, bypass_csp=True)
        visit.page.screenshot(path=screenshots / f"{path.parent.name}-{width}.png", full_page=True)
        visit.unfold()
        assert visit.too_wide() == [], path
        assert visit.violations() == [], path
        visit.page.close()


def test_every_drawing_has_words_for_who_cannot_see_it(browser: Any, pages: dict[str, Path]) -> None:
    visit = Visit(browser, pages["one"])
    told = visit.page.evaluate(
        "[...document.querySelectorAll('svg[role=img]')].map((e) => e.getAttribute('aria-label'))"
    )
    numbers = study()["probes"]["z"]["accuracy"]
    assert len(told) == 7
    assert f"{max(map(max, numbers)):.3f}" in told[0]
    assert all(len(each) > 80 for each in told)
    visit.page.close()
