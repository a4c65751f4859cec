"""What a model says and how well: sampled continuations, cross-entropy and KL on texts, attacks."""

from entangle.evaluation.language.documents import PerDocument, cross_entropy, kl, language_shift
from entangle.evaluation.language.gcg import Suffix, gcg
from entangle.evaluation.language.generation import continuations
from entangle.evaluation.language.quality import degenerate_share, distinct_n, is_degenerate
from entangle.evaluation.language.reading import LanguageShift, row_nats
from entangle.evaluation.language.subject import Method, Subject
from entangle.evaluation.language.tasks import task_scores

__all__ = [
    "LanguageShift",
    "Method",
    "PerDocument",
    "Subject",
    "Suffix",
    "continuations",
    "cross_entropy",
    "degenerate_share",
    "distinct_n",
    "gcg",
    "is_degenerate",
    "kl",
    "language_shift",
    "row_nats",
    "task_scores",
]
