"""Sparse autoencoders and transcoders from SAELens's directories, without SAELens."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.interventions.edits.sae import SAEFeature, TranscoderFeature
from entangle.models.atlas import place_named

SETTINGS, WEIGHTS = "cfg.json", "sae_weights.safetensors"
SPARSE = ("standard", "jumprelu", "topk", "gated", "batchtopk", "matryoshka_batchtopk")
TRANSCODERS = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
# What SAELens folds into the weights before it saves, so that at inference it is nothing.
FOLDED = ("none", "expected_average_only_in", "covariance_whitening")
NORMALISED = (*FOLDED, "layer_norm", "constant_norm_rescale")


class Autoencoder(nn.Module):
    """A sparse autoencoder with SAELens's numbers and formulas.

    Attributes:
        architecture: SAELens's name of its kind.
        site: Where it reads and writes: a site, or with `layer` None a full TransformerLens name that depends on the
            model.
        layer: The layer, counted from 0.
        config: What its directory says of it.
        W_enc: Encoder `[d, feature]`.
        W_dec: Decoder `[feature, d]`.

    Example:
        >>> d = model.config.hidden_size
        >>> weights = {"W_enc": torch.eye(d), "W_dec": torch.eye(d), "b_enc": torch.zeros(d), "b_dec": torch.zeros(d)}
        >>> sae = Autoencoder({"architecture": "standard"}, weights, "blocks.1.hook_resid_post")
        >>> sae.site, sae.layer, int(sae.encode(torch.ones(d)).sum()) == d
        ('resid_post', 1, True)
        >>> with torch.no_grad(), en.steer(model, sae.feature(3)):
        ...     _ = model(**tokenizer("Thank you", return_tensors="pt"))
    """

    W_enc: Tensor
    W_dec: Tensor
    b_dec: Tensor

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor], name: str) -> None:
        super().__init__()
        self.config, self.architecture = dict(config), str(config["architecture"])
        self.normalisation = str(config.get("normalize_activations", "none"))
        self.rescaled = bool(config.get("rescale_acts_by_decoder_norm", False))
        self.centred = bool(config.get("apply_b_dec_to_input", True))
        self.site, self.layer = _placed(name)
        for key, tensor in weights.items():
            self.register_buffer(key, tensor)
        self._undo: tuple[Tensor, Tensor] | None = None

    def extra_repr(self) -> str:
        """What it is and where."""
        d, features = self.W_enc.shape
        return f"{self.architecture}, {features} features of {d} numbers at {self.site}, layer={self.layer}"

    def encode(self, x: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch feature"]:
        """Activations of the features."""
        x = self._prepared(x.to(self.W_enc.dtype))
        if self.architecture == "gated":
            opened = x @ self.W_enc + self._get("b_gate") > 0
            return opened * torch.relu(x @ (self.W_enc * self._get("r_mag").exp()) + self._get("b_mag"))
        before = x @ self.W_enc + self._get("b_enc")
        if self.rescaled:
            before = before * self.W_dec.norm(dim=-1)
        if self.architecture == "topk":
            values, indices = torch.topk(before, int(self.config["k"]), dim=-1)
            return torch.zeros_like(before).scatter(-1, indices, values.relu())
        if "threshold" in self._buffers:
            return torch.relu(before) * (before > self._get("threshold"))
        return torch.relu(before)

    def decode(self, feature_acts: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d"]:
        """What the features make, in the units of what was encoded last."""
        if self.rescaled:
            feature_acts = feature_acts / self.W_dec.norm(dim=-1)
        made = feature_acts @ self.W_dec + self.b_dec
        if self._undo is None:
            return made
        scale, shift = self._undo
        return made * scale + shift

    def feature(
        self, index: int, value: float = 0.0, *, how: Literal["set", "add", "scale"] = "set"
    ) -> SAEFeature | TranscoderFeature:
        """The edit that changes one feature, where the autoencoder acts.

        Args:
            index: Of the feature.
            value: What to set it to, add to it or multiply it by; by default it is taken out.
            how: `"set"`, `"add"` or `"scale"`.
        """
        return SAEFeature(self, index, value, how, self.site, self.layer)

    def _prepared(self, x: Tensor) -> Tensor:
        if self.normalisation == "layer_norm":
            mean = x.mean(dim=-1, keepdim=True)
            deviation = (x - mean).std(dim=-1, keepdim=True)
            x = (x - mean) / (deviation + 1e-5)
            self._undo = (deviation, mean)
        elif self.normalisation == "constant_norm_rescale":
            scale = self.W_enc.shape[0] ** 0.5 / x.norm(dim=-1, keepdim=True)
            x = x * scale
            self._undo = (1 / scale, torch.zeros_like(scale))
        return x - self.b_dec if self.centred else x

    def _get(self, name: str) -> Tensor:
        return self.get_buffer(name)


class Transcoder(Autoencoder):
    """A transcoder: it reads one site and writes another.

    Attributes:
        site_out: Where it writes, as `site`.
        layer_out: The layer it writes.

    Example:
        >>> d = model.config.hidden_size
        >>> weights = {"W_enc": torch.eye(d), "W_dec": torch.eye(d), "b_enc": torch.zeros(d), "b_dec": torch.zeros(d)}
        >>> places = "blocks.1.hook_resid_mid", "blocks.1.mlp.hook_out"
        >>> transcoder = Transcoder({"architecture": "transcoder"}, weights, *places)
        >>> transcoder.site, transcoder.site_out
        ('resid_mid', 'mlp_out')
    """

    def __init__(self, config: Mapping[str, Any], weights: Mapping[str, Tensor], name: str, name_out: str) -> None:
        super().__init__({**config, "apply_b_dec_to_input": False}, weights, name)
        self.site_out, self.layer_out = _placed(name_out)

    def decode(self, feature_acts: Float[Tensor, "*batch feature"]) -> Float[Tensor, "*batch d_out"]:
        """What the features write, without what a skip connection adds."""
        return feature_acts @ self.W_dec + self.b_dec

    def feature(
        self, index: int, value: float = 0.0, *, how: Literal["set", "add", "scale"] = "set"
    ) -> TranscoderFeature:
        """The edit that changes what one feature writes."""
        return TranscoderFeature(self, index, value, how, self.site, self.layer, self.site_out, self.layer_out)


def read_saelens(path: Path, site: str | None = None, site_out: str | None = None) -> Autoencoder:
    """An autoencoder or transcoder from what SAELens's `save_model` or `save_inference_model` wrote.

    Args:
        path: The directory, with `cfg.json` and `sae_weights.safetensors`.
        site: Where it reads, where the directory does not say or says it in other words: a full name, such as
            `blocks.3.hook_out`.
        site_out: Where a transcoder writes.

    Raises:
        EntangleError: None there, a damaged one, or one whose numbers mean something that is not known here.
    """
    try:
        config = json.loads((path / SETTINGS).read_text())
        weights = {name: tensor.float() for name, tensor in load_file(path / WEIGHTS).items()}
    except (OSError, ValueError, SafetensorError) as error:
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise EntangleError(f"{path} holds no whole autoencoder of SAELens ({why[:120]}): save it again") from error
    kind = config.get("architecture") if isinstance(config, dict) else None
    if kind not in (*SPARSE, *TRANSCODERS):
        raise EntangleError(
            f"{path} holds an autoencoder of architecture {kind!r}; known here are {', '.join((*SPARSE, *TRANSCODERS))}"
        )
    about = {**config, **(config.get("metadata") or {})}
    _check(config, path)
    if "topk_threshold" in weights:  # how the training of batch top-k and matryoshka ones keeps their threshold
        weights["threshold"] = weights.pop("topk_threshold").expand(weights["b_enc"].shape).clone()
    needed = {"W_enc", "W_dec", "b_dec", *({"b_gate", "r_mag", "b_mag"} if kind == "gated" else {"b_enc"})}
    needed |= {"threshold"} if "jumprelu" in kind or "batchtopk" in kind else set()
    if not needed <= weights.keys():
        raise EntangleError(
            f"{path} holds no {', '.join(sorted(needed - weights.keys()))}: a {kind} needs it; save it again"
        )
    name, name_out = site or about.get("hook_name"), site_out or about.get("hook_name_out")
    if not name or (kind in TRANSCODERS and not name_out):
        what = "site= and site_out=" if kind in TRANSCODERS else "site="
        raise EntangleError(f"{path} does not say where its {kind} acts: pass {what}, such as 'blocks.3.hook_out'")
    if kind in TRANSCODERS:
        return Transcoder(config, weights, str(name), str(name_out)).eval()
    return Autoencoder(config, weights, str(name)).eval()


def _placed(name: str) -> tuple[str, int | None]:
    """Site and layer of a name, or the name itself where only a model tells."""
    return place_named(name) or (name, None)


def _check(config: Mapping[str, Any], path: Path) -> None:
    """Refuse settings that change the numbers in a way that is not done here."""
    given = config.get("activation_fn", config.get("activation_fn_str", "relu"))
    kind = str(config["architecture"])
    if given not in ("relu", "topk") or (given == "topk" and kind != "topk"):
        raise EntangleError(f"{path} has the activation {given!r} in a {kind}, which is not known here: convert it")
    if config.get("finetuning_scaling_factor"):
        raise EntangleError(f"{path} scales what it finetuned, which is not known here: save it anew with SAELens 6")
    if config.get("normalize_activations", "none") not in NORMALISED:
        raise EntangleError(
            f"{path} normalises by {config['normalize_activations']!r}; known here are {', '.join(NORMALISED)}"
        )
    if kind == "topk" and not isinstance(config.get("k"), int):
        raise EntangleError(f"{path} does not say how many features its topk keeps: k is missing; save it again")
