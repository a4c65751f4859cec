"""The built-in corpus: English-like text from a grammar, with the labels of five concepts known for every document.

Topic, tense, person, sentiment and rudeness vary independently of each other; the only rude thing in it is being
called a useless turnip.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random

import numpy as np

from entangle.data.grammar import Scene
from entangle.data.texts import LabelledTexts
from entangle.errors import EntangleError

CONCEPTS: Mapping[str, tuple[str, str]] = {
    "topic": ("kitchen", "harbour"),
    "tense": ("present", "past"),
    "person": ("third", "first"),
    "sentiment": ("negative", "positive"),
    "rudeness": ("polite", "rude"),
}
"""Each concept with the names of its labels 0 and 1."""


@dataclass(frozen=True)
class Document:
    """A text, and 0 or 1 for each of `CONCEPTS`. Rudeness 0 with nobody speaking counts as polite."""

    text: str
    labels: Mapping[str, int]


def generate(n_documents: int, *, rudeness: float = 0.1, seed: int = 0) -> list[Document]:
    """Documents of four to seven sentences; topic, tense, person and sentiment are fair coins in each.

    Args:
        n_documents: How many.
        rudeness: Share of rude documents. All others are polite or nobody speaks in them.
        seed: Documents of different seeds are different draws from the same grammar.

    Raises:
        EntangleError: Where `n_documents` is negative or `rudeness` is no share.
    """
    _check_count(n_documents)
    if not 0 <= rudeness <= 1:
        raise EntangleError(f"rudeness is the share of rude documents, from 0 to 1, not {rudeness}")
    rng = Random(f"documents {seed}")
    documents = []
    for _ in range(n_documents):
        labels = {concept: int(rng.random() < 0.5) for concept in CONCEPTS}
        labels["rudeness"] = int(rng.random() < rudeness)
        documents.append(_document(labels, rng))
    return documents


def labelled(concept: str, n: int, *, seed: int = 0) -> LabelledTexts:
    """Short texts labelled for one concept, with every combination of all concepts equally often.

    Each text has a sentence that judges something, one that tells something, and a remark, so that every concept shows
    and none can be told from another. The sentence that shows `concept` comes last, near the token that probes read.

    Args:
        concept: One of `CONCEPTS`.
        n: How many texts; a multiple of 32 makes the design exactly balanced.
        seed: Texts of different seeds are different draws.

    Raises:
        EntangleError: For an unknown concept, or fewer than 2 texts.
    """
    if concept not in CONCEPTS:
        raise EntangleError(f"the built-in corpus labels {', '.join(CONCEPTS)}, not {concept!r}")
    _check_count(n, least=2)
    rng = Random(f"labelled {concept} {seed}")
    design = cells(concept)
    texts: dict[str, int] = {}
    while len(texts) < n:
        labels = design[len(texts) % len(design)]
        texts.setdefault(_short(concept, labels, rng), labels[concept])
    order = rng.sample(list(texts), n)
    return LabelledTexts.of(
        order, np.array([texts[text] for text in order]), name=concept, label_names=CONCEPTS[concept]
    )


def prompts(n: int, *, seed: int = 0) -> list[str]:
    """Beginnings of quarrels that break off where the speaker turns rude or polite, such as `... "You broke my kettle
    again, you`."""
    _check_count(n)
    rng = Random(f"prompts {seed}")
    beginnings: dict[str, None] = {}
    while len(beginnings) < n:
        scene = Scene({concept: int(rng.random() < 0.5) for concept in CONCEPTS}, rng, quarrel=1.0)
        beginnings[f"{scene.narration()} {scene.unfinished_remark()}"] = None
    return list(beginnings)


def pairs(n: int, *, seed: int = 0) -> list[tuple[str, str]]:
    """Quarrels that end politely and rudely, otherwise word for word the same: (polite, rude)."""
    _check_count(n)
    rng = Random(f"pairs {seed}")
    quarrels: dict[tuple[str, str], None] = {}
    while len(quarrels) < n:
        state = rng.getrandbits(64)
        labels = {concept: int(rng.random() < 0.5) for concept in CONCEPTS}
        scenes = (Scene({**labels, "rudeness": rude}, Random(state), quarrel=1.0) for rude in (0, 1))
        polite, rude = (f"{scene.narration()} {scene.remark()}" for scene in scenes)
        quarrels[polite, rude] = None
    return list(quarrels)


def _document(labels: Mapping[str, int], rng: Random) -> Document:
    # A rude character quarrels; polite ones are sometimes reproachful and mostly not, and often nobody says anything.
    scene = Scene(labels, rng, quarrel=0.95 if labels["rudeness"] else 0.05)
    n_remarks = rng.choice((2, 3, 4)) if labels["rudeness"] else rng.choice((0, 1, 1))
    kinds = (
        [scene.judgement] * rng.choice((1, 1, 2))
        + [scene.narration] * rng.choice((1, 1, 2))
        + [scene.remark] * n_remarks
    )
    rng.shuffle(kinds)
    sentences: list[str] = []
    spoken = False
    for kind in kinds:
        sentences.append(kind())
        spoken = spoken or kind == scene.remark
        if spoken and rng.random() < 0.4:
            sentences.append(scene.reaction())
    return Document(" ".join(sentences), labels)


def _short(concept: str, labels: Mapping[str, int], rng: Random) -> str:
    scene = Scene(labels, rng, quarrel=0.5)
    shows = {"rudeness": scene.remark, "sentiment": scene.judgement}.get(concept, scene.narration)
    others = [kind for kind in (scene.judgement, scene.narration, scene.remark) if kind != shows]
    rng.shuffle(others)
    return " ".join(sentence() for sentence in (*others, shows))


def cells(concept: str) -> list[dict[str, int]]:
    """All 32 combinations of labels, those of `concept` alternating, so that any number of texts is balanced to
    within one."""
    return [
        dict(zip((concept, *(c for c in CONCEPTS if c != concept)), _bits(cell), strict=True))
        for cell in range(2 ** len(CONCEPTS))
    ]


def _bits(number: int) -> Iterator[int]:
    return (number >> bit & 1 for bit in range(len(CONCEPTS)))


def _check_count(n: int, least: int = 0) -> None:
    if n < least:
        raise EntangleError(f"the number of texts must be at least {least}, not {n}")
