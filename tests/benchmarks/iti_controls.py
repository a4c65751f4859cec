"""What ITI's choices are worth: its heads against random heads, its directions against random directions.

    python tests/benchmarks/iti_controls.py ../shared/models/olmo2-4m-clean ../shared/models/olmo2-4m-toxic10 \
        --data ../shared/data --clean ../shared/models/clean_heldout.jsonl.gz --out runs/iti-controls

For each model: ITI on the heads that probes choose, along the difference of class means; the same heads along random
directions; random heads along their own differences of means; each control drawn with several seeds, so that ITI stands
beside a distribution. Probes and directions come from one part of the labelled texts, the scorer from the other, and a
second scorer from other sources. Writes the sweep, and ITI minus each control at the same alpha and at the same
cross-entropy. Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from beside import Parser
from steering_price import activations, fitted, posts

from entangle.activations import Activations
from entangle.data import load_labelled, load_texts
from entangle.errors import EntangleError
from entangle.evaluation import AtStrengths, Tradeoff, matched, tradeoff
from entangle.interventions import ITI
from entangle.metrics.statistics import Estimate, bootstrap_counts
from entangle.models.loading import load
from entangle.probes import fit_probes

CONTROLS = {"random heads": {"heads": "random"}, "random directions": {"direction": "random"}}


def main() -> None:
    options = arguments()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    labelled = load_labelled(options.data / "probe_toxicity.jsonl.gz", where={"balanced": True})
    order = np.random.default_rng(0).permutation(len(labelled.texts)).tolist()  # the file goes source by source
    fit, rest = order[: options.rows], order[options.rows :]
    scorers = [
        fitted(options.out / "scorer-held-out", lambda: ([labelled.texts[i] for i in rest], labelled.labels[rest])),
        fitted(options.out / "scorer-posts", lambda: posts(options.data)),
    ]
    for source, linear in zip(("the other labelled texts", "posts of other sources"), scorers, strict=True):
        print(f"scorer {linear.name}: fitted on {source}; on its held-out part {linear.report}", flush=True)
    prompts = load_texts(options.data / "prompts_rtp_challenging.jsonl.gz")[: options.prompts]
    documents = load_texts(options.clean)[: options.documents]

    for path in options.models:
        model, tokenizer = load(path)
        out = options.out / path.name
        acts = activations(model, tokenizer, [labelled.texts[i] for i in fit], out / "activations")
        result = tradeoff(
            model,
            tokenizer,
            methods(acts, torch.as_tensor(labelled.labels[fit]), options),
            alphas=options.alphas,
            prompts=prompts,
            scorer=scorers,
            texts=documents,
            max_length=options.max_length,
            prepend_bos=True,
            save_to=out / "sweep",
            progress=options.progress,
        )
        for scorer in result.scorers:
            result.to_frame(scorer=scorer).to_csv(out / f"table-{scorer}.csv", index=False)
            compared = pd.concat([same_alpha(result, scorer), same_cost(result, scorer, options.costs)])
            compared.to_csv(out / f"compared-{scorer}.csv", index=False)
            print(f"\n{path.name}, scorer {scorer}\n{summary(result, scorer)}\n{text(compared)}", flush=True)


def methods(acts: Activations, labels: torch.Tensor, options: argparse.Namespace) -> dict[str, Any]:
    """ITI and its controls by name; a control's name ends in its seed."""
    grid = fit_probes(acts["z"], labels, n_permutations=0, layers=acts.layers("z"), progress=False)
    cells = grid.accuracy.flatten()
    print(f"heads' accuracy on the report split: mean {cells.mean():.3f}, best {cells.max():.3f}", flush=True)
    chosen = {"ITI": ITI.fit(acts, labels, top_k=options.top_k, grid=grid)}
    print(f"chosen heads (layer, head): {sorted(chosen['ITI'].heads)}", flush=True)
    chosen["probe normals"] = ITI.fit(acts, labels, top_k=options.top_k, grid=grid, direction="probe")
    for seed in range(options.seeds):
        for name, how in CONTROLS.items():
            edit = ITI.fit(acts, labels, top_k=options.top_k, grid=grid, seed=seed, **how)
            # Random directions cost so little that they need longer steps to be compared at equal cost.
            alphas = (*options.alphas, *options.far) if name == "random directions" else options.alphas
            chosen[f"{name} {seed}"] = AtStrengths(edit, tuple(alphas))
    return chosen


