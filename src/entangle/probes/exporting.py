"""One fitted probe for elsewhere: as a scikit-learn estimator, as files, as the code that applies it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from sklearn.base import BaseEstimator, ClassifierMixin, TransformerMixin
from sklearn.utils.validation import check_array
from torch import Tensor

from entangle.errors import EntangleError
from entangle.models import Atlas, hook_name, underlying
from entangle.storage.files import on_disk, replacing, write_text

WEIGHTS, SETTINGS, ONNX = "probe.safetensors", "probe.json", "probe.onnx"
FORMAT = "entangle-probe-1"


class FittedProbe(ClassifierMixin, TransformerMixin, BaseEstimator):  # type: ignore[misc]
    """A linear probe that is fitted already, as scikit-learn knows estimators; `fit` changes nothing.

    `transform` gives its scores, so that it may stand in a `Pipeline` before something else, and `set_output` names
    them.

    Args:
        coef: `[1, feature]` for two classes, a score above 0 being the second; `[class, feature]` for more.
        intercept: The same without the feature axis.
        classes: The labels.

    Example:
        >>> probe = FittedProbe(np.array([[1.0, 0.0]]), np.array([-1.0]), np.array(["no", "yes"]))
        >>> probe.predict([[3.0, 0.0], [0.0, 9.0]]).tolist()
        ['yes', 'no']
    """

    def __init__(self, coef: Any, intercept: Any, classes: Any) -> None:
        self.coef = coef
        self.intercept = intercept
        self.classes = classes

    @property
    def coef_(self) -> npt.NDArray[Any]:
        """The weights."""
        return np.asarray(self.coef)

    @property
    def intercept_(self) -> npt.NDArray[Any]:
        """The constants."""
        return np.asarray(self.intercept)

    @property
    def classes_(self) -> npt.NDArray[Any]:
        """The labels."""
        return np.asarray(self.classes)

    @property
    def n_features_in_(self) -> int:
        """Numbers in one activation."""
        return int(self.coef_.shape[1])

    def __sklearn_is_fitted__(self) -> bool:
        """It always is."""
        return True

    def fit(self, X: Any, y: Any = None) -> Self:
        """Itself, after a look at the width of `X`."""
        self._scores(X)
        return self

    def decision_function(self, X: Any) -> npt.NDArray[Any]:
        """Scores: `[example]` for two classes, `[example, class]` for more."""
        scores = self._scores(X)
        return scores[:, 0] if len(self.classes_) == 2 else scores

    def predict(self, X: Any) -> npt.NDArray[Any]:
        """The label of each example."""
        scores = self.decision_function(X)
        index = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(1)
        predicted: npt.NDArray[Any] = self.classes_[index]
        return predicted

    def transform(self, X: Any) -> npt.NDArray[Any]:
        """Scores as columns, `[example, 1]` or `[example, class]`."""
        return self._scores(X)

    def get_feature_names_out(self, input_features: Any = None) -> npt.NDArray[Any]:
        """Names of the columns of `transform`."""
        labels = self.classes_[1:] if len(self.classes_) == 2 else self.classes_
        return np.array([f"score_{label}" for label in labels], dtype=object)

    def _scores(self, X: Any) -> npt.NDArray[Any]:
        X = check_array(X, dtype=(np.float64, np.float32))
        if X.shape[1] != self.n_features_in_:
            raise EntangleError(f"this probe reads {self.n_features_in_} numbers an example, but got {X.shape[1]}")
        scores: npt.NDArray[Any] = X @ self.coef_.T + self.intercept_
        return scores


@dataclass(frozen=True)
class Cell:
    """One probe of a grid, and what is known of where it reads.

    Attributes:
        weight: `[1, feature]`, or `[class, feature]` for more than two classes.
        bias: The same without the feature axis.
        classes: The labels.
        layer: The layer's number; None where the grid does not say.
        head: The head, for grids of layers and heads.
        about: Numbers for whoever gets it: held-out accuracy with its interval, kind, fingerprint.
    """

    weight: Float[Tensor, "score feature"]
    bias: Float[Tensor, " score"]
    classes: npt.NDArray[Any]
    layer: int | None
    head: int | None
    about: Mapping[str, Any]

    def estimator(self) -> FittedProbe:
        """As a scikit-learn estimator."""
        return FittedProbe(self.weight.numpy(), self.bias.numpy(), self.classes)

    def export(self, directory: str | Path, format: str, site: str | None) -> Path:
        """Write it; see `ProbeGrid.export`."""
        writers = {"safetensors": self._safetensors, "onnx": self._onnx}
        if format not in writers:
            raise EntangleError(f"format must be one of {', '.join(map(repr, writers))}, got {format!r}")
        folder = Path(directory)
        with on_disk(folder):
            folder.mkdir(parents=True, exist_ok=True)
        _refuse_other(folder / SETTINGS)
        writers[format](folder)
        write_text(folder / SETTINGS, json.dumps(self.to_dict(format, site), indent=1, default=str))
        return folder

    def to_dict(self, format: str, site: str | None) -> dict[str, Any]:
        """How to apply it, in words and numbers that need no library."""
        two = len(self.classes) == 2
        names = [str(label) for label in self.classes]
        where = None if site is None or self.layer is None else hook_name(site, self.layer)
        return {
            "format": FORMAT,
            "file": WEIGHTS if format == "safetensors" else ONNX,
            "score": "x @ weight.T + bias, x one activation as the model computes it, with nothing subtracted",
            "decide": f"{names[1]!r} if score > 0 else {names[0]!r}" if two else "the class of the largest score",
            "classes": names,
            "shape": {"weight": list(self.weight.shape), "bias": list(self.bias.shape)},
            "site": site,
            "layer": self.layer,
            "head": self.head,
            "transformer_lens": where,
            **self.about,
        }

    def snippet(self, tool: str, site: str, folder: str, model: Any) -> str:
        """The code that applies what `export` wrote; see `ProbeGrid.snippet`."""
        if self.layer is None:
            raise EntangleError("the layer of this grid is not known: fit it with layers=acts.layers(site)")
        head = "" if self.head is None else f"[:, :, {self.head}]"
        begin = f'from safetensors.torch import load_file\n\nprobe = load_file("{Path(folder) / WEIGHTS}")\n'
        end = (
            'score = x[:, -1] @ probe["weight"].T + probe["bias"]  # of the last token, [batch, '
            f"{len(self.bias)}]; above 0: {str(self.classes[-1])!r}\n"
            if len(self.classes) == 2
            else 'score = x[:, -1] @ probe["weight"].T + probe["bias"]  # of the last token, [batch, class]\n'
        )
        if tool == "transformer_lens":
            return (
                f"{begin}_, cache = bridge.run_with_cache(input_ids)  # a TransformerBridge\n"
                f'x = cache["{hook_name(site, self.layer)}"]{head}\n{end}'
            )
        if tool != "nnsight":
            raise EntangleError(f"tool must be 'transformer_lens' or 'nnsight', got {tool!r}")
        if model is None:
            raise EntangleError("nnsight names a model's own modules, so a snippet for it needs model=")
        place = Atlas(underlying(model)).place(site, self.layer)
        split = f".unflatten(-1, ({place.n_heads}, {place.d_head}))" if self.head is not None else ""
        return (
            f"{begin}module = llm.get({place.path!r})  # llm: an nnsight LanguageModel\n"
            f"with llm.trace(input_ids):\n    saved = module.{place.side}.save()\n"
            f"x = (saved[0] if isinstance(saved, tuple) else saved){split}{head}\n{end}"
        )

    def _safetensors(self, folder: Path) -> None:
        with replacing(folder / WEIGHTS) as temporary:
            save_file({"weight": self.weight.contiguous(), "bias": self.bias.contiguous()}, temporary)

    def _onnx(self, folder: Path) -> None:
        try:
            from onnx import TensorProto, checker, helper, numpy_helper, save
        except ImportError as error:
            raise EntangleError("writing ONNX needs the package onnx: pip install onnx") from error
        weight = numpy_helper.from_array(self.weight.float().numpy().T.copy(), "weight")
        bias = numpy_helper.from_array(self.bias.float().numpy(), "bias")
        n_features, n_scores = self.weight.shape[1], len(self.bias)
        graph = helper.make_graph(
            [
                helper.make_node("MatMul", ["activation", "weight"], ["along"]),
                helper.make_node("Add", ["along", "bias"], ["score"]),
            ],
            "linear_probe",
            [helper.make_tensor_value_info("activation", TensorProto.FLOAT, ["example", n_features])],
            [helper.make_tensor_value_info("score", TensorProto.FLOAT, ["example", n_scores])],
            [weight, bias],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
        checker.check_model(model)
        with replacing(folder / ONNX) as temporary:
            save(model, temporary)


def _refuse_other(path: Path) -> None:
    """Refuse to replace a file that is no probe of ours."""
    if path.exists():
        try:
            ours = json.loads(path.read_text()).get("format") == FORMAT
        except (OSError, ValueError, AttributeError):
            ours = False
        if not ours:
            raise EntangleError(f"{path} exists and describes no probe, so it is not replaced: choose another folder")


def cell_of(
    coef: Tensor,
    intercept: Tensor,
    classes: npt.NDArray[Any],
    index: tuple[int, ...],
    layers: Any,
    about: Mapping[str, Any],
) -> Cell:
    """The probe at one index of a grid."""
    weight = coef[index].detach().cpu()
    weight = weight[None] if weight.ndim == 1 else weight
    bias = torch.as_tensor(intercept[index]).detach().cpu().reshape(-1)
    layer = layers[index[0]] if index and layers is not None else None
    head = index[1] if len(index) == 2 else None
    return Cell(weight, bias, classes, None if layer is None else int(layer), head, about)
