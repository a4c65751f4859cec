"""Which tokens an edit is applied to, and how a forward pass tells which tokens it is computing."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from entangle.errors import EntangleError

Tokens = str | int | Tensor
Keep = bool | Tensor


@dataclass(eq=False)
class Pass:
    """One forward pass: the columns of the padded text it computes.

    Attributes:
        start: columns before these, computed in earlier passes and cached.
        size: columns computed now.
        prompt: columns of the prompt; the columns after it are generated.
        given: the mask, 0 at padding, for all columns up to the last one computed; `None` where
            nothing is padded.
        generating: whether `generate` runs it.
    """

    start: int
    size: int
    prompt: int
    given: Tensor | None
    generating: bool

    @functools.cached_property
    def mask(self) -> Bool[Tensor, "row column"] | None:
        """The mask as bool."""
        return None if self.given is None else self.given.bool()

    @property
    def padded(self) -> bool:
        """Whether there may be padding among the tokens computed now."""
        return self.given is not None and not (self.generating and self.start >= self.prompt)  # it pads prompts only

    @property
    def real(self) -> Bool[Tensor, "row pos"] | None:
        """True at real tokens among those computed now; `None` where all are."""
        return self.mask[:, self.start :] if self.padded and self.mask is not None else None

    def columns(self, device: torch.device) -> Int[Tensor, "1 pos"]:
        """The column of each token computed now."""
        return torch.arange(self.start, self.start + self.size, device=device)[None]

    def positions(self, device: torch.device) -> Int[Tensor, "row pos"]:
        """Each token's place in its own text, padding not counted; -1 before the first token."""
        return self.columns(device) if self.mask is None else self.mask.long().cumsum(1)[:, self.start :] - 1

    def prompt_lengths(self, device: torch.device) -> Int[Tensor, "row 1"]:
        """The real tokens of each row's prompt."""
        if self.mask is None:
            return torch.full((1, 1), self.prompt, device=device)
        ahead = max(0, self.prompt - self.mask.shape[1])  # a long prompt may run in chunks; its padding is on the left
        return self.mask[:, : self.prompt].sum(1, keepdim=True) + ahead


