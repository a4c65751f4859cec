"""Other decoding of the same model: self-debiasing, experts and anti-experts, contrastive decoding."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.errors import EntangleError
from entangle.evaluation.language.subject import Subject
from entangle.evaluation.methods.mixing import Mixed, Reader
from entangle.evaluation.methods.other import OtherModel

ANTI_PROMPT = "The following text contains rude, disrespectful or unreasonable language:\n\n"


@dataclass(frozen=True)
class SelfDebias:
    """Self-debiasing (Schick, Udupa and Schuetze 2021, eq. 2 and 3), with alpha as the decay constant lambda.

    The model is asked a second time, after an anti-prompt that invites what is unwanted. Tokens that become likelier
    there are made less likely: p~(w) is proportional to p(w) exp(lambda min(0, p(w) - p_anti(w))).

    Args:
        anti_prompt: Text that invites what is unwanted.
        alphas: Values of lambda; the paper's by default. None for those of a sweep, or solved for its prices.

    Example:
        >>> debias = en.evaluation.SelfDebias(alphas=(10.0, 50.0))
        >>> weak, strong = (
        ...     en.evaluation.kl(model, tokenizer, clean[:2], debias, alpha=a, max_length=32, progress=False).mean
        ...     for a in debias.alphas
        ... )
        >>> 0 < weak < strong
        True
    """

    anti_prompt: str = ANTI_PROMPT
    alphas: tuple[float, ...] | None = (10.0, 50.0, 100.0)

    @contextmanager
    def applied(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, alpha: float) -> Iterator[Subject]:
        """The plain model with its next-token distribution debiased."""

        def debias(
            logits: Float[Tensor, "*batch vocab"], invited: Float[Tensor, "*batch vocab"]
        ) -> Float[Tensor, "*batch vocab"]:
            logp = logits.float().log_softmax(-1)
            excess = logp.exp() - invited.float().softmax(-1)
            return (logp + alpha * excess.clamp(max=0)).log_softmax(-1)

        yield Subject(model, tokenizer, decoding=Mixed((Reader(prefix=self.anti_prompt),), debias))


@dataclass(frozen=True)
class DExperts:
    """Decoding with an expert and an anti-expert (Liu et al. 2021, arXiv 2105.03023, eq. 1): logits
    z + alpha (z_expert - z_anti).

    The two are models of the plain one's vocabulary, such as one fine-tuned on wanted and one on unwanted text, or the
    plain one with an edit baked in. Where one of them is left out, the plain model stands in for it, as in the paper's
    anti-expert alone. The paper keeps to the nucleus of the plain model before it mixes; here the nucleus is of the
    mixed distribution, so that KL and cross-entropy are finite.

    Args:
        anti_expert: Model of what is unwanted, or the directory or hub id of one.
        expert: Model of what is wanted, likewise.

    Raises:
        EntangleError: Neither is given.

    Example:
        >>> rude = iti.bake(model, alpha=-4)  # steered toward what is unwanted
        >>> mixed = en.evaluation.DExperts(anti_expert=rude)
        >>> en.strength_for(model, tokenizer, mixed, clean[:4], kl=0.02) > 0
        True
        >>> en.evaluation.DExperts()
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: DExperts needs a checkpoint of what is unwanted, of what is wanted, or both; ...
    """

    anti_expert: PreTrainedModel | str | Path | None = None
    expert: PreTrainedModel | str | Path | None = None

    def __post_init__(self) -> None:
        if self.anti_expert is None and self.expert is None:
            raise EntangleError(
                "DExperts needs a checkpoint of what is unwanted, of what is wanted, or both; got neither: give "
                "anti_expert= or expert=, such as an edit's bake(model, alpha)"
            )

    @contextmanager
    def applied(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, alpha: float) -> Iterator[Subject]:
        """The plain model with its logits moved by the difference of the two."""
        given = {"an expert": self.expert, "an anti-expert": self.anti_expert}
        readers = {
            what: Reader(OtherModel(source).beside(model, tokenizer, what))
            for what, source in given.items()
            if source is not None
        }

        def mix(
            logits: Float[Tensor, "*batch vocab"], *others: Float[Tensor, "*batch vocab"]
        ) -> Float[Tensor, "*batch vocab"]:
            plain = logits.float()
            read = dict(zip(readers, (other.float() for other in others), strict=True))
            return plain + alpha * (read.get("an expert", plain) - read.get("an anti-expert", plain))

        yield Subject(model, tokenizer, decoding=Mixed(tuple(readers.values()), mix))

    def content(self) -> Any:
        """What a saved sweep knows it by: the models, wherever they lie."""
        return [None if source is None else OtherModel(source).content() for source in (self.anti_expert, self.expert)]


@dataclass(frozen=True)
class ContrastiveDecoding:
    """Contrastive decoding (Li et al. 2023, arXiv 2210.15097; with the strength of O'Brien and Lewis 2023,
    arXiv 2309.09117): log p + alpha (log p - log p_amateur) for plausible tokens.

    The amateur is another model, or the same one after an anti-prompt, whose continuations are to be avoided. Tokens
    are plausible whose probability is at least `plausible` times that of the likeliest. The paper forbids all others;
    here they keep their log p, so that KL and cross-entropy are finite.

    Args:
        amateur: A model, or the directory or hub id of one; the plain model itself by default.
        anti_prompt: Put before what the amateur reads; by default `ANTI_PROMPT` before the plain model, and nothing
            before another.
        plausible: Share of the likeliest token's probability, from 0 (all are plausible) to 1; the paper's by default.

    Raises:
        EntangleError: A share out of range.

    Example:
        >>> method = en.evaluation.ContrastiveDecoding()
        >>> weak, strong = (
        ...     en.evaluation.kl(model, tokenizer, clean[:2], method, alpha=a, max_length=32, progress=False).mean
        ...     for a in (0.5, 1.0)
        ... )
        >>> 0 < weak < strong
        True
    """

    amateur: PreTrainedModel | str | Path | None = None
    anti_prompt: str | None = None
    plausible: float = 0.1

    def __post_init__(self) -> None:
        if not 0 <= self.plausible <= 1:
            raise EntangleError(f"plausible must be a share from 0 to 1; got {self.plausible}: .1 is the paper's")

    @contextmanager
    def applied(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, alpha: float) -> Iterator[Subject]:
        """The plain model with what the amateur finds likely made less so."""
        other = None
        if self.amateur is not None:
            other = OtherModel(self.amateur).beside(model, tokenizer, "an amateur")
        prefix = self.anti_prompt if self.anti_prompt is not None else ANTI_PROMPT if other is None else ""
        floor = math.log(self.plausible) if self.plausible else -math.inf

        def contrast(
            logits: Float[Tensor, "*batch vocab"], amateur: Float[Tensor, "*batch vocab"]
        ) -> Float[Tensor, "*batch vocab"]:
            logp = logits.float().log_softmax(-1)
            more = alpha * (logp - amateur.float().log_softmax(-1))
            return torch.where(logp >= logp.amax(-1, keepdim=True) + floor, logp + more, logp)

        yield Subject(model, tokenizer, decoding=Mixed((Reader(other, prefix),), contrast))

    def content(self) -> Any:
        """What a saved sweep knows it by."""
        amateur = None if self.amateur is None else OtherModel(self.amateur).content()
        return [amateur, self.anti_prompt, self.plausible]
