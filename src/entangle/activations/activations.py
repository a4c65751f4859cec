"""Activations: what was captured, where and from which texts; saved as safetensors beside a JSON description."""

from __future__ import annotations

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.models.fingerprint import check_fingerprint

FORMAT = "entangle-activations"
VERSION = 1
TENSORS, DESCRIPTION = "activations.safetensors", "activations.json"


@dataclass(frozen=True)
class Activations:
    """Activations of some texts at some sites of a model.

    `acts["z"]` is `[example, layer, head, d_head]`, every other site `[example, layer, size]`; where several tokens of
    an example were selected (`tokens="all"`, a mask, spans) the first axis is tokens.

    Attributes:
        data: the tensor of each site.
        site_layers: the layers along each tensor's second axis.
        rows: `[row, 2]`: example and position of each entry of the first axis; positions count from the example's own
            first token, and `-1` stands for the mean over them.
        input_ids: the tokens of each example, without padding.
        fingerprint: of the model (see `entangle.models.fingerprint`).
        meta: how they were collected: JSON-able.
    """

    data: dict[str, Float[Tensor, "row layer ..."]]
    site_layers: dict[str, list[int]]
    rows: Int[Tensor, "row 2"]
    input_ids: list[list[int]]
    fingerprint: dict[str, Any]
    meta: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, site: str) -> Tensor:
        """The tensor of a site."""
        if site not in self.data:
            raise EntangleError(
                f"these activations hold {', '.join(self.data)}, not {site!r}: collect it with sites=[...]"
            )
        return self.data[site]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        shapes = ", ".join(f"{site} {tuple(x.shape)}" for site, x in self.data.items())
        return f"Activations({shapes}; {len(self.input_ids)} examples of {self.fingerprint.get('architecture')})"

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that were collected."""
        return tuple(self.data)

    def layers(self, site: str) -> list[int]:
        """The layers along the second axis of `acts[site]`, in order."""
        self[site]
        return list(self.site_layers[site])

    def save(self, directory: str | Path) -> Path:
        """Write to a directory, whole or not at all; earlier activations there stay until these are complete.

        Raises:
            EntangleError: the directory holds something else, or cannot be written.
        """
        target = Path(directory)
        if target.exists() and not (target / DESCRIPTION).is_file():
            raise EntangleError(f"{target} exists and holds no activations: choose another directory")
        lengths = torch.tensor([len(row) for row in self.input_ids])
        flat = torch.tensor([token for row in self.input_ids for token in row], dtype=torch.long)
        tensors = {f"site.{site}": x.contiguous() for site, x in self.data.items()}
        description = {
            "format": FORMAT,
            "version": VERSION,
            "layers": self.site_layers,
            "fingerprint": self.fingerprint,
            "meta": self.meta,
        }
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
                new = Path(temporary) / "new"
                new.mkdir()
                save_file({**tensors, "rows": self.rows, "lengths": lengths, "tokens": flat}, new / TENSORS)
                (new / DESCRIPTION).write_text(json.dumps(description, indent=1))
                if target.exists():
                    os.replace(target, Path(temporary) / "old")
                os.replace(new, target)
        except (OSError, SafetensorError) as error:
            raise EntangleError(f"activations could not be written to {target}: {error}") from error
        return target

    @classmethod
    def load(cls, directory: str | Path, *, model: nn.Module | None = None) -> Activations:
        """Read what `save` wrote.

        Args:
            directory: where they are.
            model: if given, must be the model they were collected from.

        Raises:
            EntangleError: there are none, they are damaged, from a newer version, or from another model.
        """
        source = Path(directory)
        try:
            description = json.loads((source / DESCRIPTION).read_text())
            tensors = load_file(source / TENSORS)
        except FileNotFoundError as error:
            raise EntangleError(
                f"{source} holds no activations ({DESCRIPTION} and {TENSORS}): collect and save them first"
            ) from error
        except (OSError, ValueError, SafetensorError) as error:
            raise EntangleError(f"the activations in {source} are damaged: collect them again ({error})") from error
        if description.get("format") != FORMAT or description.get("version") != VERSION:
            found = f"{description.get('format')} version {description.get('version')}"
            raise EntangleError(f"{source} holds {found}, but {FORMAT} version {VERSION} is needed: collect them again")
        if model is not None:
            check_fingerprint(description["fingerprint"], model, what=f"the activations in {source}")
        data = {name.removeprefix("site."): x for name, x in tensors.items() if name.startswith("site.")}
        return cls(
            data={site: data[site] for site in description["layers"]},
            site_layers=description["layers"],
            rows=tensors["rows"],
            input_ids=[row.tolist() for row in torch.split(tensors["tokens"], tensors["lengths"].tolist())],
            fingerprint=description["fingerprint"],
            meta=description["meta"],
        )
