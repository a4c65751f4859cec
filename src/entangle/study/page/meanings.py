"""What the words on a page mean: each heading and column links to its paragraph at the page's end."""

from __future__ import annotations

from typing import NamedTuple


class Meaning(NamedTuple):
    """One paragraph.

    Attributes:
        name: Its identifier on the page.
        title: The word.
        text: What it means, and what it does not.
        columns: How columns begin that link here.
    """

    name: str
    title: str
    text: str
    columns: tuple[str, ...] = ()


MEANINGS = (
    Meaning(
        "interval",
        "Interval",
        "A value is followed by its 95 % interval in brackets, and drawn: a line from end to end, a dot at the "
        "value, an upright dashed line at zero where zero is near. The intervals are over texts, prompts or "
        "documents of the kind that was given, of this one model; where a page compares seeds it says so. Other "
        "models and other kinds of text are not in them.",
    ),
    Meaning(
        "probe",
        "Probe, accuracy and AUROC",
        "A probe is a linear classifier on the activations at one place, at the last token. It is fitted on some "
        "texts, places are chosen on others, and its accuracy and AUROC (the chance that a text with the concept "
        "scores above one without) are reported on a third part. A probe that reads a concept shows that the "
        "information is there, not that the model uses it.",
        ("accuracy", "AUROC", "chosen on", "best", "mean", "skewness"),
    ),
    Meaning(
        "null",
        "Null and p-value",
        "The same measurement where there is nothing to find: probes fitted to shuffled labels. p is the share of "
        "shuffles in which the best of all places does at least as well, so it is corrected for how many places "
        "were tried.",
        ("p, corrected", "p,", "p"),
    ),
    Meaning(
        "words",
        "Bag of words",
        "A linear model that sees only which words occur. What it gets right can be had without any model; a "
        "probe that does not beat it shows nothing that the words alone do not.",
    ),
    Meaning(
        "entanglement",
        "Entanglement E",
        "The largest absolute cosine between a concept's direction and that of any other concept that was asked "
        "about: 0 is a direction of its own, 1 is shared wholly. It depends on which others were asked about, and "
        "noise in the directions shrinks it.",
        ("E [95", "nearest", "layer E"),
    ),
    Meaning(
        "percentile",
        "Percentile",
        "The share of random directions with a smaller E. They are drawn with the covariance of the concepts' own "
        "activations, since activations crowd into few dimensions and any directions drawn there are close to "
        "each other: 50 is what chance gives, 95 and more is entangled. Uniform random directions, which know "
        "nothing of that, are a far lower bar; they are folded away.",
        ("percentile",),
    ),
    Meaning(
        "half",
        "Split half",
        "The cosine r between a concept's directions from two halves of its texts. At .9 the direction is well "
        "measured, below .5 it is mostly noise. Noise shrinks cosines with other concepts by about 2r / (1 + r).",
        ("split-half",),
    ),
    Meaning(
        "share",
        "Variance share",
        "The share of the activations' variance that lies along the concept's direction. Of the numbers that need "
        "no steering it says most of what a shift of so many standard deviations will cost, more than E.",
        ("variance share",),
    ),
    Meaning(
        "steering",
        "Steering, ITI and alpha",
        "Inference-time intervention adds a constant to the output of the attention heads that read the concept "
        "best, away from it, at every token: alpha standard deviations of each head. Alpha 0 is the model as it "
        "is. The heads are chosen on the selection texts. Of several methods at one price, half of the prompts choose "
        "the one that the answer speaks of, on the other half. What is removed is the fall of the mean score of "
        "continuations, paired by prompt.",
        ("alpha", "method", "removed", "heads moved"),
    ),
    Meaning(
        "price",
        "Nats paid, and removed per nat",
        "The rise of the cross-entropy of clean text, in nats per token, paired by document: what steering costs the "
        "model's language. .1 nats is about a tenth more perplexity. Removed per nat sets what was won against it; "
        "where nothing was paid for sure, its interval has no end.",
        ("nats paid", "removed per nat", "removed a nat", "cross-entropy", "paid", "KL", "nats a token"),
    ),
    Meaning(
        "broken",
        "Degenerate",
        "The share of continuations that are empty or repeat themselves endlessly. A model that says nothing is "
        "not a polite one.",
        ("degenerate", "above .5"),
    ),
    Meaning(
        "forecast",
        "Forecast and limit",
        "What a constant shift will cost, to second order, from backward passes on clean text: the Fisher "
        "information of the next token, pulled back to a place in the model. The limit is the most contrast "
        "between texts with and without the concept that any constant shift can buy there. It holds for short "
        "shifts, up to about .3 nats per token; beyond, measure.",
        ("limit", "price", "of the limit", "reached"),
    ),
)


def meaning_of(column: str) -> str:
    """The name of the paragraph that a column links to; empty where it needs none.

    Args:
        column: What stands over it.
    """
    matches = [(len(start), each.name) for each in MEANINGS for start in each.columns if _begins(column, start)]
    return max(matches, default=(0, ""))[1]


def _begins(column: str, start: str) -> bool:
    """Whether a column begins with these words, and not merely with these letters."""
    return column == start or (column.startswith(start) and not column[len(start)].isalpha())
