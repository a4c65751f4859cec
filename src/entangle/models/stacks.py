"""Where a model's blocks are: the lists of modules that each take the residual stream and hand it on."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import nn

from entangle.models.trace import Call, Trace


@dataclass(frozen=True)
class Stack:
    """One list of blocks, as the probe forward ran it: every call of a block, in order, is a layer."""

    path: str
    blocks: tuple[Call, ...]
    n_kernels: int


def find_stacks(model: nn.Module, trace: Trace) -> list[Stack]:
    """Every outermost `nn.ModuleList` whose modules each took and returned a tensor of one shape, in running order."""
    calls_of: dict[str, list[Call]] = {}
    for call in trace.calls:
        calls_of.setdefault(call.path, []).append(call)
    stacks: list[Stack] = []
    for path, module in model.named_modules():
        if not isinstance(module, nn.ModuleList) or any(path.startswith(f"{stack.path}.") for stack in stacks):
            continue
        names = [f"{path}.{name}" if path else name for name, _ in module.named_children()]
        calls = sorted((call for name in names for call in calls_of.get(name, [])), key=lambda call: call.start)
        if calls and all(_keeps_shape(call) for call in calls) and _is_chain(calls):
            kernels = sum(len(trace.kernels_within(call)) for call in calls)
            stacks.append(Stack(path, tuple(calls), kernels))
    return sorted(stacks, key=lambda stack: stack.blocks[0].start)


def _is_chain(calls: list[Call]) -> bool:
    """Whether each block takes what the one before it returned, as a list of attentions without their MLPs does not."""
    pairs = [(a, b) for a, b in pairwise(calls) if b.path != calls[0].path]  # a list that runs again may start anew
    return all(any(torch.equal(x, before.outputs[0]) for x in after.inputs) for before, after in pairs)


def _keeps_shape(call: Call) -> bool:
    return bool(call.outputs) and any(x.shape == call.outputs[0].shape for x in call.inputs)
