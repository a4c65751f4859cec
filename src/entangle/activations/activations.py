"""Activations: what was captured, where and from which texts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from entangle.activations import interop
from entangle.activations.disk.store import KIND, MANIFEST, ShardedData, Store, refuse_others, write_examples, writing
from entangle.errors import EntangleError
from entangle.models.fingerprint import check_fingerprint, fingerprint
from entangle.storage import folder
from entangle.storage.sealed import decoding


@dataclass(frozen=True)
class Activations:
    """Activations of some texts at some sites of a model, in memory or in a store on disk.

    `acts["z"]` is `[example, layer, head, d_head]`, every other site `[example, layer, size]`; where several tokens of
    an example were selected (`tokens="all"`, a mask, spans) the first axis is tokens.

    Attributes:
        data: The tensor of each site; read when asked for, if it lies on disk.
        site_layers: The layers along each tensor's second axis.
        rows: `[row, 2]`: example and position of each entry of the first axis; positions count from the example's own
            first token, and `-1` stands for the mean over them.
        input_ids: The tokens of each example, without padding.
        fingerprint: Of the model (see `entangle.models.fingerprint`).
        meta: How they were collected: JSON-able.

    Example:
        >>> acts["z"].shape, acts["resid_post"].shape
        (torch.Size([96, 2, 4, 8]), torch.Size([96, 2, 32]))
        >>> acts.layers("z"), acts.rows[:2].tolist()  # example and position of each row
        ([0, 1], [[0, 19], [1, 11]])
        >>> _ = acts.save("captured")
        >>> en.Activations.load("captured", model=model).sites
        ('z', 'resid_post')
    """

    data: Mapping[str, Float[Tensor, "row layer ..."]]
    site_layers: dict[str, list[int]]
    rows: Int[Tensor, "row 2"]
    input_ids: list[list[int]]
    fingerprint: dict[str, Any]
    meta: dict[str, Any] = field(default_factory=dict)

    def __getitem__(self, site: str) -> Tensor:
        """The tensor of a site, whole."""
        self._check(site)
        return self.data[site]

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        sites = ", ".join(f"{site} in {len(layers)} layers" for site, layers in self.site_layers.items())
        pooled = "" if self.special_tokens == "as selected" else f"; special tokens {self.special_tokens}"
        return f"Activations({len(self)} rows of {sites}; {len(self.input_ids)} examples{pooled})"

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites that were collected."""
        return tuple(self.site_layers)

    @property
    def special_tokens(self) -> str:
        """What was done with beginning, end, separators and padding.

        `"left out"` of the mean or of all tokens (`meta["special_ids"]` lists their ids), `"kept"` there, or `"as
        selected"` by a rule that is taken literally. What versions before 0.2 collected kept them.
        """
        pooled = self.meta.get("tokens") in ("mean", "all")
        return str(self.meta.get("special_tokens", "kept" if pooled else "as selected"))

    def layers(self, site: str) -> list[int]:
        """The layers along the second axis of `acts[site]`, in order."""
        self._check(site)
        return list(self.site_layers[site])

    def read(self, site: str, start: int = 0, end: int | None = None) -> Tensor:
        """Rows `start` to `end` of a site; from a store, only these are read."""
        self._check(site)
        start, end, _ = slice(start, end).indices(len(self))
        if isinstance(self.data, ShardedData):
            return self.data.read(site, start, max(start, end))
        return self.data[site][start:end]

    def batches(self, site: str, size: int = 4096) -> Iterator[Tensor]:
        """The rows of a site, `size` at a time: for results larger than memory."""
        for start in range(0, len(self), size):
            yield self.read(site, start, start + size)

    def to_numpy(self, site: str) -> NDArray[Any]:
        """A site as a numpy array of the same shape; `bfloat16`, which numpy does not have, becomes `float32`."""
        self._check(site)
        array: NDArray[Any] = interop.as_array(self.data[site])
        return array

    def to_xarray(self, site: str) -> Any:
        """A site as an `xarray.DataArray` with named dimensions.

        Returns:
            Dimensions `example` (`token`, where several of an example were selected), `layer`, and `head`, `d_head` for
            `z` or `size` for other sites; coordinates `layer`, `example` and `position`.

        Raises:
            EntangleError: No such site, or xarray is not installed.
        """
        self._check(site)
        return interop.to_xarray(self, site)

    def to_dataset(self) -> Any:
        """A HuggingFace `datasets.Dataset` of all rows: `example`, `position`, `token` (its id) and every site.

        Raises:
            EntangleError: The package is not installed.
        """
        return interop.to_dataset(self)

    def to_cache(self, model: Any = None) -> Any:
        """A TransformerLens `ActivationCache`: `cache["blocks.3.attn.hook_z"]` is `[example, pos, head, d_head]`.

        Where one token of each example was selected, `pos` is 1; with `tokens="all"`, shorter examples are filled on
        the right with NaN. `attn_out` and `mlp_out` are under `attn.hook_out` and `mlp.hook_out`.

        Args:
            model: The `TransformerBridge`, for those methods of the cache that need it.

        Raises:
            EntangleError: Another selection of tokens.
        """
        return interop.to_cache(self, model)

    @classmethod
    def from_cache(
        cls,
        cache: Any,
        input_ids: Int[Tensor, "example pos"],
        *,
        attention_mask: Int[Tensor, "example pos"] | None = None,
    ) -> Activations:
        """Every token's activations from a TransformerLens `ActivationCache`, as `collect(tokens="all")` gives them.

        Args:
            cache: From `bridge.run_with_cache(input_ids)`, with all its positions.
            input_ids: The tokens it was run on.
            attention_mask: Which of them are not padding; all of them by default.

        Raises:
            EntangleError: A cache that holds no site, or was run on other tokens.
        """
        fields = interop.from_cache(cache, input_ids, attention_mask)
        model = getattr(cache, "model", None)
        mark = fingerprint(model) if isinstance(model, nn.Module) else {}
        return cls(
            **fields, fingerprint=mark, meta={"sites": list(fields["data"]), "tokens": "all", "special_tokens": "kept"}
        )

    def save(self, directory: str | Path) -> Path:
        """Write to a directory, whole or not at all; earlier activations there stay until these are complete.

        Raises:
            EntangleError: The directory holds something else, or cannot be written.
        """
        target = Path(directory)
        if not (target / MANIFEST).is_file():
            refuse_others(target)
        content = Store.describe(
            input_ids=self.input_ids,
            rows=self.rows,
            bounds=[(0, len(self.input_ids))],
            layers=self.site_layers,
            fingerprint=self.fingerprint,
            meta=self.meta,
        )

        def fill(new: Path) -> None:
            write_examples(new, self.input_ids, self.rows)
            Store(target, content).write_shard(new, 0, {site: self[site] for site in self.sites})

        with writing(target):
            return folder.write(target, KIND, content, fill)

    @classmethod
    def load(cls, directory: str | Path, *, model: nn.Module | None = None, check: bool = True) -> Activations:
        """Open what `save` or `collect(save_to=...)` wrote; sites are read when asked for.

        Args:
            directory: Where they are.
            model: If given, must be the model they were collected from.
            check: Compare every shard with its checksum first, which reads them once.

        Raises:
            EntangleError: There are none, they are incomplete or damaged, or from another version or model.
        """
        store = Store.open(directory)
        if model is not None:
            check_fingerprint(store.manifest["fingerprint"], model, what=f"the activations in {store.directory}")
        if check:
            store.check()
        examples = store.examples()
        rows = examples["rows"]
        with decoding(store.directory, KIND.what, remedy=KIND.remedy):
            ends = torch.tensor([0, *(end for _, end in store.manifest["bounds"])])
            starts = torch.searchsorted(rows[:, 0].contiguous(), ends).tolist()
            input_ids = [row.tolist() for row in torch.split(examples["tokens"], examples["lengths"].tolist())]
        return cls(
            data=ShardedData(store, starts),
            site_layers=store.manifest["layers"],
            rows=rows,
            input_ids=input_ids,
            fingerprint=store.manifest["fingerprint"],
            meta=store.manifest["meta"],
        )

    def _check(self, site: str) -> None:
        if site not in self.site_layers:
            raise EntangleError(
                f"these activations hold {', '.join(self.site_layers)}, not {site!r}: collect it with sites=[...]"
            )
