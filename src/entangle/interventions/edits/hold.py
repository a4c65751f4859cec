"""Two concepts at once: an edit that leaves others where they are, and several edits none of which undoes another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.interventions.base import finite
from entangle.interventions.edit import Edit
from entangle.interventions.edits.directions import Compose
from entangle.interventions.forms import AffineForm, Form, Function, FunctionForm

# Readers whose scaled Gram matrix is worse conditioned than this cannot be told apart in single precision.
CONDITION = 1e10


@runtime_checkable
class Solves(Protocol):
    """Something that stands for a positive definite matrix by its inverse, such as a forecast's `spectrum()`."""

    def solve(self, g: Float[Tensor, "*batch d"], /) -> Float[Tensor, "*batch d"]:
        """The inverse times vectors."""


@runtime_checkable
class Fitted(Protocol):
    """A metric of several places, such as `ShiftMetric`."""

    def at(self, sites: str | None, layers: Sequence[int] | None, /) -> Fitted:
        """The metric of some of them."""

    def spectrum(self) -> Solves:
        """What solves in it."""


Metric = Float[Tensor, "d d"] | Solves | Fitted


@dataclass(frozen=True, eq=False)
class Hold(Edit):
    """An edit whose effect on other concepts is taken out of it.

        s -> s - G^-1 C' (C G^-1 C')^-1 [R s; 0]

    for the displacement s of each token. R are the readers to hold still, K those whose move is to stay as it was, C is
    [R; K] and G is a metric: the result moves no score x . r, moves every x . k by as much as before, and of all such
    displacements it is the nearest to s in G. Made with `Hold.fit`, and for several edits at once with `Hold.each`. It
    is linear in s, so what compiles still does.

    What is held is a linear score of this very site and layer. What later layers make of it may still move.

    Attributes:
        edit: What to do; `alpha` is its strength.
        still: R, `[k, d]`: normals of probes, or directions.
        ways: The rows of (C G^-1 C')^-1 C G^-1 that belong to R, `[k, d]`: what is taken off for each unit of score.

    Example:
        >>> rude, tense, _ = directions.vectors
        >>> push = en.AddDirection(rude, layer=1)
        >>> held = en.Hold.fit(push, still=tense, keep=rude)
        >>> x = torch.randn(4, 32)
        >>> bool(torch.allclose(held(x) @ tense, x @ tense, atol=1e-5))  # tense stays where it is
        True
        >>> bool(torch.allclose(held(x) @ rude, push(x) @ rude, atol=1e-5))  # and rudeness moves as before
        True
    """

    edit: Edit
    still: Float[Tensor, "k d"]
    ways: Float[Tensor, "k d"]

    def __post_init__(self) -> None:
        for name in ("still", "ways"):
            object.__setattr__(self, name, _rows(getattr(self, name), f"{name} of Hold"))
        if self.still.shape != self.ways.shape:
            raise EntangleError(
                f"Hold needs still and ways of one shape [k, d], got {list(self.still.shape)} and "
                f"{list(self.ways.shape)}: use Hold.fit"
            )

    @property
    def strongest(self) -> float:
        """The edit's."""
        return self.edit.strongest

    @classmethod
    def fit(
        cls,
        edit: Edit,
        still: Float[Tensor, "k d"],
        *,
        keep: Float[Tensor, "m d"] | None = None,
        metric: Metric | None = None,
    ) -> Self:
        """Solve the linear system for what an edit may do.

        Args:
            edit: An edit at one place.
            still: One direction or several whose scores x . r are to stay: normals of the probes that read them.
            keep: Directions whose scores are to move as much as by the edit alone; `None` lets them lose what they
                share with `still`.
            metric: What a displacement costs: a `ShiftMetric`, so that the change of the edit costs least language; a
                positive definite matrix `[d, d]`; or anything with `solve`. The plain inner product where `None`.

        Returns:
            The edit that holds them.

        Raises:
            EntangleError: If the edit acts at several places, or the directions depend on one another, so that one
                cannot move while another is held.
        """
        still = _rows(still, "still").double()
        kept = still[:0] if keep is None else _rows(keep, "keep").double()
        places = {(form.site, form.layer, form.head) for form in edit.forms()}
        if len(places) != 1:
            raise EntangleError(
                f"Hold needs an edit at one place, for its directions are of that place; this {type(edit).__name__} "
                f"acts at {len(places)}: hold each part by itself and Compose them"
            )
        ((site, layer, head),) = places
        widths = {still.shape[1], kept.shape[1], *(form.size for form in edit.forms() if form.size is not None)}
        if len(widths) > 1:
            raise EntangleError(
                f"Hold needs directions as wide as its edit; got widths {sorted(widths)}: take all of one site"
            )
        if isinstance(metric, Fitted):
            if head is not None:
                raise EntangleError(
                    f"a metric of all of {site} does not say what head {head} alone costs: give a matrix of the head's "
                    "own numbers, or leave metric out"
                )
            metric = metric.at(site, None if layer is None else [layer]).spectrum()
        readers = torch.cat([still, kept])
        raised = _raised(readers, metric)
        gram = readers @ raised.T
        scale = gram.diagonal().clamp_min(0).sqrt()
        if not (scale > 0).all() or torch.linalg.cond(gram / scale / scale[:, None]) > CONDITION:
            raise EntangleError(
                f"the {len(still)} directions to hold and {len(kept)} to keep depend on one another, so one cannot "
                "move while another stays: leave one out"
            )
        ways = torch.linalg.solve(gram, raised)[: len(still)]
        return cls(edit, still.float(), ways.float(), fingerprint=edit.fingerprint)

    @classmethod
    def each(
        cls,
        edits: Sequence[Edit],
        readers: Float[Tensor, "edit d"],
        *,
        still: Float[Tensor, "k d"] | None = None,
        metric: Metric | None = None,
    ) -> Compose:
        """Several edits at one place, each holding what the others are to move.

        Args:
            edits: Two edits or more.
            readers: For each, the direction whose score it is to move.
            still: Directions that none of them is to move.
            metric: As for `fit`.

        Returns:
            The edits in order. Edits that only add move each reader's score by as much together as its own edit does
            alone. Edits that depend on x see it as the edits before left it.

        Raises:
            EntangleError: As for `fit`; or not one reader for each edit.

        Example:
            >>> rude, tense, sentiment = directions.vectors
            >>> edits = [en.AddDirection(rude, layer=1), en.AddDirection(tense, layer=1)]
            >>> both = en.Hold.each(edits, torch.stack([rude, tense]), still=sentiment)
            >>> moved = both(torch.zeros(32)) @ directions.vectors.T
            >>> moved.round(decimals=4).abs()  # as by each alone, and sentiment not at all
            tensor([1., 1., 0.])
        """
        readers = _rows(readers, "readers")
        if len(readers) != len(edits) or len(edits) < 2:
            raise EntangleError(
                f"Hold.each needs two edits or more and a reader for each; got {len(edits)} and {len(readers)}"
            )
        always = readers[:0] if still is None else _rows(still, "still")
        held: list[Edit] = []
        for number, edit in enumerate(edits):
            others = [other for other in range(len(edits)) if other != number]
            held.append(cls.fit(edit, torch.cat([readers[others], always]), keep=readers[number], metric=metric))
        return Compose(held)

    def forms(self, alpha: float = 1.0) -> list[Form]:
        """The edit's own forms, each displacement less its part along what is held."""
        return [self._holding(form) for form in self.edit.forms(alpha)]

    def _holding(self, form: Form) -> Form:
        if isinstance(form, AffineForm):
            changed: dict[str, Any] = {
                name: self._less(tensor) for name in ("right", "bias") if (tensor := getattr(form, name)) is not None
            }
            return replace(form, **changed)
        if not isinstance(form, FunctionForm) or not form.edits:
            return form

        def make(device: torch.device, dtype: torch.dtype) -> Function:
            exact = torch.promote_types(dtype, torch.float32)
            function, still, ways = (
                form.prepare(device, exact),
                self.still.to(device, exact),
                self.ways.to(device, exact),
            )

            def hold(x: Tensor) -> Tensor:
                y = x.to(exact)
                move = function(y) - y
                return (y + move - (move @ still.T) @ ways).to(dtype)

            return hold

        return replace(form, make=make)

    def _less(self, moves: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        exact = moves.double()
        return (exact - (exact @ self.still.T.double()) @ self.ways.double()).to(moves.dtype)


def _rows(values: Any, what: str) -> Float[Tensor, "k d"]:
    rows = finite(values, what)
    rows = rows[None] if rows.ndim == 1 else rows
    if rows.ndim != 2 or not rows.shape[1]:
        raise EntangleError(f"{what} must be one direction [d] or several [k, d], got shape {list(rows.shape)}")
    return rows


def _raised(readers: Float[Tensor, "k d"], metric: Metric | None) -> Float[Tensor, "k d"]:
    """Each reader times the metric's inverse: the cheapest way to move its score."""
    if metric is None:
        return readers
    if isinstance(metric, Tensor):
        matrix = finite(metric, "the metric").double()
        d = readers.shape[1]
        if matrix.shape != (d, d):
            raise EntangleError(f"the metric must be [{d}, {d}] like the directions, got {list(matrix.shape)}")
        factor, info = torch.linalg.cholesky_ex((matrix + matrix.T) / 2)
        if info:
            raise EntangleError("the metric is not positive definite: add a multiple of the identity, or shrink it")
        solved: Tensor = torch.cholesky_solve(readers.T, factor).T
        return solved
    if not isinstance(metric, Solves):
        raise EntangleError(
            f"metric must be a ShiftMetric, a matrix [d, d] or something with solve, got {type(metric).__name__}"
        )
    return metric.solve(readers).double()
