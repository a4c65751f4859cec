"""Every way of steering that a result should stand beside, by name, made of one set of activations."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from entangle.activations import Activations
from entangle.data import in_order, read_labels, same_index
from entangle.directions import Directions
from entangle.errors import EntangleError
from entangle.evaluation.methods.decoding import ContrastiveDecoding, DExperts, SelfDebias
from entangle.evaluation.methods.given import AtStrengths, Checkpoint, Prompt
from entangle.evaluation.methods.ingredients import MOST_TEXTS, Ingredients
from entangle.forecast import ShiftMetric
from entangle.interventions import (
    Ablate,
    AddDirection,
    Erase,
    GaussianTransport,
    Hold,
    KeepNorm,
    LinearTransport,
    Rotate,
)
from entangle.learning import learn
from entangle.models import own_tokenizer
from entangle.probes import PROBES, ProbeGrid, Split, encode_groups, fit_probes

USUAL = ("ITI", "random heads", "random directions", "CAA", "ablation", "LEACE", "prompting", "self-debias")
"""What `baseline_methods` hands out unless it is asked for others."""
CONTROLS = ("random heads", "random directions", "random")
"""Methods that a result must beat, and that are never its answer."""
ASKED_BY = {
    "checkpoint": "anti_expert= or expert=",
    "metric": "metric= (or model=, tokenizer= and clean=)",
    "words": "words= (or model=, tokenizer= and texts=)",
}


@dataclass(frozen=True)
class Recipe:
    """How a method is made.

    Attributes:
        make: Of the ingredients: an edit or method, or several by name.
        needs: Ingredients that it cannot do without.
    """

    make: Callable[[Ingredients], Any]
    needs: tuple[str, ...] = ()


def _direction(name: str, *needs: str) -> Recipe:
    return Recipe(lambda given: given.directions.edit(name), needs)


def _bought(name: str) -> Callable[[Ingredients], Any]:
    """A gradient's shift, at the layer where it is foretold to buy most of the selection texts' contrast."""

    def make(given: Ingredients) -> Any:
        selection = given.contrast("select")
        edits = {layer: given.directions.edit(name, layer) for layer in given.directions.vectors[name]}

        def bought(layer: int) -> float:
            if given.has("metric"):
                return given.metric.gain(edits[layer], selection)
            return selection.at([("resid_post", layer)]).buys(edits[layer].vector)

        return edits[max(edits, key=bought)]

    return make


def _by_source(given: Ingredients) -> Mapping[str, Any]:
    names = [name for name in given.directions.names if name.startswith("mean difference of ")]
    return {f"CAA of {name.removeprefix('mean difference of ')}": given.directions.edit(name) for name in names}


def _caa(given: Ingredients) -> AddDirection:
    return AddDirection(given.shift[0], **given.place)


def _carried(kind: type[GaussianTransport] | type[LinearTransport]) -> Callable[[Ingredients], Any]:
    def make(given: Ingredients) -> Any:
        x, y = given.fitting
        return kind.fit(x, y, **given.place, toward=given.toward)

    return make


def _held(given: Ingredients) -> Any:
    metric = given.metric if given.has("metric") else None
    return Hold.fit(_caa(given), given.held_normals, metric=metric)


def _learned(objective: str) -> Callable[[Ingredients], Any]:
    def make(given: Ingredients) -> Any:
        fitting, choosing = (
            [[given.text(i) for i in side] for side in given.sides(part, MOST_TEXTS)] for part in ("fit", "select")
        )
        fewest, fewer = (min(map(len, sides)) for sides in (fitting, choosing))
        return learn(
            given.model,
            given.tokenizer,
            *(side[:fewest] for side in fitting),
            method=objective,
            layers=given.place["layer"],
            clean=given.clean,
            selection=(choosing[0][:fewer], choosing[1][:fewer]),
            max_length=given.length,
            seed=given.seed,
            progress=given.progress,
        ).edit

    return make


IN_MODEL = ("model", "tokenizer", "texts")
RECIPES: dict[str, Recipe] = {
    "ITI": Recipe(lambda given: given.iti()),
    "ITI, causal heads": Recipe(lambda given: given.causal.iti, IN_MODEL),
    "random heads": Recipe(lambda given: given.iti(heads="random")),
    "random directions": Recipe(lambda given: given.iti(direction="random")),
    "CAA": Recipe(_caa),
    "CAA, norm kept": Recipe(lambda given: KeepNorm(_caa(given))),
    "CAA, others held": Recipe(_held, ("others",)),
    "rotation": Recipe(lambda given: Rotate(given.shift[0], **given.place)),
    "slerp": Recipe(lambda given: Rotate(given.shift[0], **given.place, slerp=True)),
    "Gaussian transport": Recipe(_carried(GaussianTransport)),
    "linear transport": Recipe(_carried(LinearTransport)),
    "CAA by source": Recipe(_by_source, ("sources",)),
    **{f"{name} probe": _direction(f"{name} probe") for name in PROBES if name != "mean_difference"},
    "LAT": _direction("LAT"),
    "centred PCA": _direction("centred PCA"),
    "contrast gradient": Recipe(_bought("contrast gradient"), IN_MODEL),
    "natural shift": Recipe(_bought("natural shift"), (*IN_MODEL, "metric")),
    **{
        f"learned, {objective}": Recipe(_learned(objective), (*IN_MODEL, "clean"))
        for objective in ("bipo", "ssv", "reft-r1")
    },
    "logit lens": _direction("logit lens", "words"),
    "SAE feature": _direction("SAE feature", "autoencoders"),
    "random": _direction("random"),
    "ablation": Recipe(lambda given: AtStrengths(Ablate(given.shift[0], mean=given.shift[1], **given.place))),
    "LEACE": Recipe(lambda given: AtStrengths(Erase.fit(*given.fitting, **given.place))),
    "prompting": Recipe(lambda given: Prompt()),
    "self-debias": Recipe(lambda given: SelfDebias()),
    "contrastive decoding": Recipe(lambda given: ContrastiveDecoding(given.amateur)),
    "DExperts": Recipe(lambda given: DExperts(given.anti_expert, given.expert), ("checkpoint",)),
    "expert": Recipe(lambda given: Checkpoint(given.expert), ("expert",)),
}
"""Every method that `baseline_methods` knows, in the order in which it hands them out."""


class Methods(dict[str, Any]):
    """Name -> edit or method, with what they were made of.

    Attributes:
        made_of: The ingredients: directions with their table, the test of heads, the metric.
        missing: Why a method that was asked for could not be made and is left out.

    Example:
        >>> methods = en.evaluation.baseline_methods(acts, labels, top_k=2, grid=grid)
        >>> len(methods.split.report)  # rows that no method has seen
        20
    """

    def __init__(self, methods: Mapping[str, Any], made_of: Ingredients, missing: Mapping[str, str]) -> None:
        super().__init__(methods)
        self.made_of, self.missing = made_of, dict(missing)

    @property
    def split(self) -> Split:
        """Rows that fitted, rows that chose, and rows for the report."""
        return self.made_of.split


def baseline_methods(
    acts: Activations,
    labels: Any,
    *,
    top_k: int = 30,
    toward: Any = 0,
    positive: Any = None,
    seed: int = 0,
    grid: ProbeGrid | None = None,
    names: Sequence[str] | Literal["all"] = USUAL,
    groups: Sequence[Any] | None = None,
    model: Any = None,
    tokenizer: Any = None,
    texts: Sequence[str] | None = None,
    sources: Sequence[Any] | None = None,
    pairs: Sequence[Any] | None = None,
    clean: Sequence[str] | None = None,
    metric: ShiftMetric | None = None,
    words: Directions | None = None,
    autoencoders: Sequence[Any] | None = None,
    others: Mapping[str, tuple[Activations, Any]] | None = None,
    expert: Any = None,
    anti_expert: Any = None,
    amateur: Any = None,
    strict: bool = False,
    warn: bool = True,
    progress: bool = False,
) -> Methods:
    """ITI and what it must beat, ready for `tradeoff`.

    In the heads' outputs:

    - "ITI": the best heads by probe accuracy, along the difference of class means;
    - "ITI, causal heads": those of them whose push moves the contrast of held-out texts, turned about where they push
      the wrong way (see `causal_heads`);
    - "random heads": as many heads drawn at random, along their own differences of means;
    - "random directions": the best heads, along random directions, the same number of standard deviations.

    In the residual stream, each where the selection rows tell it best; alpha counts standard deviations along it:

    - "CAA": the difference of class means (Rimsky et al. 2024); "CAA by source": one for each of `sources`, "CAA of
      NAME";
    - "CAA, norm kept": each token brought back to its length; "rotation", "slerp": turned toward CAA's direction;
      "Gaussian transport", "linear transport": the other class carried to the one that is steered to;
    - "CAA, others held": without what it does to the probes of `others`, at the least price where there is a metric;
    - "logistic probe", "lda probe", "ridge probe", "svm probe": the normal of each estimator;
    - "LAT", "centred PCA": the leading component of paired differences (see `leading_component`);
    - "contrast gradient", "natural shift": of the fitting texts' contrast, where they buy most of the selection texts'
      (see `entangle.forecast`);
    - "learned, bipo", "learned, ssv", "learned, reft-r1": a vector trained through the model on the fitting texts,
      where CAA is, stopped by the selection texts (see `entangle.learning.learn`); minutes each;
    - "logit lens": what raises the words of `words`, by default the tokens that tell the fitting texts apart best;
    - "SAE feature": the decoder's row of the feature that tells them apart best;
    - "random": a control;
    - "ablation": CAA's direction removed there, set to its mean (Arditi et al. 2024); "LEACE": the concept erased there
      (Belrose et al. 2023).

    At the output: "prompting", an instruction before the text; "self-debias" (Schick et al. 2021); "contrastive
    decoding" (Li et al. 2023), by default against the model after an anti-prompt; "DExperts" (Liu et al. 2021);
    "expert": that checkpoint in the model's place.

    Heads and layer are chosen on the selection split, directions and scales on the fitting split; nothing is made of
    the rows of the report split, nor of their texts.

    Args:
        acts: Activations with "z" and "resid_post", one row per text.
        labels: Two classes of any kind, such as 1 = toxic and 0 = not.
        top_k: Heads to steer.
        toward: The class to steer to, as for `ITI.fit`.
        positive: The label that is class 1, all others being class 0.
        seed: Of splits, random heads and random directions.
        grid: Probes of these very activations' "z", or of some of its layers, so as not to fit them twice; its split is
            used.
        names: Which ones; or "all", every one for which there is all it needs.
        groups: One per row; rows of a group, such as paraphrases, never fall in different parts of the split.
        model: The plain model, for methods that try or differentiate it.
        tokenizer: Its tokenizer.
        texts: The text of each row.
        sources: Where each row comes from.
        pairs: A name for each row, shared by rows that are a pair, as for `concept_directions`.
        clean: Clean documents, none of `texts`, to fit a metric on where none is given.
        metric: Prices of shifts at "resid_post", of texts that are none of `texts`.
        words: A direction of a set of words (see `Directions.from_unembedding`), up for the class that is steered to.
        autoencoders: Sparse autoencoders at "resid_post".
        others: Other concepts, which are to stay where they are: name -> activations with "resid_post", and labels.
        expert: A model of what is wanted, or where it lies.
        anti_expert: A model of what is unwanted, likewise.
        amateur: A model to decode against, likewise.
        strict: Whether a method that comes to nothing (no head passes its test, a vector does not converge) raises; by
            default it is left out, a warning says which and why, and `.missing` keeps the reason.
        warn: Whether to warn; without, `.missing` alone tells.
        progress: Show progress bars.

    Returns:
        Name -> edit or method, in the order of the names; `.split` and `.made_of` tell what they were made of.

    Raises:
        EntangleError: Activations without those sites, a method that needs what it does not get, a group in two parts
            of the split, or anything `ITI.fit` refuses.

    Example:
        >>> methods = en.evaluation.baseline_methods(acts, labels, top_k=2, grid=grid)
        >>> list(methods)
        ['ITI', 'random heads', 'random directions', 'CAA', 'ablation', 'LEACE', 'prompting', 'self-debias']
        >>> len(methods["ITI"].heads) == len(methods["random heads"].heads)
        True
        >>> en.evaluation.baseline_methods(acts, labels, top_k=2, grid=grid, names=["DExperts"])
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: "DExperts" needs anti_expert= or expert=; got None: give it, or leave ...
    """
    absent = [site for site in ("z", "resid_post") if site not in acts.sites]
    if absent:
        raise EntangleError(f'baselines need activations of {absent[0]}; collect(..., sites=["z", "resid_post"])')
    n = len(acts["z"])
    same_index(labels=labels, texts=texts, groups=groups, sources=sources, pairs=pairs)
    columns = {"texts": texts, "groups": groups, "sources": sources, "pairs": pairs}
    rows = {name: None if column is None else in_order(column, name) for name, column in columns.items()}
    for name, column in rows.items():
        if column is not None and len(column) != n:
            raise EntangleError(f"{name} must have one for each row; got {len(column)} for {n} rows")
    read = read_labels(labels, n, positive=positive, two=True)
    y = torch.from_numpy(read.codes)
    together = rows["pairs"] if rows["groups"] is None else rows["groups"]
    there = acts.layers("z")
    if grid is None:
        grid = fit_probes(acts["z"], y, groups=together, seed=seed, layers=there, n_permutations=0, progress=False)
    grid.split.check(y, encode_groups(together, n))
    given = Ingredients(
        acts,
        y,
        read.number_of(toward),
        grid,
        groups=together,
        top_k=top_k,
        seed=seed,
        model=model,
        tokenizer=own_tokenizer(model, tokenizer),
        texts=rows["texts"],
        sources=rows["sources"],
        pairs=rows["pairs"],
        clean=clean,
        given_metric=metric,
        words=words,
        autoencoders=autoencoders,
        others=others,
        expert=expert,
        anti_expert=anti_expert,
        amateur=amateur,
        progress=progress,
    )
    asked = _asked(names, given)
    given = replace(given, wanted=frozenset(asked))
    made: dict[str, Any] = {}
    missing: dict[str, str] = {}
    for name in asked:
        try:
            method = RECIPES[name].make(given)
        except EntangleError as error:
            if strict:
                raise
            missing[name] = str(error)
            if warn:
                warnings.warn(f'"{name}" is left out: {error}', stacklevel=2)
            continue
        made |= method if isinstance(method, Mapping) else {name: method}
    return Methods(made, given, missing)


def _asked(names: Sequence[str] | Literal["all"], given: Ingredients) -> list[str]:
    """The methods to make, all of which can be made."""
    if isinstance(names, str):
        if names != "all":
            raise EntangleError(f'names must be a list of methods, or "all"; got {names!r}')
        return [name for name, recipe in RECIPES.items() if all(map(given.has, recipe.needs))]
    for name in names:
        if name not in RECIPES:
            raise EntangleError(f"no method is called {name!r}; there are {', '.join(RECIPES)}")
        for need in RECIPES[name].needs:
            if not given.has(need):
                asked = ASKED_BY.get(need, f"{need}=")
                raise EntangleError(f'"{name}" needs {asked}; got None: give it, or leave the method out')
    return list(dict.fromkeys(names))
