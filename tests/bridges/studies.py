"""What every entry makes of a model that a tool holds, beside what it makes of the bare model."""

from __future__ import annotations

from typing import Any

import torch

import entangle as en

TEXTS = [f"{begin} {'fox ' * (i % 7 + 1)}{'mat ' * (i // 7)}" for begin in ("the cat", "a dog") for i in range(50)]
LABELS = [0] * 50 + [1] * 50
SETTINGS: dict[str, Any] = {
    "concepts": {"length": (TEXTS, [int(len(text) > 40) for text in TEXTS])},
    "prompts": ["the quick brown", "over the lazy", "a cat sat", "the moon"],
    "clean": [
        "the quick brown fox jumps over a cat",
        "a cat sat on the mat and looked",
        "over the lazy dog",
        "the moon",
    ],
    "alphas": [4],
    "methods": ["ITI"],
    "max_new_tokens": 3,
    "samples": 1,
    "n_resamples": 100,
    "n_permutations": 20,
    "progress": False,
}


def study_differences(bare: Any, tokenizer: Any, held: Any, own_tokenizer: Any) -> dict[str, float]:
    """The largest difference between two studies: of heads' accuracies, of E, and of what steering wins and costs."""
    here = en.study(bare, tokenizer, TEXTS, LABELS, **SETTINGS)
    there = en.study(held, own_tokenizer, TEXTS, LABELS, **SETTINGS)
    (numbers, others) = (study.tradeoff.to_frame()[["toxicity", "ce", "kl"]] for study in (here, there))
    return {
        "study: heads": float((here.probes["z"].accuracy - there.probes["z"].accuracy).abs().max()),
        "study: E": max(
            float((report.entanglement.value - there.entanglement[layer].entanglement.value).abs().max())
            for layer, report in here.entanglement.items()
        ),
        "study: trade-off": float((numbers - others).abs().to_numpy().max()),
        "study: what is missing": float(here.missing != there.missing),
    }


PROMPT = "the quick brown fox"
WORDS = [PROMPT, "a cat sat on the mat and looked", "over the lazy dog", "the moon"]


def entry_differences(bare: Any, tokenizer: Any, held: Any, own_tokenizer: Any) -> dict[str, float]:
    """The same of what is captured, verified and solved for."""
    here = en.collect(bare, tokenizer, WORDS, sites=["z", "resid_post"], progress=False)
    there = en.collect(held, own_tokenizer, WORDS, sites=["z", "resid_post"], progress=False)
    edit, cost = en.AddDirection(torch.linspace(-1, 1, 32), "resid_post", 1), {"texts": WORDS, "kl": 0.02}
    alphas = [en.strength_for(model, tokenizer, edit, **cost) for model in (bare, held)]
    return {
        **{f"collect {site}": float((here[site] - there[site]).abs().max()) for site in here.sites},
        "verify": float(not en.verify(held, own_tokenizer).passed),
        "strength": abs(alphas[0] - alphas[1]),
    }
