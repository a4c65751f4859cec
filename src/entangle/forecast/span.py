"""The places at which shifts are thought of, side by side in one vector."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.interventions import Edit
from entangle.interventions.forms import AffineForm, Form, merged
from entangle.models import Atlas, Place, hook_name, place_named

Key = tuple[str, int]


@dataclass(frozen=True, eq=False)
class Span:
    """Places of a model, in order; a shift of all of them is one vector, their parts end to end.

    Attributes:
        places: Where.
    """

    places: tuple[Place, ...]

    @classmethod
    def of(cls, model: nn.Module, sites: str | Sequence[str], layers: Sequence[int] | None) -> Span:
        """The sites asked for, at the layers asked for, or at every layer that has them.

        Raises:
            EntangleError: A site or layer that the model does not have, or none at all.
        """
        atlas = Atlas(model)
        names = [sites] if isinstance(sites, str) else list(sites)
        keys = [
            key
            for site in names
            for key in (
                [atlas.resolve(site)]
                if "." in site
                else [(site, layer) for layer in (atlas.layers(site) if layers is None else layers)]
            )
        ]
        places = [atlas.place(site, layer) for site, layer in keys]
        if not places:
            raise EntangleError(f"the model has no layer with {names}: see Atlas(model).table() for what it has")
        if len({(place.site, place.layer) for place in places}) < len(places):
            raise EntangleError(f"each place is given once; got sites={names}, layers={layers}")
        return cls(tuple(places))

    @property
    def keys(self) -> tuple[Key, ...]:
        """Site and layer of each place."""
        return tuple((place.site, place.layer) for place in self.places)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Width of each place."""
        return tuple(place.size for place in self.places)

    @property
    def size(self) -> int:
        """Width of all of them."""
        return sum(self.sizes)

    @property
    def slices(self) -> list[slice]:
        """Where each place's part is."""
        return slices(self.sizes)

    @property
    def heads(self) -> dict[Key, tuple[int, int]]:
        """Number of heads and their size, of the places that have heads."""
        return {
            (place.site, place.layer): (place.n_heads, place.d_head)
            for place in self.places
            if place.n_heads is not None and place.d_head is not None
        }

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return next(iter(self.places[0].root.parameters())).device if self.places[0].root else torch.device("cpu")


def slices(sizes: Sequence[int]) -> list[slice]:
    """Where parts of these sizes are, end to end."""
    ends = torch.tensor([0, *sizes]).cumsum(0).tolist()
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def key_of(form: Form) -> Key | None:
    """Site and layer at which a form acts, also where it has TransformerLens's full name; `None` where only the model
    tells what its name means.

    Example:
        >>> from entangle.forecast.span import key_of
        >>> [form] = en.AddDirection(torch.ones(64), "blocks.1.hook_resid_post", None).forms(1.0)
        >>> key_of(form)
        ('resid_post', 1)
    """
    return place_named(form.site) if form.layer is None else (form.site, form.layer)


def forms_by_place(
    edit: Edit, alpha: float | str, sizes: Mapping[Key, int], heads: Mapping[Key, tuple[int, int]]
) -> dict[Key, AffineForm]:
    """What an edit does at each place, as one affine map there.

    Args:
        edit: The edit.
        alpha: Its strength.
        sizes: Width of each place that is known.
        heads: Number of heads and their size, of the places that have heads.

    Raises:
        EntangleError: The edit is no affine map, or acts where nothing is known.
    """
    gathered: dict[Key, list[Any]] = {}
    for each in edit.affine(alpha):
        key = key_of(each)
        if key is None:
            raise EntangleError(
                f"a forecast needs the site and layer of an edit, but this {type(edit).__name__} names {each.site!r} "
                "alone: give it site= and layer=, or a name that is one tensor in every model, such as "
                f"{hook_name('resid_post', 0)}"
            )
        if key not in sizes:
            known = ", ".join(f"{site} of layer {layer}" for site, layer in sizes)
            raise EntangleError(
                f"this {type(edit).__name__} acts at {each.site} of layer {each.layer}, but the metric knows {known}: "
                "fit it with that site and layer"
            )
        gathered.setdefault(key, []).append(replace(each, site=key[0], layer=key[1]))
    maps: dict[Key, AffineForm] = {}
    for key, forms in gathered.items():
        n_heads, d_head = heads.get(key, (None, None))
        (form,) = [each for each in merged(forms, head_size=d_head, n_heads=n_heads) if isinstance(each, AffineForm)]
        if form.size != sizes[key]:
            raise EntangleError(
                f"{key[0]} of layer {key[1]} has {sizes[key]} numbers per token, but the edit has {form.size}: "
                "it was made for another model"
            )
        maps[key] = form
    return maps


def displacement(form: AffineForm, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
    """How far an affine map moves each activation."""
    return form.to(x.device, x.dtype)(x) - x
