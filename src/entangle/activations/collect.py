"""Run texts through a model and keep what was asked for: nothing above the last layer wanted is computed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

from entangle.activations.activations import Activations
from entangle.activations.capture import capture, check_dtype, run_until_seen
from entangle.activations.disk.shards import fill, shard_bounds
from entangle.activations.disk.store import Store
from entangle.activations.inputs.chat import Turn
from entangle.activations.inputs.examples import Examples
from entangle.activations.inputs.reading import examples_from, reads_decoder
from entangle.activations.inputs.tokens import Tokens, select, special_note
from entangle.errors import EntangleError
from entangle.models.atlas import Atlas
from entangle.models.fingerprint import fingerprint
from entangle.models.loading.held import held, own_tokenizer
from entangle.models.place import AtlasError, Place
from entangle.models.refusals import refuse_compiled

Inputs = Sequence[str] | Sequence[Sequence[Mapping[str, Any]]] | Mapping[str, Any] | Iterable[Mapping[str, Any]]


def collect(
    model: Any,
    tokenizer: Any,
    texts: Inputs,
    *,
    sites: str | Sequence[str] = "z",
    layers: int | Sequence[int] | None = None,
    tokens: Tokens = "last",
    max_length: int | None = None,
    batch_tokens: int = 8192,
    dtype: torch.dtype | None = None,
    prepend_bos: bool = False,
    special_tokens: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    atlas: Atlas | None = None,
    save_to: str | Path | None = None,
    shard_bytes: int = 256 * 2**20,
    store_dtype: torch.dtype | None = None,
    progress: bool = True,
) -> Activations:
    """Activations of texts at one or several sites of a model, on the user's untouched model.

    Texts are batched by length, padded on the right, and run without gradient and with dropout off; the forward stops
    once the last layer asked for has run, so no layer above it and no language-model head is computed. Slicing and
    moving to memory happen inside the hook. Every number equals, up to rounding, what the model computes for the text
    alone.

    Args:
        model: Any HuggingFace model, not compiled; or what holds one: a TransformerLens bridge, an nnsight or nnterp
            model, a PEFT model, a pipeline.
        tokenizer: Its tokenizer; `None` if `texts` are tensors, or where the model's holder keeps its tokenizer.
        texts: Strings; conversations, which the tokenizer's chat template writes; tokenised tensors, a mapping with
            `input_ids` and perhaps `attention_mask` (`[example pos]`, padded on either side); a mapping of images or
            sounds (`pixel_values`, `input_values`, `input_features`, examples first); for the decoder of an
            encoder-decoder, a mapping with `decoder_input_ids` too; or an iterable of such mappings, such as a
            DataLoader or a `datasets.Dataset`, whose inputs are held in memory.
        sites: Sites (`"z"`, `"resid_post"`, ...), TransformerLens names or module paths; one that names per layer asks
            for that layer.
        layers: Which layers (negative from the end); all that have the site by default.
        tokens: Which tokens of each text: `"last"`, `"first"`, `"mean"`, `"all"`, an integer, a mask, character spans,
            or a `Turn` of conversations; see `entangle.activations.inputs.tokens.select`.
        max_length: Keep at most so many tokens of a text, its special tokens included, as the tokenizer truncates
            (the first ones, unless its `truncation_side` is left); by default a text longer than the context is an
            error.
        batch_tokens: At most so many tokens, padding included, at once; on a CPU, where larger batches leave the
            caches and take longer, also at most 1024.
        dtype: Compute in `bfloat16` or `float16` (autocast: matrix products and attention; sums and norms stay as the
            model has them); by default in the model's own type. Faster on hardware made for it, and less exact.
        prepend_bos: Begin every text with the beginning-of-sequence token where neither it nor the tokenizer does.
        special_tokens: Whether `"mean"` and `"all"` take in beginning, end, separators and padding, which stand for no
            text and may be far from all that do. Without a tokenizer, they are those that the model's configuration
            names. Every other selection is taken literally: `"last"` is the closing token where there is one.
        chat_template_kwargs: For `tokenizer.apply_chat_template`: `add_generation_prompt`, `tools`, ...
        atlas: Where the sites are, if you have built one (of another stack, say).
        save_to: Stream to this directory in shards, for results larger than memory or a run that may be killed: the
            same call goes on where it stopped. Under `torchrun` or `accelerate launch` the processes share the shards.
        shard_bytes: About how large a shard may be; one is held in memory at a time.
        store_dtype: Keep the numbers in this type; by default in the one they are computed in.
        progress: Show a bar after two seconds.

    Returns:
        Activations, in the order of the texts, on the CPU; with `save_to`, read from disk when asked for.

    Raises:
        AtlasError: A site or layer that the model does not have.
        EntangleError: Input that cannot be used, or activations that are not finite; it names the text.

    Example:
        >>> acts = en.collect(model, tokenizer, texts[:3], sites=["z", "resid_post"], progress=False)
        >>> acts["z"].shape, acts["resid_post"].shape
        (torch.Size([3, 2, 4, 8]), torch.Size([3, 2, 32]))
        >>> acts = en.collect(model, tokenizer, texts[:3], sites="resid_post", layers=-1, tokens="all", progress=False)
        >>> acts["resid_post"].shape  # 48 tokens, one layer
        torch.Size([48, 1, 32])
    """
    refuse_compiled(held(model))
    tokenizer = own_tokenizer(model, tokenizer)
    atlas = atlas or Atlas(model)
    model = atlas.model
    check_dtype(model, dtype, store_dtype)
    wanted = resolve_sites(atlas, sites, layers)
    examples = read_inputs(
        atlas,
        texts,
        tokenizer,
        max_length=max_length,
        prepend_bos=prepend_bos,
        chat_template_kwargs=chat_template_kwargs,
    )
    selection = select(tokens, examples, tokenizer=tokenizer, special_tokens=special_tokens)
    meta = {
        "sites": list(wanted),
        "tokens": tokens if isinstance(tokens, str | int) else str(tokens) if isinstance(tokens, Turn) else "selected",
        "max_length": max_length,
        "prepend_bos": prepend_bos,
        **special_note(tokens, special_tokens, examples),
        "dtype": _name(dtype),
        "store_dtype": _name(store_dtype),
        "stack": atlas.stack,
        "attention": getattr(getattr(model, "config", None), "_attn_implementation", None),
        "inputs": examples.digest,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    prepared = partial(capture, model, atlas, wanted, examples, selection)
    run = partial(prepared, batch_tokens=batch_tokens, dtype=dtype, store_dtype=store_dtype)
    if save_to is None:
        data = run(progress=progress)
        return Activations(data, wanted, selection.rows, examples.ids, fingerprint(model), meta)
    places = [atlas.place(site, layer) for site, here in wanted.items() for layer in here]
    element = torch.empty((), dtype=store_dtype or dtype or next(model.parameters()).dtype).element_size()
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


def read_inputs(
    atlas: Atlas,
    texts: Inputs,
    tokenizer: Any,
    *,
    max_length: int | None = None,
    prepend_bos: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Examples:
    """The examples in `texts`, for the blocks of this atlas; `collect` describes the arguments.

    Example:
        >>> examples = en.activations.read_inputs(en.Atlas(model), texts[:2], tokenizer)
        >>> examples.lengths
        [20, 12]
    """

    def count(inputs: Mapping[str, Tensor]) -> int:
        place = next(atlas.place(site, layer) for site in atlas.sites for layer in atlas.layers(site))
        widths: list[int] = []
        run_until_seen(atlas.model, inputs, [(place, lambda x: widths.append(x.shape[1]))])
        return widths[0]

    return examples_from(
        texts,
        tokenizer,
        atlas.model,
        max_length=max_length,
        prepend_bos=prepend_bos,
        chat_template_kwargs=chat_template_kwargs,
        in_decoder=reads_decoder(atlas.model, atlas.blocks[0]),
        count=count,
    )


def resolve_sites(
    atlas: Atlas, sites: str | Sequence[str], layers: int | Sequence[int] | None = None
) -> dict[str, list[int]]:
    """The layers of each site that `sites` and `layers` ask for, in order.

    Raises:
        AtlasError: An unknown site, or a layer that does not have it.
    """
    asked_layers = layers if layers is None else [layers] if isinstance(layers, int) else [*layers]
    if asked_layers == []:
        raise EntangleError("collecting needs at least one layer, but none arrived: layers=None collects all")
    if not all(isinstance(layer, Integral) for layer in asked_layers or ()):
        raise EntangleError(f"layers must be whole numbers, not {layers!r}: layers=None collects all")
    # Counted from the end if negative, as in a list; one out of range is left for `place` to refuse.
    numbers = asked_layers and [layer + atlas.n_layers * (-atlas.n_layers <= layer < 0) for layer in asked_layers]
    wanted: dict[str, set[int]] = {}
    for name in [sites] if isinstance(sites, str) else sites:
        if "." in name:
            site, layer = atlas.resolve(name)
            wanted.setdefault(site, set()).add(layer)
        else:
            site_layers = atlas.layers(name) if numbers is None else numbers
            if not site_layers:
                atlas.place(name, 0)  # raises, with the reason
            wanted.setdefault(name, set()).update(site_layers)
    if not wanted:
        raise EntangleError("collecting needs at least one site, but none arrived: sites='z', say")
    for site, asked in wanted.items():
        _same_shape(site, [atlas.place(site, layer) for layer in sorted(asked)])
    return {site: sorted(asked) for site, asked in wanted.items()}


def _name(dtype: torch.dtype | None) -> str | None:
    return str(dtype).removeprefix("torch.") if dtype else None


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
