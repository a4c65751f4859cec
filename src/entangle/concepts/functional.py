"""Functional importance: what the model loses when activations are replaced by a reconstruction of them.

A dictionary or subspace may explain nearly all variance and yet miss what the model uses, or the other way about; only
running the model on the reconstruction tells (the end-to-end view of Braun et al. 2024).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from entangle.activations import collect
from entangle.errors import EntangleError
from entangle.evaluation.language.documents import language_shift
from entangle.evaluation.language.reading import LanguageShift
from entangle.interventions import Ablate, Edit, FunctionForm
from entangle.interventions.forms import Form
from entangle.metrics import Estimate, bootstrap_ratio, fieller_of_sums
from entangle.models import own_tokenizer, place_named, underlying

Rows = Float[Tensor, "*batch d"]


@dataclass(frozen=True, eq=False)
class Reconstruct(Edit):
    """Replace activations by a reconstruction of them: x -> x + alpha (reconstruct(x) - x).

    Attributes:
        reconstruct: Activations `[*batch, d]` to their reconstruction, such as a sparse autoencoder's forward.
        site: Where.
        layer: Where.
        head: One head of site `z`; `None` for the whole width.

    Example:
        >>> half = en.concepts.Reconstruct(lambda x: x / 2, site="resid_post", layer=0)
        >>> with en.steer(model, half):
        ...     steered = en.collect(model, tokenizer, texts[:4], sites="resid_post", layers=[0], progress=False)
        >>> torch.allclose(steered["resid_post"][:, 0], acts["resid_post"][:4, 0] / 2, atol=1e-5)
        True
    """

    reconstruct: Callable[[Rows], Rows]
    site: str = "resid_post"
    layer: int | None = None
    head: int | None = None

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """The reconstruction, which need not be affine."""

        def make(device: torch.device, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
            return lambda x: x + alpha * (self.reconstruct(x).to(dtype) - x)

        return [FunctionForm(self.site, self.layer, self.head, make)]


class FunctionalImportance(NamedTuple):
    """What the replacement costs, per predicted token, each with its interval over documents.

    Args:
        kl: KL(plain || reconstructed) of the next-token distributions, in nats.
        ce_increase: Cross-entropy of the reconstructed model minus the plain model's, in nats.
        loss_recovered: 1 - (increase by reconstruction) / (increase by mean ablation of the whole site). 1 is a perfect
            reconstruction, 0 no better than the mean. Fieller's interval: infinite where ablation may cost nothing.
        variance_explained: Share of the activations' variance that the reconstruction keeps.

    Example:
        >>> same = en.concepts.functional_importance(model, tokenizer, texts[:8], lambda x: x, layer=1)
        >>> same.variance_explained, same.kl.value, round(same.loss_recovered.value, 6)
        (1.0, 0.0, 1.0)
    """

    kl: Estimate
    ce_increase: Estimate
    loss_recovered: Estimate
    variance_explained: float


def functional_importance(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    reconstruct: Callable[[Rows], Rows],
    *,
    site: str = "resid_post",
    layer: int,
    head: int | None = None,
    max_length: int | None = None,
    prepend_bos: bool = False,
    special_tokens: bool = False,
    batch_tokens: int = 8192,
    n_resamples: int = 1000,
    level: float = 0.95,
    seed: int = 0,
) -> FunctionalImportance:
    """KL and cross-entropy change when activations are replaced by their reconstruction at every token.

    Args:
        model: A causal language model; unchanged afterwards.
        tokenizer: Its tokenizer.
        texts: Documents.
        reconstruct: What replaces the activations: a sparse autoencoder, or `subspace_projection(...)`.
        site: Where.
        layer: Where.
        head: One head of site `z`.
        max_length: Keep at most this many tokens of a text.
        prepend_bos: Begin every text with the beginning-of-sequence token.
        special_tokens: Whether beginning, end and separators count in the mean and in `variance_explained`, which they
            may dominate. They are reconstructed either way.
        batch_tokens: Tokens in one batch.
        n_resamples: Bootstrap resamples of the documents.
        level: Coverage of the intervals.
        seed: Seed of the resamples.

    Returns:
        The cost, per token.

    Raises:
        EntangleError: No such place, bad texts, or a reconstruction of another shape.

    Example:
        >>> x = acts["resid_post"][:, 0]
        >>> leading = torch.linalg.svd(x - x.mean(0)).Vh  # principal components
        >>> few, more = (
        ...     en.concepts.functional_importance(
        ...         model, tokenizer, texts[:8], en.concepts.subspace_projection(leading[:k], x.mean(0)), layer=0
        ...     )
        ...     for k in (4, 16)
        ... )
        >>> few.variance_explained < more.variance_explained, few.kl.value > more.kl.value
        (True, True)
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    site, layer = place_named(site) or (site, layer)
    options: dict[str, Any] = {"max_length": max_length, "prepend_bos": prepend_bos, "batch_tokens": batch_tokens}
    options["progress"] = False
    where: dict[str, Any] = {"sites": site, "layers": [layer], "tokens": "all", "special_tokens": special_tokens}
    x = collect(model, tokenizer, texts, **where, **options)[site][:, 0]
    x = x if head is None else x[:, head]
    x = x.flatten(1)
    with torch.no_grad():
        rebuilt = reconstruct(x.to(model.device)).to(x)
    if rebuilt.shape != x.shape:
        raise EntangleError(f"a reconstruction must keep the shape {tuple(x.shape)}, not give {tuple(rebuilt.shape)}")
    mean = x.double().mean(0)
    total = (x.double() - mean).square().sum()
    unexplained = (x.double() - rebuilt.double()).square().sum()

    replaced = language_shift(model, tokenizer, texts, Reconstruct(reconstruct, site, layer, head), **options)
    nothing = Ablate(torch.eye(len(mean)), site, layer, head, mean=mean.float())
    ablated = language_shift(model, tokenizer, texts, nothing, **options)
    resampling: dict[str, Any] = {"n_resamples": n_resamples, "level": level, "seed": seed}
    lost, lost_by_ablation = _increase(replaced), _increase(ablated)
    return FunctionalImportance(
        kl=bootstrap_ratio(replaced.kl, replaced.tokens, bounds=(0.0, float("inf")), **resampling),
        ce_increase=bootstrap_ratio(lost, replaced.tokens, **resampling),
        loss_recovered=fieller_of_sums(lost_by_ablation - lost, lost_by_ablation, level=level),
        variance_explained=float(1 - unexplained / total),
    )


