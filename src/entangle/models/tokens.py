"""What a tokenizer puts around a text, which ids a model has, and how long an input it takes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from typing import Any, NamedTuple

from torch import nn

from entangle.errors import EntangleError

UNLIMITED = 1_000_000  # tokenizers without a limit say 1e30
PROBES = ("a", "the", "0", ".", "A")  # ordinary texts, of which every tokenizer has one
POSITIONS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_target_positions")
NAMED = ("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


class Frame(NamedTuple):
    """The special tokens that a tokenizer's template puts around a text.

    Attributes:
        opening: Those before it, such as [CLS] or a beginning of sequence.
        closing: Those after it, such as [SEP] or an end of sequence.
    """

    opening: tuple[int, ...] = ()
    closing: tuple[int, ...] = ()


def frame(tokenizer: Any) -> Frame:
    """What this tokenizer puts before and after a text, found by looking: its template may be of any kind.

    Raises:
        EntangleError: The template changes the text between its special tokens.

    Example:
        >>> en.models.frame(tokenizer)  # this one puts nothing around a text
        Frame(opening=(), closing=())
    """
    with as_it_was(tokenizer):
        return _frame(tokenizer)


def _frame(tokenizer: Any) -> Frame:
    ordinary = (tokenizer.decode([token]) for token in range(min(len(tokenizer), 512)))
    for text in chain(PROBES, ordinary):  # one is enough most often, and nothing else is decoded then
        bare = list(tokenizer(text, add_special_tokens=False)["input_ids"]) if text.strip() else []
        if not bare or not {*bare}.isdisjoint(tokenizer.all_special_ids):
            continue
        full = list(tokenizer(text)["input_ids"])
        for start in range(len(full) - len(bare) + 1):
            if full[start : start + len(bare)] == bare:
                return Frame(tuple(full[:start]), tuple(full[start + len(bare) :]))
        raise EntangleError(
            f"the tokenizer makes {full} of {text!r} but {bare} without special tokens, so these cannot be told from "
            "the text: pass tokenised tensors"
        )
    return Frame()


@contextmanager
def as_it_was(tokenizer: Any) -> Iterator[None]:
    """A fast tokenizer remembers how it cut and padded last, also in the file it saves; leave it with what it had.

    Example:
        >>> with en.models.as_it_was(tokenizer):
        ...     tokenizer.backend_tokenizer.enable_truncation(max_length=2)
        ...
        >>> tokenizer.backend_tokenizer.truncation is None
        True
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    before = None if backend is None else (backend.truncation, backend.padding)
    try:
        yield
    finally:
        if backend is not None and before is not None and before != (backend.truncation, backend.padding):
            backend.no_truncation() if before[0] is None else backend.enable_truncation(**before[0])
            backend.no_padding() if before[1] is None else backend.enable_padding(**before[1])


def bos_id(tokenizer: Any) -> int:
    """The token that begins a sequence: `bos`, else `cls`, else `eos` (GPT-2 and OLMo begin documents with it).

    Raises:
        EntangleError: There is none of them.

    Example:
        >>> tokenizer.decode([en.models.bos_id(tokenizer)])
        '<|endoftext|>'
    """
    for name in ("bos_token_id", "cls_token_id", "eos_token_id"):
        token = getattr(tokenizer, name, None)
        if token is not None:
            return int(token)
    raise EntangleError(
        "prepend_bos needs a tokenizer with a bos, cls or eos token, and this one has none: set tokenizer.bos_token"
    )


def pad_id(tokenizer: Any, model: nn.Module | None = None) -> int:
    """The id to pad with: the model's own, else the tokenizer's, else its end of sequence, else 0.

    Where the model masks pads, any id that its embedding has will do; the model's own comes first for the heads that
    look for it in the ids. One that the embedding does not have (a token added to the tokenizer alone, or -1) is passed
    over.

    Example:
        >>> tokenizer.decode([en.models.pad_id(tokenizer, model)])
        '<|endoftext|>'
    """
    size = None if model is None else vocabulary_size(model)
    own = getattr(_config(model), "pad_token_id", None)
    theirs = (getattr(tokenizer, name, None) for name in ("pad_token_id", "eos_token_id"))
    for token in (own, *theirs):
        if isinstance(token, int) and 0 <= token < (UNLIMITED if size is None else size):
            return token
    return 0


