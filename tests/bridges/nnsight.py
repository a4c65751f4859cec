"""nnsight: entangle on a `LanguageModel` is entangle on the bare model, traces and generation are steered."""

import sys
from importlib.metadata import version
from json import dumps
from pathlib import Path

import torch
from nnsight import LanguageModel
from transformers import AutoModelForCausalLM, AutoTokenizer

import entangle as en
from entangle.models import fingerprint

sys.path.insert(0, str(Path(__file__).parent))
from studies import PROMPT, WORDS, entry_differences, study_differences

folder = Path(sys.argv[1])
path = str(folder / "model")
tokenizer, bare = AutoTokenizer.from_pretrained(path), AutoModelForCausalLM.from_pretrained(path).eval()
held = LanguageModel(path, device_map="cpu", dispatch=True)
ids = tokenizer(PROMPT, return_tensors="pt", return_token_type_ids=False).input_ids
edit = en.AddDirection(torch.linspace(-1, 1, 32), "resid_post", 1)
differences = entry_differences(bare, tokenizer, held, None)
with torch.no_grad():
    plain = bare(ids).logits
    with en.steer(bare, edit):
        steered = bare(ids).logits
    with en.steer(held, edit), held.trace(ids):
        traced = held.lm_head.output.save()
    differences["steer"] = float((steered - traced).abs().max())
    baked = en.interventions.bake(held, edit)
    differences["bake"] = float((steered - baked(ids).logits).abs().max())
    with held.trace(ids):
        held.model.layers[1].output[:] = held.model.layers[1].output + torch.linspace(-1, 1, 32)
        by_trace = held.lm_head.output.save()
    differences["their own edit"] = float((steered - by_trace).abs().max())
differences["fingerprint"] = float(fingerprint(bare) != fingerprint(held))
for site in ("z", "resid_post"):  # the snippet that a user is given
    labels = [0, 1, 1, 0] * 4
    read = en.collect(
        bare, tokenizer, [f"{t} {'mat ' * i}" for i in range(4) for t in WORDS], sites=site, progress=False
    )
    grid = en.fit_probes(read[site], labels, n_permutations=0, layers=read.layers(site))
    cell = (1, 2) if site == "z" else (1,)
    grid.export(folder / site, cell, site=site)
    names = {"llm": held, "input_ids": torch.tensor([read.input_ids[3]])}
    script = folder / f"snippet_{site}.py"  # a file each: nnsight reads the source of a trace
    script.write_text(grid.snippet(cell, tool="nnsight", site=site, folder=folder / site, model=held))
    exec(compile(script.read_text(), str(script), "exec"), names)
    expected = read[site][(3, *cell)] @ grid.coef_[cell] + grid.intercept_[cell]
    differences[f"snippet {site}"] = float((names["score"][0].detach() - expected).abs().max())
differences |= study_differences(bare, tokenizer, held, None)
versions = {name: version(name) for name in ("nnsight", "transformers", "torch")}
moved = float((steered - plain).abs().max())
(folder / "compared.json").write_text(dumps({"differences": differences, "moved": moved, "versions": versions}))
