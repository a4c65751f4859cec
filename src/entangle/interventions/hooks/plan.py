"""What several edits do to a model, place by place: checked against it, and merged where they can be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from entangle.errors import EntangleError
from entangle.interventions.forms import Form, FunctionForm, merged
from entangle.models.atlas import Atlas
from entangle.models.place import Place
from entangle.models.sites import SITES


@dataclass(eq=False)
class Stop:
    """A place where something is done, and which edits' tokens are counted there.

    Attributes:
        place: The place.
        forms: What to do, in order, merged.
        counted: Index of each edit that first acts here, with the condition it acts under.
        carry: Where the change must be added again. `resid_mid` is the input of the MLP's branch alone in most models:
            the residual stream goes round it to the end of the block.
    """

    place: Place
    forms: list[Form]
    counted: list[tuple[int, FunctionForm | None]] = field(default_factory=list)
    carry: Place | None = None


def planned(atlas: Atlas, forms_by_edit: Sequence[Sequence[Form]]) -> list[Stop]:
    """The forms of several edits gathered by place, checked against the model, merged where they can be.

    Args:
        atlas: The model's.
        forms_by_edit: The forms of each edit.

    Returns:
        One stop for each place, in order of layers.

    Raises:
        EntangleError: If a form does not fit its place.
    """
    gathered: dict[tuple[str, int], list[Form]] = {}
    places: dict[tuple[str, int], Place] = {}
    counted: dict[tuple[str, int], list[tuple[int, FunctionForm | None]]] = {}
    for index, forms in enumerate(forms_by_edit):
        first: tuple[tuple[str, int], Form] | None = None
        for form in forms:
            key = atlas.resolve(form.site) if form.layer is None else (form.site, form.layer)
            if key not in places:
                places[key] = atlas.place(*key)
            check_fits(form, places[key])
            check_layers(form, atlas)
            gathered.setdefault(key, []).append(form)
            acts = not isinstance(form, FunctionForm) or form.edits
            if acts and (first is None or key[1] < first[0][1]):
                first = key, form
        if first is not None:
            condition = first[1] if isinstance(first[1], FunctionForm) and first[1].fired else None
            counted.setdefault(first[0], []).append((index, condition))
    stops = []
    for key in sorted(gathered, key=lambda key: (key[1], SITES.index(key[0]))):
        place = places[key]
        forms = merged(gathered[key], head_size=place.d_head, n_heads=place.n_heads)
        carry = atlas.place("resid_post", place.layer) if place.site == "resid_mid" and place.bypassed else None
        stops.append(Stop(place, forms, counted.get(key, []), carry))
    return stops


def check_fits(form: Form, place: Place) -> None:
    """Raise an `EntangleError` unless the form has the place's size and one of its heads, and the place's weights are
    there.
    """
    where = f"{place.site} in layer {place.layer}"
    if form.head is not None:
        if place.n_heads is None:
            raise EntangleError(f"{where} has no heads, but the edit names head {form.head}: leave head out")
        if not 0 <= form.head < place.n_heads:
            raise EntangleError(f"{where} has heads 0 to {place.n_heads - 1}, but the edit names head {form.head}")
    size = place.size if form.head is None else place.d_head
    if form.size is not None and form.size != size:
        raise EntangleError(
            f"{where} has {size} numbers a token{'' if form.head is None else ' a head'}, but the edit has {form.size}"
        )
    if any(parameter.is_meta for parameter in place.module.parameters()):
        raise EntangleError(
            f"{place.path} is offloaded, so its device is not known before it runs: load the model on a device first"
        )


def check_layers(form: Form, atlas: Atlas) -> None:
    """Raise an `EntangleError` if the form's layer is an index into layers that are not all of the model's."""
    n, every = form.of_layers, atlas.layers(form.site) if form.of_layers is not None else []
    if n is not None and len(every) == atlas.n_layers == n:
        return
    if n is not None:
        raise EntangleError(
            f"this edit was fitted on a bare tensor of {n} layers, but the model has {atlas.n_layers} "
            f"({len(every)} of them with {form.site}), so which layers they are is not known: fit it on the "
            "activations themselves, such as ITI.fit(acts, labels), or name them with layers=acts.layers(site)"
        )
