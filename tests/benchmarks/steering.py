"""What steering costs a generation: steered and baked against unsteered, beside other libraries on the same edit.

    python tests/benchmarks/steering.py ../shared/models/olmo2-4m-toxic10
    python tests/benchmarks/steering.py --random 12 768 --repeats 5 --peer nnsight=venvs/nnsight/bin/python
    python tests/benchmarks/steering.py gemma3-270m.gguf --kinds --repeats 5 --tokens 32

The edit is ITI on 30 heads: a constant at the attention of every touched layer. Each repeat generates as many tokens
once in each way, in a new order, and is compared with the unsteered time of the same repeat; shown are medians of those
ratios. Each peer runs in an environment of its own, `--peer NAME=PYTHON`, against its own unsteered time. `--kinds`
times edits that have no weights instead: a rotation, an addition that keeps the norm, and edits and strengths of rows.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from beside import Parser

ALPHA = 2.0


def main() -> None:
    options = arguments()
    if options.worker:
        return worker(options)
    if options.kinds:
        print(f"{options.model.name}: {options.batch} x {options.tokens} tokens")
        return show("entangle", kinds(options.model, options))
    with tempfile.TemporaryDirectory() as scratch:
        path = options.model or random_model(Path(scratch) / "model", *options.random)
        times = ours(path, Path(scratch), options)
        print(f"{path.name if options.model else options.random}: {options.batch} x {options.tokens} tokens")
        show("entangle", times)
        for name, python in options.peer:
            command = [python, __file__, str(path), "--worker", name, "--scratch", scratch]
            command += ["--repeats", str(options.repeats), "--tokens", str(options.tokens)]
            command += ["--batch", str(options.batch), "--threads", str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                print(f"  {name}: {(done.stderr.strip() or 'no output').splitlines()[-1]}")
            else:
                show(name, json.loads(done.stdout.splitlines()[-1]))
    return None


def random_model(path: Path, n_layers: int, d_model: int) -> Path:
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import Olmo2Config, Olmo2ForCausalLM, PreTrainedTokenizerFast

    torch.manual_seed(0)
    sizes = {"hidden_size": d_model, "num_hidden_layers": n_layers, "num_attention_heads": d_model // 64}
    config = Olmo2Config(
        **sizes, intermediate_size=4 * d_model, vocab_size=8192, max_position_embeddings=512, eos_token_id=1
    )
    Olmo2ForCausalLM(config).save_pretrained(path)
    words = Tokenizer(WordLevel({str(i): i for i in range(8192)}, unk_token="0"))
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="0", eos_token="1").save_pretrained(path)
    return path


def ours(path: Path, scratch: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Times of the plain model (twice, for the noise), the steered and the baked one; leaves the edit for the peers."""
    from transformers import AutoModelForCausalLM

    from entangle.interventions import ITI, steer
    from entangle.models import Atlas

    torch.set_num_threads(options.threads)
    model = AutoModelForCausalLM.from_pretrained(path).eval()
    atlas = Atlas(model)
    generator = torch.Generator().manual_seed(0)
    heads = [(layer, head) for layer in atlas.layers("z") for head in range(atlas.n_heads(layer))]
    chosen = [heads[i] for i in torch.randperm(len(heads), generator=generator)[:30].tolist()]
    directions = torch.nn.functional.normalize(torch.randn(30, atlas.d_head(0), generator=generator), dim=1)
    iti = ITI(chosen, directions, torch.rand(30, generator=generator))
    baked = iti.bake(model, ALPHA)
    shifts: dict[int, torch.Tensor] = {}
    for form in iti.affine(ALPHA):
        place = atlas.place("z", form.layer)
        wide = form.widened(place.d_head, place.n_heads)
        shifts[form.layer] = shifts.get(form.layer, 0) + place.module.weight.detach() @ wide.bias
    torch.save(shifts, scratch / "shifts.pt")

    def steered() -> torch.Tensor:
        with steer(model, iti, alpha=ALPHA):
            return generate(model, options)

    ways = {
        "unsteered": lambda: generate(model, options),
        "unsteered again": lambda: generate(model, options),
        "steered": steered,
        "baked": lambda: generate(baked, options),
    }
    times, outputs = measure(ways, options)
    if torch.equal(outputs["steered"], outputs["unsteered"]) or not torch.equal(outputs["steered"], outputs["baked"]):
        raise SystemExit("the steered model must say what the baked one says and the unsteered one does not")
    torch.save(outputs["steered"], scratch / "tokens.pt")
    return times


def kinds(path: Path, options: argparse.Namespace) -> dict[str, list[float]]:
    """Times of the plain model (twice, for the noise) and under edits that steer only, each at the middle layer."""
    from entangle.interventions import AddDirection, KeepNorm, Rotate, steer
    from entangle.models import Atlas, load

    torch.set_num_threads(options.threads)
    model, _ = load(path)
    atlas = Atlas(model)
    layer = atlas.n_layers // 2
    vector = torch.randn(atlas.d_model, generator=torch.Generator().manual_seed(0))
    add, turn = AddDirection(vector, layer=layer), Rotate(vector, layer=layer, degrees=10)

    def steered(edits, **how) -> Callable[[], torch.Tensor]:
        def way() -> torch.Tensor:
            with steer(model, edits, atlas=atlas, **how):
                return generate(model, options)

        return way

    rows = list(range(options.batch))
    ways = {
        "unsteered": lambda: generate(model, options),
        "unsteered again": lambda: generate(model, options),
        "added": steered(add),
        "rotated": steered(turn),
        "added, norm kept": steered(KeepNorm(add)),
        "a strength for each row": steered(add, alpha=[float(row) for row in rows]),
        "an edit for each row": steered([add, turn, None], rows=[row % 3 for row in rows]),
    }
    return measure(ways, options)[0]


