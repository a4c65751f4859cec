"""What steering buys and what it costs: methods and strengths, each measured on the same prompts and documents."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import cast

from tqdm.auto import tqdm
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.errors import EntangleError
from entangle.evaluation.language.documents import document_rows, packed_owners, packed_rows
from entangle.evaluation.language.generation import Sampling, prompt_rows
from entangle.evaluation.language.reading import PlainReading
from entangle.evaluation.language.subject import Subject
from entangle.evaluation.price.bench import Bench, Change
from entangle.evaluation.price.conditions import Store
from entangle.evaluation.price.result import Tradeoff
from entangle.evaluation.scoring.scorers import Scorer, score, scorer_name
from entangle.models.fingerprint import fingerprint
from entangle.storage.digest import digest

PLAIN = ""


class SweepError(EntangleError):
    """A sweep that could not go on; `.partial` is the `Tradeoff` of what was measured before."""

    def __init__(self, message: str, partial: Tradeoff | None) -> None:
        super().__init__(message)
        self.partial = partial


def tradeoff(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    edit: Change | Mapping[str, Change],
    *,
    alphas: Sequence[float],
    prompts: Sequence[str],
    scorer: Scorer | Sequence[Scorer],
    texts: Sequence[str],
    samples: int = 1,
    max_new_tokens: int = 20,
    top_p: float = 0.9,
    temperature: float = 1.0,
    seed: int = 0,
    max_length: int | None = None,
    packed: int | None = None,
    prepend_bos: bool = False,
    batch_tokens: int = 16384,
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
        prompts: Prompts to continue.
        scorer: Scores the continuations; of several, the first is the one that tables and plots show.
        texts: Clean documents for cross-entropy and KL.
        samples: Continuations of each prompt.
        max_new_tokens: Tokens of a continuation.
        top_p: Nucleus of the sampling.
        temperature: Of the sampling.
        seed: Of the sampling and of the intervals.
        max_length: Keep at most this many tokens of a document.
        packed: Also read the documents end to end, in chunks of this many tokens, as cross-entropy is often given: each
            begun by the token that begins a sequence and read after those before it in its chunk.
        prepend_bos: Begin prompts and documents with the beginning-of-sequence token.
        batch_tokens: Tokens in one batch of generation; half as many for cross-entropy.
        cache_bytes: Keep the plain model's log-probabilities of the documents, up to this size each for documents and
            chunks, so as not to read them again at every strength.
        save_to: A directory that keeps each condition as soon as it is measured; a sweep that was stopped goes on from
            there, and further alphas, methods and scorers are added to it.
        progress: Show progress bars.

    Returns:
        The result. A condition in which the changed model's logits are not finite has NaN numbers and an `error`.

    Raises:
        EntangleError: No alphas, prompts or documents, or any too long; alphas that are not finite; no methods.
        SweepError: A method or a scorer failed; `.partial` and `save_to` have what was measured before.
    """
    methods = _methods(edit)
    scorers = {scorer_name(s): s for s in ([scorer] if callable(scorer) else scorer)}
    grid = _grid(methods, alphas)
    if not scorers:
        raise EntangleError("a trade-off needs a scorer; got none")
    if len(prompts) == 1 or len(texts) == 1:
        raise EntangleError(f"intervals need two prompts and two documents; got {len(prompts)} and {len(texts)}")
    sampling = Sampling(samples, max_new_tokens, top_p, temperature, seed, prepend_bos, batch_tokens)
    # What would fail hours into a sweep fails before it.
    prompt_rows(Subject(model, tokenizer), prompts, sampling)
    rows = document_rows(model, tokenizer, texts, max_length=max_length, prepend_bos=prepend_bos)

    def reading(rows: list[list[int]], owners: list[list[int]] | None = None) -> PlainReading:
        budget = max(1, batch_tokens // 2)
        return PlainReading(model, tokenizer, rows, batch_tokens=budget, cache_bytes=cache_bytes, owners=owners)

    bench = Bench(
        model,
        tokenizer,
        prompts,
        sampling,
        documents=reading(rows),
        packed=None
        if packed is None
        else reading(packed_rows(model, tokenizer, rows, packed), packed_owners(tokenizer, rows, packed)),
        progress=progress,
    )
    marks = {PLAIN: digest([])} | {name: digest(change) for name, change in methods.items()}
    settings = {
        "model": fingerprint(model),
        "prompts": digest(list(prompts)),
        "texts": digest(list(texts)),
        "max_length": max_length,
        "packed": packed,
        **({} if packed is None else {"packed_sums": "document"}),  # once they were of chunks
        # The width of a batch changes nothing that is measured.
        **{k: v for k, v in asdict(sampling).items() if k != "batch_tokens"},
    }
    store = Store(save_to, settings)

    def result() -> Tradeoff | None:
        done = [c for c in store.conditions.values() if all(name in c.scores for name in scorers) or c.error]
        plain = [c for c in done if c.method == PLAIN]
        order = {key: i for i, key in enumerate(grid)}
        changed = sorted((c for c in done if (c.method, c.alpha) in order), key=lambda c: order[c.method, c.alpha])
        return Tradeoff(plain[0], tuple(changed), tuple(prompts), tuple(scorers), store.settings) if plain else None

    with tqdm(total=1 + len(grid), desc="trade-off", unit="condition", disable=not progress) as bar:
        for name, alpha in [(PLAIN, 0.0), *grid]:
            bar.set_postfix_str(f"{name} {alpha:g}" if name else "plain")
            condition = store.find(name, alpha, marks[name])
            if condition is None:
                try:
                    measured = bench.measure(name, methods.get(name, []), alpha, marks[name])
                except EntangleError as error:
                    raise SweepError(f"{name or 'plain'} at alpha={alpha:g}: {error}", result()) from error
                condition = store.keep(measured)
            if name == PLAIN and condition.error:
                raise SweepError(f"the plain model cannot be measured: {condition.error}", None)
            for scorer_id, ask in scorers.items():
                if scorer_id in condition.scores or condition.error:
                    continue
                try:
                    scores = score(ask, [text for row in condition.continuations for text in row])
                except Exception as error:
                    raise SweepError(f"{name or 'plain'} at alpha={alpha:g}: {error}", result()) from error
                condition = store.keep(condition.with_scores(scorer_id, scores.reshape(len(prompts), samples)))
            bar.update()
    return cast("Tradeoff", result())  # the plain model was measured, or there would have been an error


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


def _grid(methods: Mapping[str, Change], alphas: Sequence[float]) -> list[tuple[str, float]]:
    if not len(alphas):
        raise EntangleError("a trade-off needs at least one alpha; got none")

    def strengths(change: Change) -> Iterator[float]:
        own = getattr(change, "alphas", None)
        # dict.fromkeys: each once, in order
        yield from dict.fromkeys(float(a) for a in (alphas if own is None else own) if a != 0)

    grid = [(name, alpha) for name, change in methods.items() for alpha in strengths(change)]
    for name, alpha in grid:
        if not abs(alpha) < float("inf"):
            raise EntangleError(f"alphas must be finite numbers; got {alpha} for {name}")
    return grid
