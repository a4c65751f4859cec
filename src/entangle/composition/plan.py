"""Everything a recipe needs, read and checked before any training: what cannot be is refused here, in one line."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from entangle.composition.measuring.attack import check_attack
from entangle.composition.recipe.measurement import texts_by_use
from entangle.composition.recipe.pairs import PreferencePairs
from entangle.composition.recipe.recipe import Cell, Recipe, Variant
from entangle.composition.recipe.sources import one_path, refuse_overlap
from entangle.composition.training.corpus import Mixture, TokenisedDocuments, mix, tokenise
from entangle.composition.training.metadata import Prefix, condition
from entangle.composition.training.posttraining import PostTraining, begin, check_fits, check_trl
from entangle.composition.training.pretrain import new_model
from entangle.composition.training.stream import Stream
from entangle.composition.training.tokenizer import load_tokenizer, train_tokenizer
from entangle.errors import EntangleError
from entangle.evaluation.language.documents import document_rows
from entangle.evaluation.language.generation import Sampling, prompt_rows
from entangle.evaluation.language.subject import Subject
from entangle.evaluation.methods.decoding import ANTI_PROMPT
from entangle.evaluation.methods.given import INSTRUCTION
from entangle.evaluation.scoring.linear import LinearToxicityScorer
from entangle.models import Atlas, tokenizer_fingerprint
from entangle.storage import digest
from entangle.study import StudyTexts, to_foretell
from entangle.study.steps import StudiedModel, scorer_of
from entangle.study.texts import split_of


@dataclass(frozen=True)
class Plan:
    """A recipe with its texts.

    Attributes:
        recipe: The recipe.
        tokenizer: Trained on both corpora, or the one that the recipe names.
        clean: Texts every model sees.
        added: Texts to add from.
        held_out: Clean texts that no model sees.
        known: What the variants' prefixes say of each clean document, and of each to add.
        measured: The texts of the measurement, where there is one.
        n_parameters: Of each model.
        pairs: For posttraining, where there is any.

    Example:
        >>> size = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
        >>> texts_of = [en.composition.Source(documents=n, seed=n) for n in (40, 20, 10)]  # clean, added, held out
        >>> fields = {"vocab_size": 400, "architecture": {"model_type": "gpt_neox", **size}}
        >>> plan = en.composition.Plan.of(en.composition.Recipe(*texts_of, **fields))
        >>> plan.to_frame()["share"].round(1).tolist()
        [0.0, 0.1]
    """

    recipe: Recipe
    tokenizer: PreTrainedTokenizerBase
    clean: list[str]
    added: list[str]
    held_out: list[str]
    known: tuple[list[dict[str, str]], list[dict[str, str]]]
    measured: StudyTexts | None
    n_parameters: int
    pairs: PreferencePairs | None = None

    @classmethod
    def of(cls, recipe: Recipe) -> Plan:
        """Read all texts, and try everything that can be tried without training.

        Raises:
            EntangleError: Texts that cannot be read or that are trained and evaluated on, shares that the corpora
                cannot make, a tokenizer or an architecture that does not fit.
        """
        described = [
            source.described(recipe.root, columns)
            for source, columns in zip((recipe.clean, recipe.added), recipe.columns, strict=True)
        ]
        clean, added = ([text for text, _ in rows] for rows in described)
        known = ([about for _, about in described[0]], [about for _, about in described[1]])
        held_out = recipe.held_out.texts(recipe.root)
        measured = recipe.measure.load(recipe.root, held_out) if recipe.measure else None
        pairs = recipe.pairs.load(recipe.root) if recipe.pairs and recipe.posttraining else None
        refuse_overlap(
            {
                "clean": _bare(clean, recipe.clean.prefix),
                "added": _bare(added, recipe.added.prefix),
                "pairs": pairs.texts() if pairs else [],
            },
            {
                "held-out": _bare(held_out, recipe.held_out.prefix),
                **(texts_by_use(measured) if measured else {}),
            },
        )
        if recipe.tokenizer:
            folder = one_path(recipe.tokenizer, recipe.root)
            tokenizer = load_tokenizer(folder)
        else:
            tokenizer = train_tokenizer([*clean, *added], recipe.vocab_size)
        model = new_model(recipe.architecture, tokenizer)
        n_parameters = sum(p.numel() for p in model.parameters())
        if recipe.measure and measured:
            _check_lengths(model, tokenizer, recipe, measured)
        plan = cls(recipe, tokenizer, clean, added, held_out, known, measured, n_parameters, pairs)
        plan._check_posttraining(model)
        if recipe.measure and recipe.measure.attack and measured:
            check_attack(model, tokenizer, measured, recipe.measure, plan.scorer)
        for share in {cell.share for cell in recipe.cells}:
            plan.check_steps(f"share {share:g}", Stream.of(mix(*plan.tokens, share, design=recipe.design)))
        for cell in recipe.cells:
            if cell.variant and cell.variant.cooldown:
                plan.check_steps(f"variant {cell.variant.name!r}", plan.stream(cell, plan.mixture(cell)))
        return plan

    def check_steps(self, what: str, stream: Stream) -> None:
        """Refuse text that makes less than a batch."""
        training = self.recipe.training
        if not stream.n_steps(training):
            conditioned = f", {stream.cooldown:,} of them before its cooldown" if stream.cooldown else ""
            raise EntangleError(
                f"{what} has {len(stream.tokens):,} tokens{conditioned}, less than one batch of "
                f"{training.batch_size} x {training.context}: lower either, or give more text"
            )

    @cached_property
    def tokens(self) -> tuple[TokenisedDocuments, TokenisedDocuments]:
        """The clean texts and those to add from, as they are."""
        return tokenise(self.tokenizer, self.clean), tokenise(self.tokenizer, self.added)

    def texts_key(self, cell: Cell) -> str:
        """A hash of all texts that a model is trained and judged on, of what its variant says of them and of the
        tokenizer."""
        return self._texts_keys[cell.variant]

    @cached_property
    def _texts_keys(self) -> dict[Variant | None, str]:
        texts = [repr(each) for each in (self.clean, self.added, self.held_out)]
        mark = tokenizer_fingerprint(self.tokenizer)
        keys = {}
        for variant in (None, *self.recipe.variants):
            prefixes = (variant.clean_prefix, variant.added_prefix) if variant else ("", "")
            said = [
                [{name: about[name] for name in Prefix(prefix).columns} for about in rows]
                for prefix, rows in zip(prefixes, self.known, strict=True)
            ]
            keys[variant] = digest([*texts, *map(repr, said), mark])
        return keys

    @cached_property
    def earlier_texts_key(self) -> str:
        """What earlier versions marked all models of a recipe with: what any variant says is in it."""
        parts = [self.clean, self.added, self.held_out, *self.known]
        return digest([*map(repr, parts), tokenizer_fingerprint(self.tokenizer)])

    @cached_property
    def held_out_tokens(self) -> TokenisedDocuments:
        """The held-out texts."""
        return tokenise(self.tokenizer, self.held_out)

    @property
    def preferences(self) -> PreferencePairs:
        """The pairs of a recipe that has posttraining."""
        if self.pairs is None:
            raise EntangleError("this recipe has no posttraining, so no pairs were read")
        return self.pairs

    def _check_posttraining(self, model: PreTrainedModel) -> None:
        """Refuse what trl, the tokenizer or the model's context would refuse after hours of training."""
        for settings in self.recipe.posttraining:
            check_trl()
            begin(self.tokenizer)
            check_fits(model, self.tokenizer, settings)
            self.preferences.within(self.tokenizer, settings.max_length)

    @cached_property
    def scorer(self) -> LinearToxicityScorer:
        """Fitted on the fitting part of the measured concept's labelled texts; what filters is what scores."""
        if self.recipe.measure is None or self.measured is None:
            raise EntangleError("a scorer is fitted on the labelled texts of [measure], which this recipe lacks")
        data, seed = self.measured.labelled, self.recipe.measure.seed
        return scorer_of(data, split_of(data, seed), seed)

    def mixture(self, cell: Cell) -> Mixture:
        """What a model is trained on."""
        clean, added = self.tokens if cell.variant is None else self._of(cell.variant)
        mixture = mix(clean, added, cell.share, seed=cell.seed, design=self.recipe.design)
        if cell.variant is None or cell.variant.keep_below == 1:
            return mixture
        return mixture.keep(np.asarray(self.scorer([*self.clean, *self.added])) < cell.variant.keep_below)

    def stream(self, cell: Cell, mixture: Mixture) -> Stream:
        """The tokens of a mixture as a model reads them."""
        if cell.variant is None or not cell.variant.cooldown:
            return Stream.of(mixture)
        prefixes = [text for corpus in self._said(cell.variant) for text in corpus]
        return condition(mixture, prefixes, self.tokenizer, cell.variant.cooldown)

    def _of(self, variant: Variant) -> tuple[TokenisedDocuments, TokenisedDocuments]:
        """Both corpora as documents of a variant; what a cooldown does without is no part of them."""
        if variant.cooldown or not (variant.clean_prefix or variant.added_prefix):
            return self.tokens
        clean, added = self._said(variant)
        return (
            tokenise(self.tokenizer, [prefix + text for prefix, text in zip(clean, self.clean, strict=True)]),
            tokenise(self.tokenizer, [prefix + text for prefix, text in zip(added, self.added, strict=True)]),
        )

    def _said(self, variant: Variant) -> tuple[list[str], list[str]]:
        """What a variant puts before each clean document, and before each to add."""
        clean, added = Prefix(variant.clean_prefix), Prefix(variant.added_prefix)
        return [clean.before(known) for known in self.known[0]], [added.before(known) for known in self.known[1]]

    def to_frame(self) -> pd.DataFrame:
        """One row per model: tokens of its pretraining, steps, and the floating-point operations of its training."""
        rows = []
        for cell in self.recipe.cells:
            if cell.posttraining:
                rows.append(self._posttraining_row(cell, cell.posttraining))
                continue
            mixture = self.mixture(cell)
            steps = self.stream(cell, mixture).n_steps(self.recipe.training)
            trained = steps * self.recipe.training.batch_size * self.recipe.training.context
            rows.append(
                {
                    "model": cell.name,
                    "share": mixture.share,
                    "clean_tokens": mixture.clean_tokens,
                    "added_tokens": mixture.added_tokens,
                    "steps": steps,
                    "flops": 6.0 * self.n_parameters * trained,
                }
            )
        return pd.DataFrame(rows)

    def _posttraining_row(self, cell: Cell, settings: PostTraining) -> dict[str, Any]:
        pairs = self.preferences.within(self.tokenizer, settings.max_length).trained
        sides = pairs if settings.method == "dpo" else [(chosen,) for chosen, _ in pairs]
        tokens = len(tokenise(self.tokenizer, [text for side in sides for text in side]).tokens) / len(pairs)
        # DPO reads its reference model too: forward alone, a third of the work.
        work = 6.0 * self.n_parameters * (4 / 3 if settings.method == "dpo" else 1)
        return {
            "model": cell.name,
            "share": cell.share,
            "clean_tokens": 0,
            "added_tokens": 0,
            "steps": settings.steps,
            "flops": work * settings.steps * settings.batch_size * tokens,
        }

    def summary(self, out: Path) -> str:
        """The plan as text: each model's tokens and steps, and what they take.

        Raises:
            EntangleError: Where the models would not fit on the disk of `out`.
        """
        frame = self.to_frame()
        rows = frame.to_dict("records")
        self.check_disk(out, len(frame))
        table = frame.to_string(index=False, formatters={"share": "{:.4f}".format, "flops": "{:.2g}".format})
        steps = sum(row["steps"] for row, cell in zip(rows, self.recipe.cells, strict=True) if not cell.posttraining)
        tokens = steps * self.recipe.training.batch_size * self.recipe.training.context
        return (
            f"{table}\n{len(frame)} models of {self.n_parameters:,} parameters, vocabulary {len(self.tokenizer):,}; "
            f"{tokens:,} tokens to pretrain on, {frame['flops'].sum():.2g} floating-point operations; "
            f"{self.disk(len(frame)) / 1e9:.2f} GB on disk"
        )

    def disk(self, n_models: int) -> int:
        """Bytes of so many models in fp32, and of one checkpoint with its two moments being replaced."""
        return 4 * self.n_parameters * (n_models + 2 * 3)

    def check_disk(self, out: Path, n_models: int) -> None:
        """Refuse where the models that are still to be trained would not fit."""
        existing = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
        needed, free = self.disk(n_models), shutil.disk_usage(existing).free
        if needed > free:
            raise EntangleError(
                f"{n_models} models of {self.n_parameters:,} parameters need {needed / 1e9:.1f} GB in {out}, "
                f"but {free / 1e9:.1f} GB are free: choose another folder or a smaller architecture"
            )


