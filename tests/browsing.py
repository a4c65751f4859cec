"""A real browser without a window, for tests of pages; they skip where there is none."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (390, 820, 1280)
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")

# What reaches beyond the window, is cut off by what holds it, or can be scrolled sideways.
TOO_WIDE = """() => {
  const wide = [];
  const unseen = (each) => each && (getComputedStyle(each).clipPath !== "none" || unseen(each.parentElement));
  const page = document.documentElement;
  if (page.scrollWidth > innerWidth) wide.push(`the page: ${page.scrollWidth} of ${innerWidth}`);
  for (const each of document.querySelectorAll("main *:not(svg *)")) {
    const style = getComputedStyle(each);
    if (style.visibility === "hidden" || unseen(each)) continue;
    const box = each.getBoundingClientRect();
    if (box.width && (box.right > innerWidth + 1 || box.left < -1)) wide.push(`${each.tagName} to ${box.right}`);
    if (style.overflowX !== "visible" && each.scrollWidth > each.clientWidth + 1) wide.push(`${each.tagName} scrolls`);
  }
  return wide;
}"""


@contextmanager
def started() -> Iterator[Any]:
    """A browser; the test skips where playwright or a Chromium is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="needs playwright (pip install playwright)")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"needs a Chromium; none of {', '.join(NAMES)} is on the path")
    arguments = ["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Visit:
    """A page that is open, and what happened on it.

    Attributes:
        page: Playwright's page.
        asked: The addresses that it asked for, but for itself and what it holds.
        complaints: What it wrote to its console, and what went wrong.
    """

    def __init__(self, browser: Any, path: Path, *, width: int = 1280, dark: bool = False, **options: Any) -> None:
        self.page = browser.new_page(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", **options
        )
        self.asked: list[str] = []
        self.complaints: list[str] = []
        self.page.on("request", lambda request: self.asked.append(request.url))
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.goto(path.as_uri())
        self.asked = [url for url in self.asked if url != path.as_uri() and not url.startswith("data:")]

    def unfold(self) -> None:
        """Open everything that is folded away."""
        self.page.evaluate("document.querySelectorAll('details').forEach((each) => (each.open = true))")

    def too_wide(self) -> list[str]:
        """What does not fit."""
        found: list[str] = self.page.evaluate(TOO_WIDE)
        return found

    def violations(self) -> list[str]:
        """What axe-core calls serious or critical."""
        axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
        found = axe.Axe().run(self.page).response["violations"]
        return [
            f"{each['impact']} {each['id']}: {each['nodes'][0]['html'][:200]}"
            for each in found
            if each["impact"] in ("serious", "critical")
        ]
