"""Sampled continuations that can be compared: a prompt meets the same randomness in every condition and every batch.

Each (prompt, sample) has random numbers of its own, derived from the seed and the prompt's text. So a difference
between two conditions is never a difference of luck (common random numbers), and neither the batch a prompt is in nor
the other prompts change what is drawn for it.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import (
    GenerationConfig,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from entangle.activations import answer_ends, prompt_tokens
from entangle.data import AnyPrompt, prompt_key, prompts_of
from entangle.errors import EntangleError
from entangle.evaluation.language.subject import Placed, Subject, check_finite
from entangle.models.loading.held import is_bridged, own_tokenizer, underlying
from entangle.models.readout import logit_chunks
from entangle.models.rows import (
    accepts,
    batch_of,
    carries_state,
    context_length,
    pad_id,
    token_batches,
)
from entangle.models.tokens import first_position
from entangle.models.trace import evaluating
from entangle.progress import progress_bar

BLOCK = 2**19
"""Logits that a token is drawn from at once: what a processor's cache holds of them and of what is made on the way."""
FAR = (8.0, 16.0)
"""Nats below the likeliest token: the nucleus is looked for among tokens that are no further, then among more."""


@dataclass(frozen=True)
class Sampling:
    """How continuations are drawn.

    Args:
        samples: Continuations of each prompt.
        max_new_tokens: Length of a continuation, unless it ends by itself.
        top_p: Sample from the smallest set of tokens that holds this much probability.
        temperature: Divides the logits before that.
        seed: With the prompt's text it fixes what is drawn, whatever the other prompts are.
        prepend_bos: Begin every prompt with the beginning-of-sequence token where the tokenizer does not.
        batch_tokens: Tokens in one batch, new ones included. Wide batches are much faster.
        chat_template_kwargs: For the chat template that writes conversations, such as `tools`.

    Raises:
        EntangleError: Settings out of range.

    Example:
        >>> sampling = en.evaluation.Sampling(samples=2, max_new_tokens=4)
        >>> sampling.top_p, sampling.temperature
        (0.9, 1.0)
    """

    samples: int = 1
    max_new_tokens: int = 20
    top_p: float = 0.9
    temperature: float = 1.0
    seed: int = 0
    prepend_bos: bool = False
    batch_tokens: int = 16384
    chat_template_kwargs: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        if self.samples < 1 or self.max_new_tokens < 1 or not 0 < self.top_p <= 1 or not self.temperature > 0:
            raise EntangleError(
                "sampling needs samples >= 1, max_new_tokens >= 1, 0 < top_p <= 1 and temperature > 0; "
                f"got {self.samples}, {self.max_new_tokens}, {self.top_p} and {self.temperature}"
            )


