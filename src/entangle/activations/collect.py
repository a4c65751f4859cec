"""Run texts through a model and keep what was asked for: nothing above the last layer wanted is computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from tqdm import tqdm

from entangle.activations.activations import Activations
from entangle.activations.batching import accepts, takes, token_batches
from entangle.activations.inputs import Examples, examples_from
from entangle.activations.shards import fill, shard_bounds
from entangle.activations.store import Store
from entangle.activations.tokens import Selection, Tokens, select
from entangle.errors import EntangleError
from entangle.models.atlas import Atlas, AtlasError, Place
from entangle.models.fingerprint import fingerprint
from entangle.models.hooks import hooked, refuse_compiled
from entangle.models.trace import evaluating


def collect(
    model: nn.Module,
    tokenizer: Any,
    texts: Sequence[str] | Mapping[str, Any],
    *,
    sites: str | Sequence[str] = "z",
    layers: int | Sequence[int] | None = None,
    tokens: Tokens = "last",
    max_length: int | None = None,
    batch_tokens: int = 8192,
    dtype: torch.dtype | None = None,
    prepend_bos: bool = False,
    atlas: Atlas | None = None,
    save_to: str | Path | None = None,
    shard_bytes: int = 256 * 2**20,
    progress: bool = True,
) -> Activations:
    """Activations of texts at one or several sites of a model, on the user's untouched model.

    Texts are batched by length, padded on the right, and run without gradient and with dropout off; the forward stops
    once the last layer asked for has run, so no layer above it and no language-model head is computed. Slicing and
    moving to memory happen inside the hook. Every number equals, up to rounding, what the model computes for the text
    alone.

    Args:
        model: any HuggingFace model, not compiled.
        tokenizer: its tokenizer; `None` if `texts` are tensors.
        texts: strings; or tokenised tensors, a mapping with `input_ids` and perhaps `attention_mask` (`[example pos]`,
            padded on either side).
        sites: sites (`"z"`, `"resid_post"`, ...), TransformerLens names or module paths; one that names a layer asks
            for that layer.
        layers: which layers (negative from the end); all that have the site by default.
        tokens: which tokens of each text: see `entangle.activations.tokens.select`.
        max_length: keep the first so many tokens of a text; by default a text longer than the context is an error.
        batch_tokens: at most so many tokens, padding included, at once.
        dtype: store in this type, and for `bfloat16` or `float16` also compute in it (autocast). The model's own by
            default.
        prepend_bos: begin every text with the beginning-of-sequence token where the tokenizer does not.
        atlas: where the sites are, if you have built one (of another stack, say).
        save_to: stream to this directory in shards, for results larger than memory or a run that may be killed: the
            same call goes on where it stopped. Under `torchrun` or `accelerate launch` the processes share the shards.
        shard_bytes: about how large a shard may be; one is held in memory at a time.
        progress: show a bar after two seconds.

    Returns:
        Activations, in the order of the texts, on the CPU; with `save_to`, read from disk when asked for.

    Raises:
        AtlasError: a site or layer that the model does not have.
        EntangleError: input that cannot be used, or activations that are not finite; it names the text.
    """
    refuse_compiled(model)
    atlas = atlas or Atlas(model)
    model = atlas.model
    wanted = resolve_sites(atlas, sites, layers)
    examples = examples_from(texts, tokenizer, model, max_length=max_length, prepend_bos=prepend_bos)
    selection = select(tokens, examples, texts=texts, tokenizer=tokenizer)
    meta = {
        "sites": list(wanted),
        "tokens": tokens if isinstance(tokens, str | int) else "selected",
        "max_length": max_length,
        "prepend_bos": prepend_bos,
        "dtype": str(dtype).removeprefix("torch.") if dtype else None,
        "stack": atlas.stack,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    run = partial(capture, model, atlas, wanted, examples, selection, batch_tokens=batch_tokens, dtype=dtype)
    if save_to is None:
        data = run(progress=progress)
        return Activations(data, wanted, selection.rows, examples.ids, fingerprint(model), meta)
    places = [atlas.place(site, layer) for site, here in wanted.items() for layer in here]
    element = torch.empty((), dtype=dtype or next(model.parameters()).dtype).element_size()
    store = Store.create(
        save_to,
        input_ids=examples.ids,
        rows=selection.rows,
        bounds=shard_bounds(selection, element * sum(place.size for place in places), shard_bytes),
        layers=wanted,
        fingerprint=fingerprint(model),
        meta=meta,
    )
    fill(store, run, progress=progress)
    return Activations.load(store.directory, check=False)


def resolve_sites(
    atlas: Atlas, sites: str | Sequence[str], layers: int | Sequence[int] | None = None
) -> dict[str, list[int]]:
    """The layers of each site that `sites` and `layers` ask for, in order.

    Raises:
        AtlasError: an unknown site, or a layer that does not have it.
    """
    asked_layers = [layers] if isinstance(layers, int) else layers
    # Counted from the end if negative, as in a list; one out of range is left for `place` to refuse.
    chosen = asked_layers and [layer + atlas.n_layers * (-atlas.n_layers <= layer < 0) for layer in asked_layers]
    wanted: dict[str, set[int]] = {}
    for name in [sites] if isinstance(sites, str) else sites:
        if "." in name:
            site, layer = atlas.resolve(name)
            wanted.setdefault(site, set()).add(layer)
        else:
            here = atlas.layers(name) if chosen is None else chosen
            if not here:
                atlas.place(name, 0)  # raises, with the reason
            wanted.setdefault(name, set()).update(here)
    if not wanted:
        raise EntangleError("collecting needs at least one site, but none arrived: sites='z', say")
    for site, asked in wanted.items():
        _same_shape(site, [atlas.place(site, layer) for layer in sorted(asked)])
    return {site: sorted(asked) for site, asked in wanted.items()}


def capture(
    model: nn.Module,
    atlas: Atlas,
    wanted: Mapping[str, Sequence[int]],
    examples: Examples,
    selection: Selection,
    *,
    batch_tokens: int = 8192,
    dtype: torch.dtype | None = None,
    progress: bool = True,
    only: range | None = None,
) -> dict[str, Tensor]:
    """The selected rows of each site, `[row, layer, ...]`, as one tensor in memory; `collect` describes the rest.

    Args:
        only: a range of examples, to run these alone; all of them by default.
    """
    places = {site: [atlas.place(site, layer) for layer in layers] for site, layers in wanted.items()}
    only = range(len(examples)) if only is None else only
    first_row, n_rows = selection.starts[only.start], selection.starts[only.stop] - selection.starts[only.start]
    data: dict[str, Tensor] = {}
    lengths = examples.lengths
    device = model_device(model)

    def keep(place: Place, column: int, indices: Sequence[int]) -> Callable[[Tensor], None]:
        def fn(x: Tensor) -> None:
            _check_positions(x, place, (len(indices), max(lengths[i] for i in indices)))
            numbers, picked = selection.pick(x, indices)
            _check_finite(picked, place, selection.rows[numbers, 0])
            if place.site not in data:
                shape = (n_rows, len(places[place.site]), place.size)
                data[place.site] = torch.empty(shape, dtype=dtype or x.dtype)
            data[place.site][numbers - first_row, column] = picked.to("cpu", data[place.site].dtype)

        return fn

    with tqdm(total=len(only), desc="capture", unit="text", delay=2, disable=not progress) as bar:
        same = not takes(model, "attention_mask")  # it could not tell padding from text
        for batch in token_batches([lengths[i] for i in only], batch_tokens, same_length=same):
            indices = [only[i] for i in batch]
            hooks = [(p, keep(p, i, indices)) for here in places.values() for i, p in enumerate(here)]
            run_until_seen(model, examples.batch(indices, model, device), hooks, dtype=dtype)
            bar.update(len(indices))
    return {site: data[site].reshape(*data[site].shape[:2], *here[0].shape) for site, here in places.items()}


def run_until_seen(
    model: nn.Module,
    inputs: Mapping[str, Tensor],
    hooks: Sequence[tuple[Place, Callable[[Tensor], None]]],
    *,
    dtype: torch.dtype | None = None,
) -> None:
    """Run the model and stop as soon as every place has been seen, with no hook left behind.

    Raises:
        EntangleError: the model ran to its end without passing one of the places.
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
    low = dtype in (torch.bfloat16, torch.float16)
    autocast = torch.autocast(model_device(model).type, dtype) if low else nullcontext()
    with torch.no_grad(), autocast, evaluating(model), hooked((p, watched(p, fn)) for p, fn in hooks):
        try:
            model(**inputs, **arguments)
        except _EverythingSeen:
            return
    missed = ", ".join(f"{site} of layer {layer}" for site, layer in sorted(unseen))
    raise EntangleError(f"the model ran without passing {missed}: build the Atlas with inputs like these")


