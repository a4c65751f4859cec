"""What every edit is: forms at places, times a strength."""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.interventions.forms import AffineForm, Form


@dataclass(frozen=True, eq=False)
class BaseEdit(ABC):
    """A change of what a model computes, at one or several places.

    `alpha` scales the displacement of every edit, x -> x + alpha (edit(x) - x), so 0 is no edit at all and 1 the edit
    as it is named.

    Attributes:
        fingerprint: The model it was made for, from `entangle.models.fingerprint`; `None` where that is not known.
            Another model is refused where it is.
    """

    fingerprint: Mapping[str, Any] | None = field(default=None, kw_only=True, repr=False)

    strengths: ClassVar[Mapping[str, float]] = {}

    @property
    def strongest(self) -> float:
        """The largest strength that it has; infinite for most."""
        return math.inf

    @abstractmethod
    def forms(self, alpha: float = 1.0) -> list[Form]:
        """What the edit does at each place, at finite strength `alpha`, in the order to do it."""

    def affine(self, alpha: float | str = 1.0) -> list[AffineForm]:
        """The edit as affine forms.

        Args:
            alpha: The strength.

        Returns:
            One form per place or head.

        Raises:
            EntangleError: If the edit is not affine.
        """
        forms = self.forms(self.strength(alpha))
        affine = [form for form in forms if isinstance(form, AffineForm)]
        if len(affine) < len(forms):
            raise EntangleError(
                f"{type(self).__name__} is no affine map, so it has no weights and no file: use it with steer(...)"
            )
        return affine

    def __call__(self, x: Float[Tensor, "*batch d"], *, alpha: float | str = 1.0) -> Float[Tensor, "*batch d"]:
        """The edit of activations already collected, outside any model.

        Args:
            x: Activations at the edit's one place (of its one head, where it has one).
            alpha: The strength.

        Returns:
            The edited activations.

        Raises:
            EntangleError: If the edit acts at several places.
        """
        forms = self.forms(self.strength(alpha))
        places = {(form.site, form.layer, form.head) for form in forms}
        if len(places) != 1:
            raise EntangleError(
                f"this {type(self).__name__} acts at {len(places)} places: run the model inside steer(...) instead"
            )
        for form in forms:
            x = form.prepare(x.device, x.dtype)(x)
        return x

    def strength(self, alpha: float | str) -> float:
        """`alpha` as a finite number; a name where the edit has named strengths.

        Raises:
            EntangleError: If it is neither.
        """
        if isinstance(alpha, str):
            if alpha not in self.strengths:
                names = ", ".join(map(repr, self.strengths)) or "none"
                raise EntangleError(
                    f"{type(self).__name__} has no strength {alpha!r} (named strengths: {names}): give a number"
                )
            return self.strengths[alpha]
        with suppress(TypeError, ValueError, OverflowError):
            if not isinstance(alpha, bool) and math.isfinite(number := float(alpha)):
                return number
        raise EntangleError(f"alpha must be a finite number, got {alpha!r}")


def finite_vector(values: Any, what: str) -> Float[Tensor, " d"]:
    """`values` as a vector of finite floats, on the CPU.

    Raises:
        EntangleError: If it is no vector, is empty or holds NaN or infinity.

    Example:
        >>> en.interventions.finite_vector([1, 2], "the direction")
        tensor([1., 2.])
        >>> en.interventions.finite_vector([1.0, float("nan")], "the direction")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: the direction holds NaN or infinity: drop those rows or fit again
    """
    vector = finite(values, what)
    if vector.ndim != 1 or not len(vector):
        raise EntangleError(
            f"{what} must be a vector [d], got shape {list(vector.shape)}: pass one direction at a time"
        )
    return vector


def finite(values: Any, what: str) -> Tensor:
    """`values` as a tensor of finite floats on the CPU, in single precision at least.

    Raises:
        EntangleError: If it holds NaN or infinity.
    """
    tensor = torch.as_tensor(values).detach().cpu()
    if tensor.is_complex():
        raise EntangleError(f"{what} holds complex numbers: pass real ones")
    tensor = tensor.to(torch.float64 if tensor.dtype == torch.float64 else torch.float32)
    if not torch.isfinite(tensor).all():
        raise EntangleError(f"{what} holds NaN or infinity: drop those rows or fit again")
    return tensor


def unit(vector: Float[Tensor, " d"], what: str) -> Float[Tensor, " d"]:
    """The vector at length 1; as it is where it has that already, so that what was saved is read bit for bit.

    Raises:
        EntangleError: If its length is 0.
    """
    length = torch.linalg.vector_norm(vector)
    if length == 0:
        raise EntangleError(f"{what} is zero, so it has no direction: check the labels and the data it was fitted on")
    if abs(length - 1) <= 8 * torch.finfo(vector.dtype).eps:
        return vector
    direction: Tensor = vector / length
    return direction
