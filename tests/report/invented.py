"""Numbers of a study that nobody measured, in the shape that pages are drawn from, of any size and with any names."""

from __future__ import annotations

from typing import Any

import numpy as np


def ends(name: str, value: Any, half: float = 0.03) -> dict[str, Any]:
    array = np.asarray(value, dtype=float)
    return {
        name: array.round(6).tolist(),
        f"{name}_low": (array - half).round(6).tolist(),
        f"{name}_high": (array + half).round(6).tolist(),
    }


def grid(shape: tuple[int, ...], generator: np.random.Generator) -> dict[str, Any]:
    accuracy, auroc = (generator.uniform(0.55, 0.8, shape) for _ in range(2))
    best = {"layer": shape[0] - 1, "head": 1 if len(shape) > 1 else None, "p": 0.01}
    return {
        "layers": list(range(shape[0])),
        **ends("accuracy", accuracy),
        **ends("auroc", auroc),
        "p": np.full(shape, 0.01).tolist(),
        "null": generator.uniform(0.45, 0.55, (20, *shape)).round(4).tolist(),
        "null_ceiling": 0.56,
        "n_permutations": 20,
        "n_significant": int(accuracy.size),
        "selection_accuracy": accuracy.round(4).tolist(),
        "C": np.ones(shape).tolist(),
        "best": {**best, **ends("accuracy", 0.731), **ends("auroc", 0.802)},
    }


def price(alpha: float, method: str = "ITI") -> dict[str, Any]:
    return {
        "method": method,
        "alpha": alpha,
        "error": "",
        "degenerate": 0.01,
        "toxic_share": 0.2,
        "kl": 0.02 * alpha,
        **ends("toxicity", 0.4 - 0.02 * alpha),
        **ends("ce", 3 + 0.05 * alpha),
        **ends("removed", 0.02 * alpha),
        **ends("ce_change", 0.05 * alpha),
        **ends("removed_per_nat", 0.4),
    }


def forecast(names: list[str], n_layers: int) -> dict[str, Any]:
    rows = [
        {
            "concept": name,
            "method": method,
            "site": "resid_post",
            "layer": layer,
            "price": 0.02 / share**2,
            "efficiency": share,
            **ends("limit", 0.5, 0.1),
            "reached": 0.3,
        }
        for name in names
        for layer in range(n_layers)
        for method, share in (("natural", 1.0), ("CAA", 0.4))
    ]
    return {"rows": rows, "settings": {"unit": 0.1}}


def study(
    *,
    label: str = "a-model",
    concept: str = "toxicity",
    others: tuple[str, ...] = ("tense", "sentiment"),
    n_layers: int = 4,
    n_heads: int = 4,
    text: str = "what the model wrote",
    steered: bool = True,
    seed: int = 0,
) -> dict[str, Any]:
    """The numbers of one study, as `Study.to_dict` gives them."""
    generator = np.random.default_rng(seed)
    names = [concept, *others]
    rows = [
        {
            "concept": name,
            "layer": layer,
            "entanglement": 0.2,
            "low": 0.1,
            "high": 0.4,
            "partner": names[1 - min(names.index(name), 1)],
            "percentile": 0.999,
            "covariance_percentile": 0.62,
            "split_half": 0.9,
            "variance_share": 0.05,
            "null_low": 0.03,
            "null_high": 0.2,
        }
        for layer in range(n_layers)
        for name in names
    ]
    cosine = [np.eye(len(names)).tolist()] * n_layers
    heads = [(n_layers - 1, 0), (n_layers - 1, 1)]
    sources = [
        {"name": concept, "source": text, "n": 100, "n_positive": 50, "label_names": [text, concept]}
        | {"positive": concept, "rule": text, "sha256": "0" * 64}
    ]
    sides = [{"alpha": alpha, "text": text, "score": 0.4} for alpha in (0.0, 8.0)]
    return {
        "format": 2,
        "label": label,
        "concept": concept,
        "made": "2026-01-01 00:00 UTC",
        "command": f"entangle report {label} data.jsonl --name '{concept}'",
        "versions": {"entangle": "0.2.0", "torch": "2.13.0"},
        "fingerprint": {"architecture": "Olmo2ForCausalLM", "digest": "0" * 64},
        "atlas": {"columns": ["layer", "z", "resid_post"], "rows": [[0, "self_attn.o_proj", text]]},
        "data": sources,
        "scorer": {"name": text},
        "settings": {"seed": 0, "model": label, "prompts": "/a/very/long/path/" * 8},
        "seconds": {"probes": 1.5},
        "split": {"fit": 60, "select": 20, "report": 20},
        "probes": {"z": grid((n_layers, n_heads), generator), "resid_post": grid((n_layers,), generator)},
        "baselines": {
            "bag_of_words": {**ends("accuracy", 0.777), **ends("auroc", 0.85), **ends("difference", -0.05)},
            "commoner_class": {key + end: None for key in ("accuracy", "auroc") for end in ("_low", "_high")}
            | {"accuracy": 0.5, "auroc": 0.5},
        },
        "entanglement": {
            "names": names,
            "layers": list(range(n_layers)),
            "best_layer": n_layers - 1,
            "settings": {},
            "rows": rows,
            **{key: cosine for key in ("cosine", "cosine_low", "cosine_high")},
        },
        "intervention": {"method": "ITI", "heads": heads, "sigmas": [0.5, 0.6], "cells": [list(each) for each in heads]}
        if steered
        else None,
        "tradeoff": [price(alpha) for alpha in (0.0, 4.0, 8.0)] if steered else None,
        "forecast": forecast(names, n_layers),
        "foretold": [f"{concept}: a constant shift is cheapest after layer 1."],
        "n_prompts": 10 if steered else 0,
        "best_method": None,
        "samples": [{"prompt": text, "sides": sides}] if steered else [],
        "notes": [text],
        "missing": {"the probes of layer 9": text},
        "answer": [],
    }
