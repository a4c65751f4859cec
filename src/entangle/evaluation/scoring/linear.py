"""A toxicity scorer for the price of a linear model: hashed words and characters, calibrated on texts held out."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float
from safetensors.numpy import load_file, save_file
from scipy import sparse, special

from entangle.data import read_labels, same_index, texts_of
from entangle.errors import EntangleError
from entangle.evaluation.scoring.calibrating import apart, platt
from entangle.storage import folder
from entangle.storage.digest import digest
from entangle.storage.folder import Kind
from entangle.storage.sealed import decoding

NUMBERS = "scorer.safetensors"
KIND = Kind(
    "a scorer",
    "scorer.json",
    "LinearToxicityScorer",
    version_key="format",
    remedy="fit and save it again, to another directory",
    before=(NUMBERS,),
)
_N_FEATURES = 2**18  # hashed features each of words and characters


@dataclass(frozen=True)
class LinearToxicityScorer:
    """Logistic regression on hashed word 1-2-grams and character 2-5-grams, with Platt-calibrated probabilities.

    Args:
        weights: One weight for each hashed feature, words first, the calibration's slope folded in.
        bias: Intercept, likewise.
        report: How it was fitted and how well it does on the texts held out: `n_fit`, `n_held_out`, `auroc`, `brier`
            (the mean squared error of the probabilities, Brier 1950), `C`, `seed`, and `positive`, the label that a
            score speaks for.

    Example:
        >>> scorer = en.LinearToxicityScorer.fit(texts, labels)
        >>> polite, rude = scorer(["you are a clever gem", "you are a useless turnip"])
        >>> bool(polite < 0.5 < rude)
        True
        >>> scorer.report["n_fit"], scorer.report["n_held_out"]
        (76, 20)
    """

    weights: Float[np.ndarray, " feature"]
    bias: float
    report: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def fit(
        cls,
        texts: Sequence[str],
        labels: Any,
        *,
        positive: Any = None,
        held_out: float = 0.2,
        C: float = 1.0,
        seed: int = 0,
    ) -> LinearToxicityScorer:
        """Fit on most of the texts, calibrate on the rest.

        Scores are sigma(a m + b) of the regression's margin m, with a and b fitted by Platt's method (1999) on the
        texts held out, against the regression's overconfidence.

        Args:
            texts: Texts.
            labels: Two classes of any kind, one label per text: 1 for toxic and 0 for not, or as the rules of
                `entangle.data.labels` have it.
            positive: The label that counts as toxic, all others as not.
            held_out: Share of the texts, stratified, that only calibrate and evaluate; copies of a text are never on
                both sides.
            C: Inverse strength of the l2 penalty, as in scikit-learn.
            seed: Seed of the split.

        Returns:
            The scorer; `.report` has its AUROC and Brier score on the texts held out.

        Raises:
            EntangleError: Labels of other than two classes or of another number, too few to hold any out, or something
                among the texts that is no text.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.metrics import brier_score_loss, roc_auc_score

        same_index(texts=texts, labels=labels)
        texts = texts_of(texts)
        read = read_labels(labels, len(texts), positive=positive, two=True)
        y = read.codes
        fit, rest = apart(texts, y, held_out, seed=seed, least=1)
        x = _features(texts)
        model = LogisticRegression(C=C, solver="liblinear", dual=False, random_state=seed, tol=1e-3).fit(x[fit], y[fit])
        margin = model.decision_function(x[rest])
        # Platt's targets keep the slope finite where the margins separate the classes.
        slope, offset = platt(margin, y[rest])
        weights = (slope * model.coef_[0]).astype(np.float32)
        scorer = cls(weights, float(slope * model.intercept_[0] + offset))
        scores = scorer._score(x[rest])
        report = {
            "n_fit": len(fit),
            "n_held_out": len(rest),
            "auroc": float(roc_auc_score(y[rest], scores)),
            "brier": float(brier_score_loss(y[rest], scores)),
            "C": C,
            "seed": seed,
            "positive": read.names[1],
        }
        return cls(scorer.weights, scorer.bias, report)

    @property
    def name(self) -> str:
        """`linear-` and a hash of the weights: two scorers of one name give the same scores."""
        return f"linear-{digest(self.content())[:8]}"

    def content(self) -> Any:
        """What decides its scores; not the report of how it was fitted."""
        return self.weights, float(self.bias)

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """The probability that each text is toxic."""
        return self._score(_features(texts)) if len(texts) else np.zeros(0)

    def save(self, directory: str | Path) -> None:
        """Write `scorer.safetensors` and `scorer.json` to a directory, in place of a scorer that is there.

        Raises:
            EntangleError: Files that are not such a scorer are in the way, or the disk is full.
        """

        def fill(new: Path) -> None:
            save_file({"weights": self.weights, "bias": np.array([self.bias])}, new / NUMBERS)

        folder.write(directory, KIND, {"name": self.name, "report": self.report}, fill)

    @classmethod
    def load(cls, directory: str | Path) -> LinearToxicityScorer:
        """Read a scorer that `save` wrote.

        Raises:
            EntangleError: No scorer there, one of another format, or one that is damaged.
        """
        meta = folder.read(directory, KIND)
        with decoding(directory, KIND.what, remedy=KIND.remedy):
            tensors = load_file(Path(directory) / NUMBERS)
            scorer = cls(tensors["weights"], float(tensors["bias"][0]), dict(meta["report"]))
            if meta["name"] not in (scorer.name, scorer._first_name()) or scorer.weights.shape != (2 * _N_FEATURES,):
                raise EntangleError(
                    f"{directory} holds a scorer whose weights are not those of its scorer.json: {KIND.remedy}"
                )
        return scorer

    def _first_name(self) -> str:
        """The name that version 0.1 made of the same weights."""
        return f"linear-{hashlib.sha256(self.weights.tobytes() + np.float64(self.bias).tobytes()).hexdigest()[:8]}"

    def _score(self, x: sparse.csr_matrix) -> Float[np.ndarray, " text"]:
        return np.asarray(special.expit(x @ self.weights.astype(np.float64) + self.bias))


def _features(texts: Sequence[str]) -> sparse.csr_matrix:
    from sklearn.feature_extraction.text import HashingVectorizer

    words = HashingVectorizer(n_features=_N_FEATURES, ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
    characters = HashingVectorizer(n_features=_N_FEATURES, ngram_range=(2, 5), analyzer="char_wb")
    return sparse.hstack([words.transform(texts), characters.transform(texts)], format="csr")
