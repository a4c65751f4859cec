"""Where attention ends in a block, told without the atlas: by what a small change of a module's input does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from transformers.pytorch_utils import Conv1D

from entangle.models.place import Place
from entangle.models.probe_inputs import probe_inputs
from entangle.models.trace import floating_tensors

KERNELS = {F.scaled_dot_product_attention, F.softmax, torch.softmax, Tensor.softmax}


class Kernels(TorchFunctionMode):
    """Keeps what each attention kernel, or each softmax, returns while `on`."""

    def __init__(self) -> None:
        super().__init__()
        self.on, self.seen = False, []

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if self.on and func in KERNELS:
            self.seen.append(out.clone())
        return out


class Attention:
    """The smallest module around a projection that has other linear modules too and runs a kernel, as it runs.

    Attributes:
        others: those modules.
        norm: the norm that it ends in (BERT's), whose input is what attention and residual stream add up to.
    """

    def __init__(self, model: nn.Module, place: Place) -> None:
        self.model, self.turn, path = model, place.turn or 0, place.path
        self.module, self.others, self.norm = model, [], None
        while path and not (self.others and self.run()[1]):
            path = path.rpartition(".")[0]
            self.module = model.get_submodule(path)
            self.others = [m for m in self.module.modules() if _is_linear(m) and m is not place.module]
        alone = [m for m in self.module.modules() if not [*m.children()]]
        vectors = [m for m in alone if {p.ndim for p in m.parameters()} == {1}]
        ends: list[tuple[nn.Module, Tensor]] = []
        with ExitStack() as stack:
            for norm in vectors:
                keep = norm.register_forward_hook(lambda m, _, output: ends.append((m, _rows(output))))
                stack.callback(keep.remove)
            plain = self.run()[0]
        self.norm = next((m for m, x in ends if x.shape == plain.shape and torch.equal(x, plain)), None)
        self.plain = self.run()

    def run(self, module: nn.Module | None = None, delta: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """What attention gives, as `[token size]`, and what its kernels return, with `delta` added to what a module
        receives at the last token.
        """
        results: list[Tensor] = []
        kernels, n_runs, n_calls = Kernels(), 0, 0

        def begin(*_: Any) -> None:
            nonlocal n_runs, n_calls
            kernels.on = n_runs == self.turn
            n_runs, n_calls = n_runs + 1, 0

        def end(_: nn.Module, __: Any, output: Any) -> None:
            kernels.on = False
            if self.norm is None:
                results.append(_rows(output))

        def perturb(_: nn.Module, args: Any) -> Any:
            nonlocal n_calls
            n_calls += 1
            if n_runs - 1 != self.turn or n_calls != 1:
                return None
            x = args[0].clone()
            x.reshape(-1, x.shape[-1])[-1] += delta
            return (x, *args[1:])

        with ExitStack() as stack, torch.no_grad():
            stack.callback(self.module.register_forward_pre_hook(begin, prepend=True).remove)
            stack.callback(self.module.register_forward_hook(end).remove)
            if self.norm is not None:
                keep = self.norm.register_forward_pre_hook(lambda _, args: results.append(_rows(args)))
                stack.callback(keep.remove)
            if module is not None:
                stack.callback(module.register_forward_pre_hook(perturb).remove)
            stack.enter_context(kernels)
            torch.manual_seed(0)  # some mask parts of an image at random
            self.model(**probe_inputs(self.model))
        return results[self.turn], kernels.seen

    def moves(self, module: nn.Module, delta: Tensor) -> tuple[bool, bool]:
        """Whether `delta`, added to what a module receives at the last token, changes what a kernel returns; and
        whether attention's result moves at that token by what the module's weight makes of it, and nowhere else.
        """
        result, kernels = self.run(module, delta)
        upstream = not kernels or not all(map(torch.equal, kernels, self.plain[1]))
        moved, expected = result - self.plain[0], torch.zeros_like(result)
        weight = module.weight if isinstance(module, Conv1D) else module.weight.T
        if weight.shape[1] != moved.shape[1] or not moved.any():
            return upstream, False
        expected[-1] = delta @ weight
        size = self.plain[0].abs().max() + expected.abs().max()
        return upstream, bool((moved - expected).abs().max() <= 1e-5 * size)


def _is_linear(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, Tensor) and weight.ndim == 2 and not isinstance(module, nn.Embedding)


def _rows(output: Any) -> Tensor:
    x = floating_tensors(output)[0].detach()
    return x.reshape(-1, x.shape[-1]).clone()
