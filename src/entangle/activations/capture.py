"""The forward passes: hooks at every place wanted, and nothing computed above the last of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from entangle.activations.inputs.examples import Examples
from entangle.activations.inputs.tokens import Selection
from entangle.errors import EntangleError
from entangle.models.atlas import Atlas
from entangle.models.hooks import hooked
from entangle.models.place import Place
from entangle.models.rows import accepts, at_once
from entangle.models.trace import evaluating
from entangle.progress import progress_bar

LOW = (torch.bfloat16, torch.float16)
STORED = (*LOW, torch.float32, torch.float64)


def capture(
    model: nn.Module,
    atlas: Atlas,
    wanted: Mapping[str, Sequence[int]],
    examples: Examples,
    selection: Selection,
    *,
    batch_tokens: int = 8192,
    dtype: torch.dtype | None = None,
    store_dtype: torch.dtype | None = None,
    progress: bool = True,
    only: range | None = None,
) -> dict[str, Tensor]:
    """The selected rows of each site, `[row, layer, ...]`, as one tensor in memory; `collect` describes the rest.

    Args:
        only: A range of examples, to run these alone; all of them by default.

    Example:
        >>> atlas = en.Atlas(model)
        >>> examples = en.activations.read_inputs(atlas, texts[:3], tokenizer)
        >>> selection = en.activations.select("last", examples)
        >>> en.activations.capture(model, atlas, {"z": [1]}, examples, selection, progress=False)["z"].shape
        torch.Size([3, 1, 4, 8])
    """
    places = {site: [atlas.place(site, layer) for layer in layers] for site, layers in wanted.items()}
    only = range(len(examples)) if only is None else only
    first_row, n_rows = selection.starts[only.start], selection.starts[only.stop] - selection.starts[only.start]
    data: dict[str, Tensor] = {}
    lengths = examples.lengths
    device = model_device(model)

    def keep(place: Place, column: int, indices: Sequence[int]) -> Callable[[Tensor], None]:
        width = max(lengths[i] for i in indices)

        def fn(x: Tensor) -> None:
            _check_positions(x, place, (len(indices), width))
            numbers, picked = selection.pick(x, indices)
            picked = picked.to("cpu", store_dtype or dtype or x.dtype)
            _check_finite(picked, place, selection.rows[numbers, 0])
            if place.site not in data:
                data[place.site] = picked.new_empty(n_rows, len(places[place.site]), place.size)
            data[place.site][numbers - first_row, column] = picked

        return fn

    # Around all batches, so that the weights are cast once; autocast keeps them until it ends.
    computing = torch.autocast(device.type, dtype) if dtype in LOW else nullcontext()
    with computing, progress_bar(total=len(only), desc="capture", unit="text", delay=2, disable=not progress) as bar:
        for indices in examples.batches(only, at_once(batch_tokens, device), model):
            hooks = [(p, keep(p, i, indices)) for here in places.values() for i, p in enumerate(here)]
            run_until_seen(model, examples.batch(indices, model, device), hooks)
            bar.update(len(indices))
    return {site: data[site].reshape(*data[site].shape[:2], *here[0].shape) for site, here in places.items()}


def run_until_seen(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    hooks: Sequence[tuple[Place, Callable[[Tensor], None]]],
) -> None:
    """Run the model and stop as soon as every place has been seen, with no hook left behind.

    Raises:
        EntangleError: The model ran to its end without passing one of the places.
    """
    unseen = {(place.site, place.layer) for place, _ in hooks}

    def watched(place: Place, fn: Callable[[Tensor], None]) -> Callable[[Tensor], None]:
        def seen(x: Tensor) -> None:
            fn(x)
            unseen.discard((place.site, place.layer))
            if not unseen:
                raise _EverythingSeen

        return seen

    arguments: dict[str, Any] = {"use_cache": False} if accepts(model, "use_cache") else {}
    with torch.no_grad(), evaluating(model), hooked(((p, watched(p, fn)) for p, fn in hooks), mine=True):
        try:
            model(**inputs, **arguments)
        except _EverythingSeen:
            return
    missed = ", ".join(f"{site} of layer {layer}" for site, layer in sorted(unseen))
    raise EntangleError(f"the model ran without passing {missed}: build the Atlas with inputs like these")


class _EverythingSeen(BaseException):  # not an Exception: a model that catches those must not catch this
    """Ends a forward that has nothing left to show."""


def _check_positions(x: Tensor, place: Place, expected: tuple[int, int]) -> None:
    if x.shape[:2] != expected:
        raise EntangleError(
            f"{place.site} of layer {place.layer} has {tuple(x.shape[:2])} positions for {expected} tokens: the model "
            "adds or merges some, so that they cannot be matched to the text"
        )


def _check_finite(picked: Tensor, place: Place, examples: Tensor) -> None:
    finite = picked.isfinite().all(-1)
    if not finite.all():
        example = int(examples[int((~finite).nonzero()[0])])
        raise EntangleError(
            f"{place.site} of layer {place.layer} is not finite for text {example}: check the weights, or run "
            "and store in float32 if it is in half precision"
        )


def check_dtype(model: nn.Module, dtype: torch.dtype | None, store_dtype: torch.dtype | None = None) -> None:
    """Refuse a type that the model's forward cannot be brought to compute in, or that cannot hold activations.

    Raises:
        EntangleError: It is neither the model's own, `bfloat16` nor `float16`, or `store_dtype` is none of `STORED`.
    """
    if store_dtype is not None and not store_dtype.is_floating_point:
        raise EntangleError(
            f"store_dtype must be a floating type; got {store_dtype}, which would cut the numbers off: use float16, "
            "bfloat16 or float32"
        )
    if store_dtype is not None and store_dtype not in STORED:
        kinds = ", ".join(str(each) for each in STORED)
        raise EntangleError(f"store_dtype must be one of {kinds}, but {store_dtype} arrived: choose another")
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    if dtype not in (None, own, *LOW):
        raise EntangleError(
            f"dtype is what the model computes in, bfloat16, float16 or its own {own}, but {dtype} arrived: convert "
            "the model first, or pass store_dtype to keep the numbers in that type"
        )


def model_device(model: nn.Module) -> torch.device:
    """Where a model takes its inputs: the device of its first parameter.

    Example:
        >>> en.activations.model_device(model)
        device(type='cpu')
    """
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
