"""What is done with the logits of a large vocabulary, beside what PyTorch and transformers do it with, in one run.

    python tests/benchmarks/logits.py --vocabulary 262144 --positions 256

Random logits as a language model's, with a few likely tokens; the head is a random matrix of width `--width`. Processor
seconds, the median over turns, and the peer's time over ours with least and most.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from beside import Parser
from torch.nn import functional as F
from transformers import TopPLogitsWarper

from entangle.evaluation.language.generation import nucleus_choice
from entangle.forecast.slopes import _said
from entangle.metrics import compared, kl_of

DRAWS, TOP_P = 4, 0.9


def kl_by_torch(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    one, other = (x.float().log_softmax(-1) for x in (p, q))
    return F.kl_div(other, one, log_target=True, reduction="none").sum(-1)


def compared_by_torch(p: torch.Tensor, q: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, ...]:
    nats = (F.cross_entropy(x.float(), targets, reduction="none") for x in (q, p))
    return (*nats, kl_by_torch(p, q), p.argmax(-1) == q.argmax(-1))


def drawn_by_torch(logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    probabilities = logits.float().softmax(-1)
    return probabilities.to(logits.dtype), torch.multinomial(probabilities, DRAWS, replacement=True)


def nucleus_by_transformers(logits: torch.Tensor) -> torch.Tensor:
    return torch.multinomial(TopPLogitsWarper(TOP_P)(None, logits).softmax(-1), 1)  # type: ignore[arg-type]


def take_turns(name: str, ours: Callable[[], Any], peer: Callable[[], Any], turns: int) -> None:
    seconds: dict[bool, list[float]] = {True: [], False: []}
    for turn in range(turns + 1):
        for mine, run in ((True, ours), (False, peer)):
            start = time.process_time()
            run()
            if turn:  # the first one warms up
                seconds[mine].append(time.process_time() - start)
    ratios = [other / mine for mine, other in zip(seconds[True], seconds[False], strict=True)]
    print(
        f"{name}: {statistics.median(seconds[True]):.3f} s, the peer {statistics.median(seconds[False]):.3f} s, "
        f"{statistics.median(ratios):.2f} x [{min(ratios):.2f}, {max(ratios):.2f}]",
        flush=True,
    )


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--vocabulary", type=int, default=262_144)
    parser.add_argument("--positions", type=int, default=256)
    parser.add_argument("--width", type=int, default=640)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    shape = given.positions, given.vocabulary
    exact = 5 * torch.randn(shape)
    plain, changed = exact.bfloat16(), (exact + torch.randn(shape) / 10).bfloat16()
    targets = torch.randint(given.vocabulary, shape[:1])
    uniform = torch.rand(given.positions, DRAWS, dtype=torch.float64)
    weight, states = (torch.randn(n, given.width).bfloat16() for n in (given.vocabulary, given.positions))
    turns = given.turns
    print(
        f"{given.positions} positions, {given.vocabulary} tokens, {given.threads} thread(s); the peer's time over ours"
    )
    take_turns("the head, forward (the peer: back)", lambda: states @ weight.T, lambda: plain @ weight, turns)
    take_turns("probabilities and draws", lambda: _said(plain, uniform), lambda: drawn_by_torch(plain), turns)
    take_turns("KL", lambda: kl_of(plain, changed), lambda: kl_by_torch(plain, changed), turns)
    both = plain, changed, targets
    take_turns("KL and all else", lambda: compared(*both), lambda: compared_by_torch(*both), turns)
    one = uniform[:, 0]
    take_turns(
        "a token of the nucleus",
        lambda: nucleus_choice(exact, one, TOP_P),
        lambda: nucleus_by_transformers(exact),
        turns,
    )


if __name__ == "__main__":
    main()
