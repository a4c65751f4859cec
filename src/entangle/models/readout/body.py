"""A causal model's last step apart from the rest: hidden states first, then their logits a few positions at a time.

Logits of many tokens are most of what a reading keeps in memory: a quarter of a million for every position of every
row. They are a function of one position's hidden state alone, so they need never be there all at once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any
from weakref import WeakSet

import torch
from jaxtyping import Float
from torch import Tensor, nn

from entangle.errors import EntangleError
from entangle.models.hooks import Handle, Ours, elsewhere, items_of
from entangle.models.readout.head import Head
from entangle.models.rows import at_once, takes

LOGITS = 2**26
"""Logits computed at once by default: 256 MB in single precision."""
_NEAR = {torch.float32: 1e-4, torch.float64: 1e-9}  # of the largest logit; half types round to some hundredths
_NEAR_HALF = 5e-2
_WHOLE: WeakSet[nn.Module] = WeakSet()  # models whose head and body were found not to be told apart


def run_body(model: nn.Module, inputs: Mapping[str, Any]) -> tuple[Float[Tensor, "row pos d"], Head] | None:
    """Run a model on a batch, hooks and all, for its hidden states and the head that makes logits of them.

    The head is confirmed: at the last column it makes the logits that the model made.

    Args:
        model: A causal language model; whatever is on it acts.
        inputs: Its arguments.

    Returns:
        Both; None where the model has no body apart, or where the head is not confirmed.

    Example:
        >>> batch = en.models.batch_of(model, tokenizer, [[5, 6, 7], [8, 9]])
        >>> states, head = en.models.run_body(model, batch)
        >>> states.shape, head(states[0, :2]).shape
        (torch.Size([2, 3, 32]), torch.Size([2, 512]))
    """
    owner = body_of(model)
    if owner is None:
        return None
    caught: dict[str, list[Any]] = {path: [] for path in _bodies(owner)}
    handle, skip = Handle(), elsewhere()

    def catch(path: str) -> Any:
        def after(_: nn.Module, __: Any, output: Any) -> None:
            if not skip():
                caught[path].append(output)

        return after

    try:
        for path in caught:
            handle.put(owner.get_submodule(path), catch(path), after=True)
        output = model(**inputs, use_cache=False, logits_to_keep=1)
    finally:
        handle.remove()
    # The outermost that ran: some models call what is inside their base model, and not the base model itself.
    ran = [path for path, made in caught.items() if made]
    split = _split(owner, ran[0], caught[ran[0]], output, inputs) if ran else None
    if split is None:
        _WHOLE.add(owner)  # so that it is not tried again at every batch
    return split


def states_and_head(
    model: nn.Module, inputs: Mapping[str, Any]
) -> tuple[Float[Tensor, "row pos d"], Callable[[Tensor], Tensor]]:
    """What `run_body` gives; where a model has no body apart, its logits and a head that leaves them as they are.

    Example:
        >>> batch = en.models.batch_of(model, tokenizer, [[5, 6, 7], [8, 9]])
        >>> states, head = en.models.states_and_head(model, batch)
        >>> torch.allclose(head(states[0]), model(**batch).logits[0], atol=1e-5)
        True
    """
    split = run_body(model, inputs)
    return (model(**inputs, use_cache=False).logits, as_it_is) if split is None else split


def as_it_is(logits: Float[Tensor, "token vocab"]) -> Float[Tensor, "token vocab"]:
    """The head of a model whose hidden states are not told from its logits.

    Example:
        >>> en.models.as_it_is(torch.ones(1, 2))
        tensor([[1., 1.]])
    """
    return logits


def batch_budget(model: Any, batch_tokens: int, device: torch.device, logits: int = LOGITS) -> int:
    """Tokens to read together: fewer where a model without a body apart makes all logits of a batch at once.

    Example:
        >>> en.models.batch_budget(model, 64, torch.device("cpu"))
        64
    """
    check_logits(logits)
    budget = at_once(batch_tokens, device)
    if body_of(model) is None:
        budget = max(1, min(budget, logits // model.config.get_text_config().vocab_size))
    return budget


def logit_chunks(n_tokens: int, vocabulary: int, logits: int = LOGITS) -> Iterator[slice]:
    """Slices of positions whose logits are at most `logits` numbers, one position or more each.

    Example:
        >>> list(en.models.logit_chunks(5, vocabulary=512, logits=1024))
        [slice(0, 2, None), slice(2, 4, None), slice(4, 5, None)]
    """
    size = max(1, logits // vocabulary)
    for start in range(0, n_tokens, size):
        yield slice(start, min(start + size, n_tokens))


def check_logits(logits: int) -> None:
    """Refuse a bound that is none.

    Raises:
        EntangleError: It is below 1.

    Example:
        >>> en.models.check_logits(0)
        Traceback (most recent call last):
        entangle.errors.EntangleError: logits must be 1 or more, the numbers computed at once; got 0: give more
    """
    if logits < 1:
        raise EntangleError(f"logits must be 1 or more, the numbers computed at once; got {logits}: give more")


def body_of(model: nn.Module) -> nn.Module | None:
    """The model whose forward calls a body and then a head; None where there is no such thing.

    Example:
        >>> en.models.body_of(model) is model, en.models.body_of(model.base_model) is None
        (True, True)
    """
    if not takes(model, "logits_to_keep") or getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        return None
    for owner in model.modules():
        if not hasattr(owner, "get_output_embeddings") or not hasattr(owner, "base_model_prefix"):
            continue
        if owner in _WHOLE or "forward" in vars(owner) or not _bodies(owner):
            continue
        foreign = [hook for hook in [*owner._forward_hooks.values()] if not isinstance(hook, Ours)]
        return None if foreign else owner  # which may change the logits
    return None


def _bodies(owner: Any) -> list[str]:
    """Paths of what may be the body of a model with a head, the outermost first."""
    head = owner.get_output_embeddings()
    candidates = [getattr(owner, "base_model", None), owner.get_decoder() if hasattr(owner, "get_decoder") else None]
    paths = {id(module): path for path, module in owner.named_modules()}
    return [
        paths[id(body)]
        for body in dict.fromkeys(candidates)
        if isinstance(body, nn.Module) and paths.get(id(body)) and head is not None and head not in [*body.modules()]
    ]


def _split(
    owner: nn.Module, path: str, caught: list[Any], output: Any, inputs: Mapping[str, Any]
) -> tuple[Float[Tensor, "row pos d"], Head] | None:
    """Hidden states and the head, where the head makes of the last ones what the model made of them."""
    last = getattr(output, "logits", None)
    shape = next(iter(inputs.values())).shape[:2]
    if len(caught) != 1 or not isinstance(last, Tensor) or last.shape[:2] != (shape[0], 1):
        return None
    (made,) = caught
    keys = [None] if isinstance(made, Tensor) else [key for key, x in items_of(made) if isinstance(x, Tensor)]
    if not keys:
        return None
    states: Tensor = made if keys[0] is None else made[keys[0]]
    if states.ndim != 3 or states.shape[:2] != shape:
        return None
    head = Head(owner, path, made, keys[0])
    with torch.no_grad():
        again = head(states[:, -1])
    last = last.detach()
    near = _NEAR.get(last.dtype, _NEAR_HALF) * float(last.abs().nan_to_num(0.0, posinf=0.0).max())
    same = again.shape == last[:, 0].shape and torch.allclose(again, last[:, 0], rtol=0.0, atol=near, equal_nan=True)
    return (states, head) if same else None
