"""What else moved: any set of behaviours, plain and steered, item by item, beside random directions of equal price."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedTokenizerBase

from entangle.data import AnyPrompt, prompt_key, prompts_of
from entangle.errors import EntangleError
from entangle.evaluation.effects.kept import Kept
from entangle.evaluation.effects.null import random_like
from entangle.evaluation.effects.result import Behaviours, Measured
from entangle.evaluation.effects.tasks import Task, Witness
from entangle.evaluation.language.documents import read_rows
from entangle.evaluation.language.reading import PlainReading
from entangle.evaluation.language.subject import applied
from entangle.evaluation.methods.given import Scoped
from entangle.evaluation.price.bench import Change
from entangle.evaluation.price.strength import solved
from entangle.models import own_tokenizer, underlying
from entangle.models.fingerprint import fingerprint, tokenizer_fingerprint
from entangle.progress import progress_bar
from entangle.storage.digest import digest

PLAIN = ""


class BehavioursError(EntangleError):
    """Behaviours that could not all be measured; `.partial` is the `Behaviours` of the methods that could.

    Example:
        >>> class Broken:
        ...     def measure(self, witness):
        ...         raise RuntimeError("no service")
        >>> try:
        ...     en.evaluation.behaviours(model, tokenizer, iti, {"broken": Broken()}, alpha=1, null=0, progress=False)
        ... except en.evaluation.BehavioursError as error:
        ...     print(error, error.partial, sep="; measured so far: ")
        behaviour 'broken' of the plain model: no service; measured so far: None
    """

    def __init__(self, message: str, partial: Behaviours | None) -> None:
        super().__init__(message)
        self.partial = partial


def behaviours(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    edit: Change | Mapping[str, Change],
    tasks: Mapping[str, Task],
    *,
    alpha: float | None = None,
    kl: float | None = None,
    texts: Sequence[AnyPrompt] | None = None,
    off_target: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
    null: int = 20,
    null_at: Change | None = None,
    max_length: int | None = None,
    turns: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    batch_tokens: int = 8192,
    seed: int = 0,
    save_to: str | Path | None = None,
    progress: bool = True,
) -> Behaviours:
    """Measure named behaviours of the plain model and of changed ones, and say what moved beside what should have.

    Every behaviour is a number for each item (a prompt, a text, a question), measured in every condition on the same
    items with the same random numbers, so that changes are paired. The one number is the root mean square of the
    changes off target, as SteeringSafety's code has its entanglement (Siu et al. 2025, arXiv 2509.13450); the docstring
    there divides by the number of behaviours outside the root, the code inside it, and this follows the code. Three
    things are added: what noise alone would make of it, an interval without that, and its null, random directions at
    the edit's own places, each at the strength at which it costs as many nats per token.

    Args:
        model: The plain causal language model; it is left as it was.
        tokenizer: Its tokenizer.
        edit: An edit, a list of edits applied together, a `Method`, or several of these by name. A method that is named
            as a behaviour aims at that one.
        tasks: Behaviours by name: `Said`, `Read`, `Language`, `Harness`, or any `Task`.
        alpha: Strength of the edits; methods with strengths of their own have their first.
        kl: The price to compare at instead, in nats per token: strengths are solved for it (see `strength_for`).
        texts: Documents on which prices are read and strengths solved; none that a behaviour is measured on. With
            neither `kl` nor `null` none are needed.
        off_target: The behaviours that count in the one number, for all methods or for each; by default all but the one
            that a method is named as.
        null: Random directions; the p-value is at least 1 / (null + 1).
        null_at: An edit at whose places they are drawn, for methods that act nowhere in the model, such as a prompt.
        max_length: Keep at most this many tokens of a document of `texts`.
        turns: Where these are conversations, the price per token of what this role says, such as "assistant"; a prompt,
            which becomes their system turn, has its price there alone.
        chat_template_kwargs: For the chat template that writes them.
        batch_tokens: Tokens in one batch of reading.
        seed: Of the random directions.
        save_to: A directory that keeps every number as soon as it is measured; a run that was stopped goes on there.
        progress: Show a progress bar.

    Returns:
        The result: `.to_frame()` has a row per method and behaviour, `.rmse()` the one number of each method.

    Raises:
        EntangleError: No tasks or methods, both of alpha and kl or neither, names that are no behaviours, or texts that
            a behaviour is measured on.
        BehavioursError: A task failed, or no strength has the price; `.partial` and `save_to` have what was measured.

    Example:
        >>> polite, tense = en.LinearToxicityScorer.fit(texts, 1 - labels), concepts["tense"]
        >>> tasks = {
        ...     "politeness": en.evaluation.Said(prompts, polite, en.evaluation.Sampling(max_new_tokens=4)),
        ...     "tense": en.evaluation.Read.fit(model, tokenizer, tense.texts, tense.labels, layer=1),
        ...     "language": en.evaluation.Language(clean[:16]),
        ... }
        >>> moved = en.evaluation.behaviours(
        ...     model, tokenizer, {"politeness": iti}, tasks, kl=0.1, texts=clean[16:24], null=2, progress=False
        ... )
        >>> moved.to_frame()["behaviour"].tolist(), moved.off_target["politeness"]
        (['politeness', 'tense', 'language'], ('tense', 'language'))
        >>> row = moved.rmse().iloc[0]
        >>> bool(row["rmse"] >= row["corrected"]), len(moved.null["politeness"])
        (True, 2)
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    methods = _named(edit)
    counted = _off_target(off_target, methods, tasks)
    _check_strength(alpha, kl, null)
    read_as: dict[str, Any] = {"max_length": max_length, "turns": turns, "chat_template_kwargs": chat_template_kwargs}
    reading = _reading(model, tokenizer, texts, tasks, kl, null, batch_tokens=batch_tokens, **read_as)
    settings = {
        "model": fingerprint(model),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
    }
    kept = Kept(save_to, settings)
    marks = {name: _mark(task, needed=save_to is not None) for name, task in tasks.items()}
    on = "" if reading is None else digest([[list(row) for row in reading.rows], *([] if turns is None else [turns])])
    # What would fail hours into a run fails before it.
    random: dict[str, list[Any]] = {
        name: [
            random_like(change if null_at is None or _acts(change) else null_at, model, seed=seed + k)
            for k in range(null)
        ]
        for name, change in methods.items()
    }
    plain: Measured | None = None
    changed: list[Measured] = []
    drawn: dict[str, list[Measured]] = {}

    def result() -> Behaviours | None:
        if plain is None:
            return None
        return Behaviours.of(plain, changed, drawn, tasks, counted, {**settings, "null": null, "kl": kl, "on": on})

    def measured(name: str, change: Change, strength: float, price: float, bar: Any) -> Measured:
        mark = digest(change) if strength else ""
        values = {}
        with applied(change, model, tokenizer, strength) as subject:
            witness = Witness(subject, batch_tokens=batch_tokens, progress=False)
            for task_name, task in tasks.items():
                bar.set_postfix_str(f"{name or 'plain'}: {task_name}")
                try:
                    known_by = None if marks[task_name] is None else [mark, strength, marks[task_name]]
                    values[task_name] = kept.values(known_by, partial(task.measure, witness))
                except Exception as error:
                    of = f"under {name}" if name else "of the plain model"
                    reason = (str(error).splitlines() or [type(error).__name__])[0]
                    raise BehavioursError(f"behaviour {task_name!r} {of}: {reason}", result()) from error
                _check(values[task_name], task_name, plain)
                bar.update()
        return Measured(name, strength, price, values)

    total = (1 + len(methods) * (1 + null)) * len(tasks)
    with progress_bar(total=total, desc="behaviours", unit="task", disable=not progress) as bar:
        plain = measured(PLAIN, [], 0.0, 0.0, bar)
        for name, change in methods.items():
            try:
                strength = _strength(change, alpha, kl, reading, kept, on)
                price = _price(change, strength, reading, kept, on)
                changed.append(measured(name, change, strength, price, bar))
                target = price if kl is None or _own_strength(change) is not None else kl
                own: float | None = None
                for draw in random[name]:
                    # Directions at the same places cost much the same, so each starts where the one before was met.
                    own = _solve(draw, target, reading, kept, on, start=own)
                    cost = _price(draw, own, reading, kept, on)
                    drawn.setdefault(name, []).append(measured(f"random beside {name}", draw, own, cost, bar))
            except BehavioursError:
                raise
            except EntangleError as error:
                raise BehavioursError(f"{name}: {error}", result()) from error
    return result()  # type: ignore[return-value]  # the plain model was measured, or there would have been an error


