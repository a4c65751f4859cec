"""Linear concept erasure: the least change after which no linear probe can read a concept (Belrose et al. 2023,
arXiv 2306.03819)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from entangle.data import as_text, read_labels
from entangle.errors import EntangleError
from entangle.interventions.base import finite
from entangle.interventions.edit import Edit
from entangle.interventions.forms import AffineForm, Form, Function, FunctionForm

# Canonical correlations below this are rounding, in double precision.
TOLERANCE = 1e-8


@dataclass(frozen=True, eq=False)
class Erase(Edit):
    """LEACE: x -> x - W^+ P W (x - E x), with W the whitening of x and P the projection on the columns of W Cov(x, z).

    On the data it was fitted on, every class then has the same mean, so no linear probe beats the best constant (their
    theorem 3.1), and of all affine maps with that property it moves x least (theorem 4.3). Make one with `Erase.fit`.

    Attributes:
        mean: E x, `[d]`.
        left: `[d, r]`, minus the transpose of P W in its r directions.
        right: `[r, d]`, the transpose of W^+ P.
        site: As for `AddDirection`.
        layer: As for `AddDirection`.
        head: As for `AddDirection`.

    Example:
        >>> erase = en.Erase.fit(acts["resid_post"][:, -1], labels, layer=1)
        >>> x = erase(acts["resid_post"][:, -1])
        >>> means = x[labels == 1].mean(0), x[labels == 0].mean(0)
        >>> bool(torch.allclose(*means, atol=1e-4))  # nothing linear is left
        True
    """

    mean: Float[Tensor, " d"]
    left: Float[Tensor, "d r"]
    right: Float[Tensor, "r d"]
    site: str = "resid_post"
    layer: int | None = None
    head: int | None = None

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """The map about the mean, alpha times."""
        return [AffineForm(self.site, self.layer, self.head, self.mean, alpha * self.left, self.right)]

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "example d"],
        labels: Any,
        site: str = "resid_post",
        layer: int | None = None,
        head: int | None = None,
    ) -> Self:
        """Fit on activations and labels, in double precision.

        Args:
            x: Activations; `[example, head, d_head]` is taken as all heads side by side.
            labels: One class per example, by name, bool or whole number, of which there may be more than two; or any
                numbers `[example, k]` to make unreadable.
            site: Where x was collected.
            layer: The layer.
            head: The head, where x is one head's.

        Returns:
            The fitted erasure.

        Raises:
            EntangleError: If x is not finite or the labels are constant.
        """
        x, z, dtype = _centred(x, labels)
        mean = x.mean(0)
        x = x - mean
        n = len(x) - 1
        values, vectors = torch.linalg.eigh(x.T @ x / n)
        kept = values > values[-1] * len(values) * torch.finfo(values.dtype).eps
        root = values.clamp_min(0).sqrt()
        whiten = vectors * torch.where(kept, 1 / root, 0) @ vectors.T
        colour = vectors * torch.where(kept, root, 0) @ vectors.T
        u, s, _ = torch.linalg.svd(whiten @ (x.T @ z) / n, full_matrices=False)
        u = u[:, s > TOLERANCE * z.std(0).max()]
        if not u.shape[1]:
            raise EntangleError(
                "x has no linear relation to these labels at all, so there is nothing to erase: check that they belong"
            )
        return cls(mean.to(dtype), -(whiten @ u).to(dtype), (colour @ u).T.to(dtype), site, layer, head)


@dataclass(frozen=True, eq=False)
class OracleErase(Edit):
    """Oracle LEACE: x -> x - Cov(x, z) Cov(z, z)^+ (z - E z), which needs to be told each text's label z (section 5 of
    the paper).

    It moves x less than any map that does not know the label. Make one with `OracleErase.fit`, and steer with
    `erase.given(labels)`, one label for each text of the batch to come.

    Attributes:
        coefficient: Cov(x, z) Cov(z, z)^+, `[d, k]`.
        mean_label: E z, `[k]`.
        classes: The class of each column of z; `None` where labels are numbers.
        labels: z of each text of the batch, `[row, k]`; `None` until `given`.
        site: As for `AddDirection`.
        layer: As for `AddDirection`.
        head: As for `AddDirection`.

    Example:
        >>> erase = en.OracleErase.fit(acts["resid_post"][:, -1], labels, layer=1)
        >>> x = erase.given(labels)(acts["resid_post"][:, -1])
        >>> bool(torch.allclose(x[labels == 1].mean(0), x[labels == 0].mean(0), atol=1e-4))
        True
    """

    coefficient: Float[Tensor, "d k"]
    mean_label: Float[Tensor, " k"]
    classes: tuple[Any, ...] | None = None
    labels: Float[Tensor, "row k"] | None = None
    site: str = "resid_post"
    layer: int | None = None
    head: int | None = None

    @classmethod
    def fit(
        cls,
        x: Float[Tensor, "example d"],
        labels: Any,
        site: str = "resid_post",
        layer: int | None = None,
        head: int | None = None,
    ) -> Self:
        """Fit on activations and labels; arguments and errors as for `Erase.fit`."""
        x, z, dtype = _centred(x, labels)
        classes = None if _are_numbers(labels) else tuple(read_labels(labels).classes.tolist())
        mean_label = z.mean(0)
        x, z = x - x.mean(0), z - mean_label
        coefficient = (x.T @ z) @ torch.linalg.pinv(z.T @ z, rtol=TOLERANCE, hermitian=True)
        return cls(coefficient.to(dtype), mean_label.to(dtype), classes, None, site, layer, head)

    def given(self, labels: Any) -> OracleErase:
        """The erasure for a batch of texts with these labels.

        Raises:
            EntangleError: If a label is of a class that the fit did not see.
        """
        from dataclasses import replace

        if self.classes is None:
            return replace(
                self,
                labels=finite(labels if isinstance(labels, Tensor) else np.asarray(labels), "labels").to(
                    self.coefficient.dtype
                ),
            )
        read, known = read_labels(labels), [as_text(value) for value in self.classes]
        unknown = [name for name in read.names if name not in known]
        if unknown:
            raise EntangleError(
                f"the erasure knows the classes {list(self.classes)}, but was given {unknown}: fit with them"
            )
        own = torch.tensor([known.index(name) for name in read.names])[torch.from_numpy(read.codes)]
        columns = own[:, None] == torch.arange(len(known))
        return replace(self, labels=columns.to(self.coefficient.dtype))

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """One constant for each text, which no weights can hold."""
        if self.labels is None:
            raise EntangleError("OracleErase needs the label of each text: steer with erase.given(labels)")
        shift = -alpha * (self.labels - self.mean_label) @ self.coefficient.T

        def make(device: torch.device, dtype: torch.dtype) -> Function:
            rows = shift.to(device, dtype)

            def erase(x: Tensor) -> Tensor:
                if len(x) % len(rows):
                    raise EntangleError(
                        f"OracleErase was given {len(rows)} labels, but the batch has {len(x)} rows: give one a text"
                    )
                by_row = rows.repeat_interleave(len(x) // len(rows), dim=0)
                return x + by_row.reshape(len(x), *[1] * (x.ndim - 2), -1)

            return erase

        return [FunctionForm(self.site, self.layer, self.head, make, width=len(self.coefficient))]


def _are_numbers(labels: Any) -> bool:
    """Whether labels are numbers `[example, k]` rather than a class for each example."""
    return np.ndim(labels.detach().cpu() if isinstance(labels, Tensor) else labels) > 1


def _numbers(labels: Any) -> Tensor:
    return finite(labels if isinstance(labels, Tensor) else np.asarray(labels), "labels")


def _centred(x: Any, labels: Any) -> tuple[Float[Tensor, "example d"], Float[Tensor, "example k"], torch.dtype]:
    """x as rows and the labels as numbers (classes as one column each), in double precision; and x's dtype."""
    x = finite(x, "x")
    dtype = x.dtype
    x = x.double().flatten(1)
    if _are_numbers(labels):
        z = _numbers(labels).double()
        if len(z) != len(x):
            raise EntangleError(f"labels must be one for each of {len(x)} examples, got shape {list(z.shape)}")
        z = z.flatten(1)
    else:
        codes = torch.from_numpy(read_labels(labels, len(x)).codes)
        z = (codes[:, None] == torch.arange(int(codes.max()) + 1 if len(codes) else 0)).double()
    if len(x) < 2 or (z == z[0]).all():
        raise EntangleError(
            "erasing needs labels that differ: there are fewer than two classes, so give texts of two or more"
        )
    return x, z, dtype