def subspace_projection(
    directions: Float[Tensor, "k d"], mean: Float[Tensor, " d"] | None = None, *, keep: bool = True
) -> Callable[[Rows], Rows]:
    """A reconstruction that keeps only the span of `directions`, or (`keep=False`) everything but that.

    Args:
        directions: Rows of any length and angle.
        mean: What the removed part is set to; zero without it.
        keep: Whether the span is what stays.

    Example:
        >>> plane = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
        >>> x = torch.tensor([[1.0, 2.0, 3.0]])
        >>> en.concepts.subspace_projection(plane)(x)
        tensor([[1., 2., 0.]])
        >>> en.concepts.subspace_projection(plane, keep=False)(x)
        tensor([[0., 0., 3.]])
    """
    svd = torch.linalg.svd(directions.double(), full_matrices=False)
    basis = svd.Vh[svd.S.max() * max(directions.shape) * torch.finfo(torch.float32).eps < svd.S]
    origin = torch.zeros(directions.shape[1], dtype=torch.float64) if mean is None else mean.double()

    def project(x: Rows) -> Rows:
        q, centre = basis.to(x), origin.to(x)
        inside = (x - centre) @ q.T @ q
        projected: Tensor = centre + inside if keep else x - inside
        return projected

    return project


def _increase(shift: LanguageShift) -> Float[np.ndarray, " document"]:
    increase: Float[np.ndarray, " document"] = shift.nats - shift.plain_nats
    return increase
