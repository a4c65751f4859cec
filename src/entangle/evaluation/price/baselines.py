"""The methods any steering result should stand beside, made of one set of activations."""

from __future__ import annotations

from typing import Any

import torch

from entangle.activations import Activations
from entangle.data import read_labels
from entangle.errors import EntangleError
from entangle.evaluation.price.methods import AtStrengths, Prompt, SelfDebias
from entangle.evaluation.price.places import shift_of_means
from entangle.interventions import ITI, Ablate, AddDirection, Erase
from entangle.probes import ProbeGrid, fit_probes


def baseline_methods(
    acts: Activations,
    labels: Any,
    *,
    top_k: int = 30,
    toward: Any = 0,
    positive: Any = None,
    seed: int = 0,
    grid: ProbeGrid | None = None,
) -> dict[str, Any]:
    """ITI and what it must beat, ready for `tradeoff`.

    - "ITI": the best heads by probe accuracy, along the difference of class means;
    - "random heads": as many heads drawn at random, along their own differences of means;
    - "random directions": the best heads, along random directions, the same number of standard deviations;
    - "CAA": one residual-stream vector (Rimsky et al. 2024), the difference of class means at the layer where it
      separates best on the selection split; alpha counts standard deviations along it, as for ITI;
    - "ablation": that direction removed at that layer, set to its mean (Arditi et al. 2024);
    - "LEACE": the concept erased at that layer (Belrose et al. 2023);
    - "prompting": an instruction before the text;
    - "self-debias": Schick et al. (2021).

    Heads and layer are chosen on the selection split, directions and scales on the fitting split.

    Args:
        acts: Activations with "z" and "resid_post", one row per text.
        labels: Two classes of any kind, such as 1 = toxic and 0 = not.
        top_k: Heads to steer.
        toward: The class to steer to, as for `ITI.fit`.
        positive: The label that is class 1, all others being class 0.
        seed: Of splits, random heads and random directions.
        grid: Probes of these very activations' "z", or of some of its layers, so as not to fit them twice; its split is
            used.

    Returns:
        Name -> edit or method.

    Raises:
        EntangleError: Activations without those sites, or anything `ITI.fit` refuses.

    Example:
        >>> methods = en.evaluation.baseline_methods(acts, labels, top_k=2, grid=grid)
        >>> list(methods)
        ['ITI', 'random heads', 'random directions', 'CAA', 'ablation', 'LEACE', 'prompting', 'self-debias']
        >>> len(methods["ITI"].heads) == len(methods["random heads"].heads)
        True
    """
    missing = [site for site in ("z", "resid_post") if site not in acts.sites]
    if missing:
        raise EntangleError(f'baselines need activations of {missing[0]}; collect(..., sites=["z", "resid_post"])')
    read = read_labels(labels, len(acts["z"]), positive=positive, two=True)
    y, toward = torch.from_numpy(read.codes), read.number_of(toward)
    there = acts.layers("z")
    if grid is None:
        grid = fit_probes(acts["z"], y, seed=seed, layers=there, n_permutations=0, progress=False)
    fitted = [int(layer) for layer in (there if grid.layers is None else grid.layers)]
    z = acts["z"] if fitted == there else acts["z"][:, [there.index(layer) for layer in fitted]]
    iti: dict[str, Any] = {"grid": grid, "top_k": top_k, "toward": toward, "seed": seed, "layers": fitted}

    resid = acts["resid_post"]
    options: dict[str, Any] = {"split": grid.split, "seed": seed, "n_permutations": 0, "progress": False}
    layers = fit_probes(resid, y, probe="mean_difference", **options)
    best = int(layers.top(1)[0][0])
    vector, mean = shift_of_means(resid[:, best][layers.split.fit], y[layers.split.fit] == toward)
    place: dict[str, Any] = {"site": "resid_post", "layer": acts.layers("resid_post")[best]}
    return {
        "ITI": ITI.fit(z, y, **iti),
        "random heads": ITI.fit(z, y, heads="random", **iti),
        "random directions": ITI.fit(z, y, direction="random", **iti),
        "CAA": AddDirection(vector, **place),
        "ablation": AtStrengths(Ablate(vector, mean=mean, **place)),
        "LEACE": AtStrengths(Erase.fit(resid[:, best][layers.split.fit], y[layers.split.fit], **place)),
        "prompting": Prompt(),
        "self-debias": SelfDebias(),
    }