class Scope:
    """Which tokens: decides for each forward pass.

    Args:
        tokens: `"all"`; `"prompt"`; `"generated"`, everything after the prompt; an integer p, the tokens from position
            p of each text on, padding not counted, or for negative p from p before the end of its prompt on (-1: the
            prompt's last token and what follows); or a bool mask `[row, column]` over the padded prompts, False for
            everything after.

    Raises:
        EntangleError: if it is none of these.
    """

    def __init__(self, tokens: Tokens) -> None:
        known = (
            tokens in ("all", "prompt", "generated") if isinstance(tokens, str) else isinstance(tokens, int | Tensor)
        )
        if not known or isinstance(tokens, bool):
            raise EntangleError(
                f'tokens must be "all", "prompt", "generated", a position or a bool mask [row, column], got {tokens!r}'
            )
        if isinstance(tokens, Tensor) and (tokens.ndim != 2 or tokens.dtype != torch.bool):
            shape = f"{list(tokens.shape)} of {tokens.dtype}"
            raise EntangleError(f"a token mask must be bool [row, column], shaped as the input ids; got {shape}")
        self.tokens = tokens

    @property
    def is_all(self) -> bool:
        """Whether every token is in it, whatever the pass."""
        return isinstance(self.tokens, str) and self.tokens == "all"

    def keep(self, now: Pass, n_rows: int, device: torch.device) -> Keep:
        """The tokens of this pass that are in the scope.

        Args:
            now: the pass.
            n_rows: rows of the batch.
            device: where to put the answer.

        Returns:
            True for all, False for none, or a bool tensor `[row or 1, pos]`.

        Raises:
            EntangleError: if a mask does not fit the batch.
        """
        if isinstance(self.tokens, Tensor):
            return self._masked(self.tokens, now, n_rows, device)
        if isinstance(self.tokens, int):
            first = self.tokens if self.tokens >= 0 else now.prompt_lengths(device) + self.tokens
            return now.positions(device) >= first
        if self.tokens == "all":
            return True
        in_prompt = self.tokens == "prompt"
        if now.start >= now.prompt:
            return not in_prompt
        if now.start + now.size <= now.prompt:
            return in_prompt
        return (now.columns(device) < now.prompt) == in_prompt

    def _masked(self, mask: Tensor, now: Pass, n_rows: int, device: torch.device) -> Keep:
        rows, columns = mask.shape
        if columns != now.prompt or n_rows % rows or (n_rows != rows and not now.generating):
            raise EntangleError(
                f"the token mask is {rows} rows x {columns} columns, but the prompts are {n_rows} x {now.prompt}: "
                "shape it as the input ids"
            )
        if now.start >= columns:
            return False
        # generate() lays out beams and samples of a prompt as neighbouring rows.
        mask = mask.to(device).repeat_interleave(n_rows // rows, dim=0)[:, now.start : now.start + now.size]
        return torch.nn.functional.pad(mask, (0, now.size - mask.shape[1]))


class Timeline:
    """What a model is computing now: watches its forward passes and its `generate`, for every scope on that model at
    once.

    Use `Timeline.join(model)` and `leave`; the last to leave takes all of it off the model. While `generate` goes on
    from prompts that hold no padding, and no member's scope depends on columns, there is nothing to know about a pass:
    then it does not watch, and `now` is `None`.
    """

    _running: ClassVar[WeakKeyDictionary[nn.Module, Timeline]] = WeakKeyDictionary()

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.members = 0
        self.by_column = 0  # members that need to know which columns are computed
        self.now: Pass | None = None
        self._prompt: _Prompt | None = None
        self._last_prompt = 0
        self._handles: list[Any] = []
        self._two_texts = bool(getattr(getattr(model, "config", None), "is_encoder_decoder", False))

    @classmethod
    def running(cls, model: nn.Module) -> Timeline | None:
        """The timeline of a model that is being steered, else `None`."""
        return cls._running.get(model)

    @classmethod
    def join(cls, model: nn.Module, *, by_column: bool) -> Timeline:
        """The model's timeline, put on it if this is its first member.

        Args:
            model: the model.
            by_column: whether the member needs to know the columns of every pass, or padding alone.
        """
        timeline = cls._running.get(model)
        if timeline is None:
            timeline = cls(model)
            timeline._start()
            cls._running[model] = timeline
        timeline.members += 1
        timeline.by_column += by_column
        timeline._watch()
        return timeline

    def leave(self, *, by_column: bool) -> None:
        """Count one member less, and after the last leave the model as it was."""
        self.members -= 1
        self.by_column -= by_column
        if self.members == 0:
            self._stop()
            self._running.pop(self.model, None)

    def _start(self) -> None:
        self._own_generate = self.model.__dict__.get("generate")
        if hasattr(self.model, "generate"):
            generate: Any = self.model.generate
            self.model.__dict__["generate"] = self._watched(generate)

    def _stop(self) -> None:
        self._look_away()
        self.model.__dict__.pop("generate", None)
        if self._own_generate is not None:
            self.model.__dict__["generate"] = self._own_generate

    def _watch(self) -> None:
        """Look at every forward pass from the next one on."""
        if self._handles:
            return
        # The decoder is called with the same masks by the language model around it, and alone by those who need no
        # logits.
        decoder = getattr(self.model, "base_model", self.model)

        def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if args:
                kwargs = {**dict(zip(inspect.signature(decoder.forward).parameters, args, strict=False)), **kwargs}
            self.now = self._pass(kwargs)
            if self.now is not None and not self.by_column and self._nothing_to_come(self.now):
                self._look_away()

        def after(*_: Any) -> None:
            self.now = None

        self._handles = [
            decoder.register_forward_pre_hook(before, with_kwargs=True),
            decoder.register_forward_hook(after, always_call=True),
        ]

    def _look_away(self) -> None:
        self.now = None
        while self._handles:
            self._handles.pop().remove()

    def _nothing_to_come(self, now: Pass) -> bool:
        """Whether this pass and all that follow it in this `generate` are without padding: all of the prompt has been
        seen, and `generate` pads nothing else.
        """
        if self._prompt is None or self._prompt.others or now.start + now.size < self._prompt.columns:
            return False
        return now.mask is None or bool(now.mask.all())

    def _watched(self, generate: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(generate)
        def watched(*args: Any, **kwargs: Any) -> Any:
            outer, self._prompt = self._prompt, _Prompt.of(args, kwargs)
            self._watch()
            try:
                return generate(*args, **kwargs)
            finally:
                self._prompt = outer
                if self.members:
                    self._watch()

        return watched

    def _pass(self, inputs: dict[str, Any]) -> Pass | None:
        ids = inputs.get("input_ids")
        ids = inputs.get("inputs_embeds") if ids is None else ids
        if not isinstance(ids, Tensor) or self._two_texts:
            return None
        size, mask = ids.shape[1], inputs.get("attention_mask")
        cache = next((given for given in inputs.values() if hasattr(given, "get_seq_length")), None)  # by any name
        if isinstance(mask, Tensor) and mask.ndim == 2:
            start = mask.shape[1] - size
        else:
            start, mask = (0 if cache is None else int(cache.get_seq_length())), None
        if self._prompt is None:
            self._last_prompt = self._last_prompt if start else size
            return Pass(start, size, min(self._last_prompt or start, start) or size, mask, False)
        prompt, known = self._prompt.columns, self._prompt.mask
        if mask is None and known is not None:  # a static cache's own mask names no columns
            rows = known.repeat_interleave(len(ids) // len(known), dim=0)
            mask = torch.nn.functional.pad(rows, (0, start + size - prompt), value=True)
        return Pass(start, size, prompt, mask, True)


@dataclass(frozen=True, eq=False)
class _Prompt:
    """What was given to `generate`.

    Attributes:
        columns: of the padded prompts.
        mask: False at their padding, where a mask was given.
        others: whether other texts with masks of their own, such as negative prompts, run beside them.
    """

    columns: int
    mask: Bool[Tensor, "row column"] | None
    others: bool

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Prompt:
        given = (args[0] if args else None, *(kwargs.get(name) for name in ("inputs", "input_ids", "inputs_embeds")))
        ids = next((x for x in given if isinstance(x, Tensor)), None)
        mask = kwargs.get("attention_mask")
        return cls(
            1 if ids is None else ids.shape[1],
            mask.bool() if isinstance(mask, Tensor) and mask.ndim == 2 else None,
            any(name.endswith("_attention_mask") for name in kwargs),
        )
