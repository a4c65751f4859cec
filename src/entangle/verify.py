"""Does what we capture equal what the model computes, and does an edit land? Checked on the user's own model."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from entangle.activations.capture import capture, model_device
from entangle.activations.collect import Inputs, read_inputs
from entangle.activations.inputs.examples import Examples, SignalExamples
from entangle.activations.inputs.reading import reads_decoder
from entangle.activations.inputs.tokens import select
from entangle.errors import EntangleError
from entangle.interventions import landings
from entangle.models.atlas import Atlas
from entangle.models.hooks import hooked
from entangle.models.loading.held import held, own_tokenizer
from entangle.models.place import Place
from entangle.models.probe_inputs import probe_inputs
from entangle.models.refusals import refuse_compiled
from entangle.models.rounding import rounded_at_random
from entangle.models.rows import accepts, context_length, encode, pad, takes
from entangle.models.trace import evaluating, floating_tensors, no_hook_left
from entangle.storage.files import write_text
from entangle.storage.out import check_out

TEXTS = (
    "The harbour was quiet before the boats came in.",
    "Rain.",
    "She counted the coins twice, wrote the sum in the margin, and closed the ledger for the night.",
    "Why would anyone walk that far?",
)
# How far two orders of the same sums may differ, relative to the largest number at the site. In other data types this
# is measured on the model: each of two runs rounds in its own way.
TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-4}
NOISE_RUNS, NOISE_FACTOR, NOISE_LIMIT = 4, 2, 0.25


@dataclass(frozen=True)
class Check:
    """One thing that was checked.

    Attributes:
        name: What should hold.
        passed: Whether it does; `None` where it does not apply to this model.
        measured: The largest difference found, relative to the largest number compared (or whatever `detail` says).
        allowed: The bound it was held to.
        detail: What was compared, or what went wrong and where.

    Example:
        >>> check = en.verify(model, tokenizer).checks[2]
        >>> check.name, check.passed, check.detail
        ('every hook fires once a block call', True, '14 hooks')
    """

    name: str
    passed: bool | None
    measured: float | None = None
    allowed: float | None = None
    detail: str = ""


def check_place(out: Path) -> Path:
    """The path of `verify.json` in a folder, if it can be written there.

    Raises:
        EntangleError: It cannot, or a file of that name is there that holds no checks.

    Example:
        >>> check_place(Path("new") / "folder").name
        'verify.json'
    """
    path = out / "verify.json"
    check_out(out, path.name)
    if path.exists():
        with suppress(OSError, ValueError, TypeError, RecursionError):
            checks = json.loads(path.read_text())
            if isinstance(checks, list) and all({"name", "passed"} <= dict(check).keys() for check in checks):
                return path
        raise EntangleError(f"{path} holds no checks of a model and would be lost: choose another folder with --out")
    return path


@dataclass(frozen=True)
class VerifyReport:
    """Every check, in order; `str(report)` is a table.

    Example:
        >>> report = en.verify(model, tokenizer)
        >>> report.passed, report.save("out").name
        (True, 'verify.json')
        >>> frame = report.to_frame()
        >>> bool((frame["measured"].dropna() <= frame["allowed"].dropna()).all())
        True
    """

    checks: tuple[Check, ...]

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.passed is not False for check in self.checks)

    def to_frame(self) -> pd.DataFrame:
        """One row a check."""
        return pd.DataFrame([vars(check) for check in self.checks])

    def save(self, out: str | os.PathLike[str]) -> Path:
        """Write the checks as `verify.json` into the directory `out`, and give back its path.

        Raises:
            EntangleError: A file of that name is there that is none of ours, or the disk is full.
        """
        path = check_place(Path(out))
        path.parent.mkdir(parents=True, exist_ok=True)
        return write_text(path, self.to_frame().to_json(orient="records", indent=1))

    def __str__(self) -> str:
        width = max(len(check.name) for check in self.checks)
        marks = {True: "ok", False: "FAILED", None: "n/a"}
        lines = []
        for check in self.checks:
            numbers = "" if check.measured is None else f"{check.measured:.1e} <= {check.allowed:.0e}"
            lines.append(f"{check.name:<{width}}  {marks[check.passed]:<6}  {numbers:<18}  {check.detail}".rstrip())
        return "\n".join(lines)


def verify(
    model: Any,
    tokenizer: Any,
    *,
    texts: Inputs = TEXTS,
    atlas: Atlas | None = None,
    raises: bool = True,
) -> VerifyReport:
    """Check capture and editing on this model, with these texts; takes some ten forwards of a short text per layer.

    Args:
        model: Any HuggingFace model, or what holds one, as for `collect`.
        tokenizer: Its tokenizer; `None` if `texts` are tokenised tensors, or where the model's holder keeps it.
        texts: At least two, of different lengths, as for `collect`; four English sentences by default, or for a model
            that reads no text two random images or sounds.
        atlas: As for `collect`.
        raises: Raise on failure, rather than only say so in the report.

    Returns:
        What was checked, what was measured, and the bound it was held to.

    Raises:
        EntangleError: A check failed (unless `raises` is false), or the model is compiled.

    Example:
        >>> print(en.verify(model, tokenizer).checks[1].detail)
        resid_pre, z, attn_out, resid_mid, mlp_post, mlp_out, resid_post in 2 layers of model.layers
        >>> with en.steer(model, iti, alpha=8):  # what is captured now is not what the weights compute
        ...     en.verify(model, tokenizer, raises=False).passed
        False
    """
    refuse_compiled(held(model))
    tokenizer = own_tokenizer(model, tokenizer)
    atlas = atlas or Atlas(model)
    model = atlas.model
    examples = _our_own(atlas, tokenizer) if texts is TEXTS else read_inputs(atlas, texts, tokenizer)
    if not isinstance(examples, SignalExamples) and len(set(examples.lengths)) < 2:
        raise EntangleError("verifying needs at least two texts of different lengths, so that one of them is padded")
    subject = _Tested(model, atlas, examples)
    with torch.no_grad(), evaluating(model):
        checks = (
            Check("not compiled", True),
            *subject.rounding_noise(),
            subject.sites_found(),
            subject.hooks_fire_once(),
            subject.batch_equals_alone(),
            subject.projection_gives("z", "attn_out"),
            subject.projection_gives("mlp_post", "mlp_out"),
            subject.resid_equals_hidden_states(),
            subject.left_padding_agrees(),
            subject.edits_land(),
        )
    report = VerifyReport(checks)
    if raises and not report.passed:
        failed = "; ".join(f"{check.name}: {check.detail}" for check in checks if check.passed is False)
        raise EntangleError(
            f"{type(model).__name__} failed verification ({failed}): do not trust captures or edits of it"
        )
    return report


def _our_own(atlas: Atlas, tokenizer: Any) -> Examples:
    """Our own sentences, cut to a short context; for a decoder the same are what its encoder reads."""
    if getattr(atlas.model, "main_input_name", "input_ids") != "input_ids":
        return read_inputs(atlas, probe_inputs(atlas.model), tokenizer)
    limit = context_length(atlas.model)
    if not reads_decoder(atlas.model, atlas.blocks[0]):
        return read_inputs(atlas, TEXTS, tokenizer, max_length=limit)
    ids = encode(tokenizer, TEXTS, model=atlas.model, max_length=limit)
    return read_inputs(atlas, {"input_ids": ids, "decoder_input_ids": ids}, tokenizer)


class _Tested:
    """The model under test, and each text's activations from a forward of its own."""

    def __init__(self, model: nn.Module, atlas: Atlas, examples: Examples) -> None:
        self.model = model
        self.atlas = atlas
        self.examples = examples
        self.device = model_device(model)
        self.in_decoder = reads_decoder(model, atlas.blocks[0])
        self.places = [atlas.place(site, layer) for site in atlas.sites for layer in atlas.layers(site)]
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        self.dtype = str(dtype).removeprefix("torch.")
        self.alone = self._each()
        self.noise = 0.0 if dtype in TOLERANCES else max(self._moved_by_rounding(seed) for seed in range(NOISE_RUNS))
        self.tolerance = TOLERANCES.get(dtype, NOISE_FACTOR * self.noise)

    def rounding_noise(self) -> list[Check]:
        """The noise floor of a half-precision model: what the bounds of the other checks are made of."""
        if not self.noise:
            return []
        detail = (
            f"largest change of any site in {NOISE_RUNS} runs where each module's {self.dtype} result is rounded at "
            f"random; the bounds below are {NOISE_FACTOR} times this"
        )
        if self.noise > NOISE_LIMIT:
            detail = f"rounding alone moves activations this far in {self.dtype}: verify and capture in float32"
        return [Check("noise floor", self.noise <= NOISE_LIMIT, self.noise, NOISE_LIMIT, detail)]

    def sites_found(self) -> Check:
        missing = sorted(set(self.atlas.table()["site"]) - set(self.atlas.sites))
        detail = f"{', '.join(self.atlas.sites)} in {self.atlas.n_layers} layers of {self.atlas.stack}"
        if missing:
            detail += f"; none has {', '.join(missing)} (see Atlas(model).table())"
        return Check("sites found", bool(self.atlas.sites), detail=detail)

    def hooks_fire_once(self) -> Check:
        fired: Counter[tuple[str, int]] = Counter()
        ran: Counter[int] = Counter()

        def count(place: Place) -> Callable[[Tensor], None]:
            return lambda _: fired.update([(place.site, place.layer)])

        blocks = [
            block.register_forward_hook(lambda *_, i=i: ran.update([i])) for i, block in enumerate(self.atlas.blocks)
        ]
        try:
            with hooked((place, count(place)) for place in self.places):
                self.model(**self._inputs(range(len(self.examples))))
        finally:
            for handle in blocks:
                handle.remove()
        # One call of a module that is several layers (ALBERT) is one layer.
        expected = {(p.site, p.layer): ran[p.layer] if p.turn is None else min(1, ran[p.layer]) for p in self.places}
        wrong = [place for place, n_calls in expected.items() if not n_calls or fired[place] != n_calls]
        detail = f"{len(self.places)} hooks" if not wrong else f"{wrong[0][0]} of layer {wrong[0][1]} did not"
        return Check("every hook fires once a block call", not wrong, detail=detail)

    def batch_equals_alone(self) -> Check:
        worst, where = 0.0, ""
        selection = select("all", self.examples, special_tokens=True)
        for site in self.atlas.sites:
            layers = self.atlas.layers(site)
            for shape in {self.atlas.place(site, layer).shape for layer in layers}:
                same = [layer for layer in layers if self.atlas.place(site, layer).shape == shape]
                data = capture(self.model, self.atlas, {site: same}, self.examples, selection, progress=False)
                for column, layer in enumerate(same):
                    alone = torch.cat([run[site, layer] for run in self.alone])
                    difference = _difference(data[site][:, column].flatten(1), alone)
                    if difference >= worst:
                        worst, where = difference, f"largest at {site} of layer {layer}"
        return self._bounded("a padded batch equals each text alone", worst, where)

    def projection_gives(self, before: str, after: str) -> Check:
        name = f"{before} through its projection is {after}"
        worst, where = 0.0, "no layer has both"
        layers = sorted(set(self.atlas.layers(before)) & set(self.atlas.layers(after)))
        for layer in layers:
            place = self.atlas.place(before, layer)
            for run in self.alone:
                x = run[before, layer].to(self.device)
                difference = _difference(place.module(x[None])[0].cpu(), run[after, layer])
                if difference >= worst:
                    worst, where = difference, f"largest at layer {layer}"
        return self._bounded(name, worst, where) if layers else Check(name, None, detail=where)

    def resid_equals_hidden_states(self) -> Check:
        name = "resid_post is hidden_states[layer + 1]"
        worst, where = 0.0, ""
        if not isinstance(self.model, PreTrainedModel):
            return Check(name, None, detail="only HuggingFace models return hidden states")
        first = 1
        for i, run in enumerate(self.alone):
            with no_hook_left(self.model):
                out = self.model(**self._inputs([i]), output_hidden_states=True)
            names = ("decoder_hidden_states" if self.in_decoder else "encoder_hidden_states", "hidden_states")
            states = next((x for x in (getattr(out, name, None) for name in names) if x), None)
            if not states or len(states) != self.atlas.n_layers + 1:
                return Check(name, None, detail="the model returns no hidden states of this stack")
            for layer in range(self.atlas.n_layers - 1):  # the last one is often after the final norm
                if i == layer == 0 and torch.equal(states[0][0].cpu(), run["resid_post", 0]):
                    first = 0  # some recurrent models leave the embedding out
                difference = _difference(states[layer + first][0].cpu(), run["resid_post", layer])
                if difference >= worst:
                    worst, where = difference, f"largest at layer {layer}"
        return self._bounded(name, worst, where)

    def left_padding_agrees(self) -> Check:
        name = "left and right padding agree"
        if type(self.examples) is not Examples or self.examples.beside:
            return Check(name, None, detail="only for models that read text and nothing else")
        if not accepts(self.model, "position_ids"):
            return Check(name, None, detail="the model takes no position_ids; collect pads on the right")
        pads = {
            side: pad(self.examples.ids, self.examples.pad_id, side=side, device=self.device)
            for side in ("left", "right")
        }
        runs = {side: self._run(batch) for side, batch in pads.items()}
        masks = {side: batch["attention_mask"].bool().flatten().cpu() for side, batch in pads.items()}
        worst, where = 0.0, ""
        for place in self.places:
            key = (place.site, place.layer)
            left, right = (runs[side][key][masks[side]] for side in ("left", "right"))
            difference = _difference(left, right)
            if difference >= worst:
                worst, where = difference, f"largest at {place.site} of layer {place.layer}"
        return self._bounded(name, worst, where)

    def edits_land(self) -> Check:
        name = "adding a vector moves what it should"
        inputs = self._inputs([0])
        plain = _first_tensor(self.model(**inputs))
        worst, where = 0.0, "no site is run once a forward"
        try:
            for landing in landings(self.model, self.atlas, inputs):
                at = f"{landing.place.site} in layer {landing.place.layer}"
                if torch.equal(landing.found, landing.before):
                    return Check(name, False, detail=f"an edit of {at} changed nothing of {landing.what}")
                difference = _difference(landing.found.cpu(), landing.wanted.cpu())
                if difference >= worst:
                    worst, where = difference, f"largest at {landing.what} after an edit of {at}"
        except EntangleError as refused:  # such as weights that are offloaded
            return Check(name, None, detail=str(refused))
        if not torch.equal(_first_tensor(self.model(**inputs)), plain):
            return Check(name, False, detail="the output is not the plain one again after the hooks are gone")
        return self._bounded(name, worst, where)

    def _bounded(self, name: str, worst: float, where: str) -> Check:
        return Check(name, worst <= self.tolerance, worst, self.tolerance, where)

    def _inputs(self, indices: Sequence[int] | range) -> dict[str, Tensor]:
        batch = self.examples.batch(list(indices), self.model, self.device)
        if takes(self.model, "decoder_input_ids") and "decoder_input_ids" not in batch:  # the encoder's turn
            batch["decoder_input_ids"] = torch.ones((len(indices), 1), dtype=torch.long, device=self.device)
        return batch

    def _each(self) -> list[dict[tuple[str, int], Tensor]]:
        return [self._run(self._inputs([i])) for i in range(len(self.examples))]

    def _moved_by_rounding(self, seed: int) -> float:
        with rounded_at_random(self.model, seed):
            runs = self._each()
        return max(
            _difference(run[key], plain[key]) for run, plain in zip(runs, self.alone, strict=True) for key in run
        )

    def _run(self, inputs: Mapping[str, Tensor]) -> dict[tuple[str, int], Tensor]:
        """Each place's tensor as `[token size]`."""
        seen: dict[tuple[str, int], Tensor] = {}

        def keep(place: Place) -> Callable[[Tensor], None]:
            def fn(x: Tensor) -> None:
                seen[place.site, place.layer] = x.detach().reshape(-1, place.size).cpu()

            return fn

        with torch.no_grad(), evaluating(self.model), hooked((place, keep(place)) for place in self.places):
            self.model(**inputs)
        return seen


def _difference(a: Tensor, b: Tensor) -> float:
    a, b = a.double(), b.double()
    return float((a - b).abs().max() / b.abs().max().clamp(min=1e-12))


def _first_tensor(output: Any) -> Tensor:
    return floating_tensors(output)[0]
