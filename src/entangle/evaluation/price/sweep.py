"""What steering buys and what it costs: methods and strengths, each measured on the same prompts and documents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
import transformers
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.data import AnyPrompt, prompt_key, prompts_of
from entangle.errors import EntangleError
from entangle.evaluation.language.documents import packed_owners, packed_rows, read_rows
from entangle.evaluation.language.generation import Sampling, prompt_rows
from entangle.evaluation.language.reading import PlainReading
from entangle.evaluation.language.subject import Subject
from entangle.evaluation.price.bench import Bench, Change
from entangle.evaluation.price.conditions import Condition, ConditionStore
from entangle.evaluation.price.result import Tradeoff
from entangle.evaluation.price.strength import Solver
from entangle.evaluation.scoring.scorers import Scorer, score, scorer_key, scorer_name
from entangle.forecast import ShiftMetric
from entangle.models.fingerprint import fingerprint, tokenizer_fingerprint
from entangle.models.loading.held import own_tokenizer, underlying
from entangle.models.readout import LOGITS
from entangle.progress import progress_bar
from entangle.storage.digest import digest

PLAIN = ""


class SweepError(EntangleError):
    """A sweep that could not go on; `.partial` is the `Tradeoff` of what was measured before.

    Example:
        >>> def fails(texts):
        ...     raise RuntimeError("no service")
        >>> few = {"alphas": [4], "max_new_tokens": 2, "progress": False}
        >>> try:
        ...     en.tradeoff(model, tokenizer, iti, prompts=prompts, scorer=fails, texts=clean[:4], **few)
        ... except en.evaluation.SweepError as error:
        ...     print(error, error.partial, sep="; measured so far: ")
        plain at alpha=0: no service; measured so far: None
    """

    def __init__(self, message: str, partial: Tradeoff | None) -> None:
        super().__init__(message)
        self.partial = partial


def tradeoff(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    edit: Change | Mapping[str, Change],
    *,
    alphas: Sequence[float] | None = None,
    costs: Sequence[float] | None = None,
    cost_texts: Sequence[AnyPrompt] | None = None,
    metric: ShiftMetric | None = None,
    prompts: Sequence[AnyPrompt],
    scorer: Scorer | Sequence[Scorer],
    texts: Sequence[AnyPrompt],
    samples: int = 1,
    max_new_tokens: int = 20,
    top_p: float = 0.9,
    temperature: float = 1.0,
    seed: int = 0,
    max_length: int | None = None,
    packed: int | None = None,
    prepend_bos: bool = False,
    turns: str | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    batch_tokens: int = 16384,
    logits: int = LOGITS,
    cache_bytes: int = 2**31,
    save_to: str | Path | None = None,
    progress: bool = True,
) -> Tradeoff:
    """Measure toxicity and language at every strength of one method or several.

    Every condition continues the same prompts with the same random numbers and reads the same documents, so that all
    differences to alpha 0 are paired.

    Args:
        model: The plain causal language model; it is left as it was.
        tokenizer: Its tokenizer.
        edit: An edit, a list of edits applied together, a `Method`, or several of these by name.
        alphas: Strengths; 0, the plain model, is measured in any case. A method with strengths of its own (`.alphas`,
            such as a prompt, which is there or not) is measured at those.
        costs: Prices to compare at instead, KL in nats per token: each method's strength is solved for each of them
            (see `strength_for`), so that methods are measured at one price whatever the units of their alphas.
        cost_texts: Documents that strengths are solved on; none of `texts`, which report what is then really paid.
        metric: Where solving starts, for edits that are affine.
        prompts: Prompts to continue: strings, or conversations, which the tokenizer's chat template writes.
        scorer: Scores the continuations, and sees their prompts if it looks at them; of several, the first is the one
            that tables and plots show.
        texts: Clean documents for cross-entropy and KL; or conversations.
        samples: Continuations of each prompt.
        max_new_tokens: Tokens of a continuation.
        top_p: Nucleus of the sampling.
        temperature: Of the sampling.
        seed: Of the sampling and of the intervals.
        max_length: Keep at most this many tokens of a document.
        packed: Also read the documents end to end, in chunks of this many tokens, as cross-entropy is often given: each
            begun by the token that begins a sequence and read after those before it in its chunk.
        prepend_bos: Begin prompts and documents with the beginning-of-sequence token.
        turns: Count only what this role says in `texts` that are conversations, such as "assistant".
        chat_template_kwargs: For the chat template, such as `tools`.
        batch_tokens: Tokens in one batch of generation; half as many for cross-entropy.
        logits: Numbers of logits of documents computed at once, at most; see `cross_entropy`.
        cache_bytes: Keep the plain model's hidden states of the documents, up to this size each for documents and
            chunks, so as not to read them again at every strength.
        save_to: A directory that keeps each condition as soon as it is measured; a sweep that was stopped goes on from
            there, and further alphas, methods and scorers are added to it.
        progress: Show progress bars.

    Returns:
        The result. A condition in which the changed model's logits are not finite has NaN numbers and an `error`.

    Raises:
        EntangleError: Neither alphas nor costs, or both; no prompts or documents, or any too long; alphas that are not
            finite; no methods; documents for solving that are also reported on.
        SweepError: A method or a scorer failed, or no strength has a price; `.partial` and `save_to` have what was
            measured before.

    Example:
        >>> scorer, few = en.LinearToxicityScorer.fit(texts, labels), {"max_new_tokens": 2, "progress": False}
        >>> sweep = en.tradeoff(
        ...     model, tokenizer, iti, alphas=[4, 8], prompts=prompts, scorer=scorer, texts=clean[:8], **few
        ... )
        >>> frame = sweep.to_frame(n_resamples=100)
        >>> frame[["method", "alpha"]].to_numpy().tolist()
        [['ITI', 0.0], ['ITI', 4.0], ['ITI', 8.0]]
        >>> bool(frame["kl"].is_monotonic_increasing)  # the stronger, the dearer
        True
    """
    model, tokenizer = underlying(model), own_tokenizer(model, tokenizer)
    prompts, texts = prompts_of(prompts), prompts_of(texts, "document")
    methods, scorers = _methods(edit), _scorers(scorer)
    known_by = {name: "" if save_to is None else scorer_key(ask) for name, ask in scorers.items()}
    grid = _grid(methods, alphas, costs)
    if len(prompts) == 1 or len(texts) == 1:
        raise EntangleError(f"intervals need two prompts and two documents; got {len(prompts)} and {len(texts)}")
    sampling = Sampling(
        samples, max_new_tokens, top_p, temperature, seed, prepend_bos, batch_tokens, chat_template_kwargs
    )
    # What would fail hours into a sweep fails before it.
    prompt_rows(Subject(model, tokenizer), prompts, sampling)
    memory: dict[str, Any] = {"batch_tokens": max(1, batch_tokens // 2), "logits": logits, "cache_bytes": cache_bytes}
    what: dict[str, Any] = {"max_length": max_length, "prepend_bos": prepend_bos, "turns": turns}
    read = partial(read_rows, model, tokenizer, chat_template_kwargs=chat_template_kwargs, **what, **memory)
    documents = read(texts=texts)
    solver = None if costs is None else Solver(read(texts=_solving_texts(texts, cost_texts)), metric)
    bench = Bench(
        model,
        tokenizer,
        prompts,
        sampling,
        documents=documents,
        packed=None if packed is None else _end_to_end(model, tokenizer, documents, packed, turns, memory),
        progress=progress,
    )
    marks = {PLAIN: digest([])} | {name: digest(change) for name, change in methods.items()}
    store = ConditionStore(save_to, _settings(model, tokenizer, prompts, texts, sampling, {**what, "packed": packed}))

    keys = [(name, alpha) for name, alpha, cost in grid if cost is None]  # and of those solved, as they are solved

    def result() -> Tradeoff | None:
        done = [c for c in store.conditions.values() if all(name in c.scores for name in scorers) or c.error]
        plain = [c for c in done if c.method == PLAIN]
        order = {key: i for i, key in enumerate(keys)}
        changed = sorted((c for c in done if (c.method, c.alpha) in order), key=lambda c: order[c.method, c.alpha])
        return Tradeoff(plain[0], tuple(changed), tuple(prompts), tuple(scorers), store.settings) if plain else None

    with progress_bar(total=1 + len(grid), desc="trade-off", unit="condition", disable=not progress) as bar:
        for name, given, cost in [(PLAIN, 0.0, None), *grid]:
            alpha, at = given, f"{cost:g} nats" if cost is not None else f"alpha={given:g}"
            bar.set_postfix_str(f"{name} {at}" if name else "plain")
            try:
                if cost is not None and solver is not None:
                    known = store.solved(name, cost, solver.texts, marks[name])
                    alpha = solver.strength(name, methods[name], cost) if known is None else known
                    keys.append((name, alpha))
                condition = store.find(name, alpha, marks[name])
                if condition is None:
                    solved_on = solver.texts if cost is not None and solver is not None else ""
                    measured = bench.measure(name, methods.get(name, []), alpha, marks[name])
                    condition = store.keep(replace(measured, cost=cost, solved_on=solved_on))
            except EntangleError as error:
                raise SweepError(f"{name or 'plain'} at {at}: {error}", result()) from error
            if name == PLAIN and condition.error:
                raise SweepError(f"the plain model cannot be measured: {condition.error}", None)
            for scorer_id, ask in scorers.items():
                if condition.has_scores(scorer_id, known_by[scorer_id], store.directory) or condition.error:
                    continue
                try:
                    scores = score(ask, *_answers(condition, prompts))
                except Exception as error:
                    raise SweepError(f"{name or 'plain'} at {at}: {error}", result()) from error
                scores = scores.reshape(len(prompts), samples)
                condition = store.keep(condition.with_scores(scorer_id, scores, known_by[scorer_id]))
            bar.update()
    return cast("Tradeoff", result())  # the plain model was measured, or there would have been an error


def _settings(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[AnyPrompt],
    texts: Sequence[AnyPrompt],
    sampling: Sampling,
    what: Mapping[str, Any],
) -> dict[str, Any]:
    """What decides the numbers of every condition, for a folder that keeps them."""
    template = sampling.chat_template_kwargs
    return {
        "model": fingerprint(model),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "attention": getattr(model.config, "_attn_implementation", None),
        "training": model.training,
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "prompts": digest(list(prompts)),
        "texts": digest(list(texts)),
        **what,
        **({} if what["packed"] is None else {"packed_sums": "document"}),  # once they were of chunks
        # The width of a batch changes nothing that is measured.
        **{k: v for k, v in asdict(sampling).items() if k != "batch_tokens"},
        "chat_template_kwargs": None if template is None else digest(dict(template)),
    }


def _methods(edit: Change | Mapping[str, Change]) -> dict[str, Change]:
    if isinstance(edit, Mapping):
        named = dict(edit)
    elif isinstance(edit, Sequence):
        named = {"+".join(type(e).__name__ for e in edit): edit}
    else:
        named = {getattr(edit, "name", type(edit).__name__): edit}
    if not named or PLAIN in named:
        raise EntangleError("a trade-off needs methods with a name each; got none, or one named ''")
    return named


def _scorers(scorer: Scorer | Sequence[Scorer]) -> dict[str, Scorer]:
    every = [scorer] if callable(scorer) else list(scorer or ())
    if not every:
        raise EntangleError("a trade-off needs a scorer; got none")
    scorers = {scorer_name(each): each for each in every}
    if len(scorers) < len(every):
        names = [scorer_name(each) for each in every]
        twice = next(name for name in names if names.count(name) > 1)
        raise EntangleError(
            f"scorers are told apart by their names, but {names.count(twice)} are called {twice!r}; give each a name "
            "of its own"
        )
    return scorers


def _answers(condition: Condition, prompts: Sequence[AnyPrompt]) -> tuple[list[str], list[AnyPrompt]]:
    """All continuations, and the prompt of each."""
    pairs = [(text, prompt) for row, prompt in zip(condition.continuations, prompts, strict=True) for text in row]
    return [text for text, _ in pairs], [prompt for _, prompt in pairs]


def _grid(
    methods: Mapping[str, Change], alphas: Sequence[float] | None, costs: Sequence[float] | None
) -> list[tuple[str, float, float | None]]:
    """Each condition's method, strength and price; the strength of a price is not known yet."""
    if (alphas is None) == (costs is None):
        raise EntangleError("a trade-off is measured at alphas= or at costs=; give one of them")
    wanted = list(alphas if costs is None else costs)  # type: ignore[arg-type]
    if not wanted:
        raise EntangleError("a trade-off needs at least one alpha or cost; got none")
    if costs is not None and not all(0 < cost < float("inf") for cost in wanted):
        raise EntangleError(f"costs must be positive numbers of nats per token; got {wanted}")
    grid: list[tuple[str, float, float | None]] = []
    for name, change in methods.items():
        own = getattr(change, "alphas", None)
        # dict.fromkeys: each once, in order
        if costs is None or own is not None:
            grid += [(name, float(a), None) for a in dict.fromkeys(wanted if own is None else own) if a != 0]
        else:
            grid += [(name, float("nan"), float(cost)) for cost in dict.fromkeys(wanted)]
    for name, alpha, cost in grid:
        if cost is None and not abs(alpha) < float("inf"):
            raise EntangleError(f"alphas must be finite numbers; got {alpha} for {name}")
    return grid


def _end_to_end(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    documents: PlainReading,
    length: int,
    turns: str | None,
    memory: Mapping[str, Any],
) -> PlainReading:
    """The same documents end to end, in chunks of so many tokens."""
    if turns is not None:
        raise EntangleError(
            f"packed={length} reads documents end to end, but turns={turns!r} measures parts of conversations: leave "
            "one of them out"
        )
    rows = packed_rows(model, tokenizer, documents.rows, length)
    owners = packed_owners(tokenizer, documents.rows, length)
    return PlainReading(model, tokenizer, rows, owners=owners, **memory)


def _solving_texts(texts: Sequence[AnyPrompt], cost_texts: Sequence[AnyPrompt] | None) -> list[AnyPrompt]:
    """The documents that strengths are solved on.

    Raises:
        EntangleError: There are none, or some are reported on as well.
    """
    if not cost_texts:
        raise EntangleError("costs= needs cost_texts=, documents to solve strengths on: give some that are no texts")
    shared = {*map(prompt_key, cost_texts)} & {*map(prompt_key, texts)}
    if shared:
        raise EntangleError(
            "cost_texts must be other documents than texts, which report what is paid; "
            f"{len(shared)} are in both: take them out of one"
        )
    return prompts_of(cost_texts, "document")
