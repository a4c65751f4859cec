"""Run a recipe: train a model for each share and seed, and measure it, once; what is finished stays finished."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.composition.folder import check_folder, check_texts, owned_by, write_recipe
from entangle.composition.measuring.attack import attacked
from entangle.composition.measuring.fitted import Fitted
from entangle.composition.measuring.measure import measure
from entangle.composition.measuring.pairs import METRICS, is_current, read_metrics, train_on_pairs
from entangle.composition.plan import Plan
from entangle.composition.recipe.recipe import Cell, Recipe
from entangle.composition.trained import Composition, TrainedModel
from entangle.composition.training.corpus import TokenisedDocuments
from entangle.composition.training.pretrain import new_model, pretrain
from entangle.composition.training.processes import Processes, launch_apart
from entangle.errors import EntangleError
from entangle.evaluation import Subject, row_nats
from entangle.models import context_length
from entangle.models.loading import MANIFEST
from entangle.storage import folder as folders
from entangle.storage.folder import Kind
from entangle.storage.sealed import write_sealed

CELL = Kind(
    "a trained model",
    MANIFEST,
    "trained-model",
    remedy="delete the folder, and it is trained again",
    receipted=(
        r"(measured|attacked)\.json|sweep-[0-9a-f]{12}/(settings|condition-[^/]*)\.json|"
        r"study/(study|tradeoff)\.json|study/(words|iti|probes/[^/]+|entanglement/\d+)/[^/]+\.(json|safetensors|md)"
    ),
)
OLDER = (
    "*.safetensors",
    "*config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "model.safetensors.index.json",
    "metrics.json",
    "measured.json",
    "attacked.json",
    "sweep-????????????/*.json",
)
"""What earlier versions wrote into the folder of a trained model, without a manifest that names it."""


def run(recipe: Recipe, out: str | Path, *, device: str | None = None, progress: bool = True) -> Composition:
    """Train and measure every model of a recipe that is not yet finished in `out`.

    Each model is written under a temporary name and renamed when it is whole, so a run that was stopped goes on where
    it was. Shares, seeds, variants and the measurement may be changed later: what is not affected stays.

    Started in several processes by `accelerate launch`, `torchrun` or the like, they train each model together and
    share the measuring of the models out; one of them writes, and all get the result.

    Args:
        recipe: What to train, and what to measure.
        out: Folder for the models, one subfolder each (`share-0.1-seed-0`).
        device: To train on; a GPU where there is one.
        progress: Show a progress bar for each model.

    Raises:
        EntangleError: Where `out` holds models of another recipe, or anything in the recipe cannot be, before any
            training.

    Example:
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> texts_of = [en.composition.Source(documents=n, seed=n) for n in (40, 20, 10)]  # clean, added, held out
        >>> fields = {"vocab_size": 400, "architecture": {"model_type": "gpt_neox", **size}}
        >>> training = en.composition.Training(batch_size=8, context=64, precision="fp32")
        >>> recipe = en.composition.Recipe(*texts_of, **fields, training=training)
        >>> composition = en.composition.run(recipe, "models", progress=False)
        >>> [trained.path.name for trained in composition.models]
        ['share-0-seed-0', 'share-0.1-seed-0']
    """
    *_, finished = run_each(recipe, out, device=device, progress=progress)
    return finished


def run_each(
    recipe: Recipe, out: str | Path, *, device: str | None = None, progress: bool = True
) -> Iterator[Composition]:
    """The same model by model: what is finished so far, after each.

    Args:
        recipe: As for `run`.
        out: As for `run`.
        device: As for `run`.
        progress: As for `run`.

    Example:
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> texts_of = [en.composition.Source(documents=n, seed=n) for n in (40, 20, 10)]  # clean, added, held out
        >>> fields = {"vocab_size": 400, "architecture": {"model_type": "gpt_neox", **size}}
        >>> training = en.composition.Training(batch_size=8, context=64, precision="fp32")
        >>> recipe = en.composition.Recipe(*texts_of, **fields, training=training)
        >>> [len(finished.models) for finished in en.composition.run_each(recipe, "models", progress=False)]
        [1, 2]
    """
    out = Path(out)
    processes = Processes.here(device)
    check_folder(recipe, out)
    if recipe.posttraining and processes.count > 1:
        raise EntangleError(
            "SFT and DPO are trained in one process: start the others with entangle compose --processes, "
            "or leave [[posttraining]] out and add it later"
        )
    missing = _missing(recipe, out)
    plan: Plan | None = None
    with ExitStack() as stack:
        if missing or recipe.measure or recipe.posttraining:
            plan = Plan.of(recipe)
            plan.check_disk(out, len(missing))
            check_texts(plan, out)
            if processes.main:
                stack.enter_context(owned_by(recipe, out))
            processes.wait()  # until what is there is whole, and nobody else writes
            missing = _missing(recipe, out)
            processes.wait()  # until each has seen what is finished
            if processes.main:
                write_recipe(recipe, out)
        yield from _finish(recipe, out, plan, missing, processes, progress)


def _finish(
    recipe: Recipe, out: Path, plan: Plan | None, missing: list[Cell], processes: Processes, progress: bool
) -> Iterator[Composition]:
    """Train and measure what is missing, model by model."""
    if plan and processes.count > 1:
        for cell in missing:
            train(plan, cell, out / cell.name, processes=processes, progress=progress)
        missing = []
        processes.wait()
        for cell in processes.part(recipe.cells):
            _measure(plan, cell, out / cell.name, device=processes.device, progress=progress and processes.main)
        processes.wait()
    models: list[TrainedModel] = []
    for cell in recipe.cells:
        folder, measured = out / cell.name, None
        if plan and cell.posttraining:
            if not is_current(plan, cell, folder):
                model, metrics = train_on_pairs(plan, cell, folder.with_name(cell.base), processes.device, progress)
                metrics["held_out_ce"] = held_out_cross_entropy(model, plan.tokenizer, plan.held_out_tokens)
                _save(model, plan.tokenizer, metrics, folder)
        elif plan and cell in missing:
            train(plan, cell, folder, processes=processes, progress=progress)
        if plan:
            measured = _measure(plan, cell, folder, device=processes.device, progress=progress)
        metrics = read_metrics(folder)
        models.append(TrainedModel(folder, cell.share, cell.seed, metrics, cell.label, measured))
        yield Composition(recipe, tuple(models))


def run_apart(
    recipe: Recipe,
    out: str | Path,
    count: int,
    *,
    device: str | None = None,
    progress: bool = True,
    then: Callable[[Cell, Path], None] | None = None,
) -> None:
    """Train and measure the missing models in several processes of this machine, each its share of them, side by side.

    Best where a model is too small to keep all cores busy, or for several GPUs. Each model has, bit for bit, the
    weights of one process with as many threads. Models that are trained on pairs are left to `run`, and so is what is
    compared.

    Args:
        recipe: What to train, and what to measure.
        out: As for `run`.
        count: How many processes; without `OMP_NUM_THREADS` they share the threads of this one.
        device: To train on; by default each process has a GPU in turn, where there are any.
        progress: Show the first process's progress.
        then: What a process does with each of its models once that is there, given its cell and folder: a function that
            a new process can import.

    Raises:
        EntangleError: Whatever `run` refuses.

    Example:
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> texts_of = [en.composition.Source(documents=n, seed=n) for n in (40, 20, 10)]  # clean, added, held out
        >>> fields = {"vocab_size": 400, "architecture": {"model_type": "gpt_neox", **size}}
        >>> recipe = en.composition.Recipe(*texts_of, **fields)
        >>> try:
        ...     en.composition.run_apart(recipe, "models", count=0, progress=False)
        ... except en.EntangleError as error:
        ...     print(error)
        a number of processes is at least 1, not 0
    """
    out, alone = Path(out), replace(recipe, posttraining=())
    check_folder(recipe, out)
    plan = Plan.of(recipe)  # refuses in one line, and not in one a process
    plan.check_disk(out, len(_missing(recipe, out)))
    check_texts(plan, out)
    with owned_by(recipe, out):
        write_recipe(recipe, out)
        missing = _missing(alone, out)
        cells = [*missing, *(cell for cell in alone.cells if cell not in missing)]  # so that each has as many to train
        launch_apart(count, _run_share, alone, cells, out, device, progress, then)


def _run_share(
    index: int,
    count: int,
    recipe: Recipe,
    cells: list[Cell],
    out: Path,
    device: str | None,
    progress: bool,
    then: Callable[[Cell, Path], None] | None,
) -> None:
    """Train and measure every `count`-th model, one after the other, so that a stop costs little."""
    if device is None and torch.cuda.is_available():
        device = f"cuda:{index % torch.cuda.device_count()}"
    plan, here, shown = Plan.of(recipe), Processes(device=device or "cpu"), progress and index == 0
    for cell in cells[index::count]:
        if not (out / cell.name / METRICS).exists():
            train(plan, cell, out / cell.name, processes=here, progress=shown)
        _measure(plan, cell, out / cell.name, device=here.device, progress=shown)
        if then is not None:
            then(cell, out / cell.name)


def _missing(recipe: Recipe, out: Path) -> list[Cell]:
    return [cell for cell in recipe.cells if not (out / cell.name / METRICS).exists()]


def _measure(plan: Plan, cell: Cell, folder: Path, *, device: str, progress: bool) -> dict[str, Any] | None:
    """What is measured of a trained model, where the recipe measures."""
    if plan.recipe.measure is None or plan.measured is None:
        return None
    fitted = Fitted(folder, plan.recipe.measure, plan.measured, device=device, progress=progress)
    numbers = measure(
        fitted,
        plan.scorer,
        told=cell.variant.measured_after if cell.variant else "",
        steered=cell.posttraining is None,
        needs_telling=not (cell.variant and cell.variant.cooldown),
    )
    if plan.recipe.measure.attack and not cell.label:
        numbers = {**numbers, "attack": attacked(fitted, plan.scorer)}
    return numbers


def train(plan: Plan, cell: Cell, folder: Path, *, processes: Processes, progress: bool = True) -> None:
    """Train one model and write it with its numbers; its checkpoint stands beside its folder until then."""
    recipe, mixture = plan.recipe, plan.mixture(cell)
    stream = plan.stream(cell, mixture)
    model = new_model(recipe.architecture, plan.tokenizer, seed=cell.seed).to(processes.device)
    history = pretrain(
        model,
        stream,
        recipe.training,
        seed=cell.seed,
        separator=int(mixture.documents.tokens[0]),
        checkpoint=folder.with_name(f".{folder.name}.checkpoint"),
        processes=processes,
        progress=progress,
        description=cell.name,
    )
    if not processes.main:
        return
    metrics = {
        "share": mixture.share,
        "seed": cell.seed,
        "texts": plan.texts_key(cell),
        "clean_tokens": mixture.clean_tokens,
        "added_tokens": mixture.added_tokens,
        **stream.counts(),
        "steps": len(history.losses),
        "seconds": history.seconds,
        "tokens_per_second": history.tokens / history.seconds,
        "final_loss": float(np.mean(history.losses[-20:])),
        "held_out_ce": held_out_cross_entropy(model, plan.tokenizer, plan.held_out_tokens),
        "unigram_ce": unigram_cross_entropy(mixture.documents, plan.held_out_tokens, len(plan.tokenizer)),
        "losses": history.losses,
    }
    _save(model, plan.tokenizer, metrics, folder)


def held_out_cross_entropy(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, documents: TokenisedDocuments, *, batch_size: int = 16
) -> float:
    """Nats per token over documents the model has not seen, each read from its own beginning up to the model's
    context."""
    longest, subject = context_length(model, tokenizer), Subject(model, tokenizer)
    ends = documents.starts[:-1] + np.minimum(documents.lengths, longest)
    rows = sorted((documents.tokens[a:b].tolist() for a, b in zip(documents.starts, ends, strict=False)), key=len)
    parts = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    nats = sum(sum(row_nats(subject, part)) for part in parts)
    return nats / sum(len(row) - 1 for row in rows)


def unigram_cross_entropy(training: TokenisedDocuments, held_out: TokenisedDocuments, vocab_size: int) -> float:
    """Nats per token of the best model without context: the training frequencies, each token counted once more."""
    counts = np.bincount(training.tokens, minlength=vocab_size) + 1.0
    first = np.zeros(len(held_out.tokens), dtype=bool)
    first[held_out.starts[:-1]] = True  # no model predicts the token that begins a document
    return float(-np.log(counts / counts.sum())[held_out.tokens[~first]].mean())


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, metrics: dict[str, Any], folder: Path) -> None:
    def fill(new: Path) -> None:
        model.save_pretrained(new)
        tokenizer.save_pretrained(new)
        write_sealed(new / METRICS, metrics)

    over: list[Path] = []
    if not (folder / CELL.manifest).exists() and (folder / METRICS).exists() and "losses" in read_metrics(folder):
        over = [
            path for pattern in OLDER for path in folder.glob(pattern)
        ]  # an earlier version's, which names no files
    folders.write(folder, CELL, {}, fill, over=[path.relative_to(folder).as_posix() for path in over])
