"""What a model is computing now: which columns of which text, pass by pass."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar
from weakref import WeakKeyDictionary

from torch import Tensor, nn
from torch.nn.functional import pad
from torch.utils.weak import WeakIdKeyDictionary

from entangle.errors import EntangleError
from entangle.interventions.hooks.generation import Announcement, Generation
from entangle.interventions.hooks.passes import Pass
from entangle.interventions.hooks.post import Post
from entangle.interventions.hooks.reading import around, mask_of, positions_of, tokens_of
from entangle.interventions.hooks.states import State, states
from entangle.models.hooks import Handle, elsewhere
from entangle.models.loading.held import underlying


@dataclass
class _Record:
    """What is known of a cache that earlier passes filled.

    Attributes:
        columns: That it holds, virtual ones among them.
        virtual: How many of them are virtual.
        prompt: Columns of the prompt of its text.
        honest: Whether it said so itself after the pass.
        aside: Whether its text is another than the one that `generate` goes on with.
    """

    columns: int
    virtual: int
    prompt: int
    honest: bool = True
    aside: bool = False


class Timeline:
    """Watches the forward passes of a model and its `generate`, for every scope on that model at once.

    Use `Timeline.on(model, inside)`, `join(member)` and `leave(member)`; the last to leave takes all of it off the
    model.
    Each thread that has blocks open has a timeline of its own. While `generate`
    goes on from prompts that hold no padding, and no member's scope depends on columns, there is nothing to know about
    a pass: then it does not watch, and `now` is `None`.

    What a pass computes is known from three sides: what `generate` was about to run, what the cache that the pass got
    held before (by any name, of any class, counted here where it has no length), and the mask and positions it got.
    Where they disagree the pass is `unknown`, and scopes refuse it.
    """

    _running: ClassVar[WeakKeyDictionary[nn.Module, Post]] = WeakKeyDictionary()

    def __init__(self, model: nn.Module, decoder: nn.Module, speaker: nn.Module) -> None:
        self.model, self.decoder, self.speaker = model, decoder, speaker
        self.elsewhere = elsewhere()
        self.members: dict[object, bool] = {}  # whether each needs to know which columns are computed
        self.checks: dict[object, Callable[[], None]] = {}
        self.now: Pass | None = None
        self._generation: Generation | None = None
        self._given: tuple[int, list[State]] | None = None  # to the module around, while it runs: tokens, states
        self._held: list[State] = []
        self._pending: _Record | None = None
        self._records: WeakIdKeyDictionary = WeakIdKeyDictionary()
        self._handle: Handle | None = None
        self._parameters = list(inspect.signature(decoder.forward).parameters)
        self._two_texts = any(
            bool(getattr(getattr(one, "config", None), "is_encoder_decoder", False)) for one in (model, speaker)
        )

    @classmethod
    def running(cls, model: nn.Module) -> Timeline | None:
        """A timeline of a model that is being steered, by itself or by a part of it, in any thread, else `None`."""
        if not cls._running:
            return None
        posts = (cls._running[module] for module in model.modules() if module in cls._running)
        return next((timeline for post in posts for timeline in post.timelines), None)

    @classmethod
    def on(cls, model: nn.Module, inside: nn.Module) -> Timeline:
        """The model's timeline in this thread, or a new one, which watches nothing before somebody joins.

        Args:
            model: The model.
            inside: A module of it that is edited; what is watched is the language model around it.
        """
        decoder, speaker = around(underlying(model), inside)
        mine = cls._running.setdefault(decoder, Post()).mine()
        return cls(model, decoder, speaker) if mine is None else mine

    def join(self, member: object, *, by_column: bool, check: Callable[[], None]) -> None:
        """Count a member, and watch.

        Args:
            member: Who joins, and leaves.
            by_column: Whether it needs to know the columns of every pass, or padding alone.
            check: What it asks of each pass that is watched, the first of every `generate` among them.
        """
        self.members[member] = by_column
        self.checks[member] = check
        self._running.setdefault(self.decoder, Post()).join(self, dict.fromkeys([self.model, self.speaker]))
        self._watch()

    def leave(self, member: object) -> None:
        """Count a member no longer, and after the last leave the model as it was; more than once does no harm."""
        self.members.pop(member, None)
        self.checks.pop(member, None)
        if self.members:
            return
        self._look_away()
        post = self._running.get(self.decoder)
        if post is not None:
            post.leave(self, dict.fromkeys([self.model, self.speaker]))

    @property
    def by_column(self) -> bool:
        """Whether a member needs to know which columns are computed."""
        return any(self.members.values())

    def _watch(self) -> None:
        """Look at every forward pass from the next one on."""
        if self._handle is not None:
            return
        handle = self._handle = Handle()
        if self.model is not self.speaker and self.model is not self.decoder:  # a wrapper may add columns of its own
            handle.put(self.model, self._enter, after=False)
            handle.put(self.model, self._exit, after=True, always=True)
        handle.put(self.decoder, self._before, after=False)
        handle.put(self.decoder, self._after, after=True, always=True)

    def _look_away(self) -> None:
        self.now = self._given = None
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _enter(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if kwargs is None or self.elsewhere():
            return
        arguments = {**{str(index): value for index, value in enumerate(args)}, **kwargs}
        tokens = tokens_of(arguments)
        self._given = None if tokens is None else (tokens.shape[1], states(arguments))

    def _exit(self, *_: Any) -> None:
        if not self.elsewhere():
            self._given = None

    def _before(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any] | None = None) -> None:
        if kwargs is None or self.elsewhere():
            return
        for check in self.checks.values():
            check()
        if args:
            kwargs = {**dict(zip(self._parameters, args, strict=False)), **kwargs}
        self.now = self._pass(kwargs)
        if self.now is not None and not self.by_column and self._nothing_to_come(self.now):
            self._look_away()

    def _after(self, _: nn.Module, __: tuple[Any, ...], output: Any) -> None:
        if self.elsewhere():
            return
        pending, held = self._pending, self._held
        self.now, self._pending, self._held = None, None, []
        if pending is None or output is None:
            return
        values = output if isinstance(output, Mapping) else dict(enumerate(output if isinstance(output, tuple) else ()))
        for state in [*held, *states({str(name): value for name, value in values.items()})]:
            says = states({"": state.value})[0].length
            self._records[state.key] = replace(pending, honest=says is None or says == pending.columns)

    def _pass(self, inputs: dict[str, Any]) -> Pass | None:
        tokens = tokens_of(inputs)
        if tokens is None or self._two_texts:
            return None
        self._held = states(inputs)
        size, mask, generation = tokens.shape[1], mask_of(inputs, tokens), self._generation
        announcement = None if generation is None else generation.take(size)
        if generation is not None and announcement is not None:
            return self._announced(generation, announcement, positions_of(inputs, tokens))
        return self._unannounced(size, mask, positions_of(inputs, tokens))

    def _before_now(self) -> tuple[int | None, _Record | None, bool]:
        """Columns that were computed before this pass, what is known of them, and whether the cache says so itself."""
        if not self._held:
            return None, None, False
        best: tuple[int | None, _Record | None, bool] = (None, None, False)
        for state in self._held:
            record: _Record | None = self._records.get(state.key, None)  # type: ignore[no-untyped-call]
            honest = state.length is not None and (record is None or record.honest)
            columns = state.length if honest else None if record is None else record.columns
            if columns is not None and (best[0] is None or columns > best[0]):
                best = columns, record, honest
        return best

    def _announced(self, generation: Generation, announcement: Announcement, positions: Tensor | None) -> Pass:
        """A pass that `generate` is known to run."""
        before, _, honest = self._before_now()
        end = generation.end(announcement, before, counted=honest)
        if end is None:
            return _lost(
                announcement.size,
                announcement.mask,
                f"generate has {announcement.columns} tokens a row so far and runs {announcement.size}, "
                f"but the cache holds {before}",
            )
        first = end <= generation.columns
        generation.text = end
        mask = announcement.mask
        if mask is not None and mask.shape[1] > end:
            mask = mask[:, mask.shape[1] - end :]
        elif mask is not None and mask.shape[1] < end:  # the beginning is in a cache, and was given without padding
            mask = pad(mask, (end - mask.shape[1], 0), value=1)
        if before is not None or (not self._held and end <= announcement.size):
            virtual = max(0, announcement.size - end) if generation.virtual is None else generation.virtual
            self._pending = _Record((before or 0) + announcement.size, virtual, generation.columns)
        given_positions = positions if first else None
        return Pass(
            end - announcement.size,
            announcement.size,
            generation.columns,
            mask,
            True,
            given_positions,
            None,
            texts=generation.texts,
        )

    def _unannounced(self, size: int, mask: Tensor | None, positions: Tensor | None) -> Pass:
        """A pass that somebody else runs: what runs with an empty cache is a prompt."""
        before, record, _ = self._before_now()
        two = mask if mask is not None and mask.ndim == 2 else None
        if self._held and before is None:
            before = _from_elsewhere(size, two, positions)
            if before is None:
                return _lost(
                    size, two, f"it goes on from a {self._held[0].kind}, of which nobody can tell what it holds"
                )
        before = before or 0
        if two is not None and two.shape[1] != before + size:
            room = max((state.room or 0 for state in self._held), default=0)
            if two.shape[1] != room:
                return _lost(size, two, f"it computes {size} after {before}, but its mask has {two.shape[1]} columns")
            two = two[:, : before + size]  # as wide as the cache can grow
        if not self._held and positions is not None and int(positions[:, 0].min()) > 0 and two is None:
            return _lost(
                size, two, f"its positions begin at {int(positions[:, 0].min())}, but no cache holds those before"
            )
        virtual, trouble = self._virtual(size, before, record)
        if trouble:
            return _lost(size, two, trouble)
        generation, start = self._generation, before - virtual
        begins = start <= 0
        prompt = start + size if begins else start if record is None else record.prompt
        aside = record.aside if record is not None and not begins else False
        if generation is not None and begins:
            aside = generation.spoke
            if not self._held and generation.spoke and generation.text > generation.columns:
                return _lost(size, two, "within generate, a text beside the one generated runs without a cache")
            if not self._held and not generation.spoke:  # run anew for each token
                generation.first = generation.first or size
                prompt = min(prompt, generation.first)
        if two is not None and virtual:
            two = two[:, virtual:]
        self._pending = _Record(before + size, virtual, prompt, True, aside)
        unplaced = (
            None
            if mask is two or two is not None
            else (
                "a position as a scope needs to know what is padding, but the attention mask has shape "
                f"{tuple(mask.shape) if mask is not None else None}: give one of shape [row, column]"
            )
        )
        texts = None if generation is None else generation.texts
        return Pass(start, size, prompt, two, generation is not None, positions, virtual, aside, None, unplaced, texts)

    def _virtual(self, size: int, before: int, record: _Record | None) -> tuple[int, str | None]:
        """How many columns before the text are virtual, or why that is not known."""
        known = 0 if record is None else record.virtual
        if self._given is None:
            return known, None
        given, outer = self._given
        empty = all(state.length == 0 for state in outer)
        added = size - given if record is not None or not empty else before + size - given
        if added == 0:
            return known, None
        n_virtual = _virtual_tokens(self.model)
        if record is None and empty and added == n_virtual:
            return added, None
        return (
            0,
            f"{type(self.model).__name__} was given {given} tokens a row, and the model in it runs {before} + {size}",
        )

    def _nothing_to_come(self, now: Pass) -> bool:
        """Whether this pass and all that follow it in this `generate` are without padding: all of the prompt has been
        seen, and `generate` pads nothing else.
        """
        if self._generation is None or self._generation.others or now.end < self._generation.columns:
            return False
        return now.mask is None or bool(now.mask.all())

    def generate(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the model's own `generate`, and know meanwhile what it is about to compute."""
        outer, now = self._generation, Generation.of(self.speaker, args, kwargs, self._generation)
        try:
            self._generation = now
            self._watch()
            return original(*args, **kwargs)
        finally:
            self._generation = outer
            if self.members:
                self._watch()

    def prepare(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the model's own `prepare_inputs_for_generation`, and note what it says of the pass to come."""
        inputs = original(*args, **kwargs)
        if self._generation is not None:
            self._generation.hear(inputs, *args, **kwargs)
        return inputs

    def refuse(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run a method that packs texts into one row, unless a scope would need to follow them."""
        if self.by_column:
            raise EntangleError(
                f'{original.__name__} packs parts of many texts into one row, where tokens= other than "all", rows= '
                'and a strength for each row cannot be followed: use tokens="all" and one strength, or generate'
            )
        return original(*args, **kwargs)


def _lost(size: int, mask: Tensor | None, why: str) -> Pass:
    """A pass of which no more is known than its size and what its mask says of padding."""
    start = 0 if mask is None else max(0, mask.shape[1] - size)
    return Pass(start, size, start + size, mask, False, unknown=f"cannot tell which tokens this pass computes: {why}")


def _from_elsewhere(size: int, mask: Tensor | None, positions: Tensor | None) -> int | None:
    """The columns computed before, told by a mask or by positions alone; `None` where neither tells."""
    if mask is not None:
        return mask.shape[1] - size
    if positions is None:
        return None
    first = positions[:, 0]
    return int(first[0]) if bool((first == first[0]).all()) else None


def _virtual_tokens(model: nn.Module) -> int | None:
    """How many virtual tokens a PEFT model says that it puts before every text."""
    try:
        config = model.active_peft_config
    except (AttributeError, KeyError, TypeError):
        return None
    return getattr(config, "num_virtual_tokens", None) if getattr(config, "is_prompt_learning", False) else None
