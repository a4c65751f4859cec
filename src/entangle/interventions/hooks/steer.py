"""Affine and other forms as hooks on the user's own model, for the length of a `with` block."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.interventions.base import BaseEdit
from entangle.interventions.forms import AffineForm, Form, Function, FunctionForm, merged
from entangle.interventions.hooks.constant import attach_constant
from entangle.interventions.hooks.functions import Prepared, carried
from entangle.interventions.hooks.passes import Pass
from entangle.interventions.hooks.presence import replaced, skipping
from entangle.interventions.hooks.recompute import enter, leave
from entangle.interventions.hooks.scope import Scope, Tokens
from entangle.interventions.hooks.timeline import Timeline
from entangle.models.atlas import Atlas
from entangle.models.fingerprint import check_fingerprint
from entangle.models.hooks import Handle, Skip, attach, elsewhere, tell
from entangle.models.loading.held import held, underlying
from entangle.models.place import Place
from entangle.models.refusals import refuse_compiled
from entangle.models.sites import SITES


def steer(
    model: Any,
    edit_or_edits: BaseEdit | Sequence[BaseEdit],
    *,
    alpha: float | str = 1.0,
    tokens: Tokens = "all",
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
            "weak", "mid", "strong").
        tokens: `"all"`; `"prompt"`; `"generated"`, what follows the prompt; an integer p, tokens from position p of
            each text on, padding not counted (negative p counts from the end of the prompt: -1 is its last token and
            all that follows); or a bool mask `[row, column]` shaped as the prompts' input ids. Outside `generate`,
            tokens run with an empty cache are the prompt.
        atlas: The model's atlas, if there is one already.

    Returns:
        A context manager that yields itself: `.counts`, the token positions each edit was applied to so far, padding
        not counted; `.remove()`, to end it early.

    Raises:
        EntangleError: If alpha is not finite, an edit was made for another model, its size, layer, head or site is not
            there, or the model is compiled or partly offloaded. The model is left as it was.

    Example:
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> plain = model(ids).logits
        >>> with en.steer(model, iti, alpha=8):
        ...     bool(torch.allclose(model(ids).logits, plain))
        ...
        False
        >>> bool(torch.allclose(model(ids).logits, plain))  # untouched outside the block
        True
    """
    model = held(model)
    several = isinstance(edit_or_edits, Iterable) and not isinstance(edit_or_edits, BaseEdit)
    edits: list[BaseEdit] = list(edit_or_edits) if several else [edit_or_edits]  # type: ignore[arg-type, list-item]
    for edit in edits:
        if not isinstance(edit, BaseEdit):
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
    strengths = [edit.strength(alpha) for edit in edits]
    atlas = Atlas(model) if atlas is None else atlas
    for edit in edits:
        if edit.fingerprint is not None:
            check_fingerprint(edit.fingerprint, model, what=f"this {type(edit).__name__}", active=False)
    plan = planned(
        atlas, [edit.forms(strength) if strength else [] for edit, strength in zip(edits, strengths, strict=True)]
    )
    return Steering(model, plan, scope, n_edits=len(edits))


@dataclass(eq=False)
class Stop:
    """A place where something is done, and which edits' tokens are counted there.

    Attributes:
        place: The place.
        forms: What to do, in order, merged.
        counted: Index of each edit that first acts here, with the condition it acts under.
        carry: Where the change must be added again. `resid_mid` is the input of the MLP's branch alone in most models:
            the residual stream goes round it to the end of the block.
    """

    place: Place
    forms: list[Form]
    counted: list[tuple[int, FunctionForm | None]] = field(default_factory=list)
    carry: Place | None = None


def planned(atlas: Atlas, forms_by_edit: Sequence[Sequence[Form]]) -> list[Stop]:
    """The forms of several edits gathered by place, checked against the model, merged where they can be.

    Args:
        atlas: The model's.
        forms_by_edit: The forms of each edit.

    Returns:
        One stop for each place, in order of layers.

    Raises:
        EntangleError: If a form does not fit its place.
    """
    gathered: dict[tuple[str, int], list[Form]] = {}
    places: dict[tuple[str, int], Place] = {}
    counted: dict[tuple[str, int], list[tuple[int, FunctionForm | None]]] = {}
    for index, forms in enumerate(forms_by_edit):
        first: tuple[tuple[str, int], Form] | None = None
        for form in forms:
            key = atlas.resolve(form.site) if form.layer is None else (form.site, form.layer)
            if key not in places:
                places[key] = atlas.place(*key)
            check_fits(form, places[key])
            check_layers(form, atlas)
            gathered.setdefault(key, []).append(form)
            acts = not isinstance(form, FunctionForm) or form.edits
            if acts and (first is None or key[1] < first[0][1]):
                first = key, form
        if first is not None:
            condition = first[1] if isinstance(first[1], FunctionForm) and first[1].fired else None
            counted.setdefault(first[0], []).append((index, condition))
    stops = []
    for key in sorted(gathered, key=lambda key: (key[1], SITES.index(key[0]))):
        place = places[key]
        forms = merged(gathered[key], head_size=place.d_head, n_heads=place.n_heads)
        carry = atlas.place("resid_post", place.layer) if place.site == "resid_mid" and place.bypassed else None
        stops.append(Stop(place, forms, counted.get(key, []), carry))
    return stops


def check_fits(form: Form, place: Place) -> None:
    """Raise an `EntangleError` unless the form has the place's size and one of its heads, and the place's weights are
    there.
    """
    where = f"{place.site} in layer {place.layer}"
    if form.head is not None:
        if place.n_heads is None:
            raise EntangleError(f"{where} has no heads, but the edit names head {form.head}: leave head out")
        if not 0 <= form.head < place.n_heads:
            raise EntangleError(f"{where} has heads 0 to {place.n_heads - 1}, but the edit names head {form.head}")
    size = place.size if form.head is None else place.d_head
    if form.size is not None and form.size != size:
        raise EntangleError(
            f"{where} has {size} numbers a token{'' if form.head is None else ' a head'}, but the edit has {form.size}"
        )
    if any(parameter.is_meta for parameter in place.module.parameters()):
        raise EntangleError(
            f"{place.path} is offloaded, so its device is not known before it runs: load the model on a device first"
        )


def check_layers(form: Form, atlas: Atlas) -> None:
    """Raise an `EntangleError` if the form's layer is an index into layers that are not all of the model's."""
    n, every = form.of_layers, atlas.layers(form.site) if form.of_layers is not None else []
    if n is not None and len(every) == atlas.n_layers == n:
        return
    if n is not None:
        raise EntangleError(
            f"this edit was fitted on a bare tensor of {n} layers, but the model has {atlas.n_layers} "
            f"({len(every)} of them with {form.site}), so which layers they are is not known: fit it on the "
            "activations themselves, such as ITI.fit(acts, labels), or name them with layers=acts.layers(site)"
        )


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

    def __init__(self, model: nn.Module, plan: Sequence[Stop], scope: Scope, *, n_edits: int) -> None:
        self.model, self._plan, self._scope = model, plan, scope
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
                self._timeline.join(self, by_column=not self._scope.is_all, check=check)
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
            edited = apply(x)
            self._count(stop, True, x)
            return edited

        def edit_some(x: Tensor) -> Tensor:
            keep = self._keep(x)
            if keep is False:
                return x
            edited = apply(x)
            self._count(stop, keep, x)
            return edited if keep is True else torch.where(keep[..., None], edited, x)

        if not self._scope.is_all:
            return edit_some
        return edit_all if stop.counted else apply

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
