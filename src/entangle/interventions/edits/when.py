"""Edits under a condition: steer only the tokens a probe fires on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.interventions.base import finite_vector
from entangle.interventions.edit import Edit
from entangle.interventions.forms import Form, Function, FunctionForm
from entangle.models.atlas import place_named


@dataclass(frozen=True, eq=False)
class When(Edit):
    """Apply an edit to the tokens where a linear probe's score x . w + intercept is above a threshold.

    Each token is judged by itself, on the activations as they reach the probe's place: after the edits that act before
    it. The edit must act at the same place or a later layer. Not affine: it steers but has no weights.

    Attributes:
        edit: What to do there.
        probe: w, `[d]`, of any length.
        threshold: The score above (or below) which to act.
        site: Where the probe reads; a TransformerLens name says the layer too.
        layer: The layer it reads.
        head: The head it reads, at site `z`.
        intercept: The probe's.
        side: `"above"` or `"below"`.

    Example:
        >>> nothing = en.Scale(torch.tensor([1.0, 0.0]), factor=0.0, layer=1)
        >>> edit = en.When(nothing, probe=torch.tensor([0.0, 1.0]), layer=1)
        >>> edit(torch.tensor([[3.0, 4.0], [3.0, -4.0]]))  # only where the second coordinate is above 0
        tensor([[ 0.,  4.],
                [ 3., -4.]])
    """

    edit: Edit
    probe: Float[Tensor, " d"]
    threshold: float = 0.0
    site: str = "resid_post"
    layer: int = 0
    head: int | None = None
    intercept: float = 0.0
    side: Literal["above", "below"] = "above"

    def __post_init__(self) -> None:
        object.__setattr__(self, "probe", finite_vector(self.probe, "the probe of When"))
        named = place_named(self.site)
        if named is not None:
            object.__setattr__(self, "site", named[0])
            object.__setattr__(self, "layer", named[1])
        if self.side not in ("above", "below"):
            raise EntangleError(f'side must be "above" or "below", got {self.side!r}')

    @property
    def strongest(self) -> float:
        """The edit's."""
        return self.edit.strongest

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """A form that looks, and the edit's own forms behind it."""
        fired: list[Tensor] = [torch.zeros(0)]
        sign = 1 if self.side == "above" else -1

        def make_look(device: torch.device, dtype: torch.dtype) -> Function:
            w = self.probe.to(device, torch.promote_types(dtype, torch.float32))

            def look(x: Tensor) -> Tensor:
                fired[0] = sign * (x.to(w.dtype) @ w + self.intercept - self.threshold) > 0
                return x

            return look

        look = FunctionForm(self.site, self.layer, self.head, make_look, width=len(self.probe), edits=False)
        return [look, *(self._gated(form, fired) for form in self.edit.forms(alpha))]

    def _gated(self, form: Form, fired: list[Tensor]) -> Form:
        site, layer = (place_named(form.site) if form.layer is None else None) or (form.site, form.layer)
        if layer is None or layer < self.layer or (layer == self.layer and site != self.site):
            raise EntangleError(
                f"When reads {self.site} in layer {self.layer}, so its edit must act there or in a later layer, not at "
                f"{site} in layer {layer}"
            )

        def make(device: torch.device, dtype: torch.dtype) -> Function:
            edit = form.prepare(device, dtype)
            return lambda x: torch.where(fired[0].to(x.device)[..., None], edit(x), x)

        return FunctionForm(
            site, layer, form.head, make, width=form.size, fired=lambda: fired[0], of_layers=form.of_layers
        )
