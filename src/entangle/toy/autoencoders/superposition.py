"""Toy models of superposition (Elhage et al. 2022): autoencoders with more features than dimensions, many at once.

"Toy Models of Superposition", transformer-circuits.pub/2022/toy_model. Every tensor has a leading `instance` axis:
instances differ in their seed and, where the data say so, in sparsity or importance; they share nothing and
are trained together.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.metrics import entanglement, feature_dimensionality
from entangle.progress import progress_bar
from entangle.toy.autoencoders.features import Features, SparseFeatures

Activation = Callable[[Tensor], Tensor]
ACTIVATIONS: dict[str, Activation] = {"relu": torch.relu, "linear": lambda x: x, "abs": torch.abs}
CHECK_EVERY = 100  # steps between two looks at the loss on held-out data
HELD_OUT = 4096  # rows of it


@dataclass(frozen=True)
class History:
    """The loss on held-out data while training.

    Attributes:
        steps: When it was measured.
        losses: Importance-weighted squared error, mean over features.
        stopped_early: Whether training ended before the steps asked for.
    """

    steps: list[int]
    losses: Float[Tensor, "check instance"]
    stopped_early: bool


class SuperpositionModel(nn.Module):
    """`x' = output(W.T W x + b)`: n_features squeezed through n_hidden dimensions, in n_instances independent models.

    Args:
        n_features: Features of the data.
        n_hidden: Dimensions they must share.
        n_instances: How many models to train at once.
        importance: Weight of a feature's squared error; a number, one per feature, or broadcastable to [instance,
            feature].
        output: "relu", "linear", "abs", or any elementwise function of a tensor.
        hidden: The same, applied in the hidden layer; the models of the paper have none but in `absolute_value`.
        tied: Decode with the transpose of the encoder; else with a matrix of its own.
        target: What to predict from x, elementwise; x itself by default.
        seed: Of the initial weights.

    Attributes:
        W: Encoder [instance, hidden, feature]; column i is the direction of feature i.
        decoder: [instance, hidden, feature] where not tied, else the encoder.
        bias: [instance, feature].

    Example:
        >>> model = en.toy.SuperpositionModel(n_features=2, n_hidden=1, n_instances=3)
        >>> data = en.toy.SparseFeatures(2, probability=0.05)
        >>> history = model.fit(data, steps=100, lr=3e-2, progress=False)
        >>> model.entanglement().round(decimals=2)  # two features on one dimension: as entangled as can be
        tensor([[1., 1.],
                [1., 1.],
                [1., 1.]])
    """

    importance: Tensor

    def __init__(
        self,
        n_features: int,
        n_hidden: int,
        n_instances: int = 1,
        *,
        importance: float | Float[Tensor, "#instance #feature"] = 1.0,
        output: Literal["relu", "linear", "abs"] | Activation = "relu",
        hidden: Literal["relu", "linear", "abs"] | Activation = "linear",
        tied: bool = True,
        target: Activation | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if min(n_features, n_hidden, n_instances) < 1:
            raise EntangleError(
                f"n_features, n_hidden and n_instances must be positive, not {n_features}, {n_hidden}, {n_instances}"
            )
        self.n_features, self.n_hidden, self.n_instances = n_features, n_hidden, n_instances
        self.output, self.hidden, self.target = _activation(output), _activation(hidden), target
        weight = torch.as_tensor(importance, dtype=torch.float32)
        try:
            weight = weight.expand(n_instances, n_features).clone()
        except RuntimeError as error:
            raise EntangleError(
                f"importance must broadcast to [{n_instances}, {n_features}], but has shape {list(weight.shape)};"
                " one value per instance is [instance, 1]"
            ) from error
        if not bool((weight.isfinite() & (weight >= 0)).all()):
            raise EntangleError("importance must be finite and not negative")
        self.register_buffer("importance", weight)
        generator = torch.Generator().manual_seed(seed)

        def xavier() -> nn.Parameter:
            scale = math.sqrt(2 / (n_features + n_hidden))
            return nn.Parameter(scale * torch.randn(n_instances, n_hidden, n_features, generator=generator))

        self.W = xavier()
        self.decoder = self.W if tied else xavier()
        self.bias = nn.Parameter(torch.zeros(n_instances, n_features))

    @classmethod
    def absolute_value(
        cls, n_features: int, n_hidden: int, n_instances: int = 1, *, seed: int = 0
    ) -> SuperpositionModel:
        """The model that computes |x| with too few neurons: `relu(W_out.T relu(W x) + b)`.

        Elhage et al. 2022, "Computation in superposition"; train it on `SparseFeatures(..., signed=True)`.
        """
        return cls(n_features, n_hidden, n_instances, hidden="relu", tied=False, target=torch.abs, seed=seed)

    def forward(self, x: Float[Tensor, "#instance batch feature"]) -> Float[Tensor, "instance batch feature"]:
        """Reconstruct x through the hidden dimensions."""
        activation = self.hidden(x @ self.W.mT)
        result: Tensor = self.output(activation @ self.decoder + self.bias.unsqueeze(1))
        return result

    def loss(
        self, x: Float[Tensor, "#instance batch feature"], weight: Float[Tensor, "#instance batch"] | None = None
    ) -> Float[Tensor, " instance"]:
        """Squared error weighted by importance: summed over features, mean over the batch (or summed with weights)."""
        wanted = x if self.target is None else self.target(x)
        error = ((self(x) - wanted).square() * self.importance.unsqueeze(1)).sum(-1)
        total: Tensor = error.mean(1) if weight is None else (error * weight).sum(1)
        return total

    def fit(
        self,
        features: Features,
        *,
        steps: int = 5000,
        batch_size: int | None = 1024,
        lr: float = 1e-2,
        patience: int | None = None,
        tolerance: float = 1e-3,
        seed: int = 0,
        progress: bool = True,
    ) -> History:
        """Train all instances with Adam, its learning rate falling to zero as a cosine.

        Args:
            features: The data.
            steps: At most this many.
            batch_size: Rows per instance and step; None for the exact expectation (`SparseFeatures.quadrature`).
            lr: The first learning rate.
            patience: Stop when, for this many checks in a row (one every 100 steps), no instance has lowered its best
                held-out loss by the relative `tolerance`; None to always take all steps.
            tolerance: See patience.
            seed: Of the data.
            progress: Show a progress bar.

        Raises:
            EntangleError: Where the data have another number of features, or a loss becomes infinite or NaN.
        """
        if features.n_features != self.n_features:
            raise EntangleError(
                f"the model has {self.n_features} features, the data {features.n_features}; they must agree"
            )
        draw = self._batches(features, batch_size, seed)
        # One held-out batch for all instances, so that their losses can be compared.
        shared = torch.Generator().manual_seed(seed + 1)
        held_out = draw() if batch_size is None else (features.sample(1, HELD_OUT, shared), None)
        optimizer = torch.optim.Adam(self.parameters(), lr=lr)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        checks, losses, best, stale = [], [], torch.full((self.n_instances,), torch.inf), 0
        bar = progress_bar(
            range(1, steps + 1), desc=f"{self.n_instances} autoencoders", disable=not progress, leave=False
        )
        for step in bar:
            optimizer.zero_grad()
            # Instances share no parameter, so the gradient of the sum is each one's own.
            torch.autograd.backward(self.loss(*draw()).sum())
            optimizer.step()
            schedule.step()
            if step % CHECK_EVERY and step < steps:
                continue
            with torch.no_grad():
                loss = self.loss(*held_out)
            if not bool(loss.isfinite().all()):
                raise EntangleError(f"training diverged at step {step}; lower lr (it is {lr:g})")
            checks.append(step)
            losses.append(loss / self.n_features)
            bar.set_postfix(loss=f"{loss.mean() / self.n_features:.2e}")
            stale = 0 if bool((loss < best * (1 - tolerance)).any()) else stale + 1
            best = torch.minimum(best, loss)
            if patience is not None and stale >= patience:
                break
        return History(checks, torch.stack(losses), stopped_early=checks[-1] < steps)

    def _batches(
        self, features: Features, batch_size: int | None, seed: int
    ) -> Callable[[], tuple[Tensor, Tensor | None]]:
        if batch_size is not None:
            generator = torch.Generator().manual_seed(seed)
            return lambda: (features.sample(self.n_instances, batch_size, generator), None)
        if not isinstance(features, SparseFeatures):
            raise EntangleError(
                f"only SparseFeatures have an exact expectation, not {type(features).__name__}; give a batch_size"
            )
        rows, weights = features.quadrature()
        exact = (rows.unsqueeze(0), weights)
        return lambda: exact

    @property
    def dictionaries(self) -> Float[Tensor, "instance feature hidden"]:
        """The encoder with a row per feature, as metrics take it: `entangle.entanglement(model.dictionaries[0])`."""
        return self.W.detach().mT

    def norms(self) -> Float[Tensor, "instance feature"]:
        """How strongly each feature is represented: the length of its direction, 0 when it is dropped, 1 when kept."""
        return self.dictionaries.square().sum(-1).sqrt()

    def dimensionality(self) -> Float[Tensor, "instance feature"]:
        """The fraction of a dimension that each feature has to itself; see `metrics.feature_dimensionality`."""
        return torch.stack([feature_dimensionality(dictionary) for dictionary in self.dictionaries])

    def entanglement(self) -> Float[Tensor, "instance feature"]:
        """E_i = max_j |cos(W_i, W_j)| of every feature, dropped ones included: see `norms` for which these are."""
        return torch.stack([entanglement(dictionary) for dictionary in self.dictionaries])

    def directions(self, instance: int = 0, names: list[str] | None = None) -> Directions:
        """The features of one instance as named `Directions`, for everything that takes directions."""
        from entangle.directions import Directions

        named = names or [f"feature {i}" for i in range(self.n_features)]
        return Directions.stack(**dict(zip(named, self.dictionaries[instance], strict=True)))


def _activation(name: str | Activation) -> Activation:
    if callable(name):
        return name
    if name not in ACTIVATIONS:
        raise EntangleError(f"an activation is one of {', '.join(ACTIVATIONS)} or a function, not {name!r}")
    return ACTIVATIONS[name]
