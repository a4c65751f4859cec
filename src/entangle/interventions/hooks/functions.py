"""Forms as functions of the tensor at a place."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.interventions.forms import AffineForm, Form, Function
from entangle.models.place import Place


def carried(hook: Function) -> tuple[Function, Function]:
    """The hook, and one that adds the change it made to a tensor met later in the same pass."""
    change: list[Tensor] = []

    def edit(x: Tensor) -> Tensor:
        edited = hook(x)
        change[:] = [edited - x]
        return edited

    def again(x: Tensor) -> Tensor:
        if not change:
            raise EntangleError(
                "an edit at resid_mid must be added again at the end of its layer, but nothing ran there before: build "
                "the Atlas on the model as it runs now"
            )
        return x + change.pop()

    return edit, again


def in_turn(functions: Sequence[Function]) -> Function:
    """The functions one after the other, as one."""

    def each(x: Tensor) -> Tensor:
        for function in functions:
            x = function(x)
        return x

    return each


class Prepared:
    """The forms at one place as one function, with their tensors ready on the device and in the dtype that x comes
    in.
    """

    def __init__(self, forms: Sequence[Form], place: Place) -> None:
        self.forms, self.place = forms, place
        self.device: torch.device | None = None
        self.dtype: torch.dtype | None = None
        self.function: Function = lambda x: x

    def __call__(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """The edited x."""
        if x.dtype is not self.dtype or x.device != self.device:
            self.device, self.dtype = x.device, x.dtype
            with torch.inference_mode(False):  # they may be needed with gradients later
                functions = [self._whole(form, form.prepare(x.device, x.dtype)) for form in self.forms]
            self.function = functions[0] if len(functions) == 1 else in_turn(functions)
        return self.function(x)

    def _whole(self, form: Form, function: Function) -> Function:
        """A function of one head as a function of all of them; affine forms were widened when they were merged."""
        if form.head is None or isinstance(form, AffineForm) or self.place.d_head is None:
            return function
        start, size = form.head * self.place.d_head, self.place.d_head

        def on_head(x: Tensor) -> Tensor:
            edited = function(x[..., start : start + size])
            return torch.cat([x[..., :start], edited, x[..., start + size :]], dim=-1)

        return on_head