def _check_lengths(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, recipe: Recipe, measured: StudyTexts
) -> None:
    """Refuse prompts and documents that, after whatever is put before them, are longer than the model's context."""
    measure = recipe.measure
    if measure is None:
        return
    bos = tokenizer.bos_token_id is not None
    question = measure.question(prepend_bos=bos)
    studied = StudiedModel(model, tokenizer, Atlas(model), "the recipe's architecture", question)
    studied.check(measured)
    foretold, why = to_foretell(measured, studied)
    if measure.forecast and measure.concept not in foretold:
        raise EntangleError(f"[measure] asks for a forecast. {' '.join(why)} Give more, or leave forecast out")
    if len(measured.clean) < 2 or len(measured.every_prompt) < 2:
        raise EntangleError(
            f"intervals need two held-out documents and two prompts; got {len(measured.clean)} and "
            f"{len(measured.every_prompt)}: give more in [held_out] and [measure.prompts.NAME]"
        )
    prompts_of = {"prompting": INSTRUCTION, "self-debias": ANTI_PROMPT}
    prefixes = {"", *(prompts_of[method] for method in measure.methods if method in prompts_of)}
    prefixes |= {variant.measured_after for variant in recipe.variants}
    sampling = Sampling(measure.samples, measure.max_new_tokens, prepend_bos=bos)
    documents = document_rows(model, tokenizer, measured.clean, max_length=measure.max_length, prepend_bos=bos)
    for prefix in prefixes:
        subject = Subject(model, tokenizer, prefix)
        for name, prompts in measured.prompts.items():
            try:
                prompt_rows(subject, prompts, sampling)
            except EntangleError as error:
                raise EntangleError(
                    f"{name}: {error} (after the prefix {prefix!r})" if prefix else str(error)
                ) from None
        subject.put_before(documents)


def _bare(texts: Sequence[str], prefix: str) -> list[str]:
    return [text.removeprefix(prefix) for text in texts]
