"""The same method at other places: ITI in more or fewer heads and in other layers, one vector layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from entangle.activations import Activations
from entangle.data import read_labels
from entangle.errors import EntangleError
from entangle.interventions import ITI, AddDirection


def iti_places(
    acts: Activations,
    labels: Any,
    *,
    top_k: Sequence[int],
    layers: Mapping[str, Sequence[int]] | None = None,
    toward: Any = 0,
    positive: Any = None,
    seed: int = 0,
) -> dict[str, ITI]:
    """ITI at every number of heads in every set of layers, ready for `tradeoff`.

    Probes, directions and scales are fitted once; a smaller set of heads is a part of the larger one.

    Args:
        acts: Activations with "z", one row per text.
        labels: Two classes of any kind, such as 1 = toxic and 0 = not.
        top_k: Numbers of heads.
        layers: Name -> layers, such as {"early": [0, 1], "late": [4, 5]}; by default all layers together.
        toward: The class to steer to, as for `ITI.fit`.
        positive: The label that is class 1, all others being class 0.
        seed: Of the splits.

    Returns:
        "ITI 10 heads", or with named layers "ITI 10 heads early" -> edit.

    Raises:
        EntangleError: More heads than a set of layers has, layers without activations, or anything `ITI.fit` refuses.

    Example:
        >>> places = en.evaluation.iti_places(acts, labels, top_k=[1, 3])
        >>> {name: len(edit.heads) for name, edit in places.items()}
        {'ITI 1 heads': 1, 'ITI 3 heads': 3}
        >>> set(places["ITI 1 heads"].heads) <= set(places["ITI 3 heads"].heads)
        True
    """
    from entangle.interventions import ITI

    there = acts.layers("z")
    z = acts["z"]
    total = int((z.amax(0) > z.amin(0)).any(-1).sum())  # a head whose output never varies has no direction
    ranked = ITI.fit(acts, labels, top_k=total, toward=toward, positive=positive, seed=seed)
    edits = {}
    for name, chosen in {"": there}.items() if layers is None else layers.items():
        missing = sorted(set(chosen) - set(there))
        if missing:
            raise EntangleError(
                f"no activations of layer {missing[0]}; there are those of {', '.join(map(str, there))}"
            )
        inside = [i for i, (layer, _) in enumerate(ranked.heads) if layer in chosen]
        for k in top_k:
            if not 1 <= k <= len(inside):
                raise EntangleError(
                    f"top_k must be from 1 to the {len(inside)} heads of {name or 'all'} layers; got {k}"
                )
            best = inside[:k]
            edits[f"ITI {k} heads {name}".rstrip()] = replace(
                ranked,
                heads=[ranked.heads[i] for i in best],
                directions=ranked.directions[best],
                sigmas=ranked.sigmas[best],
            )
    return edits


def caa_places(
    acts: Activations,
    labels: Any,
    *,
    layers: Sequence[int] | None = None,
    toward: Any = 0,
    positive: Any = None,
    seed: int = 0,
) -> dict[str, AddDirection]:
    """One residual-stream vector (CAA) in each layer, ready for `tradeoff`; alpha counts standard deviations along it.

    Args:
        acts: Activations with "resid_post", one row per text.
        labels: Two classes of any kind, such as 1 = toxic and 0 = not.
        layers: Layers; all that there are by default.
        toward: The class to steer to, as for `ITI.fit`.
        positive: The label that is class 1, all others being class 0.
        seed: Of the splits; vectors and scales come from the fitting part.

    Returns:
        "CAA layer 3" -> edit.

    Raises:
        EntangleError: Activations without "resid_post" or without a layer.

    Example:
        >>> places = en.evaluation.caa_places(acts, labels)
        >>> list(places)
        ['CAA layer 0', 'CAA layer 1']
        >>> places["CAA layer 1"].vector.shape
        torch.Size([32])
    """
    from entangle.interventions import AddDirection
    from entangle.probes.splits import three_way

    read = read_labels(labels, len(acts["resid_post"]), positive=positive, two=True)
    target = torch.from_numpy(read.codes) == read.number_of(toward)
    fit = three_way(target, seed=seed).fit
    there = acts.layers("resid_post")
    edits = {}
    for layer in there if layers is None else layers:
        if layer not in there:
            raise EntangleError(f"no activations of layer {layer}; there are those of {', '.join(map(str, there))}")
        vector, _ = shift_of_means(acts["resid_post"][fit, there.index(layer)], target[fit])
        edits[f"CAA layer {layer}"] = AddDirection(vector, site="resid_post", layer=layer)
    return edits


def shift_of_means(
    rows: Float[Tensor, "example d_model"], target: Tensor
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    """One standard deviation along the difference of means, toward the target; and the mean of all rows."""
    x = rows.double()
    unit = torch.nn.functional.normalize(x[target].mean(0) - x[~target].mean(0), dim=0)
    return (unit * (x @ unit).std(correction=0)).float(), x.mean(0).float()