def continuations(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[AnyPrompt],
    *,
    samples: int = 1,
    max_new_tokens: int = 20,
    top_p: float = 0.9,
    temperature: float = 1.0,
    seed: int = 0,
    batch_tokens: int = 16384,
    prepend_bos: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    progress: bool = True,
) -> list[list[str]]:
    """Sample continuations of every prompt by nucleus sampling (Holtzman et al. 2020).

    A prompt may be a conversation, a list of messages with `role` and `content`: the model is then given what
    `tokenizer.apply_chat_template(messages, add_generation_prompt=True)` gives, token for token, and stops where the
    template would end the assistant's turn, as well as where the model's own settings say.

    Args:
        model: A causal language model, steered or not: hooks that are on it act here too.
        tokenizer: Its tokenizer.
        prompts: Prompts: strings, conversations (perhaps as `{"messages": ..., "tools": ...}`), or a mixture.
        samples: Continuations of each prompt.
        max_new_tokens: Length of a continuation, unless it ends by itself.
        top_p: Sample from the smallest set of tokens that holds this much probability.
        temperature: Divides the logits before that.
        seed: Seed; with the prompt's text it fixes what is drawn, whatever else is in `prompts`.
        batch_tokens: Tokens in one batch, new ones included. Wide batches are much faster.
        prepend_bos: Begin every prompt with the beginning-of-sequence token where the tokenizer does not.
        chat_template_kwargs: For `apply_chat_template`: `tools`, `chat_template`, or what the template itself knows,
            such as `enable_thinking`.
        progress: Show a progress bar.

    Returns:
        For each prompt, its `samples` continuations, without special tokens.

    Raises:
        EntangleError: No prompts or an empty one, a prompt that leaves no room in the context, a model that cannot
            generate or gives logits that are not finite, or settings out of range; a conversation without a chat
            template, one that the template refuses, or one that ends with the assistant.

    Example:
        >>> few = {"samples": 2, "max_new_tokens": 4, "progress": False}
        >>> together = en.evaluation.continuations(model, tokenizer, prompts[:3], **few)
        >>> [len(row) for row in together]
        [2, 2, 2]
        >>> en.evaluation.continuations(model, tokenizer, prompts[1:2], **few) == together[1:2]  # whatever is beside it
        True
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    sampling = Sampling(
        samples, max_new_tokens, top_p, temperature, seed, prepend_bos, batch_tokens, chat_template_kwargs
    )
    return sample(Subject(model, tokenizer), prompts_of(prompts), sampling, progress=progress)


@torch.no_grad()
def sample(
    subject: Subject, prompts: Sequence[AnyPrompt], sampling: Sampling, *, progress: bool = True
) -> list[list[str]]:
    """Continuations of every prompt by a model as it is, or with a prefix or another decoding around it."""
    model, tokenizer = subject.model, subject.tokenizer
    rows = prompt_rows(subject, prompts, sampling)
    uniforms = _uniforms(prompts, sampling)
    texts = [[""] * sampling.samples for _ in prompts]
    ends = stop_tokens(model, tokenizer)
    n_tokens = len(prompts) * sampling.samples * sampling.max_new_tokens
    # By token: of a large model the first batch of texts alone takes minutes, and all its texts end together.
    with progress_bar(total=n_tokens, desc="generating", unit="token", disable=not progress) as bar:
        # Strings and conversations end by other tokens, so that they are not in one batch.
        for chat in (False, True):
            own = [i for i, prompt in enumerate(prompts) if isinstance(prompt, str) != chat]
            jobs = [i * sampling.samples + k for i in own for k in range(sampling.samples)]
            stops = list(
                dict.fromkeys([*ends, *(answer_ends(tokenizer, sampling.chat_template_kwargs) if chat else [])])
            )
            asked = prompts if chat else None
            for job, text in _sampled(subject, rows, uniforms, jobs, stops, sampling, bar.update, asked):
                texts[job // sampling.samples][job % sampling.samples] = text
    return texts


def _sampled(
    subject: Subject,
    rows: Sequence[Sequence[int]],
    uniforms: Float[Tensor, "job step"],
    jobs: Sequence[int],
    ends: list[int],
    sampling: Sampling,
    advance: Callable[[int], object],
    conversations: Sequence[AnyPrompt] | None,
) -> Iterator[tuple[int, str]]:
    """The text of each job, which is one sample of one prompt, batch by batch; `advance` hears of every token."""
    model, tokenizer = subject.model, subject.tokenizer
    config = _Settings.of(ends, pad_id(tokenizer, model), sampling.max_new_tokens)
    config.use_cache = not is_bridged(model)
    prompts = [list(rows[job // sampling.samples]) for job in jobs]
    lengths = [len(row) + sampling.max_new_tokens for row in prompts]
    # What carries a state would carry padding on the left in it: only prompts of one length go together. And RWKV,
    # whose state is its own and not generate()'s, mixes up the rows of a batch.
    at_once = 1 if accepts(model, "state") else sampling.batch_tokens
    for batch in token_batches(lengths, at_once, same_length=carries_state(model)):
        prompt_ids = [prompts[j] for j in batch]
        inputs = batch_of(model, tokenizer, prompt_ids, side="left")
        if not first_position(model):  # else generate() would count from 0
            inputs.pop("position_ids", None)
        start = inputs["input_ids"].shape[1]
        sampler = _NucleusSampler(uniforms[[jobs[j] for j in batch]].to(model.device), start, sampling, advance)
        before = []
        if subject.decoding is not None:
            asked = conversations and [conversations[jobs[j] // sampling.samples] for j in batch]
            before.append(subject.decoding.processor(_asked(subject, asked, sampling), prompt_ids))
        with evaluating(model):
            output = model.generate(
                **inputs,
                generation_config=config,
                logits_processor=LogitsProcessorList([*before, sampler]),
            )
        advance(len(batch) * (sampling.max_new_tokens - (output.shape[1] - start)))  # ended early
        new = [_until(row, ends) for row in output[:, start:].tolist()]
        yield from zip((jobs[j] for j in batch), tokenizer.batch_decode(new, skip_special_tokens=True), strict=True)


def _asked(subject: Subject, conversations: Sequence[AnyPrompt] | None, sampling: Sampling) -> Subject:
    """A subject that knows where a prefix goes in the conversations that it is to answer, if they are such."""
    if conversations is None:
        return subject

    def placing(rows: Sequence[list[int]], prefix: str) -> Placed:
        return prompt_rows(replace(subject, prefix=prefix), conversations, sampling), 0

    return replace(subject, placing=placing)


def prompt_rows(subject: Subject, prompts: Sequence[AnyPrompt], sampling: Sampling) -> list[list[int]]:
    """Token ids of prompts, the prefix before each, all with room for a continuation.

    Example:
        >>> subject, sampling = en.evaluation.Subject(model, tokenizer), en.evaluation.Sampling(max_new_tokens=4)
        >>> len(en.evaluation.prompt_rows(subject, prompts, sampling)) == len(prompts)
        True
    """
    model, tokenizer = subject.model, subject.tokenizer
    prompts = prompts_of(prompts)
    if not prompts:
        raise EntangleError("continuations need at least one prompt; got none")
    if not (hasattr(model, "generate") and model.can_generate()) or model.config.is_encoder_decoder:
        raise EntangleError(f"{type(model).__name__} cannot generate; give a causal language model")
    rows = prompt_tokens(
        tokenizer,
        subject.before_prompts(prompts, sampling.chat_template_kwargs),
        model=model,
        prepend_bos=sampling.prepend_bos,
        chat_template_kwargs=sampling.chat_template_kwargs,
    )
    room = context_length(model, tokenizer) - sampling.max_new_tokens
    for i, row in enumerate(rows):
        if len(row) > room:
            raise EntangleError(
                f"prompt {i} has {len(row)} tokens, but {sampling.max_new_tokens} new ones leave room for {room}; "
                "shorten it or lower max_new_tokens"
            )
    return rows


def nucleus_choice(
    logits: Float[Tensor, "batch vocab"], uniform: Float[Tensor, " batch"], top_p: float
) -> Int[Tensor, " batch"]:
    """Draw from each row's nucleus by inverting its cumulative distribution, most probable token first.

    Args:
        logits: Next-token logits.
        uniform: The number in [0, 1) that decides each row.
        top_p: Probability that the nucleus must hold: the smallest set of most probable tokens that does.

    Returns:
        The chosen token of each row.
    """
    parts = logit_chunks(len(logits), logits.shape[-1], BLOCK)
    return torch.cat([_nucleus_choice(logits[part], uniform[part], top_p) for part in parts])


def _nucleus_choice(
    logits: Float[Tensor, "row vocab"], uniform: Float[Tensor, " row"], top_p: float
) -> Int[Tensor, " row"]:
    """The same of rows that stay in a cache with all that is made of them."""
    total = logits.logsumexp(-1, keepdim=True)
    for far in (*FAR, math.inf):
        ranked, counts = _ranked(logits, far)
        cumulative = (ranked - total).exp_().cumsum(-1)
        if ranked.shape[-1] == logits.shape[-1] or bool((cumulative[:, -1] >= top_p).all()):
            break
    last = (cumulative < top_p).sum(-1, keepdim=True).minimum(counts - 1)
    mass = cumulative.gather(-1, last)
    place = torch.searchsorted(cumulative, uniform[:, None] * mass, right=True).minimum(last)
    # From the place among the sorted logits back to the token; equal ones stand in the vocabulary's order.
    value = ranked.gather(-1, place)
    among_equals = place.squeeze(-1) - (ranked > value).sum(-1)
    rows, tokens = _equal(logits, value)
    first = torch.searchsorted(rows, torch.arange(len(logits), device=rows.device))
    return tokens[first + among_equals]


def _ranked(logits: Float[Tensor, "row vocab"], far: float) -> tuple[Float[Tensor, "row k"], Int[Tensor, "row 1"]]:
    """Each row's logits above its largest less `far`, sorted, then -inf; and how many these are.

    By numpy on a CPU, which filters and sorts ten times faster than torch.
    """
    if logits.device.type != "cpu":
        ranked = logits.sort(dim=-1, descending=True).values
        return ranked, (ranked > -torch.inf).sum(-1, keepdim=True)
    values = logits.numpy()
    kept = values > values.max(-1, keepdims=True) - far
    counts = kept.sum(-1, keepdims=True)
    smallest = np.full((len(values), counts.max()), np.inf, values.dtype)
    smallest[np.arange(smallest.shape[1]) < counts] = -values[kept]
    smallest.sort(axis=-1)
    return torch.from_numpy(np.negative(smallest, out=smallest)), torch.from_numpy(counts)


def _equal(
    logits: Float[Tensor, "row vocab"], value: Float[Tensor, "row 1"]
) -> tuple[Int[Tensor, " found"], Int[Tensor, " found"]]:
    """Rows and tokens, in their order, whose logits are the row's value."""
    if logits.device.type != "cpu":
        rows, tokens = (logits == value).nonzero(as_tuple=True)
        return rows, tokens
    found = np.nonzero(logits.numpy() == value.numpy())
    return torch.from_numpy(found[0].copy()), torch.from_numpy(found[1].copy())


