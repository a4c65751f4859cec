"""Labels of any kind, read in one way at every door: which classes there are, which example is of which, and which of
two is 1.

Of two classes, 1 is what the concept is called after: what probes score above 0 for, and what steering moves away from.
It is, by the first rule that applies:

1. what `positive=` names;
2. of a data set's `ClassLabel` or an ordered pandas Categorical: the later in its own order;
3. True, of bools and of the words true and false;
4. the larger, of numbers and of words that write numbers ("10", not "9");
5. of two names, the one that is not denied: "hate", not "nothate" or "not hate"; "Toxic", not "neutral";
6. of two other names, the later in the alphabet, whatever the case.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from entangle.errors import EntangleError

Values = NDArray[Any]

# Names that say that what the other name says is not there.
UNMARKED = frozenset(
    re.findall(
        r"\w+",
        "absent background benign civil clean control f false fine good ham harmless n neg negative neutral no none "
        "normal nothing ok okay other polite safe",
    )
)
_DENIES = re.compile(r"(not|non|no)[\s_-]+\w", re.IGNORECASE)
_PREFIXES = ("not", "non", "no", "un", "in", "im", "dis")
_NUMBER = re.compile(r"[+-]?\d+(\.0*)?")
_TRUTHS = ("false", "true")
_SHOWN = 8


class ClassName(str):
    """A name that a data set's ClassLabel gives, which has an order of its own.

    Attributes:
        order: All names of the ClassLabel, by their numbers.
    """

    order: tuple[str, ...] = ()

    @classmethod
    def of(cls, order: tuple[str, ...], number: int) -> ClassName | None:
        """The name of a number, and of one below 0 (which data sets give what is not labelled) None."""
        if number < 0:
            return None
        name = cls(order[number])
        name.order = order
        return name


@dataclass(frozen=True)
class Labels:
    """What labels say.

    Attributes:
        codes: The class number of each example.
        classes: What each class number stands for, in the labels' own kind.
        rule: Why class 1 is class 1, as the end of a sentence; "" for more than two classes.

    Example:
        >>> labels = en.data.read_labels(["toxic", "neutral", "toxic"])
        >>> labels.codes, labels.names, labels.rule
        (array([1, 0, 1]), ('neutral', 'toxic'), "'neutral' says that it is not there")
        >>> labels.number_of("neutral")
        0
    """

    codes: NDArray[np.int64]
    classes: Values
    rule: str = ""

    @property
    def names(self) -> tuple[str, ...]:
        """What each class is called in words: true and false in small letters, 1.0 as 1."""
        return tuple(as_text(value) for value in self.classes.tolist())

    def __len__(self) -> int:
        return len(self.codes)

    def number_of(self, toward: Any) -> int:
        """The number of one of two classes: a label; or 1 for the positive class and 0 for the other, where no label is
        called so.

        Raises:
            EntangleError: There is no such class.
        """
        if as_text(toward) in self.names:
            return self.names.index(as_text(toward))
        if toward in (0, 1) and not isinstance(toward, bool):
            return int(toward)
        raise EntangleError(
            f"toward must be one of the labels {', '.join(map(repr, self.names))}, got {toward!r}: name the class to "
            "steer to"
        )


def read_labels(
    labels: Any,
    n_examples: int | None = None,
    *,
    positive: Any = None,
    two: bool = False,
    in_sorted_order: bool = False,
    what: str = "labels",
    places: Sequence[str] | None = None,
) -> Labels:
    """Labels of any kind as class numbers.

    Args:
        labels: One per example: names, bools or whole numbers in a list, array, tensor, pandas or polars Series,
            Categorical, or a column of a data set. A Series is read in its order; its index plays no part.
        n_examples: How many examples there are, if that is to be checked.
        positive: The label that becomes 1, all others becoming 0; the way to use data of more than two classes.
        two: Whether there must be two classes.
        in_sorted_order: Keep classes as numpy sorts them, which scikit-learn asks of its estimators, not by the rules.
        what: What to call them in an error.
        places: Where each label stands, for an error; by default its number.

    Returns:
        The class number of each example, the classes, and why class 1 is 1.

    Raises:
        EntangleError: One line: labels of another length or shape, missing, mixed or continuous ones, a name written in
            two ways, no such `positive`, or (with `two`) other than two classes.

    Example:
        >>> en.data.read_labels([True, False, True]).codes
        array([1, 0, 1])
        >>> en.data.read_labels(["joy", "fear", "anger"], positive="fear").codes
        array([0, 1, 0])
        >>> en.data.read_labels(["joy", None])
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: labels are missing (None, NaN or empty) at 1 of 2 examples, ...
    """
    values, order = _values(labels, what, places)
    if n_examples is not None and len(values) != n_examples:
        raise EntangleError(
            f"{what} must be one for each of {n_examples} examples; got shape {values.shape}: label every example once"
        )
    classes, codes = np.unique(values, return_inverse=True)
    codes = codes.reshape(-1).astype(np.int64)
    if in_sorted_order:
        rank, rule = np.arange(len(classes)), "it is the later in sorted order"
    elif order is not None:
        placed = [i for name in order for i in np.flatnonzero(classes == name)]
        rank = np.array(placed, dtype=np.int64)
        rule = "its data set puts it after the other"
    else:
        rank, rule = _ranked(classes, what)
    classes, codes = classes[rank], np.argsort(rank)[codes]
    counts = np.bincount(codes, minlength=len(classes))
    if positive is not None:
        return _against_the_rest(classes, codes, counts, positive, what)
    if two and len(classes) > 2:
        raise EntangleError(
            f"{what} have {len(classes)} values: {_shown(classes, counts)}; two are needed: say which one is positive "
            "(positive=, --positive), or select rows of two"
        )
    if two and len(classes) < 2:
        of = f"only the label {as_text(classes[0])!r} ({len(values):,} rows)" if len(classes) else "no example"
        raise EntangleError(f"{what} have {of}: two classes are needed")
    return Labels(codes, classes, rule if len(classes) == 2 else "")


def as_text(value: Any) -> str:
    """A label as text: true and false in small letters, 1.0 as 1.

    Example:
        >>> en.data.as_text(True), en.data.as_text(1.0), en.data.as_text(" rude ")
        ('true', '1', 'rude')
    """
    if isinstance(value, bool | np.bool_):
        return str(value).lower()
    if isinstance(value, float | np.floating) and float(value).is_integer():
        return str(int(value))
    return str(value).strip()


def same_index(**columns: Any) -> None:
    """Refuse pandas columns that hold the same rows in different orders: they are read by position.

    Raises:
        EntangleError: Two of them have the same index, shuffled.

    Example:
        >>> import pandas as pd
        >>> text, label = pd.Series(["a", "b"], index=[0, 1]), pd.Series([0, 1], index=[1, 0])
        >>> en.data.same_index(text=text, label=label)
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: text and label have the same index in different orders, and are ...
    """
    indexed = [(name, column.index) for name, column in columns.items() if isinstance(column, pd.Series | pd.DataFrame)]
    for (first, a), (second, b) in pairwise(indexed):
        if len(a) == len(b) and not a.equals(b) and a.is_unique and b.is_unique and len(a.difference(b)) == 0:
            raise EntangleError(
                f"{first} and {second} have the same index in different orders, and are read by position: put both in "
                f"one order first, such as {second}.loc[{first}.index]"
            )


def _values(labels: Any, what: str, places: Sequence[str] | None) -> tuple[Values, list[str] | None]:
    """Labels as an array of bools, whole numbers or names, all of one kind; and the classes' own order, if any."""
    if isinstance(labels, str | bytes | Mapping | Set):
        raise EntangleError(
            f"{what} must be a list or array, one for each example, not a {type(labels).__name__}: give them in order"
        )
    if isinstance(labels, pd.DataFrame) and labels.shape[1] == 1:
        labels = labels.iloc[:, 0]
    names = getattr(getattr(labels, "features", None), "names", None)  # a column of a data set
    categories = getattr(getattr(labels, "dtype", None), "categories", None)
    order: list[str] | None = None
    if names is not None:
        labels, order = [None if code is None or code < 0 else names[int(code)] for code in labels], list(names)
    elif isinstance(categories, pd.Index):
        if labels.dtype.ordered and all(isinstance(name, str) for name in categories):
            order = list(categories)
        labels = pd.Series(labels).astype(object).to_numpy()
    elif isinstance(labels, list) and labels and all(isinstance(label, ClassName) for label in labels):
        order = list(labels[0].order)
    array = _array(labels, what)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        advice = "; of a column for each class, take argmax(1)" if array.ndim == 2 else ""
        raise EntangleError(f"{what} must be one per example; got shape {array.shape}{advice}")

    def place(i: int) -> str:
        return f"example {i}" if places is None else places[i]

    if array.dtype.kind in "OSUT":
        array = _of_objects(array.astype(object), what, place)
    if array.dtype.kind == "f":
        _refuse_missing(np.isnan(array), what, place)
        if not (np.isfinite(array).all() and (array == np.round(array)).all()):
            raise EntangleError(
                f"Unknown label type: {what} must name classes, not be continuous or inf; threshold them first"
            )
    elif array.dtype.kind not in "biuO" and array.dtype.kind != "U":
        raise EntangleError(f"{what} must be names, bools or whole numbers, not {array.dtype}: name the classes")
    return array, order


