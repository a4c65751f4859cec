"""Methods of a model that are watched while blocks are open on it, each thread's calls by its own timeline."""

from __future__ import annotations

import copy
import functools
import types
from collections.abc import Callable, Iterable
from typing import Any

from torch import nn

# Methods, and what a timeline does instead.
WATCHED = {
    "generate": "generate",
    "prepare_inputs_for_generation": "prepare",
    "generate_batch": "refuse",
    "init_continuous_batching": "refuse",
}


class Post:
    """The timelines of one model, one for each thread that has blocks open, and the methods replaced for them.

    No lock guards it, which an interrupt could leave closed: who joins adds itself and then patches, who leaves takes
    back and then looks whether anybody has come.
    """

    def __init__(self) -> None:
        self.timelines: list[Any] = []

    def mine(self) -> Any | None:
        """The timeline of the thread that calls, if it has one."""
        return next((timeline for timeline in [*self.timelines] if not timeline.elsewhere()), None)

    def join(self, timeline: Any, modules: Iterable[nn.Module]) -> None:
        """Add a timeline, and let it watch the methods of its modules."""
        if timeline not in self.timelines:
            self.timelines.append(timeline)
        for module in modules:
            self._patch(module)

    def leave(self, timeline: Any, modules: Iterable[nn.Module]) -> None:
        """Take a timeline away; with the last, give the modules their methods back, unless someone replaced them."""
        self.timelines[:] = [other for other in self.timelines if other is not timeline]
        for module in modules:
            if not self.timelines:
                self._take_back(module)
            if self.timelines:
                self._patch(module)

    def _patch(self, module: nn.Module) -> None:
        for name, watch in WATCHED.items():
            if not self._has(module, name) and callable(getattr(module, name, None)):
                module.__dict__[name] = Patched(module, name, self, watch)

    def _take_back(self, module: nn.Module) -> None:
        for name in WATCHED:
            if self._has(module, name):
                own = module.__dict__[name].own
                if own is None:
                    module.__dict__.pop(name, None)
                else:
                    module.__dict__[name] = own

    def _has(self, module: nn.Module, name: str) -> bool:
        patched = module.__dict__.get(name)
        return isinstance(patched, Patched) and patched.post is self


class Patched:
    """A method of one model while blocks are open on it; copies and pickles of the model have the method itself.

    Attributes:
        module: The model.
        name: Of the method.
        own: What the model had of that name besides its class's, if anything.
    """

    def __init__(self, module: nn.Module, name: str, post: Post, watch: str) -> None:
        self.module, self.name, self.own = module, name, module.__dict__.get(name)
        self._original: Callable[..., Any] = getattr(module, name)
        self.post, self._watch = post, watch
        functools.update_wrapper(self, self._original, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The method, watched by the timeline of the thread that calls it, if there is one."""
        timeline = self.post.mine()
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
