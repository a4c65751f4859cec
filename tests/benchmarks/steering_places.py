"""Where to steer: ITI in more and fewer heads, early and late layers, and one vector (CAA) layer by layer.

    python tests/benchmarks/steering_places.py MODEL... --data ../shared/data \\
        --clean ../shared/models/clean_heldout.jsonl.gz --out runs/price

The best strength of each place within a budget of cross-entropy is chosen on one half of the prompts and documents and
reported on the other. Takes up the scorers and activations that `steering_price.py` left in the same folder.
"""

from __future__ import annotations

from prompt_classes import arguments
from steering_price import activations, scorer_pair, training_texts

from entangle.data import load_texts
from entangle.evaluation import AtStrengths, caa_places, chosen, iti_places, tradeoff
from entangle.models.loading import load

SHOWN = ["method", "alpha", "layers", "toxicity", "toxicity_low", "toxicity_high", "toxicity_change_low",
         "toxicity_change_high", "ce_change", "p_holm", "toxicity_when_chosen"]  # fmt: skip


def main() -> None:
    options = arguments()
    texts, labels = training_texts(options.data)
    scorers = scorer_pair(options)
    prompts = load_texts(options.data / "prompts_rtp_challenging.jsonl.gz")[: options.prompts]
    for path in options.models:
        model, tokenizer = load(path)
        out = options.out / path.name
        acts = activations(model, tokenizer, texts[: options.rows], out / "activations")
        labelled = acts, labels[: options.rows]
        half = model.config.num_hidden_layers // 2
        halves = {"early": range(half), "late": range(half, model.config.num_hidden_layers)}
        methods = iti_places(*labelled, top_k=[1, 3, 10, 30]) | iti_places(*labelled, top_k=[10], layers=halves)
        vectors = {name: AtStrengths(edit, (1.0, 2.0)) for name, edit in caa_places(*labelled).items()}
        result = tradeoff(
            model,
            tokenizer,
            methods | vectors,
            alphas=[4, 8, 12],
            prompts=prompts,
            scorer=scorers,
            texts=load_texts(options.clean)[: options.documents],
            samples=options.samples,
            max_length=256,
            prepend_bos=True,
            batch_tokens=4096,
            save_to=out / "places",
        )
        for scorer in result.scorers:
            result.to_frame(scorer=scorer).to_csv(out / f"places-{scorer}.csv", index=False)
            table = chosen(result, budget=0.5, scorer=scorer)
            table.to_csv(out / f"places-chosen-{scorer}.csv", index=False)
            print(path.name, scorer)
            print(table[SHOWN].to_string(index=False, float_format="{:.3f}".format))


if __name__ == "__main__":
    main()
