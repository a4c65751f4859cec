"""The null of an edit: random directions at its own places, in its own scope and under its own conditions."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from entangle.errors import EntangleError
from entangle.evaluation.price.bench import Change
from entangle.interventions import AddDirection, AffineForm, Edit, Form, FunctionForm
from entangle.models import Atlas


def random_like(change: Change, model: PreTrainedModel, *, seed: int = 0) -> Any:
    """The same places shifted along random directions.

    Each place gets a direction drawn uniformly from the sphere, as long beside those of the other places as the edit's
    own constant there is (where the edit is no constant, all are of one length); the whole is of length 1, since its
    strength is to be solved for a price. Conditions and scopes stay around it.

    Args:
        change: An edit, several, or a method that holds one (`.edit`).
        model: The model, for the widths of places.
        seed: Of the directions.

    Returns:
        Edits in a list, or the method with them in place of its own.

    Raises:
        EntangleError: It acts nowhere in the model, as a prompt does.

    Example:
        >>> random = en.evaluation.random_like(iti, model, seed=1)
        >>> [(edit.site, edit.layer, edit.head) for edit in random] == [("z", *head) for head in iti.heads]
        True
    """
    inner = getattr(change, "edit", None)
    if inner is not None and dataclasses.is_dataclass(change) and not isinstance(change, type):
        drawn = random_like(inner, model, seed=seed)
        if isinstance(change, Edit):  # a condition, which holds one edit
            return [dataclasses.replace(change, edit=each) for each in drawn]  # type: ignore[call-arg]
        if getattr(change, "alphas", None) is not None:  # a strength of the edit's own is none of its null's
            return drawn
        return dataclasses.replace(change, edit=drawn)
    edits = list(change) if isinstance(change, Sequence) else [change]
    forms = [form for edit in edits if isinstance(edit, Edit) for form in edit.forms() if _acts(form)]
    if not forms:
        raise EntangleError(
            f"random directions need places in the model, and {type(change).__name__} has none; give null_at= an edit "
            "at whose places they are drawn, or null=0"
        )
    generator = torch.Generator().manual_seed(seed)
    vectors = []
    for form in forms:
        size = form.size if form.size is not None else Atlas(model).size(form.site, int(form.layer or 0))
        vector = torch.nn.functional.normalize(torch.randn(size, generator=generator, dtype=torch.float64), dim=0)
        own = isinstance(form, AffineForm) and form.is_constant and bool(form.constant.any())
        vectors.append(vector * (float(form.constant.double().norm()) if own else 1.0))  # type: ignore[attr-defined]
    joint_size = torch.cat(vectors).norm()
    return [
        AddDirection((vector / joint_size).float(), form.site, form.layer, form.head)
        for vector, form in zip(vectors, forms, strict=True)
    ]


def _acts(form: Form) -> bool:
    return not (isinstance(form, FunctionForm) and not form.edits)
