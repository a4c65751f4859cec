"""What a scope means, worked out from its definition: greedy text for which every step runs the whole text anew."""

from __future__ import annotations

import inspect

import torch
from transformers import LlamaForCausalLM

from entangle.interventions import AddDirection, steer
from entangle.models import Atlas, hooked

# The cache's argument changed its name between the versions of transformers that are tested.
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
SCOPES = ["prompt", "generated", 3, -2]


def prompts(n, length, seed=0):
    return torch.randint(4, 90, (n, length), generator=torch.Generator().manual_seed(seed))


def push(size=32, seed=0, length=4.0):
    return length * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def push_for(model, ids, layer=0):
    """A vector three times as long as what it is added to: streams of random models differ by orders of magnitude."""
    place, norms = Atlas(model).place("resid_post", layer), []
    with torch.no_grad(), hooked([(place, lambda x: norms.append(x.norm(dim=-1)))]):
        model(input_ids=ids)
    return push(place.size, length=3 * float(norms[0].median()) / place.size**0.5)


def meant(tokens, n_columns, n_prompt):
    """The columns of an unpadded text that a scope names."""
    column = torch.arange(n_columns)
    if isinstance(tokens, int):
        return column >= (tokens if tokens >= 0 else n_prompt + tokens)
    return {"all": column >= 0, "prompt": column < n_prompt, "generated": column >= n_prompt, None: column < 0}[tokens]


def whole(model, tokens, ids, n_new, vector=None, layer=0):
    """The new tokens `[row, n_new]`, with a hook of its own and no cache; `tokens=None` for no edit at all."""
    place, n_prompt = Atlas(model).place("resid_post", layer), ids.shape[1]
    vector = push_for(model, ids, layer) if vector is None else vector
    for _ in range(n_new):
        keep = meant(tokens, ids.shape[1], n_prompt)[None, :, None]

        def hook(module, args, output, keep=keep):
            x = output[0] if isinstance(output, tuple) else output
            edited = torch.where(keep, x + vector, x)
            return (edited, *output[1:]) if isinstance(output, tuple) else edited

        handle = place.module.register_forward_hook(hook)
        try:
            with torch.no_grad():
                logits = model(input_ids=ids, use_cache=False).logits
        finally:
            handle.remove()
        ids = torch.cat([ids, logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, n_prompt:]


def generated(model, tokens, ids, n_new, vector=None, layer=0, steered=None, **how):
    """The new tokens of `generate` inside a steer block, and what the block counted."""
    vector = push_for(steered or model, ids, layer) if vector is None else vector
    how = {"attention_mask": torch.ones_like(ids), **how}
    edits = [] if tokens is None else [AddDirection(vector, "resid_post", layer)]
    with steer(steered or model, edits, tokens="all" if tokens is None else tokens) as handle:
        out = model.generate(
            input_ids=ids, do_sample=False, max_new_tokens=n_new, eos_token_id=10_000, pad_token_id=0, **how
        )
    return out[:, ids.shape[1] :], sum(handle.counts)
