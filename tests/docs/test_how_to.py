"""Every block of Python in the how-tos and the README runs as it stands, on the toy that needs no download."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

import entangle as en

REPOSITORY = Path(__file__).resolve().parents[2]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def sections(name: str) -> list[tuple[str, list[str]]]:
    """The headings of a page that have blocks of Python, with these."""
    parts = re.split(r"^## ", (REPOSITORY / name).read_text(encoding="utf-8"), flags=re.MULTILINE)[1:]
    found = [(part.partition("\n")[0], BLOCK.findall(part)) for part in parts]
    return [(heading, blocks) for heading, blocks in found if blocks]


@pytest.fixture(scope="module")
def reader() -> dict[str, Any]:
    """The names that a reader has who tries one recipe after the other."""
    return {"en": en, **en.example()._asdict()}


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(("heading", "blocks"), sections("docs/how-to.md"), ids=lambda each: str(each)[:30])
def test_a_recipe_runs(heading: str, blocks: list[str], reader: dict[str, Any]) -> None:
    before = next(iter(reader["model"].parameters())).clone()
    for block in blocks:
        exec(compile(block, heading, "exec"), reader)
    assert bool((next(iter(reader["model"].parameters())) == before).all())


@pytest.mark.slow
def test_the_ten_lines_of_the_readme_run(tmp_path: Path) -> None:
    ((_, (block,)),) = sections("README.md")
    assert len([line for line in block.splitlines() if line.strip()]) <= 10
    exec(compile(block, "README.md", "exec"), {})
    assert (tmp_path / "page.html").stat().st_size > 10_000
    assert (tmp_path / "steered" / "config.json").is_file()


def test_the_readme_is_short_and_its_links_lead_somewhere() -> None:
    text = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) < 90
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert (REPOSITORY / target).exists(), target