def _named(edit: Change | Mapping[str, Change]) -> dict[str, Change]:
    if isinstance(edit, Mapping):
        named = dict(edit)
    elif isinstance(edit, Sequence):
        named = {"+".join(type(e).__name__ for e in edit): edit}
    else:
        named = {type(edit).__name__: edit}
    if not named or PLAIN in named:
        raise EntangleError("behaviours need methods with a name each; got none, or one named ''")
    return named


def _check_strength(alpha: float | None, kl: float | None, null: int) -> None:
    if (alpha is None) == (kl is None):
        raise EntangleError("behaviours are measured at alpha= or at kl=; give one of them")
    if kl is not None and not 0 <= kl < math.inf:
        raise EntangleError(f"kl is a price in nats per token, 0 or more; got {kl}")
    if null < 0:
        raise EntangleError(f"null is a number of random directions, 0 or more; got {null}")


def _off_target(
    wanted: Sequence[str] | Mapping[str, Sequence[str]] | None, methods: Mapping[str, Change], tasks: Mapping[str, Task]
) -> dict[str, tuple[str, ...]]:
    """The behaviours that count in each method's one number."""
    if not tasks:
        raise EntangleError("behaviours need tasks by name; got none")
    if isinstance(wanted, str):
        raise EntangleError(f"off_target is a list of names of behaviours; got {wanted!r}: give [{wanted!r}]")
    for name, task in tasks.items():
        if not isinstance(task, Task):
            raise EntangleError(
                f"behaviour {name!r} must be a task with measure(witness); got {type(task).__name__}: wrap a scorer in "
                "Said(prompts, scorer)"
            )
    by_method = wanted if isinstance(wanted, Mapping) else {} if wanted is None else dict.fromkeys(methods, wanted)
    unknown = sorted(set(by_method) - set(methods))
    if unknown:
        raise EntangleError(f"off_target names the method {unknown[0]!r}; the methods are {', '.join(methods)}")
    chosen = {
        name: tuple(by_method.get(name, [behaviour for behaviour in tasks if behaviour != name])) for name in methods
    }
    for name, names in chosen.items():
        strange = [each for each in names if each not in tasks]
        if strange or not names:
            raise EntangleError(
                f"off target of {name} must be one of the behaviours or more, {', '.join(tasks)}; got "
                f"{', '.join(map(repr, strange)) or 'none'}"
            )
    return chosen


