"""What a pretrained model costs to read, to probe and to steer, beside the bare model and scikit-learn, in one run.

    python tests/benchmarks/real.py MODEL --data ../shared/data --only language
    python tests/benchmarks/real.py MODEL --data ../shared/data --only probes --posts 3000 --peer-cells 6

Parts: `capture`, `dtype`, `language` (cross-entropy, KL), `generation`, `probes`; all by default. Ways of one part take
turns; a ratio is of processor time within one turn, shown is the median over turns with least and most. Processor time
is what is told because it is the same beside other work; `--wall` tells the clock's instead. Peak memory is what the
process's resident memory rose by.
"""

from __future__ import annotations

import copy
import gzip
import itertools
import json
import resource
import statistics
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from beside import Parser
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch.nn import functional as F

import entangle as en
from entangle.evaluation import continuations, cross_entropy, language_shift
from entangle.models import load, pad, pad_id, token_batches
from entangle.probes.fit import PENALTIES

Ways = Mapping[str, Callable[[], Any]]


def lines(path: Path, n: int, **where: Any) -> list[dict[str, Any]]:
    """The first rows of a gzipped JSON-lines file with these values."""
    with gzip.open(path, "rt") as file:
        rows = (json.loads(line) for line in file)
        return list(itertools.islice((row for row in rows if all(row.get(k) == v for k, v in where.items())), n))


