"""The strength at which a method costs a stated price, so that methods are compared at one price."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, TypeAlias

from transformers import PreTrainedTokenizerBase

from entangle.data import AnyPrompt
from entangle.errors import EntangleError
from entangle.evaluation.language.documents import read_rows
from entangle.evaluation.language.reading import PlainReading
from entangle.evaluation.language.subject import Method, NotFiniteError
from entangle.forecast import ShiftMetric
from entangle.interventions import Edit
from entangle.models import own_tokenizer, underlying
from entangle.storage.digest import digest

FACTOR = 8.0
"""How far one reading may lie from those before."""

Point: TypeAlias = tuple[float, float]
"""The logarithm of a strength, and of the nats per token that it was read to cost."""


def strength_for(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    edit: Method | Edit | Sequence[Edit],
    texts: Sequence[AnyPrompt],
    *,
    kl: float,
    metric: ShiftMetric | None = None,
    tolerance: float = 0.03,
    readings: int = 12,
    max_length: int | None = None,
    prepend_bos: bool = False,
    turns: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    batch_tokens: int = 8192,
) -> float:
    """The alpha at which an edit costs `kl` nats per token on some texts.

    Solved by secants of log KL in log alpha, which is a line of slope 2 while KL is quadratic. With a metric the first
    reading is where the forecast puts it; two or three readings then do.

    Args:
        model: The plain causal language model.
        tokenizer: Its tokenizer.
        edit: An edit, several, or a `Method` that has a strength.
        texts: Documents to solve it on, or conversations; report on others.
        kl: The price, KL(plain || changed) per token, in nats.
        metric: Where to start from, for edits that are affine.
        tolerance: Relative error of the price that is good enough.
        readings: How often the texts may be read with the edit.
        max_length: Keep at most this many tokens of a document.
        prepend_bos: Begin every document with the beginning-of-sequence token.
        turns: Count only what this role says in conversations, such as "assistant".
        chat_template_kwargs: For the chat template.
        batch_tokens: Tokens in one batch, padding included.

    Returns:
        The strength, which is positive.

    Raises:
        EntangleError: A price that is not positive, one that no strength reaches, or a method without a strength.

    Example:
        >>> alpha = en.strength_for(model, tokenizer, iti, clean[:8], kl=0.05)
        >>> paid = en.evaluation.kl(model, tokenizer, clean[:8], iti, alpha=alpha, progress=False)
        >>> round(paid.mean, 2)
        0.05
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    plain = read_rows(
        model,
        tokenizer,
        texts,
        max_length=max_length,
        prepend_bos=prepend_bos,
        turns=turns,
        chat_template_kwargs=chat_template_kwargs,
        batch_tokens=batch_tokens,
    )
    return solved(plain, edit, kl=kl, metric=metric, tolerance=tolerance, readings=readings)


def solved(
    plain: PlainReading,
    edit: Method | Edit | Sequence[Edit],
    *,
    kl: float,
    metric: ShiftMetric | None = None,
    start: float | None = None,
    read: list[Point] | None = None,
    tolerance: float = 0.03,
    readings: int = 12,
) -> float:
    """The same on texts that the plain model has read already; see `strength_for`.

    Args:
        plain: The plain model's reading of the texts.
        edit: As for `strength_for`.
        kl: As for `strength_for`.
        metric: As for `strength_for`.
        start: A first strength to try, instead of the metric's.
        read: What was read before of the edit on these texts, for other prices; what is read now is added.
        tolerance: As for `strength_for`.
        readings: As for `strength_for`.
    """
    if not (isinstance(kl, Real) and math.isfinite(kl) and kl > 0):
        raise EntangleError(f"a price is a positive number of nats per token; got kl={kl!r}")
    if getattr(edit, "alphas", None) is not None:
        raise EntangleError(
            f"{type(edit).__name__} has strengths of its own, so none can be solved for a price: give alphas="
        )

    def price(alpha: float) -> float:
        try:
            value = plain.price(edit, alpha=alpha)
        except NotFiniteError:
            return math.inf
        return value if math.isfinite(value) else math.inf

    first = _first(edit, metric, kl) if start is None else start
    return _secant(price, kl, first, tolerance, readings, _strongest(edit), read)