def _array(labels: Any, what: str) -> Values:
    if hasattr(labels, "detach"):  # a torch tensor
        labels = labels.detach().cpu()
        return np.asarray((labels.float() if labels.is_floating_point() else labels).numpy())
    try:
        # numpy would turn [1, "a"] into names without a word.
        return np.array(labels, dtype=object) if isinstance(labels, list | tuple) else np.asarray(labels)
    except (ValueError, TypeError) as error:
        raise EntangleError(f"{what} must be one per example, in a list or array ({error})") from None


def _of_objects(array: Values, what: str, place: Any) -> Values:
    """An array of one kind from objects, or the line that says why there is none."""
    items = [item.item() if getattr(item, "shape", None) == () else item for item in array.tolist()]
    items = [item.decode(errors="replace") if isinstance(item, bytes) else item for item in items]
    _refuse_missing(np.array([_is_missing(item) for item in items], dtype=bool), what, place)
    kinds = {_kind(item) for item in items}
    if len(kinds) > 1 or None in kinds:
        listed = sorted({type(item).__name__ for item in items})
        raise EntangleError(
            f"{what} must be of one kind (names, bools or whole numbers), not {', '.join(listed)}; "
            "write them one way, and leave out missing ones"
        )
    return np.array(items) if items else np.array([], dtype=np.int64)