def prompts(options: argparse.Namespace) -> torch.Tensor:
    return torch.randint(10, 8000, (options.batch, 16), generator=torch.Generator().manual_seed(1))


def generate(model, options: argparse.Namespace) -> torch.Tensor:
    ids = prompts(options)
    length = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
    return model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), **length, do_sample=False, pad_token_id=0)


def measure(ways: dict[str, Callable[[], torch.Tensor]], options: argparse.Namespace):
    """Seconds of each way in every repeat, and what it said; the first time is not counted."""
    # On one thread the processor time is the work done, whatever else the machine is busy with.
    clock = time.process_time if options.threads == 1 else time.perf_counter
    times: dict[str, list[float]] = {name: [] for name in ways}
    outputs = {name: way() for name, way in ways.items()}
    order = list(ways)
    for _ in range(options.repeats):
        random.Random(len(times[order[0]])).shuffle(order)
        for name in order:
            start = clock()
            ways[name]()
            times[name].append(clock() - start)
    return times, outputs


def show(library: str, times: dict[str, list[float]]) -> None:
    plain = torch.tensor(times.pop("unsteered"), dtype=torch.float64)
    note = times.pop("note", "")
    print(f"  {library}: unsteered {plain.median():.3f} s {note}")
    for name, taken in times.items():
        ratios = torch.tensor(taken, dtype=torch.float64) / plain
        drawn = torch.randint(len(ratios), (4000, len(ratios)), generator=torch.Generator().manual_seed(0))
        low, high = ratios[drawn].median(1).values.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64))
        print(f"    {name} / unsteered: {ratios.median():.3f} ({low:.3f} to {high:.3f})", flush=True)


def worker(options: argparse.Namespace) -> None:
    """One peer, in its own environment: the same constants at the same attentions."""
    torch.set_num_threads(options.threads)
    shifts = torch.load(options.scratch / "shifts.pt", weights_only=True)
    ways = {"steering-vectors": steering_vectors, "nnsight": nnsight, "pyvene": pyvene}[options.worker](shifts, options)
    with torch.no_grad():
        times, outputs = measure(ways, options)
    wanted = torch.load(options.scratch / "tokens.pt", weights_only=True)
    said = outputs["steered"]
    same = tuple(said.shape) == tuple(wanted.shape) and bool((said == wanted).all())
    print(json.dumps({**times, "note": f"(the same tokens: {'yes' if same else 'no'})"}))


def load(options: argparse.Namespace):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(options.model, torch_dtype=torch.float32).eval()


def steering_vectors(shifts, options):
    from steering_vectors import SteeringVector

    model = load(options)
    vector = SteeringVector(shifts, layer_type="self_attn")

    def steered():
        with vector.apply(model):
            return generate(model, options)

    return {"unsteered": lambda: generate(model, options), "steered": steered}


def nnsight(shifts, options):
    from nnsight import LanguageModel
    from transformers import AutoTokenizer

    model = load(options)
    traced = LanguageModel(model, tokenizer=AutoTokenizer.from_pretrained(options.model))
    ids = prompts(options)
    length = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
    how = {"attention_mask": torch.ones_like(ids), **length, "do_sample": False, "pad_token_id": 0}

    def steered():
        with traced.generate(ids, **how) as tracer:
            for _ in tracer.iter[: options.tokens]:
                for layer in sorted(shifts):
                    projection = traced.model.layers[layer].self_attn.o_proj
                    projection.output = projection.output + shifts[layer]
            said = tracer.result.save()
        return said

    return {"unsteered": lambda: generate(model, options), "steered": steered}


def pyvene(shifts, options):
    import pyvene as pv

    model = load(options)
    config = [
        {
            "component": f"model.layers[{layer}].self_attn.o_proj.output",
            "intervention": pv.AdditionIntervention(source_representation=shift, embed_dim=len(shift)),
        }
        for layer, shift in shifts.items()
    ]
    changed = pv.IntervenableModel(config, model=model)
    changed.disable_model_gradients()
    ids = prompts(options)
    length = {"max_new_tokens": options.tokens, "min_new_tokens": options.tokens}
    how = {**length, "do_sample": False, "pad_token_id": 0, "intervene_on_prompt": True}

    def steered():
        with contextlib.redirect_stdout(sys.stderr):
            _, said = changed.generate({"input_ids": ids, "attention_mask": torch.ones_like(ids)}, **how)
        return said

    return {"unsteered": lambda: generate(model, options), "steered": steered}


def arguments() -> argparse.Namespace:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--random", nargs=2, type=int, default=[12, 768], metavar=("LAYERS", "D_MODEL"))
    parser.add_argument("--repeats", type=int, default=25)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--peer", action="append", default=[], type=lambda s: s.split("=", 1), metavar="NAME=PYTHON")
    parser.add_argument("--kinds", action="store_true", help="time edits that have no weights instead")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--scratch", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()
