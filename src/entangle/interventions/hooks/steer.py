"""Affine and other forms as hooks on the user's own model, for the length of a `with` block."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.interventions.base import BaseEdit
from entangle.interventions.forms import AffineForm, Form, Function
from entangle.interventions.hooks.constant import attach_constant
from entangle.interventions.hooks.functions import Prepared, carried
from entangle.interventions.hooks.passes import Pass
from entangle.interventions.hooks.plan import Stop, planned
from entangle.interventions.hooks.presence import replaced, skipping
from entangle.interventions.hooks.recompute import enter, leave
from entangle.interventions.hooks.rows import Strengths, assigned, by_row, check_rows
from entangle.interventions.hooks.scope import Scope, Tokens
from entangle.interventions.hooks.timeline import Timeline
from entangle.models.atlas import Atlas
from entangle.models.fingerprint import check_fingerprint
from entangle.models.hooks import Handle, Skip, attach, elsewhere, tell
from entangle.models.loading.held import held, underlying
from entangle.models.place import Place
from entangle.models.refusals import refuse_compiled


def steer(
    model: Any,
    edit_or_edits: BaseEdit | Sequence[BaseEdit | None],
    *,
    alpha: Strengths = 1.0,
    tokens: Tokens = "all",
    rows: Sequence[int | None] | Tensor | None = None,
    atlas: Atlas | None = None,
) -> Steering:
    """Run a model with edits applied, inside a `with` block; outside it the model is untouched.

    Works under `generate` with and without cache, beam search, sampling, assisted generation, padding on either side
    and prompts of different length. Blocks may be nested and closed in any order; where they meet, the one opened first
    acts first. An edit of strength 0 attaches nothing.

    Args:
        model: A HuggingFace model, or what holds one: a TransformerLens bridge, an nnsight or nnterp model (whose
            traces are then steered), a PEFT model, a pipeline.
        edit_or_edits: What to do; several edits act in the order given, each on the result of the one before.
        alpha: The strength of each edit, as a multiple of its displacement (of sigma for `ITI`, which also knows
            "weak", "mid", "strong"). Or one for each row of the batch, `[row]`: a sweep over strengths is then one
            batch of copies of its prompt.
        tokens: `"all"`; `"prompt"`; `"generated"`, what follows the prompt; an integer p, tokens from position p of
            each text on, padding not counted (negative p counts from the end of the prompt: -1 is its last token and
            all that follows); or a bool mask `[row, column]` shaped as the prompts' input ids. Outside `generate`,
            tokens run with an empty cache are the prompt.
        rows: For each row of the batch the number of its one edit in the list, or `None` for a plain row; then the list
            may hold `None` too. Beams and samples of a prompt follow it. By default every row gets all edits.
        atlas: The model's atlas, if there is one already.

    Returns:
        A context manager that yields itself: `.counts`, the token positions each edit was applied to so far, padding
        not counted; `.remove()`, to end it early.

    Raises:
        EntangleError: If alpha is not finite, an edit was made for another model, its size, layer, head or site is not
            there, or the model is compiled or partly offloaded; when it runs, if the batch has other rows than were
            named. The model is left as it was.

    Example:
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> plain = model(ids).logits
        >>> with en.steer(model, iti, alpha=8):
        ...     bool(torch.allclose(model(ids).logits, plain))
        ...
        False
        >>> bool(torch.allclose(model(ids).logits, plain))  # untouched outside the block
        True
        >>> with en.steer(model, iti, alpha=[0, 4, 8]):  # three strengths in one batch
        ...     swept = model(ids.repeat(3, 1)).logits
        ...
        >>> bool(torch.allclose(swept[0], plain, atol=1e-5)), bool(torch.allclose(swept[2], plain, atol=1e-5))
        (True, False)
    """
    model = held(model)
    several = isinstance(edit_or_edits, Iterable) and not isinstance(edit_or_edits, BaseEdit)
    edits: list[BaseEdit | None] = list(edit_or_edits) if several else [edit_or_edits]  # type: ignore[arg-type, list-item]
    for edit in edits:
        if not isinstance(edit, BaseEdit) and (edit is not None or not several):
            raise EntangleError(
                f"steer takes an edit or a list of edits, got {type(edit).__name__}: wrap a vector in AddDirection(...)"
            )
    scope = Scope(tokens)
    if atlas is not None:  # making one refuses them too
        refuse_compiled(model)
    if not scope.is_all and getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise EntangleError(
            f'an encoder-decoder has two texts, so tokens={tokens!r} is not defined on it: use tokens="all"'
        )
    by_rows = assigned(edits, alpha, rows)
    strengths: Sequence[float | Sequence[float]] = by_rows or [
        edit.strength(alpha)  # type: ignore[arg-type]
        for edit in edits
        if edit is not None
    ]
    atlas = Atlas(model) if atlas is None else atlas
    for edit in edits:
        if edit is not None and edit.fingerprint is not None:
            check_fingerprint(edit.fingerprint, model, what=f"this {type(edit).__name__}", active=False)
    forms = [_forms(atlas, edit, strength) for edit, strength in zip(edits, strengths, strict=True)]
    n_rows = len(by_rows[0]) if by_rows else None
    return Steering(model, planned(atlas, forms), scope, n_edits=len(edits), n_rows=n_rows)


def _forms(atlas: Atlas, edit: BaseEdit | None, strength: float | Sequence[float]) -> list[Form]:
    """What an edit does at one strength, or at one for each row."""
    if edit is None:
        return []
    if isinstance(strength, Sequence):
        return by_row(atlas, edit, strength)
    return edit.forms(strength) if strength else []


class _Leaving:
    """`__exit__` of a block, as a `with` statement holds it: where an interrupt comes before its first line, the block
    is closed when the statement lets go of it.
    """

    def __init__(self, block: Steering) -> None:
        self.block = block

    def __call__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.block.remove()
        finally:
            self.block.remove()  # what an interrupt of the first left


class _Exit:
    """Gives each `with` statement a `_Leaving` of its own."""

    def __get__(self, block: Steering | None, kind: type[Steering]) -> Callable[..., None]:
        if block is None:
            return lambda block, *exception: _Leaving(block)(*exception)
        leaving = _Leaving(block)
        block._leaving = weakref.ref(leaving)
        return leaving


class Steering:
    """Edits on a model for as long as a `with` block lasts; made by `steer`.

    Attributes:
        model: The model.
        elsewhere: Tells whether a call comes from another thread or task than the one that opened the block.
        attached: What was put where, for gradient checkpointing to repeat: place, function, and whether it goes first.

    Example:
        >>> with en.steer(model, iti, alpha=4) as steering:
        ...     _ = model(torch.tensor([[5, 6, 7]]))
        ...
        >>> steering.counts  # tokens that each edit changed
        [3]
    """

    elsewhere: Skip

    def __init__(
        self, model: nn.Module, plan: Sequence[Stop], scope: Scope, *, n_edits: int, n_rows: int | None = None
    ) -> None:
        self.model, self._plan, self._scope, self._n_rows = model, plan, scope, n_rows
        self._counts: list[int | Tensor] = [0] * n_edits
        self._timeline: Timeline | None = None
        self._handle = Handle()
        self._is_open = False
        self._leaving: Callable[[], object] = lambda: None
        self._tie: object = None
        self.attached: list[tuple[Place, Function, bool]] = []

    @property
    def counts(self) -> list[int]:
        """The number of token positions each edit was applied to, padding not counted.

        A position counts once however many layers and heads the edit touches, and again each time the model computes it
        anew.
        """
        return [int(count) for count in self._counts]

    def __enter__(self) -> Self:
        if self._is_open:
            raise EntangleError("this steer block is already open: make another with steer(...)")
        leaving = self._leaving()
        if leaving is not None:
            self._tie = weakref.ref(leaving, lambda _: self.remove())
        try:
            self._is_open, self.elsewhere, self.attached = True, elsewhere(), []
            enter(self)
            if self._plan:
                self._timeline = Timeline.on(self.model, self._plan[0].place.module)
                edited = [stop.place.path for stop in self._plan]
                check = replaced(underlying(self.model), edited)
                self._timeline.join(self, by_column=not (self._scope.is_all and self._n_rows is None), check=check)
                for stop in self._plan:
                    self._attach(stop)
        except BaseException:
            self.remove()
            raise
        return self

    if TYPE_CHECKING:

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
        ) -> None:
            """Take the edits off the model."""

    else:
        __exit__ = _Exit()

    def remove(self) -> None:
        """Take the edits off the model now; does nothing the second time."""
        if not self._is_open:
            return
        self._handle.remove()
        if self._timeline is not None:  # kept: gradient checkpointing may ask for this block's edits once more
            self._timeline.leave(self)
        leave(self)
        self._is_open, self._tie = False, None

    def moment(self) -> tuple[Any, list[int | Tensor]]:
        """What the block's edits depend on now: the pass, and the counts so far."""
        return self._now, [*self._counts]

    def at(self, moment: tuple[Any, list[int | Tensor]]) -> None:
        """Let them depend on what they did then."""
        if self._timeline is not None:
            self._timeline.now = moment[0]
        self._counts[:] = moment[1]

    def _attach(self, stop: Stop) -> None:
        place, form, skip = stop.place, stop.forms[0], skipping(self)

        def content() -> Any:
            return place.site, place.layer, place.path, stop.forms, self._scope.tokens

        hook = tell(self._hook(stop), content)
        if stop.carry is not None:
            hook, carry = (tell(each, content) for each in carried(hook))
            # First: what other blocks do at the end of the layer, they do to the whole of it.
            attach(stop.carry, carry, first=True, skip=skip, handle=self._handle)
            self.attached.append((stop.carry, carry, True))
        constant = form.constant if len(stop.forms) == 1 and isinstance(form, AffineForm) and form.is_constant else None
        plain = stop.carry is None and place.layout == "batch pos" and place.turn is None
        if constant is not None and plain and self._scope.is_all:
            attach_constant(place, constant, hook, self._tally(stop), skip=skip, handle=self._handle)
        else:
            attach(place, hook, skip=skip, handle=self._handle)
        self.attached.append((place, hook, False))

    def _hook(self, stop: Stop) -> Function:
        apply = Prepared(stop.forms, stop.place)

        def edit_all(x: Tensor) -> Tensor:
            if self._n_rows is not None:
                check_rows(self._n_rows, len(x), self._now)
            edited = apply(x)
            self._count(stop, True, x)
            return edited

        def edit_some(x: Tensor) -> Tensor:
            if self._n_rows is not None:
                check_rows(self._n_rows, len(x), self._now)
            keep = self._keep(x)
            if keep is False:
                return x
            edited = apply(x)
            self._count(stop, keep, x)
            return edited if keep is True else torch.where(keep[..., None], edited, x)

        if not self._scope.is_all:
            return edit_some
        return edit_all if stop.counted or self._n_rows is not None else apply

    def _tally(self, stop: Stop) -> Callable[[Tensor], None] | None:
        """What counts the tokens of x `[row pos d]` in the scope of all, by its size alone where nothing is padded;
        `None` where there is nothing to count.
        """
        timeline, counts, size = self._timeline, self._counts, stop.place.size
        indices = [index for index, _ in stop.counted]

        def tally(x: Tensor) -> None:
            if timeline is None or timeline.now is None or not timeline.now.padded:
                for index in indices:
                    counts[index] += x.numel() // size
            else:
                self._count(stop, True, x)

        return tally if indices else None

    @property
    def _now(self) -> Pass | None:
        return None if self._timeline is None else self._timeline.now

    def _keep(self, x: Tensor) -> bool | Tensor:
        """The tokens of x `[row pos d]` to edit: True for all, False for none, or a mask `[row or 1, pos]`."""
        now = self._now
        if now is None:
            raise EntangleError(
                f"tokens={self._scope.tokens!r} needs the model's own forward to be run, with input_ids"
            )
        keep = self._scope.keep(now, len(x), x.device)
        if x.shape[1] != now.size or (isinstance(keep, Tensor) and keep.shape[0] not in (1, len(x))):
            raise EntangleError(
                f"this pass computes {now.size} tokens a row, but the place sees {list(x.shape[:-1])}: use tokens='all'"
            )
        return keep

    def _count(self, stop: Stop, keep: bool | Tensor, x: Tensor) -> None:
        real = None if self._now is None else self._now.real
        for index, condition in stop.counted:
            fired = condition.fired() if condition is not None and condition.fired is not None else None
            masks = [mask for mask in (real, fired, keep) if isinstance(mask, Tensor)]
            if masks and (real is None or real.shape == x.shape[:2]):
                both = functools.reduce(torch.Tensor.__and__, [mask.to(x.device) for mask in masks])
                self._counts[index] += both.expand(x.shape[:2]).sum()
            else:
                self._counts[index] += x.shape[0] * x.shape[1]
