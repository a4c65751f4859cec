"""What a model is run on: texts, conversations, tokens, images or sounds, as examples that can be batched anew."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from entangle.activations.inputs.chat import read_conversations
from entangle.activations.inputs.columns import Columns, columns_of, unpadded
from entangle.activations.inputs.examples import DecoderExamples, Examples, SignalExamples
from entangle.data import in_order, is_conversation
from entangle.errors import EntangleError
from entangle.models.rows import check_ids, context_length, encode_rows, pad_id, special_ids, takes

Count = Callable[[Mapping[str, Tensor]], int]
ENCODER = ("input_ids", "attention_mask")
DECODER = ("decoder_input_ids", "decoder_attention_mask")


def examples_from(
    texts: Any,
    tokenizer: Any,
    model: nn.Module,
    *,
    max_length: int | None = None,
    prepend_bos: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    in_decoder: bool = False,
    count: Count | None = None,
) -> Examples:
    """Whatever `collect` takes, as examples.

    Args:
        texts: Strings; conversations; a mapping of tensors; or an iterable of batches, such as a DataLoader.
        tokenizer: For strings and conversations.
        model: What they are for.
        max_length: Keep the first so many tokens of each.
        prepend_bos: Begin texts and conversations with the beginning-of-sequence token.
        chat_template_kwargs: For the chat template.
        in_decoder: Whether the positions wanted are those of an encoder-decoder's decoder (see `reads_decoder`).
        count: Tells how many positions the model makes of an example that is no text.

    Raises:
        EntangleError: Nothing to run, or something this model cannot be run on.
    """
    if not isinstance(texts, Mapping):
        if not isinstance(texts, Iterable):
            raise EntangleError(
                f"texts must be strings, conversations or tensors, but are of type {type(texts).__name__}"
            )
        texts = in_order(texts)
        if not texts:
            raise EntangleError("collecting needs at least one text, but none arrived")
        if isinstance(texts[0], str) or is_conversation(texts[0]):
            if in_decoder:
                raise EntangleError(
                    "a decoder with an encoder needs inputs for both: pass a mapping with input_ids and "
                    "decoder_input_ids, or choose the encoder with atlas=Atlas(model, stack='encoder')"
                )
            if getattr(model, "main_input_name", "input_ids") != "input_ids":
                raise EntangleError(
                    f"{type(model).__name__} reads {model.main_input_name}, but texts arrived: pass a mapping with it"
                )
            return _from_texts(texts, tokenizer, model, max_length, prepend_bos, chat_template_kwargs)
    if prepend_bos:
        raise EntangleError("prepend_bos works on strings, but tokenised tensors arrived: add the token to input_ids")
    columns = columns_of(texts)
    if not any(columns.values()):
        raise EntangleError("collecting needs at least one example, but none arrived")
    if in_decoder:
        return _for_decoder(columns, tokenizer, model, max_length)
    columns = {name: rows for name, rows in columns.items() if not name.startswith("decoder_")}
    if "input_ids" in columns:
        return _from_tokens(columns, tokenizer, model, max_length)
    return _from_signals(columns, model, count)


def reads_decoder(model: nn.Module, block: nn.Module) -> bool:
    """Whether a block of an encoder-decoder is the decoder's.

    Example:
        >>> en.activations.reads_decoder(model, en.Atlas(model).blocks[0])  # it has no encoder
        False
    """
    inner = model
    while (base := getattr(inner, "get_base_model", None)) is not None and base() is not inner:  # PEFT's wrappers
        inner = base()
    if not getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        return False
    decoder = getattr(inner, "get_decoder", None)
    return decoder is not None and any(module is block for module in decoder().modules())


def _from_texts(
    texts: list[Any],
    tokenizer: Any,
    model: nn.Module,
    max_length: int | None,
    prepend_bos: bool,
    template: Mapping[str, Any] | None,
) -> Examples:
    source = texts if isinstance(texts[0], str) else read_conversations(tokenizer, texts, template)
    if tokenizer is None:
        raise EntangleError("texts need a tokenizer, but None arrived: pass it, or pass tokenised tensors")
    strings = source if isinstance(source, list) else source.texts
    rows = encode_rows(
        tokenizer,
        strings,
        model=model,
        max_length=max_length,
        prepend_bos=prepend_bos,
        add_special_tokens=isinstance(source, list),  # a chat template writes its own
    )
    return Examples(
        rows.ids,
        pad_id(tokenizer, model),
        first=[0] * len(rows.ids),
        source=source,
        added=rows.added,
        special=special_ids(tokenizer, model),
    )


def _from_tokens(columns: Columns, tokenizer: Any, model: nn.Module, max_length: int | None) -> Examples:
    ids = columns["input_ids"]
    rest = {name: rows for name, rows in columns.items() if name not in ENCODER}
    _check_taken(rest, model)
    masks = columns.get("attention_mask", [torch.ones_like(row) for row in ids])
    special = special_ids(tokenizer, model)
    rows, first, parts = _cut("input_ids", ids, masks, max_length, special)
    per_token: dict[str, list[list[int]]] = {}
    beside: dict[str, list[Tensor]] = {}
    for name, tensors in rest.items():
        if all(x.shape == row.shape and not x.is_floating_point() for x, row in zip(tensors, ids, strict=True)):
            per_token[name] = [x[part].tolist() for x, part in zip(tensors, parts, strict=True)]
        elif len({x.shape for x in tensors}) == 1 and tensors[0].ndim > 1:
            beside[name] = tensors
        else:
            shapes = f"{tuple(tensors[0].shape)} beside {tuple(ids[0].shape)} input_ids"
            raise EntangleError(f"{name} must hold one integer a token, or one array an example, but is {shapes}")
    _check_context(rows, context_length(model))
    if not beside:  # else some ids may stand for images, which no embedding has
        check_ids(rows, model, "example")
    return Examples(rows, pad_id(tokenizer, model), per_token, first, beside, special=special)


def _for_decoder(columns: Columns, tokenizer: Any, model: nn.Module, max_length: int | None) -> DecoderExamples:
    if "decoder_input_ids" not in columns:
        raise EntangleError(
            f"a decoder needs decoder_input_ids, but the keys are {', '.join(columns)}: add them, or choose the "
            "encoder with atlas=Atlas(model, stack='encoder')"
        )
    ids = columns["decoder_input_ids"]
    masks = columns.get("decoder_attention_mask", [torch.ones_like(row) for row in ids])
    special = special_ids(tokenizer, model)
    rows, first, _ = _cut("decoder_input_ids", ids, masks, max_length, special)
    _check_context(rows, context_length(model, in_decoder=True))
    check_ids(rows, _decoder(model), "example")
    fill = pad_id(tokenizer, _decoder(model))
    rest = {name: rows for name, rows in columns.items() if name not in DECODER}
    _check_taken(rest, model)
    if "input_ids" in rest:
        encoder = _from_tokens(rest, tokenizer, model, None)
        return DecoderExamples(rows, fill, {}, first, {}, encoder=encoder, special=special)
    for name, tensors in rest.items():
        if len({x.shape for x in tensors}) > 1:
            raise EntangleError(f"the {name} of all examples must have one shape: pad them as the model expects")
    return DecoderExamples(rows, fill, {}, first, rest, special=special)


def _from_signals(columns: Columns, model: nn.Module, count: Count | None) -> SignalExamples:
    main = getattr(model, "main_input_name", None) or next(iter(columns))
    if main == "input_ids" or main not in columns or count is None:
        raise EntangleError(f"tokenised tensors need {main}, but the keys are {', '.join(columns)}")
    if "attention_mask" in columns:
        columns = _without_padding(columns, main)
    _check_taken(columns, model)
    n = len(columns[main])
    examples = SignalExamples([[] for _ in range(n)], 0, first=[0] * n, beside=columns)
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))
    positions: dict[tuple[object, ...], int] = {}
    for i in range(n):
        shape = tuple(rows[i].shape for rows in columns.values())
        if shape not in positions:
            positions[shape] = count(examples.batch([i], model, device))
        examples.positions.append(positions[shape])
    return examples


def _without_padding(columns: Columns, main: str) -> Columns:
    """Each sound cut to its own length, so that no padding is ever run; the mask is then not needed."""
    masks, rows = columns["attention_mask"], columns[main]
    rest = {name: tensors for name, tensors in columns.items() if name != "attention_mask"}
    if all(bool(mask.all()) for mask in masks):
        return rest
    if any(mask.shape != row.shape[:1] for mask, row in zip(masks, rows, strict=True)):
        raise EntangleError(
            f"the attention_mask {tuple(masks[0].shape)} of {main} {tuple(rows[0].shape)} does not follow its first "
            "axis, so padding cannot be taken off: leave the mask out, and the padding counts as signal"
        )
    parts = unpadded(main, rows, masks)
    return {**rest, main: [row[part] for row, part in zip(rows, parts, strict=True)]}


def _decoder(model: nn.Module) -> nn.Module:
    find = getattr(model, "get_decoder", None)
    decoder = find() if find is not None else None
    return model if decoder is None else decoder


def _check_context(rows: list[list[int]], context: int) -> None:
    for i, row in enumerate(rows):
        if len(row) > context:
            raise EntangleError(
                f"example {i} has {len(row)} tokens but the model's context is {context}: pass max_length={context} "
                "(--max-length)"
            )


def _cut(
    name: str, ids: list[Tensor], masks: list[Tensor], max_length: int | None, special: frozenset[int]
) -> tuple[list[list[int]], list[int], list[slice]]:
    """Each row without its padding and no longer than `max_length`, its first column, and the columns kept.

    Raises:
        EntangleError: Rows that are no integers, or one whose closing token `max_length` would cut off.
    """
    if max_length is not None and max_length < 1:
        raise EntangleError(f"max_length must be at least 1, but is {max_length}")
    for row in ids:
        if row.ndim != 1 or row.is_floating_point():
            raise EntangleError(f"{name} must be integers [example pos], but a row is {row.dtype} {tuple(row.shape)}")
    parts = unpadded(name, ids, masks)
    if max_length is not None:
        for i, (row, part) in enumerate(zip(ids, parts, strict=True)):
            closing = int(row[part.stop - 1])
            if part.stop - part.start > max_length and closing in special:
                raise EntangleError(
                    f"example {i} ends with the special token {closing}, which max_length={max_length} would cut off: "
                    "truncate where you tokenise, tokenizer(texts, truncation=True, max_length=...)"
                )
        parts = [slice(part.start, min(part.stop, part.start + max_length)) for part in parts]
    rows = [row[part].tolist() for row, part in zip(ids, parts, strict=True)]
    return rows, [part.start for part in parts], parts


def _check_taken(columns: Columns, model: nn.Module) -> None:
    for name in columns:
        if not takes(model, name):
            raise EntangleError(f"{type(model).__name__} takes no argument {name!r}: leave it out of the inputs")
