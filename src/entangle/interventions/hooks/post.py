"""Methods of a model that are watched while blocks are open on it, each thread's calls by its own timeline."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable
from threading import RLock
from typing import Any, Protocol

from torch import nn

from entangle.models.hooks import Skip

# Methods, and what a timeline does instead.
WATCHED = {
    "generate": "generate",
    "prepare_inputs_for_generation": "prepare",
    "generate_batch": "refuse",
    "init_continuous_batching": "refuse",
}
CHANGING = RLock()  # held by whoever changes which timelines a model has


class Watcher(Protocol):
    """A timeline, as its model's methods see it."""

    @property
    def elsewhere(self) -> Skip:
        """Tells whether a call comes from another thread or task than its own."""


class Post:
    """The timelines of one model, one for each thread that has blocks open, and the methods replaced for them."""

    def __init__(self) -> None:
        self.timelines: list[Any] = []
        self._patches: list[Patched] = []

    def mine(self) -> Any | None:
        """The timeline of the thread that calls, if it has one."""
        return next((timeline for timeline in [*self.timelines] if not timeline.elsewhere()), None)

    def patch(self, module: nn.Module) -> None:
        """Let the timelines watch the methods of a module, unless they do."""
        for name, watch in WATCHED.items():
            if any(patch.module is module and patch.name == name for patch in self._patches):
                continue
            if callable(getattr(module, name, None)):
                self._patches.append(Patched(module, name, self, watch))
                module.__dict__[name] = self._patches[-1]

    def take_back(self) -> None:
        """Give the module its methods back, except those that someone replaced since."""
        for patch in self._patches:
            if patch.module.__dict__.get(patch.name) is patch:
                if patch.own is None:
                    patch.module.__dict__.pop(patch.name, None)
                else:
                    patch.module.__dict__[patch.name] = patch.own


class Patched:
    """A method of one model while blocks are open on it; copies and pickles of the model have the method itself.

    Attributes:
        module: the model.
        name: of the method.
        own: what the model had of that name besides its class's, if anything.
    """

    def __init__(self, module: nn.Module, name: str, post: Post, watch: str) -> None:
        self.module, self.name, self.own = module, name, module.__dict__.get(name)
        self._original: Callable[..., Any] = getattr(module, name)
        self._post, self._watch = post, watch
        functools.update_wrapper(self, self._original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The method, watched by the timeline of the thread that calls it, if there is one."""
        timeline = self._post.mine()
        if timeline is None:
            return self._original(*args, **kwargs)
        return getattr(timeline, self._watch)(self._original, *args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        twin = memo.get(id(self.module))
        if self.own is not None:
            return copy.deepcopy(self.own, memo)
        function = getattr(type(twin), self.name, None)
        return self._original if function is None else types.MethodType(function, twin)

    def __reduce__(self) -> tuple[Any, ...]:
        return getattr, (self.module, self.name) if self.own is None else (self.own, "__call__")