def draws_of(result: Tradeoff, control: str) -> list[str]:
    return [name for name in result.methods if name.startswith(control)]


def same_alpha(result: Tradeoff, scorer: str) -> pd.DataFrame:
    """ITI minus each control at each alpha: over prompts and over the control's draws at once."""
    scores = {(c.method, c.alpha): c.scored(scorer).mean(1) for c in result.changed if not c.error}
    rows = []
    for alpha in sorted(alpha for method, alpha in scores if method == "ITI"):
        for control in ("probe normals", *CONTROLS):
            drawn = [scores[name, alpha] for name in draws_of(result, control) if (name, alpha) in scores]
            if drawn:
                difference = scores["ITI", alpha][:, None] - np.stack(drawn, 1)
                rows.append(row(control, "alpha", alpha, difference.mean(0), two_way(difference)))
    return pd.DataFrame(rows)


def same_cost(result: Tradeoff, scorer: str, costs: Sequence[float]) -> pd.DataFrame:
    """ITI minus each control where both have paid as much cross-entropy; intervals over prompts and documents, of the
    median draw."""
    rows = []
    for cost in costs:
        for control in ("probe normals", *CONTROLS):
            found = list(_matched(result, draws_of(result, control), cost, scorer))
            if found:
                middle = sorted(found)[len(found) // 2]
                rows.append(row(control, "nats paid", cost, np.array([e.value for e in found]), middle))
    return pd.DataFrame(rows)


def _matched(result: Tradeoff, names: Sequence[str], cost: float, scorer: str) -> Iterator[Estimate]:
    for name in names:
        try:
            yield matched((result, "ITI"), (result, name), cost=cost, scorer=scorer).difference
        except EntangleError:  # a curve that never costs as much
            continue


def row(control: str, at: str, value: float, draws: np.ndarray, estimate: Estimate) -> dict[str, Any]:
    return {
        "ITI minus": control,
        "at": at,
        "value": value,
        "difference": float(estimate.value),
        "low": float(estimate.low),
        "high": float(estimate.high),
        "draws": len(draws),
        "draws ITI beats": int((draws < 0).sum()),
        "least": draws.min(),
        "most": draws.max(),
    }


def two_way(values: np.ndarray, *, n_resamples: int = 4000, level: float = 0.95) -> Estimate:
    """The mean of `[prompt, draw]`, prompts and draws both resampled; percentile interval."""
    prompts, draws = (bootstrap_counts(n, n_resamples, seed=i).double().numpy() for i, n in enumerate(values.shape))
    means = ((prompts @ values) * draws).sum(1) / values.size
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Estimate(values.mean(), low, high)


def summary(result: Tradeoff, scorer: str) -> str:
    """Toxicity and cross-entropy of each method at each strength; of a control, the mean of its draws."""
    frame = result.to_frame(scorer=scorer)
    frame["method"] = frame["method"].str.replace(r" \d+$", "", regex=True)
    columns = ["toxicity", "toxicity_low", "toxicity_high", "ce", "ce_change", "kl", "degenerate"]
    return text(frame.groupby(["method", "alpha"], sort=False)[columns].mean().reset_index())


def text(frame: pd.DataFrame) -> str:
    return frame.to_string(index=False, float_format="{:.3f}".format)


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--clean", type=Path, required=True, help="documents held out from training")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--alphas", type=float, nargs="+", default=[4, 8, 12])
    parser.add_argument("--far", type=float, nargs="*", default=[24], help="further alphas of random directions")
    parser.add_argument("--costs", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.4, 0.8])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--prompts", type=int, default=572)
    parser.add_argument("--documents", type=int, default=150)
    parser.add_argument("--max-length", type=int, default=128)
    parser.add_argument("--rows", type=int, default=6000, help="labelled texts for probes and directions")
    parser.add_argument("--top-k", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--progress", action="store_true")
    return parser.parse_args()


if __name__ == "__main__":
    main()