def special_ids(tokenizer: Any, model: nn.Module | None = None) -> frozenset[int]:
    """Ids that stand for no text wherever they are: beginning and end of a sequence, separators and padding.

    Without a tokenizer, those that the model's configuration names as beginning, end, separator or decoder start. Left
    out are an unknown word (it stands for text, also where a tokenizer pads with it), the mask, and whatever else a
    tokenizer calls special, such as the marks of a chat template.

    Example:
        >>> en.models.special_ids(tokenizer) == {tokenizer.bos_token_id}
        True
    """
    if tokenizer is not None:
        ids = {getattr(tokenizer, name, None) for name in NAMED}
        pad = getattr(tokenizer, "pad_token_id", None)
        ids |= {pad} if pad != getattr(tokenizer, "unk_token_id", None) else set()
    else:
        config = _config(model)
        listed = [getattr(config, name, None) for name in (*NAMED, "decoder_start_token_id")]
        ids = {token for entry in listed for token in (entry if isinstance(entry, list | tuple) else [entry])}
    return frozenset(token for token in ids if isinstance(token, int))


def vocabulary_size(model: nn.Module) -> int | None:
    """How many ids the model's input embedding has, where it is an ordinary one.

    Example:
        >>> en.models.vocabulary_size(model)
        512
    """
    try:
        embedding = model.get_input_embeddings()  # type: ignore[operator]
    except (AttributeError, NotImplementedError):
        return None
    return embedding.num_embeddings if isinstance(embedding, nn.Embedding) else None


def check_ids(rows: Iterable[Sequence[int]], model: nn.Module | None, what: str = "text") -> None:
    """Refuse ids that the model's embedding does not have.

    Raises:
        EntangleError: There is one; it names the first row and its place.

    Example:
        >>> en.models.check_ids([[5, 6], [7, 512]], model)
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: text 1 has id 512 at position 1, but the model's embedding has ...
    """
    size = None if model is None else vocabulary_size(model)
    most = UNLIMITED**2 if size is None else size
    for i, row in enumerate(rows):
        if row and not (min(row) >= 0 and max(row) < most):
            place, token = next((p, t) for p, t in enumerate(row) if not 0 <= t < most)
            has = f"the model's embedding has {size} ids, from 0 on" if size else "ids are 0 or more"
            raise EntangleError(
                f"{what} {i} has id {token} at position {place}, but {has}: use the model's own tokenizer, resize the "
                "model (resize_token_embeddings), or mask what is no token"
            )


def context_length(model: nn.Module | None, tokenizer: Any = None, *, in_decoder: bool = False) -> int:
    """Tokens in the longest input of this model and tokenizer, special tokens included; `UNLIMITED` where none says.

    Position tables that begin after the padding index (RoBERTa) hold fewer positions than the configuration says.
    Relative positions (T5) have no end.

    Args:
        model: The model; `None` for what the tokenizer says alone.
        tokenizer: Its tokenizer, if its own limit counts too.
        in_decoder: For the decoder of an encoder-decoder.

    Example:
        >>> en.models.context_length(model), en.models.context_length(None) == en.models.UNLIMITED
        (256, True)
    """
    limit = UNLIMITED if tokenizer is None else getattr(tokenizer, "model_max_length", None) or UNLIMITED
    return int(min(limit, UNLIMITED, _positions(model, in_decoder)))


def first_position(model: nn.Module) -> int:
    """The number of a text's first position: 0 but for models that begin after the padding index (RoBERTa).

    Example:
        >>> en.models.first_position(model)  # 2 for RoBERTa, which begins after its padding index
        0
    """
    size = _configured(_config(model), in_decoder=False)
    return max((m.padding_idx + 1 for m in _tables(model) if m.num_embeddings == size), default=0)


def _positions(model: nn.Module | None, in_decoder: bool) -> int:
    config = _config(model)
    size = _configured(config, in_decoder)
    if model is None or size is None:
        return UNLIMITED
    if getattr(config, "relative_attention_num_buckets", None) and not hasattr(config, "max_position_embeddings"):
        return UNLIMITED  # T5's n_positions is what it was trained on, not what it holds
    return size - first_position(model)


def _configured(config: Any, in_decoder: bool) -> int | None:
    own = "max_decoder_position_embeddings" if in_decoder else "max_encoder_position_embeddings"
    for name in (own, *POSITIONS):
        size = getattr(config, name, None)
        if isinstance(size, int) and size > 0:
            return size
    return None


def _tables(model: nn.Module) -> list[Any]:
    """Tables of positions that name one as padding."""
    return [
        module
        for name, module in model.named_modules()
        if "position" in name.rsplit(".", 1)[-1]
        and getattr(module, "padding_idx", None) is not None
        and hasattr(module, "num_embeddings")
    ]


def _config(model: nn.Module | None) -> Any:
    config = getattr(model, "config", None)
    text_config = getattr(config, "get_text_config", None)
    return config if text_config is None else text_config()
