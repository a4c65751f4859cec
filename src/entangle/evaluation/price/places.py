"""The same method at other places: ITI in more or fewer heads and in other layers, one vector layer by layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from jaxtyping import Float, Int
from torch import Tensor

from entangle.activations import Activations
from entangle.errors import EntangleError
from entangle.interventions import ITI, AddDirection

Labels = Int[Tensor, " example"] | Sequence[int]


def iti_places(
    acts: Activations,
    labels: Labels,
    *,
    top_k: Sequence[int],
    layers: Mapping[str, Sequence[int]] | None = None,
    toward: int = 0,
    seed: int = 0,
) -> dict[str, ITI]:
    """ITI at every number of heads in every set of layers, ready for `tradeoff`.

    Probes, directions and scales are fitted once; a smaller set of heads is a part of the larger one.

    Args:
        acts: Activations with "z", one row a text.
        labels: Two classes, such as 1 = toxic and 0 = not.
        top_k: Numbers of heads.
        layers: Name -> layers, such as {"early": [0, 1], "late": [4, 5]}; by default all layers together.
        toward: The class to steer to.
        seed: Of the splits.

    Returns:
        "ITI 10 heads", or with named layers "ITI 10 heads early" -> edit.

    Raises:
        EntangleError: More heads than a set of layers has, layers without activations, or anything `ITI.fit` refuses.
    """
    from entangle.interventions import ITI

    there = acts.layers("z")
    total = acts["z"].shape[1] * acts["z"].shape[2]
    ranked = ITI.fit(acts, torch.as_tensor(labels), top_k=total, toward=toward, seed=seed)
    found = {}
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
            found[f"ITI {k} heads {name}".rstrip()] = replace(
                ranked,
                heads=[ranked.heads[i] for i in best],
                directions=ranked.directions[best],
                sigmas=ranked.sigmas[best],
            )
    return found


def caa_places(
    acts: Activations, labels: Labels, *, layers: Sequence[int] | None = None, toward: int = 0, seed: int = 0
) -> dict[str, AddDirection]:
    """One residual-stream vector (CAA) in each layer, ready for `tradeoff`; alpha counts standard deviations along it.

    Args:
        acts: Activations with "resid_post", one row a text.
        labels: Two classes, such as 1 = toxic and 0 = not.
        layers: Layers; all that there are by default.
        toward: The class to steer to.
        seed: Of the splits; vectors and scales come from the fitting part.

    Returns:
        "CAA layer 3" -> edit.

    Raises:
        EntangleError: Activations without "resid_post" or without a layer.
    """
    from entangle.interventions import AddDirection
    from entangle.probes.splits import three_way

    y = torch.as_tensor(labels)
    fit = three_way(y, seed=seed).fit
    there = acts.layers("resid_post")
    found = {}
    for layer in there if layers is None else layers:
        if layer not in there:
            raise EntangleError(f"no activations of layer {layer}; there are those of {', '.join(map(str, there))}")
        vector, _ = shift_of_means(acts["resid_post"][fit, there.index(layer)], y[fit] == toward)
        found[f"CAA layer {layer}"] = AddDirection(vector, site="resid_post", layer=layer)
    return found


def shift_of_means(
    rows: Float[Tensor, "example d_model"], target: Tensor
) -> tuple[Float[Tensor, " d_model"], Float[Tensor, " d_model"]]:
    """One standard deviation along the difference of means, toward the target; and the mean of all rows."""
    x = rows.double()
    unit = torch.nn.functional.normalize(x[target].mean(0) - x[~target].mean(0), dim=0)
    return (unit * (x @ unit).std(correction=0)).float(), x.mean(0).float()