class _NucleusSampler(LogitsProcessor):  # type: ignore[misc]
    """Leaves one token possible: the one that this row's random number draws at this step."""

    def __init__(
        self,
        uniforms: Float[Tensor, "row step"],
        start: int,
        sampling: Sampling,
        advance: Callable[[int], object],
    ) -> None:
        self.uniforms, self.start, self.sampling, self.advance = uniforms, start, sampling, advance

    def __call__(
        self, input_ids: Int[Tensor, "row pos"], scores: Float[Tensor, "row vocab"]
    ) -> Float[Tensor, "row vocab"]:
        check_finite(scores)
        uniform = self.uniforms[:, input_ids.shape[1] - self.start]
        temperature = self.sampling.temperature
        warm = scores.float() if temperature == 1 else scores.float() / temperature
        chosen = nucleus_choice(warm, uniform, self.sampling.top_p)
        self.advance(len(chosen))
        return scores.fill_(-torch.inf).scatter_(-1, chosen[:, None], 0.0)


def _uniforms(prompts: Sequence[AnyPrompt], sampling: Sampling) -> Float[Tensor, "job step"]:
    """Random numbers of each (prompt, sample), prompts outermost; a repeated prompt gets others each time."""
    seen: Counter[str] = Counter()
    rows = []
    for prompt in map(prompt_key, prompts):
        for k in range(sampling.samples):
            key = hashlib.sha256(f"{sampling.seed} {seen[prompt]} {k} {prompt}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(key[:8]) >> 1)
            rows.append(torch.rand(sampling.max_new_tokens, generator=generator))
        seen[prompt] += 1
    return torch.stack(rows)


def stop_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a continuation: the model's own (`model.generation_config.eos_token_id`, one or several),
    else the tokenizer's end of sequence, else none. Of the model's generation settings nothing else is used.
    """
    own = getattr(model.generation_config, "eos_token_id", None)
    ends = tokenizer.eos_token_id if own is None else own
    return [] if ends is None else [int(end) for end in (ends if isinstance(ends, list | tuple) else [ends])]


def _until(row: list[int], ends: list[int]) -> list[int]:
    """New tokens before the one that ends them: what follows it is padding, of whatever id."""
    return row[: next((place for place, token in enumerate(row) if token in ends), len(row))]


class _Settings(GenerationConfig):  # type: ignore[misc]
    """Settings for `generate` that are complete: it would take any that is left unset from the model's own."""

    @classmethod
    def of(cls, ends: list[int], pad: int, max_new_tokens: int) -> _Settings:
        """Settings that take the sampler's one possible token at every step."""
        settings = cls(max_new_tokens=max_new_tokens, eos_token_id=ends or None, pad_token_id=pad)
        defaults = {name: x for name, x in cls._get_default_generation_params().items() if name != "max_length"}
        GenerationConfig.update(settings, **defaults, defaults_only=True)
        return settings

    def update(self, defaults_only: bool = False, **settings: Any) -> dict[str, Any]:
        """Change settings; defaults of a model change nothing."""
        unused: dict[str, Any] = settings if defaults_only else super().update(**settings)
        return unused
