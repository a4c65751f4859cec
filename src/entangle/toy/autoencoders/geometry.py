"""Which polytope a set of feature directions forms (Elhage et al. 2022, "The Geometry of Superposition").

Features of a toy model fall into groups that are orthogonal to one another (a tegum product); each group is a small
polytope, known by the cosines between its vertices.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.errors import EntangleError
from entangle.metrics import clusters, cosines


def _square_antiprism() -> Float[Tensor, "vertex 3"]:
    """Eight points on a sphere as far apart as they go: two squares, turned by 45 degrees (the Thomson solution)."""
    height = 0.5603  # of each square over the equator, on the unit sphere
    radius = math.sqrt(1 - height**2)
    turns = torch.arange(8) * math.pi / 4
    heights = torch.tensor([height, -height]).repeat(4)
    return torch.stack([radius * turns.cos(), radius * turns.sin(), heights], dim=1)


def _polygon(n: int) -> Float[Tensor, "vertex 2"]:
    turns = torch.arange(n) * 2 * math.pi / n
    return torch.stack([turns.cos(), turns.sin()], dim=1)


def _simplex(n_vertices: int) -> Float[Tensor, "vertex vertex"]:
    return torch.eye(n_vertices) - 1 / n_vertices


POLYTOPES: dict[str, Float[Tensor, "vertex d"]] = {
    "antipodal pair": torch.tensor([[1.0], [-1.0]]),
    "triangle": _polygon(3),
    "tetrahedron": _simplex(4),
    "pentagon": _polygon(5),
    "5-cell": _simplex(5),
    "square antiprism": _square_antiprism(),
}
# Orthogonal unions that have a name of their own.
UNIONS = {
    ("antipodal pair", "antipodal pair"): "square",
    ("antipodal pair", "antipodal pair", "antipodal pair"): "octahedron",
    ("antipodal pair", "triangle"): "triangular bipyramid",
    ("antipodal pair", "pentagon"): "pentagonal bipyramid",
}


@dataclass(frozen=True)
class Polytope:
    """A group of features that are entangled with one another and orthogonal to all others.

    Attributes:
        name: "dedicated dimension" for a single feature; a name of `POLYTOPES`; else "irregular".
        features: Indices of its features.
        deviation: Largest difference between its cosines and the ideal polytope's, sorted; NaN where irregular.

    Example:
        >>> pair = en.toy.geometry(torch.tensor([[1.0], [-1.0]])).polytopes[0]
        >>> pair.name, pair.features, round(pair.deviation, 3)
        ('antipodal pair', (0, 1), 0.0)
    """

    name: str
    features: tuple[int, ...]
    deviation: float


@dataclass(frozen=True)
class Geometry:
    """The polytopes of one set of features.

    Attributes:
        polytopes: Largest first.
        dropped: Features that are not represented.

    Example:
        >>> found = en.toy.geometry(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, 0.01]]))
        >>> found.name
        'antipodal pair + dedicated dimension'
        >>> found.dropped
        (3,)
    """

    polytopes: tuple[Polytope, ...]
    dropped: tuple[int, ...]

    @property
    def name(self) -> str:
        """One name for the whole, such as "pentagon", "octahedron", or "triangle + 2 x dedicated dimension"."""
        names = sorted(polytope.name for polytope in self.polytopes)
        if tuple(names) in UNIONS:
            return UNIONS[tuple(names)]
        counts = Counter(names)
        return " + ".join(name if n == 1 else f"{n} x {name}" for name, n in counts.items()) or "nothing"


def geometry(
    dictionary: Float[Tensor, "feature d"], *, min_norm: float = 0.5, orthogonal: float = 0.15, tolerance: float = 0.1
) -> Geometry:
    """Recognise the polytopes in a feature dictionary whose rows are as long as the features are strong.

    Args:
        dictionary: A row per feature, such as `SuperpositionModel.dictionaries[instance]`.
        min_norm: A feature shorter than this share of the longest counts as dropped.
        orthogonal: Absolute cosine below which two features do not join their groups.
        tolerance: How far a cosine may be from the ideal polytope's.

    Raises:
        EntangleError: Where all rows are zero.

    Example:
        >>> turns = torch.arange(5) * 2 * torch.pi / 5
        >>> en.toy.geometry(torch.stack([turns.cos(), turns.sin()], dim=1)).name
        'pentagon'
    """
    norms = dictionary.norm(dim=1)
    if not bool(norms.max() > 0):
        raise EntangleError("all features have length zero; geometry needs at least one that is represented")
    kept = (norms >= min_norm * norms.max()).nonzero().flatten()
    group = clusters(dictionary[kept], orthogonal)
    polytopes = [
        _recognise(dictionary[members], members.tolist(), tolerance)
        for members in (kept[group == number] for number in range(int(group.max()) + 1))
    ]
    dropped = (norms < min_norm * norms.max()).nonzero().flatten().tolist()
    return Geometry(tuple(polytopes), tuple(dropped))


def _recognise(vectors: Float[Tensor, "vertex d"], features: list[int], tolerance: float) -> Polytope:
    if len(features) == 1:
        return Polytope("dedicated dimension", tuple(features), 0.0)
    shape = _sorted_cosines(vectors)
    for name, ideal in POLYTOPES.items():
        if len(ideal) == len(features):
            deviation = float((shape - _sorted_cosines(ideal).to(shape)).abs().max())
            if deviation <= tolerance:
                return Polytope(name, tuple(features), deviation)
    return Polytope("irregular", tuple(features), math.nan)


def _sorted_cosines(vectors: Float[Tensor, "vertex d"]) -> Float[Tensor, " pair"]:
    above = torch.ones(len(vectors), len(vectors)).triu(1).bool()
    return cosines(vectors)[above].sort().values
