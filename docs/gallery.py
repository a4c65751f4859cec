"""The gallery: notebooks made from the scripts in `examples/`, run, and written as pages while the docs are built.

The scripts are the one source. A cell that raises, such as the last one that checks the answer, breaks the build. A run
is kept in `.cache/gallery`, and taken again while the script and the version are as they were: remove it to run anew.
`python docs/gallery.py OUT` writes the notebooks alone.
"""

from __future__ import annotations

import hashlib
import html
import os
import re
import sys
import tempfile
from base64 import b64decode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
from mkdocs.structure.files import File, Files
from nbclient import NotebookClient

import entangle

REPOSITORY = Path(__file__).resolve().parents[1]
SCRIPTS = (
    "capture_and_probe",
    "is_it_entangled",
    "steer_and_pay",
    "forecast_the_price",
    "compare_checkpoints",
    "toy_superposition",
    "figure_3",
    "plug_in",
)
KEPT = REPOSITORY / ".cache" / "gallery"
SECONDS = 900  # of a cell, on a machine that is busy
Cell = nbformat.NotebookNode
STYLE = re.compile(r"<style.*?</style>", re.DOTALL)


def on_files(files: Files, config: Any, **_: object) -> Files:
    """What mkdocs calls with the files it has read: a page, its pictures and a notebook are added for every script."""
    for name in SCRIPTS:
        notebook = run(name)
        pictures: dict[str, bytes] = {}
        page = "".join(_page(notebook, name, pictures))
        added: dict[str, str | bytes] = {f"{name}.md": page, f"{name}.ipynb": _offline(nbformat.writes(notebook))}
        for path, content in (added | pictures).items():
            files.append(File.generated(config, f"gallery/{path}", content=content))
    return files


def run(name: str) -> nbformat.NotebookNode:
    """The notebook of a script with what its cells gave; from `.cache/gallery` where nothing has changed since."""
    script = (REPOSITORY / "examples" / f"{name}.py").read_text(encoding="utf-8")
    kept = KEPT / f"{name}-{hashlib.sha256(f'{entangle.__version__} {script}'.encode()).hexdigest()[:16]}.ipynb"
    if kept.is_file():
        return nbformat.read(kept, as_version=4)
    notebook = jupytext.reads(script, fmt="py:percent")
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    with tempfile.TemporaryDirectory() as folder:
        # A figure is kept as a picture of the cell that drew it, whatever the shell has asked of matplotlib.
        asked = os.environ.pop("MPLBACKEND", None)
        try:
            client = NotebookClient(
                notebook,
                timeout=SECONDS,
                startup_timeout=SECONDS,
                extra_arguments=["--IPKernelApp.log_level=40"],  # not that its port is open to this machine
                resources={"metadata": {"path": folder}},
            )
            client.execute(cleanup_kc=True)
        finally:
            if asked is not None:
                os.environ["MPLBACKEND"] = asked
    KEPT.mkdir(parents=True, exist_ok=True)
    for old in KEPT.glob(f"{name}-*.ipynb"):
        old.unlink()
    nbformat.write(notebook, kept)
    return notebook


def _page(notebook: nbformat.NotebookNode, name: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """Cell after cell as Markdown; pictures are added to `pictures` by their paths."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            title, _, rest = cell.source.partition("\n")
            yield f"{title}\n"
            if title.startswith("# "):
                source = f"https://github.com/entangle-interp/entangle/blob/main/examples/{name}.py"
                yield f"\n[Notebook]({name}.ipynb) · made from [`examples/{name}.py`]({source})\n"
            yield f"{rest}\n\n"
            continue
        yield f"```python\n{cell.source}\n```\n\n"
        for output in cell.outputs:
            yield from _shown(output, cell, name, pictures)


def _shown(output: Cell, cell: Cell, name: str, pictures: dict[str, bytes]) -> Iterator[str]:
    """One output: a picture with the cell's `alt` as its words, a table, or text."""
    if output.output_type == "stream":
        if output.name == "stdout":
            yield _text(output.text)
        return
    data = output.data
    if "image/png" in data:
        path = f"{name}-{len(pictures) + 1}.png"
        pictures[path] = b64decode(data["image/png"])
        yield f"![{cell.metadata['alt']}]({path})\n\n"
    elif "text/html" in data and "<table" in data["text/html"]:
        table = re.sub(r"\s*\n\s*", "", STYLE.sub("", data["text/html"]))
        yield re.sub(r' (border|class|style)="[^"]*"', "", table) + "\n\n"
    elif not data["text/plain"].startswith(("<Axes", "<Figure")):
        yield _text(data["text/plain"])


def _text(words: str) -> str:
    return f'<pre class="output" tabindex="0">{html.escape(words.rstrip())}</pre>\n\n'


def _offline(notebook: str) -> str:
    """Links to pages as the built documentation has them."""
    return re.sub(r"\]\((\.\./)?([a-z_0-9-]+)\.md", r"](\1\2.html", notebook)


if __name__ == "__main__":
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    for each in SCRIPTS:
        nbformat.write(run(each), out / f"{each}.ipynb")
