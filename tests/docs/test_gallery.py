"""The gallery's notebooks are run where the documentation is built; what can be told without running them is here."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
DOCS = REPOSITORY / "docs"
SCRIPTS = sorted(REPOSITORY.glob("examples/*.py"))
CELL = re.compile(r"^# %%.*$", re.MULTILINE)


def cells(script: Path) -> list[tuple[str, str]]:
    """Head and body of every cell."""
    text = script.read_text(encoding="utf-8")
    return list(zip(CELL.findall(text), (body.strip() for body in CELL.split(text)[1:]), strict=True))


def anchors(page: Path) -> set[str]:
    """What a page's headings are linked by."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip()) for heading in headings}


def test_every_script_is_a_page_and_every_page_a_script() -> None:
    names = {script.stem for script in SCRIPTS}
    listed = set(re.findall(r"\((\w+)\.md\)", (DOCS / "gallery" / "index.md").read_text(encoding="utf-8")))
    in_menu = set(re.findall(r"gallery/(\w+)\.md", (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8")))
    assert len(names) == 8
    assert names == listed == in_menu - {"index"}


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_notebook_opens_with_its_answer_and_ends_by_checking_it(script: Path) -> None:
    first, *_, check, last = cells(script)
    assert first[0] == last[0] == "# %% [markdown]"
    assert re.match(r"# # .+\n#\n# \*\*.+\?\*\*\n#\n# \*The answer that this page reaches:\*", first[1])
    assert 'tags=["check"]' in check[0]
    assert sum(isinstance(each, ast.Assert) for each in ast.walk(ast.parse(check[1]))) >= 2


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_its_links_lead_to_pages_and_headings(script: Path) -> None:
    text = script.read_text(encoding="utf-8").replace("\n# ", " ")
    links = re.findall(r"\]\((?!http)([\w./-]+\.md)(?:#([\w-]+))?\)", text)
    assert any(page == "../reference.md" for page, _ in links)
    assert len(links) >= 3
    for page, anchor in links:
        target = DOCS / "gallery" / page
        if target.parent == DOCS / "gallery":  # made when the documentation is built
            target = REPOSITORY / "examples" / page.replace(".md", ".py")
        assert target.exists(), page
        assert not anchor or anchor in anchors(target), f"{page}#{anchor}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_every_drawing_has_words(script: Path) -> None:
    drawing = re.compile(r"\.plot\(|plt\.subplots|figures\.\w+\(")
    for head, body in cells(script):
        if drawing.search(body) and "markdown" not in head:
            alt = re.search(r'alt="(.{30,})"', head)
            assert alt, body


def test_what_runs_the_notebooks_comes_with_the_documentation() -> None:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = {re.split(r"[\[>=]", each)[0] for each in project["optional-dependencies"]["docs"]}
    assert {"jupytext", "nbclient", "ipykernel"} <= asked
