"""Many small GPT-2 transformers trained at once, their weights stacked on a leading `model` axis.

One model of width 4 keeps no processor busy: nearly all its time goes into starting operations. Stacked, eighty cost
little more than one. The arithmetic is GPT-2's, so `StackedGPT2.to_huggingface` hands any of them to code for real
models.

Inside, activations are [model, channel, row * pos]: with 4 channels only the long last axis makes good vectors.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Callable, Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F
from transformers import GPT2LMHeadModel

from entangle.errors import EntangleError
from entangle.progress import progress_bar

Weights = dict[str, Tensor]
Batch = tuple[Int[Tensor, "#model row pos"], Float[Tensor, "model row"]]
SETTLED = 3e4  # model-steps below which compiling takes longer than it saves


class StackedGPT2:
    """Independent GPT-2s: pre-LayerNorm, tanh-GELU, an unembedding of its own, and positions only if asked for.

    Args:
        seeds: One per model, of its initial weights; a model does not depend on which others are in the stack.
        n_states: vocabulary.
        n_layers: blocks.
        d_model: Width of the residual stream.
        n_heads: Attention heads, of d_model / n_heads each; the MLP has 4 d_model neurons.
        n_positions: Learn position embeddings for this many positions; 0 for none, which a causal transformer can do
            without.
        init_std: Of the initial weights; 1 / sqrt(d_model) by default, since GPT-2's .02 is made for hundreds of
            dimensions.

    Attributes:
        weights: Every parameter by its GPT-2 name, `[model, out, in]` for matrices and `[model, out, 1]` for vectors.

    Example:
        >>> stack = en.toy.StackedGPT2([0, 1], n_states=4)  # two models, of seeds 0 and 1
        >>> tokens = torch.tensor([[[0, 1, 2, 3]]])
        >>> stack.residuals(tokens).shape  # [model, layer, row, pos, d_model]
        torch.Size([2, 4, 1, 4, 4])
        >>> stack.next_token_losses(tokens).shape
        torch.Size([2, 1, 3])
    """

    def __init__(
        self,
        seeds: Sequence[int],
        n_states: int,
        *,
        n_layers: int = 4,
        d_model: int = 4,
        n_heads: int = 2,
        n_positions: int = 0,
        init_std: float | None = None,
    ) -> None:
        if d_model % n_heads:
            raise EntangleError(f"n_heads must divide d_model, but {n_heads} does not divide {d_model}")
        if min(len(seeds), n_states, n_layers) < 1:
            raise EntangleError(
                f"a stack needs a seed, a state and a layer or more, not {len(seeds)}, {n_states} and {n_layers}"
            )
        self.n_models, self.n_states, self.n_layers = len(seeds), n_states, n_layers
        self.d_model, self.n_heads, self.n_positions = d_model, n_heads, n_positions
        std = d_model**-0.5 if init_std is None else init_std
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        self.weights: Weights = {}
        for name, (n_out, n_in) in self._shapes().items():
            if name.endswith("bias"):
                value = torch.zeros(self.n_models, n_out, 1)
            elif ".ln_" in name or name.startswith("ln_"):
                value = torch.ones(self.n_models, n_out, 1)
            else:
                # GPT-2 shrinks what writes into the residual stream by the number of writers.
                scale = std / math.sqrt(2 * n_layers) if name.endswith("c_proj.weight") else std
                value = scale * torch.stack([torch.randn(n_out, n_in, generator=each) for each in generators])
            self.weights[name] = value.requires_grad_()

    def _shapes(self) -> dict[str, tuple[int, int]]:
        d, shapes = self.d_model, {"wte.weight": (self.d_model, self.n_states)}
        if self.n_positions:
            shapes["wpe.weight"] = (d, self.n_positions)
        sizes = {"ln_1": (d, 1), "attn.c_attn": (3 * d, d), "attn.c_proj": (d, d)}
        sizes |= {"ln_2": (d, 1), "mlp.c_fc": (4 * d, d), "mlp.c_proj": (d, 4 * d)}
        modules = {f"h.{layer}.{name}": size for layer in range(self.n_layers) for name, size in sizes.items()}
        for name, (n_out, n_in) in {**modules, "ln_f": (d, 1)}.items():
            shapes |= {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out, 1)}
        return {**shapes, "lm_head.weight": (self.n_states, d)}

    def residuals(self, tokens: Int[Tensor, "#model row pos"]) -> Float[Tensor, "model layer row pos d_model"]:
        """`resid_post` of every layer; the last one is before the final LayerNorm."""
        with torch.no_grad():
            _, stream = _forward(self.weights, self._one_hot(tokens), tokens.shape[-1], self.n_heads)
        layers = torch.stack(stream, dim=1).mT
        return layers.reshape(self.n_models, self.n_layers, *tokens.shape[1:], self.d_model)

    def log_probabilities(self, tokens: Int[Tensor, "#model row pos"]) -> Float[Tensor, "model row pos state"]:
        """Log-probability of every next state."""
        with torch.no_grad():
            logits, _ = _forward(self.weights, self._one_hot(tokens), tokens.shape[-1], self.n_heads)
        return logits.mT.log_softmax(-1).reshape(self.n_models, *tokens.shape[1:], self.n_states)

    def next_token_losses(self, tokens: Int[Tensor, "#model row pos"]) -> Float[Tensor, "model row predicted"]:
        """Negative log-likelihood in nats of every token but the first; `predicted` is pos - 1."""
        predicted = self.log_probabilities(tokens[..., :-1])
        target = tokens[..., 1:].expand(self.n_models, -1, -1)
        return -predicted.gather(-1, target.unsqueeze(-1)).squeeze(-1)

    def _one_hot(self, tokens: Tensor) -> Float[Tensor, "model state rowpos"]:
        dtype = self.weights["wte.weight"].dtype
        one_hot = F.one_hot(tokens.flatten(1), self.n_states).to(dtype).mT.contiguous()
        return one_hot.expand(self.n_models, -1, -1)

    def fit(
        self,
        batches: Callable[[int], Batch],
        *,
        steps: int,
        lr: float = 3e-3,
        snapshots: Iterable[int] = (),
        on_snapshot: Callable[[int], None] | None = None,
        compile: bool | None = None,
        progress: bool = True,
    ) -> bool:
        """Train all models with Adam on next-token prediction.

        Args:
            batches: Step -> tokens and the weight of each row in each model's loss; weights usually sum to 1 per model.
            steps: Of Adam.
            lr: Its learning rate.
            snapshots: Steps before which to call `on_snapshot`; `steps` itself is after the last one.
            on_snapshot: Called with the step.
            compile: Use torch.compile, which needs a C++ compiler on a CPU; None for "where there is one and it pays".
            progress: Show a progress bar.

        Returns:
            Whether it was compiled: the result is the same up to rounding.
        """
        compiled = self._worth_compiling(steps) if compile is None else compile
        loss = torch.compile(_loss) if compiled else _loss
        optimizer = torch.optim.Adam(self.weights.values(), lr=lr, fused=True)
        wanted = set(snapshots)
        bar = progress_bar(range(steps + 1), desc=f"{self.n_models} transformers", disable=not progress, leave=False)
        last: tuple[Tensor, Tensor] | None = None
        for step in bar:
            if step in wanted and on_snapshot is not None:
                on_snapshot(step)
            if step == steps:
                break
            tokens, weight = batches(step)
            if last is None or tokens is not last[0]:
                # Chains without noise show the same rows at every step, in other proportions.
                last = (tokens, self._one_hot(tokens[..., :-1]))
            target = tokens[..., 1:].expand(self.n_models, -1, -1)
            optimizer.zero_grad()
            total = loss(self.weights, last[1], target, weight, self.n_heads)
            torch.autograd.backward(total)
            optimizer.step()
            if step % 100 == 0:
                bar.set_postfix(loss=f"{total.item() / self.n_models:.3f}")
        return compiled

    def _worth_compiling(self, steps: int) -> bool:
        compiler = shutil.which(os.environ.get("CXX", "")) or shutil.which("g++") or shutil.which("clang++")
        return compiler is not None and self.n_models * steps >= SETTLED

    def to_huggingface(self, model: int) -> GPT2LMHeadModel:
        """One of the models as a `GPT2LMHeadModel` in evaluation mode, with the same logits.

        Without learned positions its position embeddings are zero; freeze them before training it further.
        """
        from transformers import GPT2Config, GPT2LMHeadModel

        config = GPT2Config(
            vocab_size=self.n_states,
            n_positions=self.n_positions or 64,
            n_embd=self.d_model,
            n_layer=self.n_layers,
            n_head=self.n_heads,
            tie_word_embeddings=False,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
        )
        copy = GPT2LMHeadModel(config).to(self.weights["wte.weight"].dtype).eval()
        state = {}
        for name, stacked in self.weights.items():
            value = stacked[model].detach()
            if value.shape[-1] == 1 and not name.startswith("w"):
                value = value.squeeze(-1)
            elif name != "lm_head.weight":
                value = value.mT  # GPT-2's matrices and embeddings are [in, out]
            state[name if name == "lm_head.weight" else f"transformer.{name}"] = value.clone()
        if not self.n_positions:
            state["transformer.wpe.weight"] = torch.zeros_like(copy.transformer.wpe.weight)
        copy.load_state_dict(state)
        return copy


def _norm(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    x = x - x.mean(1, keepdim=True)
    return x * torch.rsqrt(x.square().mean(1, keepdim=True) + 1e-5) * scale + shift


def _forward(w: Weights, one_hot: Tensor, length: int, n_heads: int) -> tuple[Tensor, list[Tensor]]:
    """Logits and `resid_post` of every layer, all [model, channel, row * pos]."""
    n_models, _, n_tokens = one_hot.shape
    d_model = w["ln_f.weight"].shape[1]
    n_rows, d_head = n_tokens // length, d_model // n_heads
    future = torch.full((length, length), -torch.inf, dtype=one_hot.dtype).triu(1)
    x = torch.bmm(w["wte.weight"], one_hot)
    if "wpe.weight" in w:
        x = x + w["wpe.weight"][..., :length].repeat(1, 1, n_rows)

    def linear(name: str, x: Tensor) -> Tensor:
        return torch.baddbmm(w[f"{name}.bias"], w[f"{name}.weight"], x)

    def norm(name: str, x: Tensor) -> Tensor:
        return _norm(x, w[f"{name}.weight"], w[f"{name}.bias"])

    stream: list[Tensor] = []
    while f"h.{len(stream)}.ln_1.weight" in w:
        block = f"h.{len(stream)}"
        qkv = linear(f"{block}.attn.c_attn", norm(f"{block}.ln_1", x))
        heads = qkv.view(n_models, 3, n_heads, d_head, n_rows, length).permute(1, 0, 2, 4, 3, 5)
        q, k, v = heads.reshape(3, n_models * n_heads * n_rows, d_head, length)
        scores = torch.baddbmm(future, q.mT, k, alpha=d_head**-0.5)
        z = torch.bmm(v, scores.softmax(-1).mT).view(n_models, n_heads, n_rows, d_head, length)
        x = x + linear(f"{block}.attn.c_proj", z.transpose(2, 3).reshape(n_models, d_model, n_tokens))
        neurons = F.gelu(linear(f"{block}.mlp.c_fc", norm(f"{block}.ln_2", x)), approximate="tanh")
        x = x + linear(f"{block}.mlp.c_proj", neurons)
        stream.append(x)
    return torch.bmm(w["lm_head.weight"], norm("ln_f", x)), stream


def _loss(w: Weights, one_hot: Tensor, target: Tensor, weight: Tensor, n_heads: int) -> Float[Tensor, ""]:
    """Sum over models of the weighted mean over rows; models share no weight, so each gets its own gradient."""
    logits, _ = _forward(w, one_hot, target.shape[-1], n_heads)
    losses = F.cross_entropy(logits, target.flatten(1), reduction="none").view(target.shape).mean(-1)
    return (losses * weight).sum()
