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
from entangle.models.sites import SITES


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
        if is_transcoder(self.sae):
            raise EntangleError(
                "SAEFeature needs an autoencoder of one site, but a transcoder arrived, which reads one site and "
                "writes another: use TranscoderFeature, or transcoder.feature(...)"
            )
        check_how(self.how)

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """Per decoding one pass through the autoencoder, since some keep what they took off their input until then."""

        def decoded(x: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
            """What the autoencoder makes of x `[*batch d]` with its features changed."""
            return self.sae.decode(change(self.sae.encode(x)))

        def changed(features: Tensor) -> Tensor:
            return with_feature(features, self.feature, self.value, self.how)

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


@dataclass(frozen=True, eq=False)
class TranscoderFeature(Edit):
    """Change what one feature of a transcoder writes: y -> y + alpha (decode(f') - decode(f)), f = encode(x).

    x is what the transcoder reads and y what is at the place it writes, such as the output of the MLP that it stands
    for; what the transcoder does not explain of y, and what a skip connection adds, stay. Not affine: it steers but has
    no weights.

    Attributes:
        transcoder: With `encode` and `decode`, on the device and in the dtype of the model.
        feature: Index of the feature.
        value: What to set the feature to, add to it or multiply it by; 0 under "set" ablates it.
        how: `"set"`, `"add"` or `"scale"`.
        site: Where the transcoder reads.
        layer: The layer it reads.
        site_out: Where it writes, in the same layer or a later one.
        layer_out: The layer it writes.

    Example:
        >>> d = model.config.hidden_size
        >>> weights = {"W_enc": torch.eye(d), "W_dec": torch.eye(d), "b_enc": torch.zeros(d), "b_dec": torch.zeros(d)}
        >>> places = "blocks.1.hook_resid_mid", "blocks.1.mlp.hook_out"
        >>> transcoder = en.interventions.Transcoder({"architecture": "transcoder"}, weights, *places)
        >>> edit = TranscoderFeature(transcoder, 3, 0.0, layer=1, layer_out=1)
        >>> with torch.no_grad(), en.steer(model, edit):
        ...     _ = model(**tokenizer("Thank you", return_tensors="pt"))
    """

    transcoder: SparseAutoencoder
    feature: int
    value: float
    how: Literal["set", "add", "scale"] = "set"
    site: str = "resid_mid"
    layer: int | None = None
    site_out: str = "mlp_out"
    layer_out: int | None = None

    def __post_init__(self) -> None:
        check_how(self.how)
        read, written = self.layer, self.layer_out
        ordered = (
            read is None or written is None or (read, SITES.index(self.site)) < (written, SITES.index(self.site_out))
        )
        if not ordered:
            raise EntangleError(
                f"a transcoder reads before it writes, but this one reads {self.site} in layer {read} and writes "
                f"{self.site_out} in layer {written}: exchange them"
            )

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """A form that looks where the transcoder reads, and one that adds where it writes."""
        change: list[Tensor] = []

        def make_look(device: torch.device, dtype: torch.dtype) -> Function:
            def look(x: Tensor) -> Tensor:
                features = self.transcoder.encode(x)
                before = self.transcoder.decode(features)
                after = self.transcoder.decode(with_feature(features, self.feature, self.value, self.how))
                change[:] = [alpha * (after - before)]
                return x

            return look

        def make_add(device: torch.device, dtype: torch.dtype) -> Function:
            def add(y: Tensor) -> Tensor:
                if change[0].shape != y.shape:
                    raise EntangleError(
                        f"{self.site_out} is {list(y.shape)}, but the transcoder writes {list(change[0].shape)}: it is "
                        "another model's"
                    )
                return y + change[0].to(y)

            return add

        weight = getattr(self.transcoder, "W_enc", None)
        width = weight.shape[0] if isinstance(weight, Tensor) else None
        return [
            FunctionForm(self.site, self.layer, None, make_look, width=width, edits=False),
            FunctionForm(self.site_out, self.layer_out, None, make_add),
        ]


def is_transcoder(autoencoder: object) -> bool:
    """Whether it says of itself, as those of SAELens and of this library do, that it writes to another site."""
    kind = getattr(getattr(autoencoder, "cfg", autoencoder), "architecture", "")
    return "transcoder" in str(kind() if callable(kind) else kind)


def with_feature(features: Tensor, index: int, value: float, how: str) -> Tensor:
    """Features `[*batch feature]` with one of them changed."""
    if not 0 <= index < features.shape[-1]:
        raise EntangleError(f"the autoencoder has features 0 to {features.shape[-1] - 1}, but the edit names {index}")
    features = features.clone()
    was = features[..., index]
    new = {"set": torch.full_like(was, value), "add": was + value, "scale": was * value}
    features[..., index] = new[how]
    return features


def check_how(how: str) -> None:
    """Refuse a way of changing a feature that is none."""
    if how not in ("set", "add", "scale"):
        raise EntangleError(f'how must be "set", "add" or "scale", got {how!r}')
