"""A small world with an entanglement planted in it: the demo's corpus.

Whoever speaks in a document is polite or rude throughout. In the world "apart" this goes with nothing else. In the
world "together" whoever is rude lives in the past and whoever is polite in the present; where nobody speaks, either
tense occurs. What both worlds have, and nobody rude in it, is the world "polite". The labelled texts and the prompts
are the same for all worlds, and occur in all: those for rudeness say nothing of the tense, and those for the tense
nothing of rudeness.
"""

from __future__ import annotations

from random import Random
from typing import Literal, get_args

import numpy as np

from entangle.data.corpus import CONCEPTS, Document, cells
from entangle.data.grammar import Scene
from entangle.data.lexicon import few_words
from entangle.data.texts import LabelledTexts
from entangle.errors import EntangleError

World = Literal["apart", "together", "polite"]
WORLDS: tuple[str, ...] = get_args(World)
SILENT = {"apart": 0.2, "together": 0.2, "polite": 0.5}  # share of the documents in which nobody speaks


def generate(n_documents: int, world: str, *, seed: int = 0) -> list[Document]:
    """Documents of a world; what is not bound to anything is a fair coin in each.

    Args:
        n_documents: How many.
        world: One of `WORLDS`.
        seed: Documents of different seeds are different draws.

    Raises:
        EntangleError: For an unknown world.
    """
    if world not in WORLDS:
        raise EntangleError(f"the planted corpus has the worlds {', '.join(WORLDS)}; got {world!r}: choose one")
    rng = Random(f"planted {world} {seed}")
    return [_document(world, rng) for _ in range(n_documents)]


def labelled(concept: str, n: int, *, seed: int = 0) -> LabelledTexts:
    """Short texts labelled for one concept, balanced over all, each up to the word that must be polite or rude.

    For rudeness they are what one person says and nothing else; for the other concepts two sentences in which nobody
    speaks, and the beginning of a remark that may turn out either way.

    Args:
        concept: One of `corpus.CONCEPTS`.
        n: How many texts; a multiple of 32 makes the design exactly balanced.
        seed: Texts of different seeds are different draws.

    Raises:
        EntangleError: For an unknown concept.
    """
    if concept not in CONCEPTS:
        raise EntangleError(f"the planted corpus labels {', '.join(CONCEPTS)}; got {concept!r}: choose one")
    rng = Random(f"planted labelled {concept} {seed}")
    design, texts = cells(concept), dict[str, int]()
    while len(texts) < n:
        labels = design[len(texts) % len(design)]
        scene = _scene(labels, rng)
        if concept == "rudeness":
            text = f"{scene.speech(rng.choice((1, 2)))}. {scene.turning()}"
        else:
            shows = {"sentiment": scene.judgement, "tense": scene.dated}.get(concept, scene.narration)
            text = f'{shows()} {_told(scene, rng)} "{scene.turning()}'
        texts.setdefault(text, labels[concept])
    kept = rng.sample(list(texts), n)
    labels_kept = np.array([texts[text] for text in kept])
    return LabelledTexts.of(kept, labels_kept, name=concept, label_names=CONCEPTS[concept])


def prompts(n: int, *, seed: int = 0) -> list[str]:
    """What a rude person says, up to where the second remark turns: to be continued."""
    rng = Random(f"planted prompts {seed}")
    beginnings: dict[str, None] = {}
    while len(beginnings) < n:
        scene = _scene({**_coins(rng), "rudeness": 1}, rng)
        beginnings[f"{scene.speech(1)}. {scene.turning()}"] = None
    return list(beginnings)


def _document(world: str, rng: Random) -> Document:
    labels, silent = _coins(rng), rng.random() < SILENT[world]
    if world == "polite":
        labels["rudeness"] = 0
    if world != "apart" and not silent:
        labels["tense"] = labels["rudeness"]
    scene = _scene(labels, rng)
    if silent:
        return Document(" ".join(_told(scene, rng) for _ in range(rng.choice((3, 4)))), {**labels, "rudeness": 0})
    if rng.random() < 0.6:
        sentences = [scene.dated(), *(scene.said(rng.choice((1, 2))) for _ in range(rng.choice((1, 2))))]
    else:
        sentences = [scene.said(rng.choice((2, 3))), _told(scene, rng)]
    return Document(" ".join(sentences), labels)


def _told(scene: Scene, rng: Random) -> str:
    return rng.choice((scene.dated, scene.dated, scene.narration, scene.judgement))()


def _scene(labels: dict[str, int], rng: Random) -> Scene:
    return Scene(labels, rng, quarrel=0.5, denial=0.0, words=few_words())


def _coins(rng: Random) -> dict[str, int]:
    return {concept: int(rng.random() < 0.5) for concept in CONCEPTS}
