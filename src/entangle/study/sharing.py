"""A study for others: a folder with a card for people, its page and its rows, on the HuggingFace hub."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from entangle.errors import EntangleError
from entangle.evaluation import write_rows

CARD, PAGE, ROWS = "README.md", "report.html", "results.jsonl"


def upload(
    save: Callable[[Path], None],
    repo_id: str,
    *,
    card: str,
    page: str,
    rows: Sequence[Mapping[str, Any]],
    private: bool,
    token: str | None,
    repo_type: str,
) -> str:
    """Write a study and what goes with it into a folder of its own, and upload that; see `Study.push_to_hub`."""
    from huggingface_hub import HfApi

    if repo_type not in ("model", "dataset"):
        raise EntangleError(f"repo_type must be 'model' or 'dataset', got {repo_type!r}")
    with tempfile.TemporaryDirectory() as local:
        folder = fill(Path(local) / "study", save, card, page, rows)
        hub = HfApi(token=token)
        hub.create_repo(repo_id, private=private, exist_ok=True, repo_type=repo_type)
        message = "Upload a study of entangle"
        return str(
            hub.upload_folder(repo_id=repo_id, folder_path=str(folder), repo_type=repo_type, commit_message=message)
        )


def fill(folder: Path, save: Callable[[Path], None], card: str, page: str, rows: Sequence[Mapping[str, Any]]) -> Path:
    """The study, and beside it its card, its page and its rows."""
    save(folder)
    (folder / CARD).write_text(card, encoding="utf-8")
    (folder / PAGE).write_text(page, encoding="utf-8")
    if rows:
        write_rows(rows, folder / ROWS)
    return folder


def card_of(label: str, concept: str, record: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> str:
    """A card in the hub's format: tags, the answer in words, the numbers, and how to read the folder."""
    table = "\n".join(
        f"| {row['edit']} | {row['alpha']:g} | {row['task']} | {row['metric']} | {_value(row)} |" for row in rows
    )
    numbers = f"\n| edit | alpha | task | metric | value |\n|---|---|---|---|---|\n{table}\n" if rows else ""
    missing = "".join(f"\n- not measured: {what}: {why}" for what, why in record["missing"].items())
    notes = "".join(f"\n- {note}" for note in record["notes"])
    beware = f"\n## What to beware of\n{missing}{notes}\n" if missing or notes else ""
    tags = json.dumps(["interpretability", "steering", "probing", concept])
    return f"""---
library_name: entangle
tags: {tags}
---

# {concept} in {label}

{" ".join(record["answer"])}
{numbers}{beware}
## How to read it

```python
import entangle as en
from huggingface_hub import snapshot_download

study = en.Study.load(snapshot_download("this repository"))
print(study)
```

`{PAGE}` is the whole page; `{ROWS}` holds the numbers of steering, one a line.
"""


def _value(row: Mapping[str, Any]) -> str:
    ends = [row.get("low"), row.get("high")]
    between = "" if None in ends else f" [{ends[0]:.3g}, {ends[1]:.3g}]"
    return f"{row['score']:.3g}{between}"
