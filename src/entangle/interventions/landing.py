"""Whether edits move what they should: each site's tensor by what was added, and what follows by what it is made of."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from entangle.interventions.edits.directions import AddDirection
from entangle.interventions.hooks.steer import steer
from entangle.models.atlas import Atlas
from entangle.models.hooks import hooked
from entangle.models.place import Place
from entangle.models.trace import floating_tensors

PROJECTED = {"z": "attn_out", "mlp_post": "mlp_out"}


@dataclass(frozen=True)
class Landing:
    """One thing that follows from an edit.

    Attributes:
        place: Where a vector was added.
        what: What was looked at then.
        found: What was there.
        wanted: What has to be there.
        before: What was there without the edit.

    Example:
        >>> ids = {"input_ids": torch.tensor([[5, 6, 7]])}
        >>> landing = next(en.interventions.landings(model, en.Atlas(model), ids))
        >>> landing.place.site, landing.what
        ('resid_pre', 'the site itself')
    """

    place: Place
    what: str
    found: Tensor
    wanted: Tensor
    before: Tensor


def landings(model: nn.Module, atlas: Atlas, inputs: Mapping[str, Any]) -> Iterator[Landing]:
    """Add a vector at every site of every layer in turn, and see what became of it.

    The tensor itself has moved by the vector; the projection of an edited `z` or `mlp_post` is its output; an edited
    `resid_post` goes into the next layer; and the model's output is that of the same vector added to `attn_out`
    (`resid_mid`, where nothing lies between) or to the end of the layer before (`resid_pre`). The output of every edit
    is looked at last, with itself as what is wanted where nothing else tells it.

    Args:
        model: The model.
        atlas: Where its sites are.
        inputs: Its arguments.

    Example:
        >>> ids = {"input_ids": torch.tensor([[5, 6, 7]])}
        >>> all(torch.allclose(x.found, x.wanted, atol=1e-4)
        ...     for x in en.interventions.landings(model, en.Atlas(model), ids))
        True
    """
    plain = _Run(model, atlas, inputs)

    def steered(shift: Tensor, site: str, layer: int) -> _Run:
        with steer(model, AddDirection(shift, site, layer), atlas=atlas):
            return _Run(model, atlas, inputs)

    for layer in range(atlas.n_layers):
        for site in atlas.sites:
            key = (site, layer)
            if layer not in atlas.layers(site) or plain.calls.get(key) != 1:
                continue  # in a block that runs several times an edit meets its own results
            place, x = atlas.place(site, layer), plain.seen[key]
            shift = x.float().std().cpu() * torch.linspace(-1, 1, place.size)
            edited = steered(shift, site, layer)
            yield Landing(place, "the site itself", edited.seen[key], x + shift.to(x), x)
            following = PROJECTED.get(site, ""), layer
            if following in edited.seen:
                y = place.module(edited.seen[key])
                yield Landing(place, following[0], edited.seen[following], y, plain.seen[following])
            following = "resid_pre", layer + 1
            if site == "resid_post" and torch.equal(plain.seen.get(following, x[:0]), x):
                yield Landing(place, "the next layer", edited.seen[following], edited.seen[key], x)
            same = _same_as(plain, site, layer)
            wanted = edited.output if same == key else steered(shift, *same).output
            yield Landing(place, "the output", edited.output, wanted, plain.output)


def _same_as(plain: _Run, site: str, layer: int) -> tuple[str, int]:
    """The site whose edit does the same to all that follows."""
    if site == "resid_mid":
        parts = [plain.seen.get((name, layer)) for name in ("resid_pre", "attn_out", "resid_mid")]
        if any(part is None for part in parts):
            return site, layer
        before, added, after = (part.double() for part in parts if part is not None)
        size = after.abs().max()
        if before.shape == added.shape and (before + added - after).abs().max() <= 1e-5 * size:
            return "attn_out", layer
    if site == "resid_pre":
        earlier = plain.seen.get(("resid_post", layer - 1))
        if earlier is not None and torch.equal(earlier, plain.seen[site, layer]):
            return "resid_post", layer - 1
    return site, layer


class _Run:
    """One forward: what was seen at every place, how often, and the output."""

    def __init__(self, model: nn.Module, atlas: Atlas, inputs: Mapping[str, Any]) -> None:
        self.seen: dict[tuple[str, int], Tensor] = {}
        self.calls: dict[tuple[str, int], int] = {}

        def keep(key: tuple[str, int]) -> Callable[[Tensor], None]:
            def fn(x: Tensor) -> None:
                self.seen[key] = x.detach().clone()
                self.calls[key] = self.calls.get(key, 0) + 1

            return fn

        places = [atlas.place(site, layer) for site in atlas.sites for layer in atlas.layers(site)]
        with torch.no_grad(), hooked([(place, keep((place.site, place.layer))) for place in places], mine=True):
            self.output = floating_tensors(model(**inputs))[0]
