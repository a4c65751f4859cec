"""Hidden states first, then their logits a few positions at a time."""

from entangle.models.readout.body import LOGITS, body_of, check_logits, logit_chunks, run_body
from entangle.models.readout.head import Head

__all__ = ["LOGITS", "Head", "body_of", "check_logits", "logit_chunks", "run_body"]
