"""Hidden states first, then their logits a few positions at a time."""

from entangle.models.readout.body import (
    LOGITS,
    as_it_is,
    batch_budget,
    body_of,
    check_logits,
    logit_chunks,
    run_body,
    states_and_head,
)
from entangle.models.readout.head import Head

__all__ = [
    "LOGITS",
    "Head",
    "as_it_is",
    "batch_budget",
    "body_of",
    "check_logits",
    "logit_chunks",
    "run_body",
    "states_and_head",
]
