"""What else moved: changes paired by item, one number, its noise, its null, and which way round it goes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import entangle as en
from entangle.errors import EntangleError
from entangle.evaluation import (
    Behaviours,
    BehavioursError,
    DistinctScorer,
    Language,
    Measured,
    Prompt,
    Read,
    Said,
    Sampling,
    Scoped,
    Witness,
    behaviours,
    cross_entropy,
    random_like,
)
from entangle.evaluation.effects import tasks as tasks_module
from entangle.interventions import AddDirection, Clamp, Scale, When
from entangle.probes import FittedProbe
from tiny import build

SENTENCE = "the quick brown fox jumps over the lazy dog a cat sat on the mat and looked at the moon"
WORDS = SENTENCE.split(" ")
TEXTS = [" ".join(WORDS[(3 * i + k) % len(WORDS)] for k in range(3 + i % 5)) for i in range(24)]
PRICED = [f"{text} the moon and the cat" for text in TEXTS[:6]]
PROMPTS = ["the quick", "a cat sat", "over the lazy", "the moon"]
FEW = Sampling(max_new_tokens=4)
Model = Callable[..., PreTrainedModel]


class Values:
    """A task whose values depend on how many edits are on the model."""

    def __init__(self, moved: np.ndarray | float, n: int = 12) -> None:
        self.plain = np.linspace(0.2, 0.5, n)
        self.moved, self.asked = moved, 0

    def content(self) -> Any:
        return [self.plain, self.moved]

    def measure(self, witness: Witness) -> np.ndarray:
        self.asked += 1
        return self.plain + self.moved * en.models.is_hooked(witness.subject.model)


def reader(coordinate: int, layer: int = 2, scale: float = 1.0) -> Read:
    """Reads one coordinate of the stream."""
    coef = np.zeros((1, 32))
    coef[0, coordinate] = scale
    return Read(TEXTS, FittedProbe(coef, np.zeros(1), np.array([0, 1])), layer=layer)


def shift(*coordinates: tuple[int, float], layer: int = 0) -> AddDirection:
    vector = torch.zeros(32)
    for place, size in coordinates:
        vector[place] = size
    return AddDirection(vector, site="resid_post", layer=layer)


@pytest.fixture(scope="module")
def planted() -> PreTrainedModel:
    """A model whose blocks add nothing to the stream, so that a coordinate that is moved stays moved alone."""
    import copy

    model = copy.deepcopy(build("llama", 0))
    with torch.no_grad():
        for layer in model.model.layers:
            layer.self_attn.o_proj.weight.zero_()
            layer.mlp.down_proj.weight.zero_()
    return model


def result_of(differences: dict[str, np.ndarray], **about: Any) -> Behaviours:
    plain = Measured("", 0.0, 0.0, {name: np.zeros(len(d)) for name, d in differences.items()})
    changed = Measured("edit", 1.0, 0.1, differences)
    return Behaviours(plain, (changed,), {}, {"edit": tuple(differences)}, about)


def test_an_edit_that_changes_nothing_moves_nothing_and_another_does(
    tiny_model: Model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    model = tiny_model("llama")
    tasks = {
        "words": Said(PROMPTS, DistinctScorer(), FEW),
        "read": reader(0),
        "language": Language(TEXTS[:6]),
    }
    edits = {"identity": Scale(torch.eye(32)[0], factor=1.0, layer=1), "shift": shift((0, 9.0), (1, 5.0))}
    result = behaviours(model, tiny_tokenizer, edits, tasks, alpha=1, null=0, progress=False)
    frame = result.to_frame(n_resamples=200).set_index(["method", "behaviour"])
    assert frame.loc["identity", "change"].abs().max() < 1e-6
    assert frame.loc[("shift", "read"), "change"] > 0.1
    assert frame.loc[("shift", "language"), "change"] != 0
    one = result.rmse(n_resamples=200).set_index("method")
    assert one.loc["identity", "rmse"] < 1e-6 < one.loc["shift", "rmse"]
    assert not en.models.is_hooked(model)


def test_the_plain_model_beside_itself_is_known_exactly(
    tiny_model: Model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tasks = {"read": reader(0), "language": Language(TEXTS[:6])}
    result = behaviours(tiny_model(), tiny_tokenizer, shift((0, 9.0)), tasks, alpha=0, null=0, progress=False)
    assert (result.to_frame()[["change", "change_low", "change_high"]].to_numpy() == 0).all()
    assert (result.rmse()[["rmse", "noise", "corrected_low", "corrected_high"]].to_numpy() == 0).all()


def test_the_one_number_is_that_of_the_published_code_and_not_of_its_docstring() -> None:
    rng = np.random.default_rng(0)
    differences = {name: rng.normal(size=50) for name in "abcd"}
    means = [d.mean() for d in differences.values()]
    found = result_of(differences).rmse(n_resamples=200).iloc[0]
    assert found["rmse"] == pytest.approx(math.sqrt(sum(m**2 for m in means) / len(means)), rel=1e-12)
    assert found["rmse"] != pytest.approx(math.sqrt(sum(m**2 for m in means)) / len(means), rel=1e-3)


def test_noise_is_what_the_items_say_it_is_and_is_taken_off() -> None:
    rng = np.random.default_rng(1)
    differences = {name: rng.normal(size=400) for name in "abcdefgh"}  # nothing moved
    found = result_of(differences).rmse().iloc[0]
    assert found["noise"] == pytest.approx(1 / math.sqrt(400), rel=0.1)
    assert found["rmse"] > 0.02  # and yet
    assert found["corrected_low"] == 0
    moved = result_of({name: d + 1 for name, d in differences.items()}).rmse().iloc[0]
    assert moved["corrected_low"] > 0.9


def test_behaviours_of_the_same_items_are_resampled_together() -> None:
    rng = np.random.default_rng(2)
    d = rng.normal(size=200)
    alike = {"a": {"items": "x"}, "b": {"items": "x"}}
    together = result_of({"a": d, "b": d}, **alike).rmse().iloc[0]
    apart = result_of({"a": d, "b": d}).rmse().iloc[0]
    width = [row["corrected_high"] - row["corrected_low"] for row in (together, apart)]
    assert width[0] > width[1]


def test_units_and_spreads_scale_the_changes() -> None:
    result = result_of({"a": np.full(9, 0.4) + 0.01 * np.arange(9)}, a={"unit": 4.0})
    assert result.rmse()["rmse"][0] == pytest.approx(0.11)
    with pytest.raises(EntangleError, match='the same for all items of the plain model: use scale="unit"'):
        result.rmse(scale="spread")
    with pytest.raises(EntangleError, match='scale must be "unit" or "spread", not \'sd\''):
        result.rmse(scale="sd")  # type: ignore[arg-type]


def test_an_edit_that_moves_another_behaviour_and_is_not_moved_back(
    planted: PreTrainedModel, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tasks = {"i": reader(0), "j": reader(1), "far": reader(2)}
    edits = {"i": shift((0, 2.0), (1, 1.5)), "j": shift((1, 2.0))}
    result = behaviours(planted, tiny_tokenizer, edits, tasks, alpha=1, null=0, progress=False)
    assert result.off_target == {"i": ("j", "far"), "j": ("i", "far")}
    row = result.asymmetry().iloc[0]
    assert row["i_moves_j_low"] > 0.05
    assert row["j_moves_i"] == 0
    assert row["gap_low"] > 0
    assert row["verdict"] == "i moves j more than j moves i"
    # A pair that moves each other alike has no gap.
    even = {"i": Values(0.1), "j": Values(0.1)}
    row = behaviours(planted, tiny_tokenizer, edits, even, alpha=1, null=0, progress=False).asymmetry().iloc[0]
    assert (row["gap"], row["verdict"]) == (0, "no gap is seen")


def test_asymmetry_needs_methods_that_aim_at_behaviours() -> None:
    with pytest.raises(EntangleError, match=r"two methods or more that are named as the behaviours .* these are edit"):
        result_of({"a": np.arange(3.0)}).asymmetry()


def test_random_directions_keep_places_and_proportions(tiny_model: Model) -> None:
    edits = [shift((0, 3.0), layer=0), shift((1, 4.0), layer=2)]
    drawn = random_like(edits, tiny_model(), seed=1)
    assert [(e.site, e.layer) for e in drawn] == [("resid_post", 0), ("resid_post", 2)]
    assert [float(e.vector.norm()) for e in drawn] == pytest.approx([0.6, 0.8])
    again, other = (random_like(edits, tiny_model(), seed=seed) for seed in (1, 2))
    assert torch.equal(drawn[0].vector, again[0].vector)
    assert not torch.allclose(drawn[0].vector, other[0].vector)


def test_random_directions_keep_conditions_and_scopes_but_no_strength_of_their_own(tiny_model: Model) -> None:
    model = tiny_model()
    when = When(shift((0, 1.0), layer=1), probe=torch.eye(32)[3], layer=1)
    (drawn,) = random_like(when, model)
    assert isinstance(drawn, When)
    assert torch.equal(drawn.probe, when.probe)
    scoped = random_like(Scoped(shift((0, 1.0)), tokens="generated"), model)
    assert scoped.tokens == "generated"
    ablated = random_like(en.evaluation.AtStrengths(en.Ablate(torch.eye(32)[0], "resid_post", 1)), model)
    assert [type(e) for e in ablated] == [AddDirection]
    clamped = random_like(Clamp(torch.eye(32)[0], high=1.0, layer=2), model)
    assert (clamped[0].layer, clamped[0].vector.shape) == (2, (32,))


def test_the_null_costs_what_the_edit_costs(tiny_model: Model, tiny_tokenizer: PreTrainedTokenizerFast) -> None:
    tasks = {"read": reader(0), "language": Language(TEXTS[:8])}
    options = {"texts": PRICED, "null": 3, "progress": False}
    edit = shift((0, 1.0), (3, 1.0), layer=1)
    result = behaviours(tiny_model(), tiny_tokenizer, {"edit": edit}, tasks, kl=0.05, **options)
    paid = [draw.kl for draw in result.null["edit"]]
    assert [result.changed[0].kl, *paid] == pytest.approx([0.05] * 4, rel=0.031)
    row = result.rmse(n_resamples=200).iloc[0]
    assert row["n_null"] == 3
    assert row["null_low"] <= row["null"] <= row["null_high"]
    assert row["p_null"] in (0.25, 0.5, 0.75, 1.0)
    # At a given strength, the price is what that costs.
    at = behaviours(tiny_model(), tiny_tokenizer, {"edit": edit}, tasks, alpha=2.0, **options)
    assert [draw.kl for draw in at.null["edit"]] == pytest.approx([at.changed[0].kl] * 3, rel=0.031)


def test_a_prompt_has_the_null_of_another_edits_places(
    tiny_model: Model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    tasks = {"words": Said(PROMPTS, DistinctScorer(), FEW), "read": reader(0), "language": Language(TEXTS[:6])}
    prompt = {"prompt": Prompt("the lazy dog ")}
    options = {"kl": 0.05, "texts": PRICED, "progress": False}
    with pytest.raises(EntangleError, match="Prompt has none; give null_at= an edit at whose places they are drawn"):
        behaviours(tiny_model(), tiny_tokenizer, prompt, tasks, null=2, **options)
    at = shift((0, 1.0), layer=1)
    result = behaviours(tiny_model(), tiny_tokenizer, prompt, tasks, null=2, null_at=at, **options)
    assert result.changed[0].alpha == 1
    assert [draw.kl for draw in result.null["prompt"]] == pytest.approx([result.changed[0].kl] * 2, rel=0.031)


def test_an_edit_of_what_is_generated_leaves_what_is_read(
    tiny_model: Model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    class Long:
        name = "long"

        def __call__(self, texts: list[str]) -> np.ndarray:
            return np.array([hash(text) % 1000 / 1000 for text in texts])

    tasks = {"said": Said(PROMPTS, Long(), FEW), "read": reader(0), "language": Language(TEXTS[:6])}
    edit = Scoped(shift((0, 30.0), (5, -30.0), layer=1), tokens="generated")
    frame = behaviours(tiny_model(), tiny_tokenizer, edit, tasks, alpha=1, null=0, progress=False).to_frame()
    assert frame["change"].to_numpy()[1:] == pytest.approx([0, 0], abs=1e-9)
    assert frame["change"][0] != 0


def test_continuations_are_sampled_once_for_all_that_score_them(
    tiny_model: Model, tiny_tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def counting(*args: Any, **kwargs: Any) -> Any:
        calls.append(args)
        return sample(*args, **kwargs)

    sample = tasks_module.sample
    monkeypatch.setattr(tasks_module, "sample", counting)
    tasks = {f"distinct {n}": Said(PROMPTS, DistinctScorer(n), FEW) for n in (1, 2)}
    tasks["other seed"] = Said(PROMPTS, DistinctScorer(), Sampling(max_new_tokens=4, seed=1))
    behaviours(tiny_model(), tiny_tokenizer, shift((0, 1.0)), tasks, alpha=1, null=0, progress=False)
    assert len(calls) == 4  # two kinds of sampling, plain and changed


def test_a_conversation_is_a_prompt_and_the_scorer_sees_it(
    tiny_model: Model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    import copy

    class Asked:
        name = "asked"

        def __call__(self, texts: list[str], prompts: Any = None) -> np.ndarray:
            return np.array([float("cat" in str(prompt)) for prompt in prompts])

    tokenizer = copy.deepcopy(tiny_tokenizer)
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }} {% endfor %}"
    prompts = [[{"role": "user", "content": text}] for text in ("a cat sat", "the moon", "the lazy dog")]
    witness = Witness(en.evaluation.Subject(tiny_model(), tokenizer), progress=False)
    several = Sampling(samples=2, max_new_tokens=3)
    assert Said(prompts, Asked(), several).measure(witness).tolist() == [1, 0, 0]


def test_language_is_the_cross_entropy_of_each_document(
    tiny_model: Model, tiny_tokenizer: PreTrainedTokenizerFast
) -> None:
    witness = Witness(en.evaluation.Subject(tiny_model(), tiny_tokenizer), progress=False)
    nats = cross_entropy(tiny_model(), tiny_tokenizer, TEXTS[:6], progress=False)
    np.testing.assert_allclose(Language(TEXTS[:6]).measure(witness), nats.values / nats.tokens)


def test_a_probe_reads_texts_that_it_was_not_fitted_on() -> None:
    model, tokenizer, texts, labels, *_ = en.example()
    task = Read.fit(model, tokenizer, texts, labels, layer=1)
    assert (task.report["n_fit"], len(task.texts)) == (48, 48)
    witness = Witness(en.evaluation.Subject(model, tokenizer), progress=False)
    right = Read.fit(model, tokenizer, texts, labels, layer=1, right=True)
    assert right.measure(witness).mean() == task.report["accuracy"] > 0.8
    y = np.array([labels[texts.index(text)] for text in task.texts])
    np.testing.assert_array_equal((task.measure(witness) > 0.5) == y, right.measure(witness) == 1)


def test_a_run_that_was_stopped_goes_on(
    tiny_model: Model, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Any
) -> None:
    class Stops(Values):
        def measure(self, witness: Witness) -> np.ndarray:
            if self.asked == 1:
                raise RuntimeError("the power went\nout")
            return super().measure(witness)

    options = {"alpha": 1, "null": 0, "save_to": tmp_path / "kept", "progress": False}
    first, second = Values(0.1), Stops(0.2)
    edits = {"one": shift((0, 1.0)), "two": shift((1, 1.0))}
    with pytest.raises(BehavioursError, match=r"^behaviour 'second' under one: the power went$") as caught:
        behaviours(tiny_model(), tiny_tokenizer, edits, {"first": first, "second": second}, **options)
    assert caught.value.partial is not None
    assert caught.value.partial.changed == ()
    again = {"first": first, "second": Values(0.2)}
    result = behaviours(tiny_model(), tiny_tokenizer, edits, again, **options)
    assert (first.asked, again["second"].asked) == (3, 3)  # plain, one, two: each once
    assert result.rmse(n_resamples=100)["rmse"][0] == pytest.approx(math.sqrt((0.1**2 + 0.2**2) / 2))
    once_more = behaviours(tiny_model(), tiny_tokenizer, edits, again, **options)
    assert (first.asked, again["second"].asked) == (3, 3)
    assert once_more.to_frame(n_resamples=100).equals(result.to_frame(n_resamples=100))
    behaviours(tiny_model(), tiny_tokenizer, {"one": shift((0, 2.0))}, again, **options)
    assert first.asked == 4  # another edit of that name


def test_a_task_that_nothing_tells_from_another_is_measured_but_not_kept(
    tiny_model: Model, tiny_tokenizer: PreTrainedTokenizerFast, tmp_path: Any
) -> None:
    class Service(Values):
        def content(self) -> Any:
            return (place for place in "ab")  # no content

    options = {"alpha": 1, "null": 0, "progress": False}
    task = Service(0.1)
    result = behaviours(tiny_model(), tiny_tokenizer, shift((0, 1.0)), {"a": task}, **options)
    assert (task.asked, result.to_frame(n_resamples=100)["change"][0]) == (2, pytest.approx(0.1))
    with pytest.raises(EntangleError, match="generator"):
        behaviours(tiny_model(), tiny_tokenizer, shift((0, 1.0)), {"a": task}, save_to=tmp_path / "kept", **options)


def test_rates_have_the_interval_of_rates() -> None:
    hits = np.array([0.0, 1, 1, 0, 1, 0, 0, 1, 1, 1])
    plain = Measured("", 0.0, 0.0, {"right": np.zeros(10)})
    result = Behaviours(plain, (Measured("edit", 1.0, 0.1, {"right": hits}),), {}, {"edit": ("right",)})
    row = result.to_frame().iloc[0]
    expected = en.metrics.paired_rate_interval(hits)
    assert (row["change_low"], row["change_high"]) == (expected.low, expected.high)


def test_saved_and_loaded_it_says_the_same(tmp_path: Any) -> None:
    rng = np.random.default_rng(0)
    d = {"a": rng.uniform(-1, 1, size=20), "b": rng.normal(size=9)}
    result = result_of(d, a={"unit": 2.0, "bounds": (0.0, 1.0), "items": "x"})
    draws = tuple(Measured("random", 1.0, float("nan"), {k: v / 2 for k, v in d.items()}) for _ in "ab")
    result = Behaviours(result.plain, result.changed, {"edit": draws}, result.off_target, result.about)
    result.save(tmp_path / "saved")
    loaded = Behaviours.load(tmp_path / "saved")
    assert loaded.to_frame(n_resamples=100).equals(result.to_frame(n_resamples=100))
    assert loaded.describe() == result.describe()
    html = loaded._repr_html_()
    assert html.count("<table") == 2
    assert "root mean square off target" in html


def test_the_figure_shows_the_table_and_the_words_say_it() -> None:
    rng = np.random.default_rng(0)
    result = result_of({"calm <b>": 1 + 0.1 * rng.normal(size=20), "still": 0.1 * rng.normal(size=20)})
    ax = result.plot()
    (container,) = ax.containers
    np.testing.assert_allclose(container.lines[0].get_xdata(), result.to_frame()["change"])
    assert [label.get_text() for label in ax.get_yticklabels()] == ["calm <b>", "still"]
    assert "Moved beyond chance: calm <b> +" in result.describe()
    assert "still +" not in result.describe()
    assert "<b>" not in result._repr_html_().split("<table")[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tasks": {}}, "behaviours need tasks by name; got none"),
        ({"tasks": {"a": DistinctScorer()}}, r"'a' must be a task .* DistinctScorer: wrap a scorer in Said"),
        ({"edit": {}}, "methods with a name each; got none"),
        ({"kl": 0.1}, "at alpha= or at kl=; give one"),
        ({"alpha": None}, "at alpha= or at kl=; give one"),
        ({"null": -1}, "0 or more; got -1"),
        ({"null": 2}, "need texts=, documents to solve strengths on"),
        ({"off_target": ["b"]}, "must be one of the behaviours or more, a; got 'b'"),
        ({"off_target": []}, "must be one of the behaviours or more, a; got none"),
        ({"off_target": "a"}, r"a list of names of behaviours; got 'a': give \['a'\]"),
        ({"off_target": {"x": ["a"]}}, "off_target names the method 'x'; the methods are edit"),
        ({"texts": TEXTS[:4], "tasks": {"a": Language(TEXTS[:6])}}, r"other documents than those of .* 4 are in both"),
        ({"tasks": {"a": Values(math.nan)}}, "must give one finite number .* got values that are not finite"),
        ({"tasks": {"a": Values(0.0, n=1)}}, r"each of two items or more.*; got \(1,\)"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(
    tiny_model: Model, tiny_tokenizer: PreTrainedTokenizerFast, arguments: dict[str, Any], message: str
) -> None:
    options: dict[str, Any] = {"edit": {"edit": shift((0, 1.0))}, "tasks": {"a": Values(0.1)}, "alpha": 1.0, "null": 0}
    options |= {"progress": False, **arguments}
    edit, tasks = options.pop("edit"), options.pop("tasks")
    with pytest.raises(EntangleError, match=message) as caught:
        behaviours(tiny_model(), tiny_tokenizer, edit, tasks, **options)
    assert "\n" not in str(caught.value)


def test_a_price_is_a_number_and_its_documents_may_be_a_column_or_conversations(tiny_model, tiny_tokenizer):
    edit, tasks, options = AddDirection(torch.ones(32), layer=1), {"language": Language(TEXTS[:4])}, {"null": 0}
    for kl in (-0.1, math.nan, math.inf):
        with pytest.raises(EntangleError, match=f"kl is a price in nats per token, 0 or more; got {kl}"):
            behaviours(tiny_model(), tiny_tokenizer, edit, tasks, kl=kl, texts=PRICED, **options)
    column = pd.Series(PRICED, index=range(9, 3, -1))
    prices = [
        behaviours(tiny_model(), tiny_tokenizer, edit, tasks, alpha=0.1, texts=texts, progress=False, **options)
        .changed[0]
        .kl
        for texts in (PRICED, column)
    ]
    assert prices[0] == prices[1] > 0
    asked = [[{"role": "user", "content": text}] for text in PRICED]
    with pytest.raises(EntangleError, match="conversations need a tokenizer with a chat template"):
        behaviours(tiny_model(), tiny_tokenizer, edit, tasks, alpha=0.1, texts=asked, **options)


def test_a_probe_is_not_asked_of_copies_of_what_it_was_fitted_on(tiny_model, tiny_tokenizer):
    labels = [k % 2 for k in range(len(TEXTS))]
    read = Read.fit(tiny_model(), tiny_tokenizer, TEXTS * 3, labels * 3, layer=1)
    n = len(set(TEXTS))
    assert len(set(read.texts)) == round(n / 2)
    assert read.report["n_fit"] + read.report["n_asked"] == 3 * len(TEXTS)
    assert len(read.texts) == sum(text in set(read.texts) for text in TEXTS * 3)
