"""How natural a changed model's continuations are: their cross-entropy as the plain model reads them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from entangle.evaluation.language.reading import batches, row_nats
from entangle.evaluation.language.subject import Subject
from entangle.models.readout import LOGITS
from entangle.models.rows import context_length


def continuation_nats(
    subject: Subject,
    prompts: Sequence[Sequence[int]],
    continuations: Sequence[Sequence[str]],
    *,
    batch_tokens: int = 8192,
    logits: int = LOGITS,
    progress: bool = True,
) -> tuple[Float[np.ndarray, "prompt sample"], Int[np.ndarray, "prompt sample"]]:
    """How unexpected continuations are to a model, such as the plain one reading what a changed one wrote.

    Args:
        subject: Who reads.
        prompts: Rows of token ids.
        continuations: Continuations of each; a blank one has no tokens.
        batch_tokens: Tokens in one batch.
        logits: Numbers of logits computed at once, at most.
        progress: Show a progress bar.

    Returns:
        Nats summed over each continuation's tokens, and the number of tokens; a token beyond the context is not read.
    """
    context = context_length(subject.model, subject.tokenizer)
    jobs = [(i, k) for i, row in enumerate(continuations) for k, text in enumerate(row) if text.strip()]
    shape = len(continuations), len(continuations[0])
    nats, tokens = np.zeros(shape), np.zeros(shape, dtype=np.int64)
    if not jobs:
        return nats, tokens
    token_rows = subject.tokenizer([continuations[i][k] for i, k in jobs], add_special_tokens=False)["input_ids"]
    rows = [[*prompts[i], *ids][:context] for (i, _), ids in zip(jobs, token_rows, strict=True)]
    for batch in batches(rows, subject.model, batch_tokens, logits, progress):
        starts = [len(prompts[jobs[j][0]]) for j in batch]
        read = row_nats(subject, [rows[j] for j in batch], [start - 1 for start in starts], logits=logits)
        for j, start, sum_of_nats in zip(batch, starts, read, strict=True):
            nats[jobs[j]] = sum_of_nats
            tokens[jobs[j]] = len(rows[j]) - start
    return nats, tokens
