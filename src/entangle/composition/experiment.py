"""Run a recipe: train a model for each share and seed, once; what is finished stays finished."""

from __future__ import annotations

import json
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.composition.corpus import TokenisedDocuments, mix, tokenise
from entangle.composition.pretrain import new_model, pretrain
from entangle.composition.recipe import Recipe
from entangle.composition.tokenizer import train_tokenizer
from entangle.errors import EntangleError
from entangle.files import write_text

METRICS = "metrics.json"


@dataclass(frozen=True)
class TrainedModel:
    """One finished model.

    Attributes:
        path: its folder, for `from_pretrained`; holds the tokenizer too.
        share: share of added tokens that was asked for.
        seed: the seed.
        metrics: `share` as trained, `clean_tokens`, `added_tokens`, `steps`, `final_loss`, `held_out_ce` and
        `unigram_ce` (nats a token),
        `losses`.
    """

    path: Path
    share: float
    seed: int
    metrics: dict[str, Any]


@dataclass(frozen=True)
class Composition:
    """The trained models of a recipe."""

    recipe: Recipe
    models: tuple[TrainedModel, ...]

    def model(self, share: float, seed: int | None = None) -> TrainedModel:
        """The model of a share, and of a seed where there are several.

        Raises:
            EntangleError: where the recipe has no such model.
        """
        for trained in self.models:
            if trained.share == share and seed in (None, trained.seed):
                return trained
        raise EntangleError(
            f"no model with share {share} and seed {seed}: shares {self.recipe.shares}, seeds {self.recipe.seeds}"
        )

    def to_frame(self) -> pd.DataFrame:
        """A row for each model with its numbers (without the losses of every step)."""
        rows = [
            {
                "share": m.share,
                "seed": m.seed,
                **{k: v for k, v in m.metrics.items() if k not in ("losses", "share", "seed", "recipe")},
            }
            for m in self.models
        ]
        return pd.DataFrame(rows)


def run(recipe: Recipe, out: str | Path, *, device: str | None = None, progress: bool = True) -> Composition:
    """Train every model of a recipe that is not yet finished in `out`.

    Each model is written under a temporary name and renamed when it is whole, so a run that was stopped goes on at
    the first unfinished model.

    Args:
        recipe: what to train.
        out: folder for the models, one subfolder each (`share-0.1-seed-0`).
        device: to train on; a GPU where there is one.
        progress: show a progress bar for each model.

    Raises:
        EntangleError: where `out` holds the models of another recipe, or the corpora cannot make the shares, before
        any training.
    """
    out = Path(out)
    recipe_path = out / "recipe.json"
    if recipe_path.exists() and json.loads(recipe_path.read_text()) != recipe.to_dict():
        raise EntangleError(f"{out} holds the models of another recipe: give another folder, or delete it")
    cells = [(share, seed) for share in recipe.shares for seed in recipe.seeds]
    folders = {cell: out / f"share-{cell[0]:g}-seed-{cell[1]}" for cell in cells}
    if not all((folder / METRICS).exists() for folder in folders.values()):
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        _train_missing(recipe, folders, device, progress, recipe_path)
    finished = (TrainedModel(folders[c], *c, metrics=json.loads((folders[c] / METRICS).read_text())) for c in cells)
    return Composition(recipe, tuple(finished))