class _EverythingSeen(BaseException):  # not an Exception: a model that catches those must not catch this
    """Ends a forward that has nothing left to show."""


def _same_shape(site: str, places: Sequence[Place]) -> None:
    first = places[0]
    for place in places:
        if (place.n_heads, place.size) != (first.n_heads, first.size):
            what = ("heads", first.n_heads, place.n_heads)
            if first.n_heads == place.n_heads:
                what = ("numbers a token", first.size, place.size)
            raise AtlasError(
                f"{site} has {what[1]} {what[0]} in layer {first.layer} but {what[2]} in layer {place.layer}; "
                "collect them separately with layers=[...]"
            )


def _check_positions(x: Tensor, place: Place, expected: tuple[int, int]) -> None:
    if x.shape[:2] != expected:
        raise EntangleError(
            f"{place.site} of layer {place.layer} has {tuple(x.shape[:2])} positions for {expected} tokens: the model "
            "adds "
            "or merges some, so that they cannot be matched to the text"
        )


def _check_finite(picked: Tensor, place: Place, examples: Tensor) -> None:
    finite = picked.isfinite().all(-1)
    if not finite.all():
        example = int(examples[int((~finite.cpu()).nonzero()[0])])
        raise EntangleError(
            f"{place.site} of layer {place.layer} is not finite for text {example}: check the weights, or run in "
            "float32 if the model is "
            "in half precision"
        )


def model_device(model: nn.Module) -> torch.device:
    """Where a model takes its inputs: the device of its first parameter."""
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
