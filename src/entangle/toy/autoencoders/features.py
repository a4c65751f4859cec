"""What a toy autoencoder reads: sparse features with known frequencies and correlations, or real bags of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError


class Features(Protocol):
    """Anything that a `SuperpositionModel` can be trained on."""

    n_features: int

    def sample(
        self, n_instances: int, batch_size: int, generator: torch.Generator
    ) -> Float[Tensor, "instance batch feature"]:
        """Draw a batch for every instance."""
        ...


class SparseFeatures:
    """Features that are mostly zero and uniform in [0, 1] when they are not (Elhage et al. 2022).

    Args:
        n_features: How many.
        probability: How often a feature is active, 1 - sparsity; a number, one per feature, or anything that broadcasts
            to [instance, feature], so that instances can differ in sparsity and features in frequency.
        correlated: Groups of feature indices that share one draw: with equal probabilities they are always active
            together.
        anticorrelated: Groups of which at most one is active at a time; their probabilities may sum to 1 at most.
        signed: Values uniform in [-1, 1] instead, as for the absolute-value model.

    Raises:
        EntangleError: On a probability outside (0, 1], overlapping groups, or an anticorrelated group that would need
            more than one active feature.

    Example:
        >>> features = en.toy.SparseFeatures(4, probability=0.25, correlated=[[0, 1]])
        >>> batch = features.sample(1, 1000, torch.Generator().manual_seed(0))
        >>> batch.shape  # [instance, row, feature]
        torch.Size([1, 1000, 4])
        >>> bool(((batch[..., 0] > 0) == (batch[..., 1] > 0)).all())  # always active together
        True
    """

    def __init__(
        self,
        n_features: int,
        *,
        probability: float | Tensor = 0.05,
        correlated: Sequence[Sequence[int]] = (),
        anticorrelated: Sequence[Sequence[int]] = (),
        signed: bool = False,
    ) -> None:
        self.n_features = n_features
        p = torch.as_tensor(probability, dtype=torch.float32)
        if not bool(((p > 0) & (p <= 1)).all()):
            raise EntangleError(f"probability must lie in (0, 1], but goes from {p.min():g} to {p.max():g}")
        if p.ndim > 2 or (p.ndim > 0 and p.shape[-1] not in (1, n_features)):
            raise EntangleError(
                f"probability must broadcast to [instance, {n_features}], but has shape {list(p.shape)};"
                " one value per instance is [instance, 1]"
            )
        self.probability = p.expand(*p.shape[:-1], n_features) if p.ndim else p.expand(n_features)
        self.correlated = [list(group) for group in correlated]
        self.anticorrelated = [list(group) for group in anticorrelated]
        self.signed = signed
        members = [i for group in (*self.correlated, *self.anticorrelated) for i in group]
        if len(set(members)) < len(members) or any(not 0 <= i < n_features for i in members):
            raise EntangleError(f"groups must be disjoint sets of features 0 to {n_features - 1}, but hold {members}")
        for group in self.anticorrelated:
            if bool((self.probability[..., group].sum(-1) > 1 + 1e-6).any()):
                raise EntangleError(
                    f"the probabilities of the anticorrelated group {group} sum to more than 1; lower them"
                )

    def sample(
        self, n_instances: int, batch_size: int, generator: torch.Generator
    ) -> Float[Tensor, "instance batch feature"]:
        """Draw a batch for every instance; instances are independent.

        With `n_instances=1` and probabilities that differ by instance, all share one set of uniform draws.
        """
        shape = (n_instances, batch_size, self.n_features)
        p = self.probability.unsqueeze(-2)
        draw = torch.rand(shape, generator=generator)
        for group in self.correlated:
            draw[..., group] = draw[..., group[:1]]
        active = draw < p
        for group in self.anticorrelated:
            # One uniform draw falls into at most one of the group's intervals, each as wide as its probability.
            upper = p[..., group].cumsum(-1)
            shared = draw[..., group[:1]]
            active[..., group] = (shared < upper) & (shared >= upper - p[..., group])
        values = torch.rand(shape, generator=generator)
        return active * (2 * values - 1 if self.signed else values)

    def quadrature(self, n_nodes: int = 8) -> tuple[Float[Tensor, "row feature"], Float[Tensor, "#instance row"]]:
        """Rows and weights that replace sampling by an exact expectation, for two or three independent features.

        A feature is 0 with weight 1 - p, or one of `n_nodes` Gauss-Legendre nodes on [0, 1]; a row is a combination of
        these. Very sparse features, whose samples are nearly all empty, lose their noise this way.

        Args:
            n_nodes: Nodes per feature; there are (n_nodes + 1) ** n_features rows.

        Raises:
            EntangleError: For grouped features, or more than three.
        """
        if self.correlated or self.anticorrelated or self.n_features > 3:
            raise EntangleError(
                f"an exact expectation needs at most 3 independent features, not {self.n_features} or groups;"
                " give a batch_size"
            )
        nodes, weights = np.polynomial.legendre.leggauss(n_nodes)
        values = torch.tensor(nodes, dtype=torch.float32)
        values = torch.cat([torch.zeros(1), values if self.signed else (values + 1) / 2])
        index = torch.cartesian_prod(*[torch.arange(n_nodes + 1)] * self.n_features).view(-1, self.n_features)
        p = self.probability.view(-1, self.n_features, 1)
        each = torch.cat(
            [1 - p, p * torch.tensor(weights / 2, dtype=torch.float32)], dim=-1
        )  # [instance, feature, node]
        chosen = (
            each.unsqueeze(1)
            .expand(-1, len(index), -1, -1)
            .gather(3, index[None, :, :, None].expand(len(each), -1, -1, 1))
        )
        return values[index], chosen.squeeze(3).prod(-1)


class BagOfWords:
    """Which words occur in a window of text: binary features with the correlations of real language.

    The data of Prieto et al. 2026, "Correlations in the Data Lead to Semantically Rich Feature Geometry Under
    Superposition".

    Args:
        texts: documents.
        n_features: The vocabulary: that many most frequent words.
        window: Words per window; each document is cut into windows that do not overlap.

    Raises:
        EntangleError: Where the texts hold fewer distinct words.

    Example:
        >>> words = en.toy.BagOfWords(["the cat sat on the mat", "the dog sat"], n_features=3, window=3)
        >>> words.words
        ['cat', 'sat', 'the']
        >>> words.windows.shape  # [window, word]
        torch.Size([3, 3])
    """

    def __init__(self, texts: Sequence[str], *, n_features: int = 256, window: int = 20) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        analyze = CountVectorizer().build_analyzer()
        documents = [analyze(text) for text in texts]
        windows = [words[i : i + window] for words in documents for i in range(0, len(words), window)]
        vectorizer = CountVectorizer(analyzer=list, max_features=n_features, binary=True)
        try:
            counts = vectorizer.fit_transform(windows)
        except ValueError as error:
            raise EntangleError("texts hold no words; give documents with text in them") from error
        if counts.shape[1] < n_features:
            raise EntangleError(
                f"texts hold {counts.shape[1]} distinct words, n_features asks for {n_features}; lower it"
            )
        self.n_features = n_features
        self.words: list[str] = vectorizer.get_feature_names_out().tolist()
        self.windows: Float[Tensor, "window feature"] = torch.from_numpy(counts.toarray()).float()

    def sample(
        self, n_instances: int, batch_size: int, generator: torch.Generator
    ) -> Float[Tensor, "instance batch feature"]:
        """Draw windows with replacement, separately for every instance."""
        index = torch.randint(len(self.windows), (n_instances, batch_size), generator=generator)
        return self.windows[index]
