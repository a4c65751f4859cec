"""Edits of a sparse autoencoder's features, for anything with SAELens's `encode` and `decode`."""

from __future__ import annotations

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
        sae: with `encode` and `decode`, on the device and in the dtype of the model.
        feature: index of the feature.
        value: what to set the feature to, add to it or multiply it by; 0 under "set" ablates it.
        how: `"set"`, `"add"` or `"scale"`.
        site: where the autoencoder reads.
        layer: the layer it reads.
        head: the head, at site `z`.
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
        """One pass through the autoencoder for the features, and two for the difference they make."""

        def edit(x: Tensor) -> Tensor:
            features = self.sae.encode(x)
            if not 0 <= self.feature < features.shape[-1]:
                raise EntangleError(
                    f"the autoencoder has features 0 to {features.shape[-1] - 1}, but the edit names {self.feature}"
                )
            changed = features.clone()
            was = features[..., self.feature]
            new = {"set": torch.full_like(was, self.value), "add": was + self.value, "scale": was * self.value}[
                self.how
            ]
            changed[..., self.feature] = new
            return x + alpha * (self.sae.decode(changed) - self.sae.decode(features)).to(x.dtype)

        def make(device: torch.device, dtype: torch.dtype) -> Function:
            return edit

        return [FunctionForm(self.site, self.layer, self.head, make)]