def _train_missing(
    recipe: Recipe, folders: dict[tuple[float, int], Path], device: str, progress: bool, recipe_path: Path
) -> None:
    clean, added, held_out = (source.texts(recipe.root) for source in (recipe.clean, recipe.added, recipe.held_out))
    shared = set(held_out) & set(clean)
    if shared:
        raise EntangleError(
            f"{len(shared):,} of {len(held_out):,} held-out documents are also trained on: {min(shared)[:60]!r}"
        )
    tokenizer = train_tokenizer([*clean, *added], recipe.vocab_size)
    clean_tokens, added_tokens, held_out_tokens = (tokenise(tokenizer, texts) for texts in (clean, added, held_out))
    # Architecture and every mixture are tried before any training, so that what cannot be is refused at once.
    model = new_model(recipe.architecture, tokenizer)
    for share in recipe.shares:
        mix(clean_tokens, added_tokens, share)
    missing = sum(not (folder / METRICS).exists() for folder in folders.values())
    _check_disk(recipe_path.parent, missing, sum(p.numel() for p in model.parameters()))
    recipe_path.parent.mkdir(parents=True, exist_ok=True)
    write_text(recipe_path, json.dumps(recipe.to_dict(), indent=1))
    for (share, seed), folder in folders.items():
        if (folder / METRICS).exists():
            continue
        mixture = mix(clean_tokens, added_tokens, share, seed=seed)
        model = new_model(recipe.architecture, tokenizer, seed=seed).to(device)
        history = pretrain(
            model,
            torch.from_numpy(mixture.documents.tokens),
            recipe.training,
            seed=seed,
            checkpoint=folder.with_name(f".{folder.name}.checkpoint"),
            progress=progress,
            description=f"share {share:g}, seed {seed}",
        )
        metrics = {
            "share": mixture.share,
            "seed": seed,
            "clean_tokens": mixture.clean_tokens,
            "added_tokens": mixture.added_tokens,
            "steps": len(history.losses),
            "seconds": history.seconds,
            "tokens_per_second": history.tokens / history.seconds,
            "final_loss": float(np.mean(history.losses[-20:])),
            "held_out_ce": held_out_cross_entropy(model, held_out_tokens),
            "unigram_ce": unigram_cross_entropy(mixture.documents, held_out_tokens, len(tokenizer)),
            "losses": history.losses,
        }
        _save(model, tokenizer, metrics, folder)


@torch.no_grad()
def held_out_cross_entropy(model: PreTrainedModel, documents: TokenisedDocuments, *, batch_size: int = 16) -> float:
    """Nats a token over documents the model has not seen, each read from its own beginning up to the model's
    context."""
    longest = getattr(model.config, "max_position_embeddings", None) or int(documents.lengths.max())
    total, count = 0.0, 0
    order = documents.lengths.argsort()
    for first in range(0, len(order), batch_size):
        rows = [
            torch.from_numpy(documents.tokens[documents.starts[i] :][: min(documents.lengths[i], longest)])
            for i in order[first : first + batch_size]
        ]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).long().to(model.device)
        lengths = torch.tensor([len(row) for row in rows], device=model.device)
        # Padding on the right cannot reach the real tokens of a causal model; only its own losses must go.
        losses = F.cross_entropy(
            model(input_ids=ids, use_cache=False).logits[:, :-1].float().mT, ids[:, 1:], reduction="none"
        )
        real = torch.arange(1, ids.shape[1], device=model.device) < lengths[:, None]
        total, count = total + losses[real].sum().item(), count + int(real.sum())
    return total / count


def unigram_cross_entropy(training: TokenisedDocuments, held_out: TokenisedDocuments, vocab_size: int) -> float:
    """Nats a token of the best model without context: the training frequencies, each token counted once more."""
    counts = np.bincount(training.tokens, minlength=vocab_size) + 1.0
    first = np.zeros(len(held_out.tokens), dtype=bool)
    first[held_out.starts[:-1]] = True  # no model predicts the token that begins a document
    return float(-np.log(counts / counts.sum())[held_out.tokens[~first]].mean())


def _check_disk(out: Path, n_models: int, n_parameters: int) -> None:
    """Refuse where the models, and one checkpoint with its two moments being replaced, would not fit."""
    needed = 4 * n_parameters * (n_models + 2 * 3)
    existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise EntangleError(
            f"{n_models} models of {n_parameters:,} parameters need {needed / 1e9:.1f} GB in {out}, "
            f"but {free / 1e9:.1f} GB are free: choose another folder or a smaller architecture"
        )


def _save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, metrics: dict[str, Any], folder: Path) -> None:
    temporary = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        write_text(temporary / METRICS, json.dumps(metrics, indent=1))
        shutil.rmtree(folder, ignore_errors=True)
        temporary.chmod(0o755)
        temporary.rename(folder)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