def _is_missing(item: Any) -> bool:
    if item is None or item is pd.NA or item is pd.NaT:
        return True
    return not item.strip() if isinstance(item, str) else isinstance(item, float) and item != item  # noqa: PLR0124


def _kind(item: Any) -> str | None:
    if isinstance(item, str):
        return "name"
    return "number" if isinstance(item, bool | int | float | np.bool_ | np.integer | np.floating) else None


def _refuse_missing(missing: NDArray[np.bool_], what: str, place: Any) -> None:
    if missing.any():
        first = int(missing.argmax())
        raise EntangleError(
            f"{what} are missing (None, NaN or empty) at {int(missing.sum()):,} of {len(missing):,} examples, first at "
            f"{place(first)}: label them or leave them out"
        )


def _ranked(values: Values, what: str) -> tuple[NDArray[np.int64], str]:
    """The order of classes, as indices, and why the last is the last."""
    as_found = np.arange(len(values))
    if values.dtype.kind == "b":
        return as_found, "True is 1"
    if values.dtype.kind in "iuf":
        return as_found, "it is the larger number"
    return _ranked_names(values, [name.strip().casefold() for name in values.tolist()], what)


def _ranked_names(values: Values, names: list[str], what: str) -> tuple[NDArray[np.int64], str]:
    """The same of names, given also in small letters."""
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        ways = [name for name, key in zip(values.tolist(), names, strict=True) if key == twice]
        raise EntangleError(f"{what} write one class in several ways, {', '.join(map(repr, ways))}: write it one way")
    if set(names) <= set(_TRUTHS):
        return np.argsort(names, kind="stable"), "true is 1"
    if all(_NUMBER.fullmatch(name) for name in names):
        numbers = [float(name) for name in names]
        if len(set(numbers)) < len(numbers):
            raise EntangleError(f"{what} write one number in several ways ({', '.join(values)}): write it one way")
        return np.argsort(numbers, kind="stable"), "it is the larger number"
    by_name = np.argsort(names, kind="stable")
    if len(names) != 2:
        return by_name, ""
    denied = [_denied(names[i], names[1 - i]) for i in (0, 1)]
    if denied[0] != denied[1]:
        clean = denied.index(True)
        return np.array([clean, 1 - clean]), f"{as_text(values[clean])!r} says that it is not there"
    return by_name, "it is the later of the two names in the alphabet"


def _denied(name: str, other: str) -> bool:
    """Whether a name says that what the other says is not there."""
    if name in UNMARKED or other in UNMARKED:
        return name in UNMARKED
    if _DENIES.match(name) or _DENIES.match(other):
        return bool(_DENIES.match(name))
    bare, rest = (re.sub(r"[\W_]", "", each) for each in (name, other))
    return any(bare == prefix + rest for prefix in _PREFIXES)


def _against_the_rest(
    values: Values, codes: NDArray[np.int64], counts: NDArray[np.int64], positive: Any, what: str
) -> Labels:
    names = [as_text(value) for value in values.tolist()]
    wanted = as_text(positive)
    exact = [i for i, name in enumerate(names) if name == wanted]
    near = exact or [i for i, name in enumerate(names) if name.casefold() == wanted.casefold()]
    if len(near) != 1:
        raise EntangleError(f"{what} have no {wanted!r} to call positive: they are {_shown(values, counts)}")
    if len(values) < 2:
        raise EntangleError(f"{what} have only the label {names[0]!r} ({len(codes):,} rows): two classes are needed")
    (one,) = near
    rest = [i for i in range(len(values)) if i != one]
    classes = values[[rest[0], one]] if len(rest) == 1 else np.array([f"not {names[one]}", names[one]])
    return Labels((codes == one).astype(np.int64), classes, "it was named as positive")


def _shown(values: Values, counts: NDArray[np.int64]) -> str:
    listed = [f"{as_text(name)!r} ({count:,})" for name, count in zip(values.tolist(), counts.tolist(), strict=True)]
    return ", ".join(listed[:_SHOWN]) + (", ..." if len(listed) > _SHOWN else "")
