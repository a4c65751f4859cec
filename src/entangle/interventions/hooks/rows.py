"""An edit and a strength for each row of a batch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from entangle.errors import EntangleError
from entangle.interventions.base import BaseEdit
from entangle.interventions.forms import AffineForm, Form, Function, FunctionForm, merged
from entangle.interventions.hooks.functions import Prepared
from entangle.interventions.hooks.passes import Pass
from entangle.interventions.hooks.plan import check_fits, check_layers
from entangle.models.atlas import Atlas
from entangle.models.place import Place

Strengths = float | str | Sequence[float | str] | Tensor


def assigned(
    edits: Sequence[BaseEdit | None], alpha: Strengths, rows: Sequence[int | None] | Tensor | None
) -> list[list[float]] | None:
    """The strength of each edit in each row, 0 where it is not the row's; `None` where all rows get the same.

    Args:
        edits: The edits, `None` for none.
        alpha: One strength, or one for each row.
        rows: For each row the number of its edit, or `None`; `None` for all edits in every row.

    Raises:
        EntangleError: If a row names no edit, strengths and rows are not as many, or there are no rows.
    """
    n_axes = getattr(alpha, "ndim", None)  # of a tensor, an array, or a table's column
    listed = isinstance(alpha, list | tuple | range) if n_axes is None else n_axes > 0
    if rows is None and not listed:
        if any(edit is None for edit in edits):
            raise EntangleError(
                "steer takes an edit or a list of edits, and None among them for a row without one: name each row's "
                "edit with rows=[...]"
            )
        return None
    alphas: list[Any] | None = list(alpha) if listed else None  # type: ignore[arg-type]
    owners = None if rows is None else _owners(rows, len(edits))
    n_rows = len(alphas or ()) if owners is None else len(owners)
    if not n_rows or (alphas is not None and len(alphas) != n_rows):
        raise EntangleError(
            f"steer needs a strength for each row; got {n_rows} rows and {len(alphas or ())} strengths: give as many"
        )
    if owners is None and any(edit is None for edit in edits):
        raise EntangleError("None among the edits is for a row without one: name each row's edit with rows=[...]")
    table = []
    for number, edit in enumerate(edits):
        own = [owners is None or owners[row] == number for row in range(n_rows)]
        given = alphas or [alpha] * n_rows
        table.append([0.0 if edit is None or not own[row] else edit.strength(given[row]) for row in range(n_rows)])
    return table


def _owners(rows: Iterable[Any] | Tensor, n_edits: int) -> list[int | None]:
    owners: list[int | None] = []
    if not isinstance(rows, Iterable):
        raise EntangleError(f"rows holds the number of each row's edit, one for each text; got {rows!r}: pass a list")
    for row in rows.tolist() if isinstance(rows, Tensor) else rows:
        number = None if row is None else int(row) if isinstance(row, int | np.integer) else -1
        if isinstance(row, bool) or (number is not None and not 0 <= number < n_edits):
            raise EntangleError(
                f"rows holds the number of each row's edit, 0 to {n_edits - 1}, or None; got {row!r}: name one of the "
                "edits given"
            )
        owners.append(number)
    return owners


def check_rows(n_given: int, n_rows: int, now: Pass | None) -> None:
    """Raise an `EntangleError` unless the rows of a pass are those that were given, in order.

    `generate` lays out beams and samples of a prompt as neighbouring rows, and changes places within them alone.
    """
    n_texts = now.texts if now is not None and now.generating and now.texts is not None else n_rows
    if n_given == n_texts and n_rows % n_given == 0:
        return
    raise EntangleError(
        f"steer was given an edit or a strength for {n_given} rows, but the batch has {n_texts} texts"
        f"{'' if n_rows == n_texts else f' in {n_rows} rows'}: give one for each text"
    )


def by_row(atlas: Atlas, edit: BaseEdit, strengths: Sequence[float]) -> list[Form]:
    """An edit as forms that do it to each row of a batch at that row's strength, and nothing to rows of strength 0.

    Args:
        atlas: The model's.
        edit: The edit.
        strengths: One for each text; a batch with beams or samples has several neighbouring rows for each.

    Returns:
        One form for each place.

    Raises:
        EntangleError: If a form does not fit its place.
    """
    wanted = torch.tensor(strengths, dtype=torch.float64)
    variants: dict[tuple[str, int], list[_Variant]] = {}
    places: dict[tuple[str, int], Place] = {}
    for strength in dict.fromkeys(each for each in strengths if each):
        own = (wanted == strength).nonzero()[:, 0]
        gathered: dict[tuple[str, int], list[Form]] = {}
        for form in edit.forms(strength):
            key = atlas.resolve(form.site) if form.layer is None else (form.site, form.layer)
            places[key] = places.get(key) or atlas.place(*key)
            check_fits(form, places[key])
            check_layers(form, atlas)
            gathered.setdefault(key, []).append(form)
        for key, forms in gathered.items():
            place = places[key]
            together = merged(forms, head_size=place.d_head, n_heads=place.n_heads)
            variants.setdefault(key, []).append(_Variant(own, together))
    return [_form(places[key], each, len(strengths)) for key, each in variants.items()]


@dataclass(frozen=True, eq=False)
class _Variant:
    """What some rows get at one place.

    Attributes:
        rows: Which texts.
        forms: What is done to them, in order.
    """

    rows: Int[Tensor, " own"]
    forms: list[Form]

    @property
    def constant(self) -> Float[Tensor, " d"] | None:
        """What is added, where that is all."""
        form = self.forms[0]
        return form.constant if len(self.forms) == 1 and isinstance(form, AffineForm) and form.is_constant else None


def _form(place: Place, variants: Sequence[_Variant], n_texts: int) -> Form:
    acting: list[Bool[Tensor, "row pos"]] = []  # by the last call
    constants = [variant.constant for variant in variants]

    def shifts(device: torch.device, dtype: torch.dtype) -> Function:
        table = torch.zeros(n_texts, place.size, device=device, dtype=dtype)
        for variant, constant in zip(variants, constants, strict=True):
            if constant is not None:
                table[variant.rows.to(device)] = constant.to(device, dtype)
        table = table[:, None]
        touched = torch.zeros(n_texts, 1, dtype=torch.bool, device=device)
        touched[torch.cat([variant.rows for variant in variants]).to(device)] = True
        by_rows = {n_texts: (table, touched)}

        def add(x: Tensor) -> Tensor:
            if len(x) not in by_rows:
                times = len(x) // n_texts
                by_rows[len(x)] = table.repeat_interleave(times, 0), touched.repeat_interleave(times, 0)
            shift, mask = by_rows[len(x)]
            acting[:] = [mask]
            return x + shift

        return add

    def by_index(device: torch.device, dtype: torch.dtype) -> Function:
        prepared = [(variant, Prepared(variant.forms, place)) for variant in variants]

        def apply(x: Tensor) -> Tensor:
            times = len(x) // n_texts
            result = x.clone()
            mask = torch.zeros(x.shape[:2], dtype=torch.bool, device=x.device)
            for variant, function in prepared:
                own = (variant.rows.to(x.device)[:, None] * times + torch.arange(times, device=x.device)).flatten()
                result[own] = function(x[own])
                mask[own] = _fired(variant.forms)
            acting[:] = [mask]
            return result

        return apply

    def fired() -> Tensor:
        (mask,) = acting
        return mask

    edits = any(not isinstance(form, FunctionForm) or form.edits for variant in variants for form in variant.forms)
    make = by_index if any(constant is None for constant in constants) else shifts
    return FunctionForm(place.site, place.layer, None, make, fired, place.size, edits)


def _fired(forms: Sequence[Form]) -> Tensor | bool:
    """The tokens that an edit changed, of the rows that it was given."""
    form = next((form for form in forms if not isinstance(form, FunctionForm) or form.edits), None)
    return form.fired() if isinstance(form, FunctionForm) and form.fired is not None else True
