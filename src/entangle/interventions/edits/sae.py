"""Edits of a sparse autoencoder's features, for anything with SAELens's `encode` and `decode`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.interventions.edit import Edit
from entangle.interventions.forms import Form, Function, FunctionForm


class SparseAutoencoder(Protocol):
    """What an edit needs of an autoencoder."""

    def encode(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch feature"]:
        """Feature activations."""

    def decode(self, feature_acts: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d"]:
        """The reconstruction."""


@dataclass(frozen=True, eq=False)
class SAEFeature(Edit):
    """Change one feature of a sparse autoencoder and keep its error: x -> x + alpha (decode(f') - decode(f)), f =
    encode(x).

    What the autoencoder does not reconstruct, x - decode(encode(x)), stays as it is. Not affine: it steers but has no
    weights.

    Attributes:
        sae: With `encode` and `decode`, on the device and in the dtype of the model.
        feature: Index of the feature.
        value: What to set the feature to, add to it or multiply it by; 0 under "set" ablates it.
        how: `"set"`, `"add"` or `"scale"`.
        site: Where the autoencoder reads.
        layer: The layer it reads.
        head: The head, at site `z`.

    Example:
        >>> class Doubling:  # an autoencoder of one feature per coordinate
        ...     def encode(self, x):
        ...         return 2 * x
        ...     def decode(self, features):
        ...         return features / 2
        ...
        >>> edit = en.SAEFeature(Doubling(), feature=0, value=0.0, layer=1)
        >>> edit(torch.tensor([[3.0, 4.0]]))
        tensor([[0., 4.]])
    """

    sae: SparseAutoencoder
    feature: int
    value: float
    how: Literal["set", "add", "scale"] = "set"
    site: str = "resid_post"
    layer: int | None = None
    head: int | None = None

    def __post_init__(self) -> None:
        if not callable(getattr(self.sae, "encode", None)) or not callable(getattr(self.sae, "decode", None)):
            raise EntangleError(
                f"an autoencoder needs encode and decode, and {type(self.sae).__name__} lacks one: wrap it in both"
            )
        if self.how not in ("set", "add", "scale"):
            raise EntangleError(f'how must be "set", "add" or "scale", got {self.how!r}')

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """Per decoding one pass through the autoencoder, since some keep what they took off their input until then."""

        def decoded(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
            """What the autoencoder makes of x `[*batch d]` with its features changed."""
            features = self.sae.encode(x)
            if not 0 <= self.feature < features.shape[-1]:
                raise EntangleError(
                    f"the autoencoder has features 0 to {features.shape[-1] - 1}, but the edit names {self.feature}"
                )
            return self.sae.decode(change(features))

        def changed(features: Tensor) -> Tensor:
            features = features.clone()
            was = features[..., self.feature]
            new = {"set": torch.full_like(was, self.value), "add": was + self.value, "scale": was * self.value}
            features[..., self.feature] = new[self.how]
            return features

        def edit(x: Tensor) -> Tensor:
            try:
                before, after = decoded(x, lambda features: features), decoded(x, changed)
            except EntangleError:
                raise
            except Exception as error:  # whatever an autoencoder raises on what it is not made for
                why = (str(error).splitlines() or [type(error).__name__])[0]
                raise EntangleError(
                    f"{type(self.sae).__name__} cannot encode and decode {self.site} of shape {list(x.shape)} in "
                    f"{x.dtype} on {x.device} ({why}): use one made for this site, and bring it to the model's dtype "
                    "and device; at z, one of all heads side by side"
                ) from error
            if before.shape != x.shape:
                raise EntangleError(
                    f"{type(self.sae).__name__} decodes to {list(before.shape)} what it was given as {list(x.shape)}: "
                    "a transcoder writes to another site than it reads; use an autoencoder of this site"
                )
            return x + alpha * (after - before).to(x.dtype)

        def make(device: torch.device, dtype: torch.dtype) -> Function:
            return edit

        return [FunctionForm(self.site, self.layer, self.head, make)]
