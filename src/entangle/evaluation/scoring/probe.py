"""A probe of a model's activations as a scorer of texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from jaxtyping import Float
from scipy import special
from torch import Tensor

from entangle.activations import collect
from entangle.data import read_labels, texts_of
from entangle.evaluation.language.subject import Subject
from entangle.models import Atlas
from entangle.models.fingerprint import fingerprint, tokenizer_fingerprint
from entangle.probes import fit_probes
from entangle.storage.digest import digest


def last_states(
    subject: Subject,
    texts: Sequence[str],
    site: str,
    layer: int,
    *,
    max_length: int | None = None,
    batch_tokens: int = 8192,
) -> Float[Tensor, "text d"]:
    """Activations at the last token of each text, in double precision."""
    acts = collect(
        subject.model,
        subject.tokenizer,
        [str(text) for text in subject.before_prompts(texts)],
        sites=site,
        layers=layer,
        tokens="last",
        max_length=max_length,
        batch_tokens=batch_tokens,
        progress=False,
    )
    return acts[site][:, 0].flatten(1).double().cpu()


@dataclass(frozen=True)
class ProbeScorer:
    """The probability of class 1 that a linear probe reads at the last token of each text.

    The model reads the text as anybody's: it is not asked while it writes.

    Args:
        model: The model that reads; left as it is, so give the plain one.
        tokenizer: Its tokenizer.
        probe: A linear probe of two classes with `decision_function`.
        site: Where it reads.
        layer: Layer.
        max_length: Keep at most this many tokens of a text.

    Example:
        >>> scorer = en.evaluation.ProbeScorer.fit(model, tokenizer, texts, labels, layer=1)
        >>> polite, rude = scorer(texts[:2])
        >>> bool(polite < rude)
        True
    """

    model: Any
    tokenizer: Any
    probe: Any
    site: str = "resid_post"
    layer: int = 0
    max_length: int | None = None

    @classmethod
    def fit(
        cls,
        model: Any,
        tokenizer: Any,
        texts: Sequence[str],
        labels: Any,
        *,
        site: str = "resid_post",
        layer: int = -1,
        max_length: int | None = None,
        positive: Any = None,
        probe: str = "logistic",
        seed: int = 0,
    ) -> Self:
        """Fit a probe on labelled texts; judge it on others.

        Args:
            model: The plain model.
            tokenizer: Its tokenizer.
            texts: Labelled texts.
            labels: Two classes of any kind.
            site: Where to read.
            layer: Layer, from the end where it is negative.
            max_length: Keep at most this many tokens of a text.
            positive: The label that is class 1.
            probe: Which probe, as in `fit_probes`.
            seed: Of its split.

        Raises:
            EntangleError: Labels of other than two classes, or whatever `fit_probes` refuses.
        """
        texts = texts_of(texts)
        y = read_labels(labels, len(texts), positive=positive, two=True).codes
        layer = Atlas(model).counted(layer)
        x = last_states(Subject(model, tokenizer), texts, site, layer, max_length=max_length)
        grid = fit_probes(x[:, None], y, probe=probe, seed=seed, n_permutations=0, progress=False)
        return cls(model, tokenizer, grid.estimator(0), site, layer, max_length)

    @property
    def name(self) -> str:
        """`probe-`, the place and a hash of the probe."""
        return f"probe-{self.site}-{self.layer}-{digest([self.probe.coef_, self.probe.intercept_])[:8]}"

    def content(self) -> Any:
        """What decides its scores."""
        numbers = np.asarray(self.probe.coef_), np.asarray(self.probe.intercept_)
        model = fingerprint(self.model), tokenizer_fingerprint(self.tokenizer)
        return [*model, *numbers, self.site, self.layer, self.max_length]

    def __call__(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """The probability of each text."""
        states = last_states(
            Subject(self.model, self.tokenizer), texts, self.site, self.layer, max_length=self.max_length
        )
        return np.asarray(special.expit(self.probe.decision_function(states.numpy())), dtype=np.float64)