def take_turns(ways: Ways, turns: int, clock: Callable[[], float]) -> dict[str, Any]:
    """Run the ways in turn; print each one's time over the first one's. Returns what each made last."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    made: dict[str, Any] = {}
    for _ in range(turns):
        for name, run in ways.items():
            start = clock()
            made[name] = run()
            seconds[name].append(clock() - start)
    first = next(iter(ways))
    for name, own in seconds.items():
        ratios = [mine / base for mine, base in zip(own, seconds[first], strict=True)]
        spread = f"[{min(ratios):.3f}, {max(ratios):.3f}]"
        print(f"  {name}: {statistics.median(own):.2f} s, {statistics.median(ratios):.3f} {spread}", flush=True)
    return made


class Peak:
    """How far resident memory rises while the block runs, in MB."""

    def __enter__(self) -> Peak:
        self.before = self.most = resident()
        self.over = threading.Event()
        self.watch = threading.Thread(target=self._look)
        self.watch.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.watch.join()
        print(f"    peak memory above what was there: {self.most - self.before:.0f} MB", flush=True)

    def _look(self) -> None:
        while not self.over.wait(0.02):
            self.most = max(self.most, resident())


def resident() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def bare(model: Any, tokenizer: Any, rows: list[list[int]], batch_tokens: int, finish: Callable[..., Any]) -> list[Any]:
    """A plain forward over batches sorted by length; `finish` makes of each batch what is wanted."""
    done = []
    for batch in token_batches([len(row) for row in rows], batch_tokens):
        inputs = pad([rows[i] for i in batch], pad_id(tokenizer))
        with torch.no_grad():
            done.append(finish(inputs))
    return done


def capture(model: Any, tokenizer: Any, given: Any) -> None:
    """z and the residual stream of all layers against the bare forward without head."""
    texts = [row["text"] for row in lines(given.data / "probe_toxicity.jsonl.gz", given.texts, balanced=True)]
    rows = tokenizer(texts, truncation=True, max_length=256)["input_ids"]
    body = model.base_model
    print(f"capture of {len(rows)} posts, {sum(map(len, rows))} tokens, {model.dtype}")
    options = {"max_length": 256, "progress": False}
    take_turns(
        {
            "bare forward without head": lambda: bare(
                model, tokenizer, rows, 1024, lambda inputs: body(**inputs, use_cache=False)
            ),
            "collect": lambda: en.collect(model, tokenizer, texts, sites=["z", "resid_post"], **options),
        },
        given.turns,
        given.clock,
    )


def dtype(model: Any, tokenizer: Any, given: Any) -> None:
    """bfloat16 against float32: time, and what it does to activations, directions and probes."""
    rows = lines(given.data / "probe_toxicity.jsonl.gz", given.texts, balanced=True)
    texts, labels = [row["text"] for row in rows], [row["label"] for row in rows]
    narrow = copy.deepcopy(model).to(torch.bfloat16)
    options = {"sites": "resid_post", "max_length": 256, "progress": False, "store_dtype": torch.float32}
    print(f"bfloat16 against float32, capture of {len(texts)} posts")
    made = take_turns(
        {
            "float32": lambda: en.collect(model, tokenizer, texts, **options)["resid_post"],
            "bfloat16": lambda: en.collect(narrow, tokenizer, texts, **options)["resid_post"],
        },
        given.turns,
        given.clock,
    )
    y = torch.tensor(labels).bool()
    directions = [x[y].mean(0) - x[~y].mean(0) for x in made.values()]
    cosine = F.cosine_similarity(*directions, dim=-1)
    print(f"  cosine of mean differences by layer: least {cosine.min():.5f}, mean {cosine.mean():.5f}")
    accuracy = [
        en.fit_probes(x, labels, n_permutations=0, progress=False).accuracy.mean().item() for x in made.values()
    ]
    print(f"  mean accuracy over layers: float32 {accuracy[0]:.4f}, bfloat16 {accuracy[1]:.4f}")


def language(model: Any, tokenizer: Any, given: Any) -> None:
    """Cross-entropy and KL against bare forwards with head and loss."""
    documents = [row["text"] for row in lines(given.data / "clean_wikitext2.jsonl.gz", given.documents)]
    rows = tokenizer(documents, truncation=True, max_length=256)["input_ids"]
    vocabulary = model.config.get_text_config().vocab_size
    fits = max(256, given.logits // vocabulary)
    size = Path(str(model.name_or_path)).name
    print(f"language of {size}: {len(rows)} documents, {sum(map(len, rows))} tokens of {vocabulary}, {model.dtype}")

    def loss(inputs: dict[str, torch.Tensor]) -> float:
        labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
        return float(model(**inputs, labels=labels, use_cache=False).loss)

    options = {"max_length": 256, "logits": given.logits, "progress": False}
    edit = en.AddDirection(torch.randn(model.config.hidden_size), "resid_post", model.config.num_hidden_layers // 2)
    take_turns(
        {
            "bare forward, head and loss": lambda: bare(model, tokenizer, rows, fits, loss),
            "cross_entropy": lambda: cross_entropy(model, tokenizer, documents, **options),
            "language_shift (two models)": lambda: language_shift(model, tokenizer, documents, edit, **options),
        },
        given.turns,
        given.clock,
    )
    for what, run in (
        ("bare", lambda: bare(model, tokenizer, rows, fits, loss)),
        ("cross_entropy", lambda: cross_entropy(model, tokenizer, documents, **options)),
        ("language_shift", lambda: language_shift(model, tokenizer, documents, edit, **options)),
    ):
        print(f"  {what}")
        with Peak():
            run()


def generation(model: Any, tokenizer: Any, given: Any) -> None:
    """Sampling by `continuations`, plain and under ITI, against `generate` with the same settings."""
    prompts = [row["text"] for row in lines(given.data / "prompts_rtp_challenging.jsonl.gz", given.prompts)]
    inputs = tokenizer(prompts, return_tensors="pt", padding=True, padding_side="left")
    new = {"max_new_tokens": given.tokens, "min_new_tokens": given.tokens}
    n_layers, n_heads = model.config.num_hidden_layers, en.Atlas(model).n_heads(0)
    d_head = en.Atlas(model).size("z", 0) // n_heads
    heads = [divmod(i, n_heads) for i in range(0, n_layers * n_heads, max(1, n_layers * n_heads // 30))][:30]
    iti = en.ITI(heads, torch.randn(len(heads), d_head), torch.full((len(heads),), 0.05))
    print(f"generation of {len(prompts)} x {given.tokens} tokens, {len(heads)} heads steered")

    def greedy() -> Any:
        return model.generate(**inputs, **new, do_sample=False)

    def steered() -> Any:
        with en.steer(model, iti, alpha=1.0):
            return greedy()

    take_turns({"generate": greedy, "generate again": greedy, "under ITI": steered}, given.turns, given.clock)

    def sampled() -> Any:
        torch.manual_seed(0)
        return model.generate(**inputs, **new, do_sample=True, top_p=0.9, top_k=0)

    options = {"max_new_tokens": given.tokens, "top_p": 0.9, "progress": False}
    take_turns(
        {
            "generate(do_sample, top_p=.9)": sampled,
            "continuations": lambda: continuations(model, tokenizer, prompts, **options),
        },
        given.turns,
        given.clock,
    )


def probes(model: Any, tokenizer: Any, given: Any) -> None:
    """The standardised grid against scikit-learn's pipeline with its C chosen likewise, on some of the cells."""
    rows = lines(given.data / "probe_toxicity.jsonl.gz", given.posts, balanced=True)
    texts, labels = [row["text"] for row in rows], np.array([row["label"] for row in rows])
    acts = en.collect(model, tokenizer, texts, sites=["z", "resid_post"], max_length=256, save_to=given.captured)
    for site in ("resid_post", "z"):
        x = acts[site]
        start = given.clock()
        grid = en.fit_probes(x, labels, n_permutations=0, n_resamples=100, progress=False)
        ours = given.clock() - start
        fit, select, test = (part.numpy() for part in (grid.split.fit, grid.split.select, grid.split.report))
        cells = list(np.ndindex(*grid.shape))
        chosen = [cells[i] for i in np.linspace(0, len(cells) - 1, min(given.peer_cells, len(cells))).astype(int)]
        theirs, picked, tested = 0.0, [], []
        for cell in chosen:
            own = x[(slice(None), *cell)].float().numpy()
            start = given.clock()
            models = [
                make_pipeline(StandardScaler(), LogisticRegression(C=C, max_iter=1000)).fit(own[fit], labels[fit])
                for C in PENALTIES
            ]
            scores = [model.score(own[select], labels[select]) for model in models]
            theirs += given.clock() - start
            best = int(np.argmax(scores))
            picked.append(scores[best])
            tested.append(models[best].score(own[test], labels[test]))
        index = tuple(np.array(chosen).T)
        mine, mine_picked = grid.accuracy.numpy()[index], grid.selection_accuracy.numpy()[index]
        scaled = theirs * len(cells) / len(chosen)
        print(
            f"{site}: {len(cells)} cells of {x.shape[-1]}, {len(fit)} fitting rows, {len(PENALTIES)} penalties, "
            f"all converged: {bool(grid.converged.all())}\n"
            f"  entangle, all cells: {ours:.1f} s; pipeline, in proportion from {len(chosen)} cells: {scaled:.0f} s, "
            f"{scaled / ours:.1f} x\n"
            f"  those cells, mean test accuracy: entangle {mine.mean():.4f}, pipeline {np.mean(tested):.4f}; "
            f"of the one chosen on selection rows: {mine[mine_picked.argmax()]:.4f}, "
            f"{tested[int(np.argmax(picked))]:.4f}; standard error {(0.25 / len(test)) ** 0.5:.4f}",
            flush=True,
        )


PARTS = {each.__name__: each for each in (capture, dtype, language, generation, probes)}


def main() -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("model", help="a directory or a .gguf file")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--only", nargs="*", choices=PARTS, default=[*PARTS])
    parser.add_argument("--dtype", help="compute in this type")
    parser.add_argument("--texts", type=int, default=200, help="posts of capture and dtype")
    parser.add_argument("--posts", type=int, default=3000, help="posts of probes")
    parser.add_argument("--captured", type=Path, help="folder that keeps the activations of probes")
    parser.add_argument("--peer-cells", type=int, default=6, help="cells of each site that the pipeline fits")
    parser.add_argument("--documents", type=int, default=8)
    parser.add_argument("--logits", type=int, default=2**26, help="numbers of logits at once")
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--wall", action="store_true", help="the clock's time instead of the processor's")
    given = parser.parse_args()
    given.clock = time.perf_counter if given.wall else time.process_time
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    model, tokenizer = load(given.model, dtype=given.dtype)
    for name in given.only:
        PARTS[name](model, tokenizer, given)


if __name__ == "__main__":
    main()