def _log(nats: float) -> float:
    return math.log(nats) if nats > 0 else -math.inf


def _strongest(edit: Method | Edit | Sequence[Edit]) -> float:
    """The largest strength that all of them have, such as half a turn."""
    edits = edit if isinstance(edit, Sequence) else [edit]
    return min((float(getattr(each, "strongest", math.inf)) for each in edits), default=math.inf)


def _first(edit: Method | Edit | Sequence[Edit], metric: ShiftMetric | None, kl: float) -> float:
    """Where the forecast puts it; 1 without one, or where it is asked of an edit that is no affine map or acts at a
    place that the metric does not know."""
    if metric is None or not isinstance(edit, Edit) or not metric.knows(edit):
        return 1.0
    foretold = metric.price(edit).value
    return math.sqrt(kl / foretold) if foretold > 0 else 1.0


def _secant(
    price: Callable[[float], float],
    target: float,
    first: float,
    tolerance: float,
    readings: int,
    most: float = math.inf,
    read: list[Point] | None = None,
) -> float:
    """The root of log price - log target in log alpha, up to `most`, between what is known to be below and above.

    Args:
        price: Reads the nats per token at a strength.
        target: The price.
        first: A strength to try where nothing was read yet.
        tolerance: As for `strength_for`.
        readings: How many may be made.
        most: The largest strength.
        read: What was read before; what is read now is added.
    """
    goal, end, read = math.log(target), math.log(most), [] if read is None else read
    for left in range(readings, -1, -1):
        x, y = min(read, key=lambda point: _apart(point, goal), default=(math.log(first), math.inf))
        if abs(math.expm1(y - goal)) <= tolerance:
            return math.exp(x)
        cheap = max((x for x, y in read if y < goal), default=-math.inf)
        if not left or cheap >= end:
            break  # the strongest there is costs less
        x = min(_next(read, goal, cheap) if read else x, end)
        read.append((x, _log(price(math.exp(x)))))
    tried = ", ".join(f"{math.exp(x):.3g}: {math.exp(min(y, 50)):.3g}" for x, y in read)
    raise EntangleError(
        f"no strength was found that costs {target:g} nats per token in {len(read)} readings (alpha: nats; {tried}): "
        "ask for a price that the edit reaches, or allow more readings"
    )


def _next(read: Sequence[Point], goal: float, low: float) -> float:
    """By the slope through the two readings whose prices are nearest, or 2; between what is too cheap and too dear, and
    no further than `FACTOR` from the nearest."""
    high = min((x for x, y in read if y > goal and x > low), default=math.inf)
    step = math.log(FACTOR)
    finite = sorted((point for point in read if math.isfinite(point[1])), key=lambda point: _apart(point, goal))
    if finite:
        x, y = finite[0]
        slope = next(((y - other) / (x - at) for at, other in finite[1:] if at != x), 2.0)
        guess = x + min(max((goal - y) / min(max(slope, 0.2), 20.0), -step), step)
    else:
        x, y = read[-1]
        guess = x + math.copysign(step, goal - y)
    if low < guess < high:
        return guess
    return (low + high) / 2 if math.isfinite(high - low) else high - step if math.isfinite(high) else low + step


def _apart(point: Point, goal: float) -> tuple[float, float]:
    """How far a reading's price is from the one wanted; of equal ones, the inner is nearer."""
    x, y = point
    return abs(y - goal), x if y > goal else -x


class Solver:
    """Solves strengths of many methods on documents that are read once, each by what was read of it for other prices.

    Attributes:
        texts: Digest of the documents.
    """

    def __init__(self, plain: PlainReading, metric: ShiftMetric | None = None) -> None:
        self.texts = digest([list(row) for row in plain.rows])
        self._plain, self._metric = plain, metric
        self._read: dict[str, list[Point]] = {}

    def strength(self, name: str, edit: Method | Edit | Sequence[Edit], cost: float) -> float:
        """The strength at which a method costs so much; see `strength_for`."""
        return solved(self._plain, edit, kl=cost, metric=self._metric, read=self._read.setdefault(name, []))