def _reading(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[AnyPrompt] | None,
    tasks: Mapping[str, Task],
    kl: float | None,
    null: int,
    **settings: Any,
) -> PlainReading | None:
    """The plain model's reading of the documents that prices are read on."""
    documents = [] if texts is None else prompts_of(texts, "document")
    if not documents:
        if kl is not None or null:
            raise EntangleError(
                "a price and its random directions need texts=, documents to solve strengths on; give some, or alpha= "
                "with null=0"
            )
        return None
    for name, task in tasks.items():
        shared = {*map(prompt_key, documents)} & {*map(prompt_key, getattr(task, "texts", ()))}
        if shared:
            raise EntangleError(
                f"texts must be other documents than those of behaviour {name!r}; {len(shared)} are in both: take them "
                "out of one"
            )
    return read_rows(model, tokenizer, documents, **settings)


def _own_strength(change: Change) -> float | None:
    own = getattr(change, "alphas", None)
    return None if own is None else float(own[0])


def _acts(change: Change) -> bool:
    inner = getattr(change, "edit", change)
    edits = inner if isinstance(inner, Sequence) else [inner]
    return any(hasattr(each, "forms") for each in edits)


def _strength(
    change: Change, alpha: float | None, kl: float | None, reading: PlainReading | None, kept: Kept, on: str
) -> float:
    own = _own_strength(change)
    if own is not None or kl is None:
        return own if own is not None else float(alpha)  # type: ignore[arg-type]
    return _solve(change, kl, reading, kept, on)


def _everywhere(change: Change) -> Change:
    """Without its scope: a document has no part that the model wrote, so prices are those of the edit at all tokens."""
    return change.edit if isinstance(change, Scoped) else change


def _solve(
    change: Change, kl: float, reading: PlainReading | None, kept: Kept, on: str, start: float | None = None
) -> float:
    if reading is None or not kl > 0:
        return 0.0  # what costs nothing has random directions of no length beside it
    priced = _everywhere(change)

    def solve() -> list[float]:
        return [solved(reading, priced, kl=kl, start=start or None)]

    return float(kept.values(["strength", digest(priced), kl, on], solve)[0])


def _price(change: Change, strength: float, reading: PlainReading | None, kept: Kept, on: str) -> float:
    if reading is None:
        return float("nan")
    if not strength:
        return 0.0
    priced = _everywhere(change)

    def read() -> list[float]:
        return [reading.price(priced, alpha=strength)]

    return float(kept.values(["price", digest(priced), strength, on], read)[0])


def _mark(task: Task, *, needed: bool) -> str | None:
    """What a task is known by; None for one with no content to compare, where nothing is kept on disk."""
    try:
        return digest(task)
    except EntangleError:
        if needed:
            raise
        return None


def _check(values: Any, name: str, plain: Measured | None) -> None:
    """Refuse values that cannot be paired."""
    wanted = None if plain is None else plain.values[name].shape
    if values.ndim != 1 or len(values) < 2 or not np.isfinite(values).all() or wanted not in (None, values.shape):
        given = "values that are not finite" if values.ndim == 1 and not np.isfinite(values).all() else values.shape
        raise EntangleError(
            f"behaviour {name!r} must give one finite number for each of two items or more, the same items in every "
            f"condition{'' if wanted is None else f' {list(wanted)}'}; got {given}"
        )
