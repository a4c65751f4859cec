"""Inference-time intervention: which heads, which way, how far (Li et al. 2023, arXiv 2306.03341, section 4).

    z_h  ->  z_h + alpha sigma_h theta_h          for each chosen head h

theta_h is a unit direction in the head's output z, sigma_h the standard deviation of the projections z_h . theta_h,
both from the fitting split; the heads are those whose probes do best on the selection split. Over all tokens this is a
constant added to the output of attention at each layer, b_l = sum_h alpha sigma_h W_O^h theta_h.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from entangle.activations import Activations
from entangle.data import Labels, as_text, read_labels
from entangle.errors import EntangleError
from entangle.interventions.base import finite, unit
from entangle.interventions.edit import Edit
from entangle.interventions.forms import AffineForm, Form
from entangle.probes import ProbeGrid

DirectionKind = Literal["mass_mean", "probe", "random"]
HeadChoice = Literal["probe", "random", "causal"]
Head = tuple[int, int]
HeadTest = Callable[["ITI"], Any]
"""Tries the heads of an intervention; what it gives has `signs`: 1 to keep, -1 to flip, 0 to drop, one a head."""


@dataclass(frozen=True, eq=False)
class ITI(Edit):
    """A fitted inference-time intervention. Make one with `ITI.fit`.

    `alpha` counts standard deviations along each head's direction; positive alpha moves toward the class `toward`. The
    names "weak", "mid" and "strong" stand for alpha 4, 8 and 12.

    Attributes:
        heads: (layer, head) of each chosen head, best first.
        directions: theta, unit rows.
        sigmas: Standard deviation of the fitting rows' projections on each direction, in the activations' units.
        toward: The number of the class that positive alpha moves to: 1 is what the labels' positive class was.
        direction: How the directions were found.
        selection: How the heads were chosen.
        seed: Seed of the splits and of whatever was drawn at random.
        label_names: What classes 0 and 1 were called; `None` where that is not known.
        of_layers: How many layers the tensor had that it was fitted on, if nothing told which of the model's they are:
            then it fits a model of that many layers alone.

    Example:
        >>> iti = en.ITI.fit(acts, labels, top_k=2)
        >>> len(iti.heads), iti.directions.shape  # two (layer, head), and a direction in each
        (2, torch.Size([2, 8]))
        >>> prompt = tokenizer(prompts[:1], return_tensors="pt")["input_ids"]
        >>> with en.steer(model, iti, alpha=8):
        ...     steered = model(prompt).logits
        ...
        >>> bool(torch.allclose(steered, iti.bake(model, alpha=8)(prompt).logits, atol=1e-4))
        True
    """

    heads: Sequence[Head]
    directions: Float[Tensor, "k d_head"]
    sigmas: Float[Tensor, " k"]
    toward: int = 0
    direction: str = "mass_mean"
    selection: str = "probe"
    seed: int = 0
    label_names: tuple[str, str] | None = None
    of_layers: int | None = field(default=None, kw_only=True)

    strengths: ClassVar[Mapping[str, float]] = {"weak": 4.0, "mid": 8.0, "strong": 12.0}

    def __post_init__(self) -> None:
        object.__setattr__(self, "heads", [(int(layer), int(head)) for layer, head in self.heads])
        if self.label_names is not None:
            negative, positive = self.label_names
            object.__setattr__(self, "label_names", (str(negative), str(positive)))
        object.__setattr__(self, "directions", finite(self.directions, "the directions of ITI"))
        object.__setattr__(self, "sigmas", finite(self.sigmas, "the sigmas of ITI"))
        if (
            self.directions.ndim != 2
            or self.sigmas.shape != (len(self.heads),)
            or len(self.directions) != len(self.heads)
        ):
            shapes = f"{list(self.directions.shape)} and {list(self.sigmas.shape)}"
            raise EntangleError(
                f"ITI of {len(self.heads)} heads needs directions [k, d_head] and sigmas [k], got {shapes}"
            )

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """The constant alpha sigma theta on each head."""
        steps = alpha * self.sigmas[:, None] * self.directions
        return [
            AffineForm("z", layer, head, bias=step, of_layers=self.of_layers)
            for (layer, head), step in zip(self.heads, steps, strict=True)
        ]

    def signed(self, signs: Sequence[int], *, selection: str | None = None) -> Self:
        """The same intervention in some of its heads, some of them the other way.

        Args:
            signs: 1 for a head that stays, -1 for one that is turned about, 0 for one that is left out.
            selection: What the choice of heads is then called; as it was by default.

        Raises:
            EntangleError: Another number of signs than of heads, other numbers, or no head that is left.

        Example:
            >>> iti = en.ITI.fit(acts, labels, top_k=2)
            >>> turned = iti.signed([0, -1])
            >>> turned.heads == iti.heads[1:], bool((turned.directions[0] == -iti.directions[1]).all())
            (True, True)
        """
        if len(signs) != len(self.heads) or not set(signs) <= {1, -1, 0}:
            raise EntangleError(f"{len(self.heads)} heads need a sign each, 1, -1 or 0; got {list(signs)}")
        kept = [number for number, sign in enumerate(signs) if sign]
        if not kept:
            raise EntangleError(
                f"none of the {len(self.heads)} heads is left: test them by more texts or a stronger push, or keep "
                'those that read the concept with heads="probe"'
            )
        turned = self.directions * torch.tensor(signs, dtype=self.directions.dtype)[:, None]
        return replace(
            self,
            heads=[self.heads[number] for number in kept],
            directions=turned[kept],
            sigmas=self.sigmas[kept],
            selection=self.selection if selection is None else selection,
        )

    @classmethod
    def fit(
        cls,
        z: Float[Tensor, "example layer head d_head"] | Activations,
        labels: Any,
        *,
        top_k: int = 30,
        direction: DirectionKind = "mass_mean",
        heads: HeadChoice = "probe",
        test: HeadTest | None = None,
        grid: ProbeGrid | None = None,
        layers: Sequence[int] | None = None,
        groups: Sequence[Any] | None = None,
        toward: Any = 0,
        positive: Any = None,
        seed: int = 0,
    ) -> Self:
        """Choose heads, directions and step lengths from per-head outputs of labelled texts.

        Three parts of the data do three things: directions and sigmas come from the fitting split, heads from the
        selection split, and the report split is not looked at.

        Args:
            z: The `Activations`, which know their layers and their model; or `acts["z"]` alone.
            labels: Two classes: one name, bool or whole number for each example, such as 1 = toxic and 0 = not (see
                `entangle.data.labels`).
            top_k: How many heads to steer.
            direction: `"mass_mean"`, the difference of the class means; `"probe"`, the probe's normal; or `"random"`, a
                control.
            heads: `"probe"`, those whose probes are most accurate on the selection split; `"causal"`, those of them
                that a test in the model keeps or turns about; or `"random"`, a control.
            test: The test of causal heads, given the candidates: `functools.partial` of
                `entangle.evaluation.causal_heads` with a model, its tokenizer and texts that fitted nothing here.
            grid: Probes of these very activations, so as not to fit them twice; its splits are used.
            layers: The model's layer at each index of z's layer axis. Where z is a bare tensor and neither this nor
                the grid names them, z must hold all layers of the model, or `steer`, `bake` and `export` refuse it.
            groups: One a row; rows of a group, such as paraphrases, never fall in different splits.
            toward: The class that positive alpha steers to: one of the labels; or, where no label is called so, 0 for
                the class that is not the positive one and 1 for that. 0 by default: away from what label 1 marks, as
                for toxicity. Pass 1 to steer to it, as for truthfulness.
            positive: The label that is class 1, all others being class 0.
            seed: Seed of the splits and of random heads and directions.

        Returns:
            The fitted intervention, to be used with `steer`, `bake` or `export`.

        Raises:
            EntangleError: If z is not `[example, layer, head, d_head]` or holds NaN, if there are not two classes, if
                there are fewer heads than `top_k`, if a head's direction is zero, or if z, `layers` and `grid` name
                different layers.
        """
        from entangle.probes import fit_probes
        from entangle.probes.splits import three_way

        fingerprint, named, z = _unpacked(z, layers, grid)
        layers = list(range(z.shape[1])) if named is None else named
        n_layers, n_heads = z.shape[1:3]
        if not 1 <= top_k <= n_layers * n_heads:
            raise EntangleError(
                f"top_k must be from 1 to the {n_layers * n_heads} heads in z, got {top_k}: choose fewer heads"
            )
        read = read_labels(labels, len(z), positive=positive, two=True)
        number = read.number_of(toward)
        codes = torch.from_numpy(read.codes)
        target = codes == number
        _check_choices(direction, heads, test)
        if grid is None and (direction == "probe" or heads != "random"):
            grid = fit_probes(z, labels, positive=positive, groups=groups, seed=seed, n_permutations=0, layers=named)
        if grid is not None:
            _check_grid(grid, z, read)
        split = three_way(codes, groups=groups, seed=seed) if grid is None else grid.split

        rows, target = z[split.fit].double(), target[split.fit]
        dead = (rows == rows[:1]).all(0).all(-1)
        generator = torch.Generator().manual_seed(seed)
        if grid is not None and heads != "random":
            cells = [(int(i), int(j)) for i, j in grid.top(top_k)]
        else:
            order = torch.randperm(n_layers * n_heads, generator=generator).tolist()
            cells = [divmod(index, n_heads) for index in order if not dead[divmod(index, n_heads)]][:top_k]
            if len(cells) < top_k:
                raise EntangleError(
                    f"top_k is {top_k}, but only {len(cells)} heads of z ever change: choose fewer heads"
                )

        if direction == "mass_mean":
            vectors = rows[target].mean(0) - rows[~target].mean(0)
        elif grid is not None and direction == "probe":
            vectors = grid.directions.double() * (1 if read.names[number] == as_text(grid.classes_[1]) else -1)
        else:
            vectors = torch.randn(z.shape[1:], generator=generator, dtype=torch.float64)
        theta = [unit(vectors[i, j], f"the direction of layer {layers[i]} head {j}") for i, j in cells]
        sigma = [(rows[:, i, j] @ v).std(correction=0) for (i, j), v in zip(cells, theta, strict=True)]
        fitted = cls(
            [(layers[i], j) for i, j in cells],
            torch.stack(theta).float(),
            torch.stack(sigma).float(),
            number,
            direction,
            heads,
            seed,
            (read.names[0], read.names[1]),
            of_layers=z.shape[1] if named is None else None,
            fingerprint=fingerprint,
        )
        if test is None:
            return fitted
        return fitted.signed([int(sign) for sign in test(fitted).signs], selection=heads)


def _check_choices(direction: str, heads: str, test: HeadTest | None) -> None:
    if direction not in ("mass_mean", "probe", "random"):
        raise EntangleError(f'direction must be "mass_mean", "probe" or "random", got {direction!r}')
    if heads not in ("probe", "random", "causal"):
        raise EntangleError(f'heads must be "probe", "causal" or "random", got {heads!r}')
    if (heads == "causal") is not (test is not None):
        raise EntangleError(
            'heads="causal" and test= belong together: activations do not tell what a head writes, so give '
            "test=functools.partial(entangle.evaluation.causal_heads, model, tokenizer, toward=..., away=...)"
        )


def _unpacked(
    z: Any, layers: Sequence[int] | None, grid: ProbeGrid | None
) -> tuple[Mapping[str, Any] | None, list[int] | None, Tensor]:
    """The model's fingerprint and the layer of each index, where they are known, and z itself, checked."""
    fingerprint = None if grid is None else grid.fingerprint
    named = {"layers": layers, "the grid": None if grid is None else grid.layers}
    if not isinstance(z, Tensor) and hasattr(z, "fingerprint"):
        fingerprint, named["the activations"], z = z.fingerprint, z.layers("z"), z["z"]
    z = finite(z, "z")
    if z.ndim != 4:
        raise EntangleError(
            f'ITI needs z as [example, layer, head, d_head], got {list(z.shape)}: collect sites="z", tokens="last"'
        )
    layers_by_source = {who: [int(layer) for layer in theirs] for who, theirs in named.items() if theirs is not None}
    for who, theirs in layers_by_source.items():
        if len(theirs) != z.shape[1]:
            raise EntangleError(f"{who} names {len(theirs)} layers but z has {z.shape[1]}: name one for each")
    if len({tuple(theirs) for theirs in layers_by_source.values()}) > 1:
        names = ", ".join(f"{who} {theirs}" for who, theirs in layers_by_source.items())
        raise EntangleError(f"z has one layer at each index, but they are named differently ({names}): name them once")
    return fingerprint, next(iter(layers_by_source.values()), None), z


def _check_grid(grid: ProbeGrid, z: Tensor, labels: Labels) -> None:
    """Raise an `EntangleError` unless the probes were fitted on activations of z's shape with these labels."""
    if grid.shape != tuple(z.shape[1:3]):
        raise EntangleError(
            f"grid has {list(grid.shape)} cells but z has {z.shape[1]} layers x {z.shape[2]} heads: pass its own"
        )
    classes = [as_text(value) for value in np.asarray(grid.classes_).tolist()]
    same = [classes[code] for code in grid.labels.tolist()] == [labels.names[code] for code in labels.codes.tolist()]
    if not same:
        raise EntangleError("grid was fitted with other labels than the ones given: pass the probes of these very rows")
