"""One concept in one model, end to end: one call, one typed result that loses nothing on the way to disk and page."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Callable
from copy import deepcopy
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import entangle as en
from entangle.data import LabelledTexts, corpus
from entangle.errors import EntangleError
from entangle.evaluation import RECIPES, cross_entropy
from entangle.study import cache, steps
from entangle.study.steps import shares

FEW: dict[str, Any] = {"n_resamples": 100, "n_permutations": 20, "max_new_tokens": 4, "progress": False}


def texts_of(name: str, n: int = 80, seed: int = 3) -> tuple[list[str], list[int]]:
    """Short generated texts of a concept, no two alike."""
    found = corpus.labelled(name, n, seed=seed)
    rows = {text[:40]: label for text, label in zip(found.texts, found.labels.tolist(), strict=True)}
    return list(rows), list(rows.values())


@pytest.fixture(scope="module")
def model(tiny_model: Callable[..., PreTrainedModel]) -> PreTrainedModel:
    return tiny_model("olmo2")


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    tokenizer = deepcopy(tiny_tokenizer)
    tokenizer.model_max_length = 64
    return tokenizer


@pytest.fixture(scope="module")
def asked() -> dict[str, Any]:
    """Everything that can be asked for."""
    return {
        "concepts": {"tense": texts_of("tense")},
        "prompts": [text[:30] for text in corpus.prompts(6, seed=1)],
        "clean": [document.text[:50] for document in corpus.generate(6, rudeness=0.0, seed=9)],
        "alphas": [4],
        "name": "rudeness",
        **FEW,
    }


@pytest.fixture(scope="module")
def whole(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: dict[str, Any]) -> en.Study:
    return en.study(model, tokenizer, *texts_of("rudeness"), **asked)


def test_further_methods_are_asked_for_by_name(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: dict[str, Any]
) -> None:
    names = ["ITI", "LAT", "rotation", "contrast gradient"]
    few = {**asked, "concepts": None, "forecast": False, "alphas": [0.1], "methods": names}
    study = en.study(model, tokenizer, *texts_of("rudeness"), **few)
    assert study.tradeoff is not None
    assert study.tradeoff.methods == names
    assert study.missing == {}
    with pytest.raises(EntangleError, match="got 'SAE feature': choose from these"):
        en.study(model, tokenizer, *texts_of("rudeness"), **{**few, "methods": ["ITI", "SAE feature"]})


def test_methods_of_clean_text_and_of_other_models_are_priced_on_documents_that_made_none(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: dict[str, Any]
) -> None:
    names = ["ITI", "natural shift", "random directions", "DExperts"]
    clean = [document.text[:50] for document in corpus.generate(30, rudeness=0.0, seed=9)]
    few = {**asked, "concepts": None, "forecast": False, "clean": clean, "methods": names, "alphas": None}
    other = deepcopy(model)
    with torch.no_grad():
        other.get_output_embeddings().weight.mul_(1.5)
    few |= {"costs": [0.05], "anti_expert": other}
    study = en.study(model, tokenizer, *texts_of("rudeness"), **few)
    assert study.missing == {}
    assert any("Of the 30 clean documents, natural shift was fitted on 10" in note for note in study.notes)
    assert study.tradeoff is not None
    assert study.tradeoff.methods == names
    question = study.question
    fitting, solving, reported = shares(clean, question)
    assert len(study.tradeoff.plain.shift.kl) == len(reported) == 10
    assert len({*fitting, *solving, *reported}) == 30
    # At one price there is a best of them, which half of the prompts choose and the other half are told of.
    best = study.to_dict()["best_method"]
    assert best["among"] == [name for name in names if name != "random directions"]
    assert best["control"] == "random directions"
    assert "than random directions of the same price" in study.answer()
    assert best["chosen_on"] == best["n_prompts"] == 3
    assert best["steered"]["cost"] == 0.05
    assert f"by {best['method']} at alpha" in study.answer()
    assert "and 3 prompts of this one model" in study.answer()
    assert "half of the prompts chose" in " ".join(study.to_html().split())
    # Without such a method the same documents are dealt to two purposes.
    assert [len(share) for share in shares(clean, dataclasses.replace(question, methods=("ITI", "CAA")))] == [15, 15]
    with pytest.raises(EntangleError, match='"natural shift" is fitted on a share of the clean documents, 10 at least'):
        en.study(model, tokenizer, *texts_of("rudeness"), **{**few, "clean": clean[:20]})
    with pytest.raises(EntangleError, match='"DExperts" needs another model, but none is here: give expert='):
        en.study(model, tokenizer, *texts_of("rudeness"), **{**few, "anti_expert": None})


def test_a_method_that_comes_to_nothing_is_told_once(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def comes_to_nothing(given: Any) -> Any:
        raise EntangleError("nothing came of it")

    monkeypatch.setitem(RECIPES, "LAT", dataclasses.replace(RECIPES["LAT"], make=comes_to_nothing))
    few = {**asked, "concepts": None, "forecast": False, "methods": ["ITI", "LAT"]}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*left out")
        study = en.study(model, tokenizer, *texts_of("rudeness"), **few)
    assert study.missing == {"LAT": "nothing came of it"}
    assert study.tradeoff is not None
    assert study.tradeoff.methods == ["ITI"]


def test_everything_is_there_as_what_the_library_makes_of_it(whole: en.Study) -> None:
    assert {site: grid.shape for site, grid in whole.probes.items()} == {"z": (3, 4), "resid_post": (3,)}
    assert set(whole.entanglement) == {0, 1, 2}
    assert whole.entanglement[0].names == ("rudeness", "tense")
    assert isinstance(whole.iti, en.ITI)
    assert isinstance(whole.tradeoff, en.Tradeoff)
    assert whole.tradeoff.to_frame()["alpha"].tolist() == [0, 4]
    assert whole.missing == {}
    with pytest.raises(dataclasses.FrozenInstanceError):
        whole.label = "another"  # type: ignore[misc]


def test_its_numbers_are_those_of_the_library_called_by_hand(
    whole: en.Study, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts, labels = texts_of("rudeness")
    acts = en.collect(model, tokenizer, texts, sites=["z", "resid_post"], progress=False)
    grid = en.fit_probes(acts["z"], labels, n_resamples=100, n_permutations=20, progress=False)
    assert torch.equal(grid.accuracy, whole.probes["z"].accuracy)
    assert torch.equal(grid.null, whole.probes["z"].null)
    iti = en.ITI.fit(acts["z"], torch.tensor(labels), top_k=3, grid=grid)
    assert whole.iti is not None
    assert iti.heads == whole.iti.heads
    assert torch.equal(iti.sigmas, whole.iti.sigmas)
    fit = grid.split.fit
    x, y = acts["resid_post"][fit, 1], torch.tensor(labels)[fit]
    direction = torch.nn.functional.normalize(x[y == 1].mean(0) - x[y == 0].mean(0), dim=0)
    others, other_labels = texts_of("tense")
    far = en.collect(model, tokenizer, others, sites="resid_post", progress=False)["resid_post"][:, 1]
    fit = en.probes.three_way(other_labels).fit
    x, y = far[fit], torch.tensor(other_labels)[fit]
    other = torch.nn.functional.normalize(x[y == 1].mean(0) - x[y == 0].mean(0), dim=0)
    assert float(whole.entanglement[1].entanglement.value[0]) == pytest.approx(
        float((direction @ other).abs()), abs=1e-5
    )


def test_what_is_left_out_makes_a_smaller_study(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    small = en.study(model, tokenizer, *texts_of("rudeness"), **FEW)
    assert small.entanglement == {}
    assert small.iti is small.tradeoff is None
    assert small.missing == {}
    assert len(small.sentences()) == 3
    assert set(small.figures) == {"heads", "spread", "layers"}
    assert "<svg" in small.to_html()


def test_a_path_and_objects_give_the_same_numbers(
    whole: en.Study, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, tmp_path: Path, asked: dict[str, Any]
) -> None:
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    texts, labels = texts_of("rudeness")
    data = LabelledTexts.of(texts, np.array(labels), name="rudeness")
    again = en.study(tmp_path, None, data, **asked).to_dict()
    expected = whole.to_dict()
    for key in ("probes", "entanglement", "tradeoff", "baselines", "samples"):
        assert again[key] == expected[key]
    assert again["label"] == tmp_path.name


def test_saving_and_loading_lose_nothing(whole: en.Study, model: PreTrainedModel, tmp_path: Path) -> None:
    whole.save(tmp_path / "study")
    loaded = en.Study.load(tmp_path / "study", model=model)
    assert loaded.to_dict() == whole.to_dict()
    assert loaded.to_html() == whole.to_html()
    assert loaded.tradeoff is not None
    assert whole.tradeoff is not None
    assert loaded.tradeoff.to_frame().equals(whole.tradeoff.to_frame())
    assert torch.equal(loaded.probes["z"].coef_, whole.probes["z"].coef_)
    whole.save(tmp_path / "study")  # in place of itself
    assert {path.name for path in tmp_path.iterdir()} == {"study"}


def test_a_study_is_not_taken_for_another_models(
    whole: en.Study, tiny_model: Callable[..., PreTrainedModel], tmp_path: Path
) -> None:
    whole.save(tmp_path / "study")
    with pytest.raises(EntangleError, match="another model"):
        en.Study.load(tmp_path / "study", model=tiny_model("olmo2", seed=1))
    with pytest.raises(EntangleError, match="holds no study"):
        en.Study.load(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    with pytest.raises(EntangleError, match="something else"):
        whole.save(tmp_path / "mine")
    assert (tmp_path / "mine" / "thesis.txt").read_text() == "mine"
    (tmp_path / "study" / "study.json").write_text("{")
    with pytest.raises(EntangleError, match="cannot be read"):
        en.Study.load(tmp_path / "study")


def test_a_second_call_with_one_more_concept_captures_only_that_one(
    whole: en.Study,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    asked: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen: list[list[str]] = []

    def collect(model: Any, tokenizer: Any, texts: list[str], **options: Any) -> Any:
        seen.append(texts)
        return en.collect(model, tokenizer, texts, **options)

    monkeypatch.setattr(cache, "collect", collect)
    more = {**asked, "concepts": {**asked["concepts"], "length": texts_of("tense", 60, seed=8)}}
    study = en.study(model, tokenizer, *texts_of("rudeness"), **more)
    assert len(seen) == 1
    assert study.to_dict()["probes"] == whole.to_dict()["probes"]
    # Another model, and the same one while it is steered, are other activations.
    assert study.iti is not None
    with en.steer(model, study.iti, alpha=4):
        en.study(model, tokenizer, *texts_of("rudeness"), **FEW)
    assert len(seen) == 2


def test_captured_activations_and_finished_conditions_are_kept_on_disk(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    asked: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = en.study(model, tokenizer, *texts_of("rudeness"), cache=tmp_path, **asked).to_dict()

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(cache, "_HELD", {})
    monkeypatch.setattr(cache, "collect", refuse)
    monkeypatch.setattr("entangle.evaluation.price.bench.Bench.measure", refuse)
    again = en.study(model, tokenizer, *texts_of("rudeness"), cache=tmp_path, **asked).to_dict()
    for key in ("probes", "entanglement", "tradeoff", "samples"):
        assert again[key] == before[key]
    with pytest.raises(AssertionError, match="measured again"):
        en.study(model, tokenizer, *texts_of("rudeness"), cache=tmp_path, **{**asked, "alphas": [4, 8]})


def test_a_cell_whose_probe_cannot_be_fitted_is_told_and_all_others_go_on(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = steps.fit_probes

    def overflowing(x: Any, y: Any, **options: Any) -> Any:
        if x.ndim == 4:
            x = x.clone()
            x[3, 1, 2, 0] = torch.inf
        return fit(x, y, **options)

    monkeypatch.setattr(steps, "fit_probes", overflowing)
    study = en.study(model, tokenizer, *texts_of("rudeness"), **asked)
    assert [list(study.probes[site].layers or ()) for site in ("z", "resid_post")] == [[0, 1, 2], [0, 1, 2]]
    assert (~study.probes["z"].converged).nonzero().tolist() == [[1, 2]]
    assert list(study.missing) == ["probes on z in layer 1, head 2"]
    assert study.iti is not None
    assert (1, 2) not in study.iti.heads
    assert study.tradeoff is not None
    for shown in (study.to_html(), repr(study), study._repr_html_()):
        assert "activations hold NaN or inf" in shown
    monkeypatch.setattr(steps, "fit_probes", lambda *_, **__: (_ for _ in ()).throw(EntangleError("nothing converged")))
    with pytest.raises(EntangleError, match="nothing converged"):
        en.study(model, tokenizer, *texts_of("rudeness"), **FEW)


def test_a_head_whose_probe_does_not_converge_is_left_blank_and_told(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch
) -> None:
    fit = steps.fit_probes

    def stubborn(x: Any, y: Any, **options: Any) -> Any:
        grid = fit(x, y, **options)
        if len(grid.shape) == 2:
            grid.converged[1, [0, 2]] = False
        return grid

    monkeypatch.setattr(steps, "fit_probes", stubborn)
    study = en.study(model, tokenizer, *texts_of("rudeness"), **FEW)
    assert study.missing == {"probes on z in layer 1, heads 0, 2": "not converged under any penalty"}
    accuracy = np.array(study.to_dict()["probes"]["z"]["accuracy"], dtype=float)
    assert np.isnan(accuracy).nonzero()[1].tolist() == [0, 2]
    assert study.plot("heads").images[0].get_array().mask.sum() == 2
    for shown in (study.to_html(), repr(study), study._repr_html_()):
        assert "not converged under any penalty" in shown


def test_a_sweep_that_breaks_off_keeps_what_was_measured_before(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: dict[str, Any]
) -> None:
    class Tired:
        name = "tired"
        calls = 0

        def __call__(self, texts: list[str]) -> Any:
            self.calls += 1
            if self.calls > 2:
                raise RuntimeError("CUDA out of memory")
            return np.full(len(texts), 0.5)

    study = en.study(model, tokenizer, *texts_of("rudeness"), **{**asked, "alphas": [4, 8], "scorer": Tired()})
    assert study.tradeoff is not None
    assert study.tradeoff.to_frame()["alpha"].tolist() == [0, 4]
    assert "out of memory" in study.missing["steering"]
    assert "alpha 4" in study.answer()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"labels": [0, 1]}, "one for each of|one label per text"),
        ({"labels": [0] * 79}, "two classes|all"),
        ({"prompts": ["a", "b"]}, "clean text"),
        ({"concepts": {"rudeness": (["a", "b"], [0, 1])}}, "two concepts are named 'rudeness'"),
        ({"concepts": {"other": "neither"}}, "neither"),
        ({"concepts": {"other": 3}}, "texts and labels"),
        ({"alphas": []}, "a strength at least"),
        ({"alphas": [float("nan")]}, "finite"),
        ({"costs": [0.1], "alphas": [4.0]}, "not at both"),
        ({"costs": [-0.1]}, "positive numbers of nats"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**32}, "seed"),
        ({"methods": ["CAA"]}, "ITI"),
        ({"top_k": 13}, "12 heads"),
        ({"name": " "}, "name"),
        ({"layers": "some"}, "layers"),
        ({"clean": ["", "b"], "prompts": ["a", "b"]}, "clean text"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_run(
    changes: dict[str, Any], message: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts, labels = texts_of("rudeness")
    given = {"labels": labels, "name": "rudeness", **FEW, **changes}
    if len(given["labels"]) == 79:
        given["labels"] = [0] * len(texts)
    with pytest.raises(EntangleError, match=message) as error:
        en.study(model, tokenizer, texts, given.pop("labels"), **given)
    assert "\n" not in str(error.value)


def test_one_of_several_labels_can_be_the_concept(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    texts, labels = texts_of("rudeness")
    names = [["calm", "rude"][label] for label in labels]
    assert en.study(model, tokenizer, texts, names, **FEW).to_dict()["data"][0]["positive"] == "rude"
    turned = en.study(model, tokenizer, texts, names, positive="calm", **FEW)
    assert turned.to_dict()["data"][0]["positive"] == "calm"


def test_the_same_text_twice_could_be_on_both_sides_of_a_split(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    texts, labels = texts_of("rudeness")
    with pytest.raises(EntangleError, match="are the same"):
        en.study(model, tokenizer, [*texts, texts[0]], [*labels, labels[0]], **FEW)


def test_every_figure_of_the_page_is_one_call_too(whole: en.Study) -> None:
    assert whole.figures == ("heads", "spread", "layers", "entanglement", "cosines", "tradeoff")
    assert whole.to_html().count('role="img"') == len(whole.figures)
    for name in whole.figures:
        assert whole.plot(name).figure is not None
    assert len([ax for ax in whole.plot().axes if ax.get_label() != "<colorbar>"]) == len(whole.figures)
    with pytest.raises(EntangleError, match="has the figures heads"):
        whole.plot("price")


def test_it_shows_itself_in_a_notebook_and_in_a_terminal(whole: en.Study) -> None:
    light = whole._repr_html_()
    assert len(light) < len(whole.to_html()) / 2
    assert light.count('role="img"') == 1
    assert "<title>" not in light  # what can be pointed at needs the page's styles
    for sentence in whole.sentences():
        assert sentence in repr(whole)
        assert sentence in unescape(light)
    assert len(whole.to_frame()) == 11
    assert json.loads(json.dumps(whole.to_dict(), allow_nan=False)) == whole.to_dict()


def test_several_models_stand_side_by_side(
    whole: en.Study,
    tiny_model: Callable[..., PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
    asked: dict[str, Any],
    tmp_path: Path,
) -> None:
    other = en.study(tiny_model("llama"), tokenizer, *texts_of("rudeness"), label="llama", **asked)
    both = en.Study.compare([whole, other])
    frame = both.to_frame()
    assert frame["label"].unique().tolist() == [whole.label, "llama"]
    for study in (whole, other):
        own = frame[frame["label"] == study.label].drop(columns="label").reset_index(drop=True)
        assert own.equals(study.to_frame())
    page = both.to_html(tmp_path / "page.html")
    assert (tmp_path / "page.html").read_text() == page
    assert page.count('role="img"') == 4 * 2 + 3  # one price for both, and lines over the layers
    record = both.to_dict()
    assert record == {"answer": record["answer"], "studies": [whole.to_dict(), other.to_dict()]}
    assert both.answer() == " ".join(record["answer"]) != ""
    assert len(both.plot().get_legend().get_texts()) == 2
    with pytest.raises(EntangleError, match="labelled"):
        en.Study.compare([whole, whole])
    with pytest.raises(EntangleError, match="other texts"):
        en.Study.compare(
            [whole, en.study(tiny_model("llama"), tokenizer, *texts_of("rudeness", 60), **FEW, name="rudeness")]
        )
    with pytest.raises(EntangleError, match="one concept"):
        en.Study.compare([whole, en.study(tiny_model("llama"), tokenizer, *texts_of("tense"), **FEW, name="tense")])
    with pytest.raises(EntangleError, match="got none"):
        en.Study.compare([])


def test_what_transformers_leaves_on_a_model_hinders_no_cache(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast
) -> None:
    from entangle.models import is_hooked

    model = deepcopy(model)
    with torch.no_grad():
        model(**tokenizer("the cat", return_tensors="pt"), output_hidden_states=True)  # leaves recorders for good
    assert not is_hooked(model)
    handle = model.register_forward_hook(lambda *_: None)
    assert is_hooked(model)
    handle.remove()
    with en.steer(model, en.AddDirection(torch.ones(32), "resid_post", 1)):
        assert is_hooked(model)
    assert not is_hooked(model)


def test_its_rows_are_its_table(whole: en.Study) -> None:
    assert whole.tradeoff is not None
    frame, rows = whole.tradeoff.to_frame().set_index("alpha"), whole.to_rows(task="posts")
    assert {(row["edit"], row["alpha"]) for row in rows} == {("ITI", 0.0), ("ITI", 4.0)}
    for row in rows:
        assert row["model"] == whole.label
        assert row["task"] == ("language" if row["metric"] in ("ce", "perplexity", "kl", "agreement") else "posts")
        assert row["score"] == pytest.approx(float(frame.loc[row["alpha"], row["metric"]]))
    assert {"toxicity", "ce", "kl"} <= {row["metric"] for row in rows}


def test_pushed_it_is_a_folder_that_loads_with_a_card_for_people(
    whole: en.Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    import huggingface_hub

    calls: list[tuple[str, dict[str, Any]]] = []

    class Api:
        """Stands in for the hub: keeps what it is sent."""

        def __init__(self, token: str | None = None) -> None:
            calls.append(("token", {"token": token}))

        def create_repo(self, repo_id: str, **options: Any) -> None:
            calls.append(("create", {"repo_id": repo_id, **options}))

        def upload_folder(self, *, folder_path: str, **options: Any) -> str:
            shutil.copytree(folder_path, tmp_path / "there")
            calls.append(("upload", options))
            return "https://hub/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    assert whole.push_to_hub("me/rudeness", private=True, token="t") == "https://hub/commit/1"
    assert [name for name, _ in calls] == ["token", "create", "upload"]
    assert calls[1][1] == {"repo_id": "me/rudeness", "private": True, "exist_ok": True, "repo_type": "dataset"}
    there = tmp_path / "there"
    card = (there / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: entangle\n")
    assert all(sentence in card for sentence in whole.sentences())
    assert (there / "report.html").read_text().count("<html") == 1
    rows = [json.loads(line) for line in (there / "results.jsonl").read_text().splitlines()]
    assert rows == whole.to_rows()
    assert en.Study.load(there).sentences() == whole.sentences()
    with pytest.raises(EntangleError, match="'model' or 'dataset'"):
        whole.push_to_hub("me/rudeness", repo_type="space")


def test_prompts_may_be_conversations_from_a_list_or_a_file(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: dict[str, Any], tmp_path: Path
) -> None:
    chatty = deepcopy(tokenizer)
    chatty.chat_template = "{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"
    conversations = [[{"role": "user", "content": prompt}] for prompt in asked["prompts"]]
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in conversations))
    settings = {**asked, "concepts": None, "forecast": False, "progress": False}
    studies = [
        en.study(model, chatty, *texts_of("rudeness"), **{**settings, "prompts": prompts})
        for prompts in (conversations, file)
    ]
    sweeps = [study.tradeoff for study in studies]
    assert sweeps[0] is not None
    assert sweeps[0].prompts == sweeps[1].prompts == tuple(conversations)
    assert sweeps[0].plain.continuations == sweeps[1].plain.continuations
    studies[0].save(tmp_path / "study")
    again = en.Study.load(tmp_path / "study")
    assert again.tradeoff.prompts == sweeps[0].prompts
    assert '<span class="role">user</span>' in again.to_html(tmp_path / "page.html")
    # The same words as a text are another prompt.
    texts = en.study(model, chatty, *texts_of("rudeness"), **settings)
    assert texts.tradeoff.plain.continuations != sweeps[0].plain.continuations


def test_clean_text_may_be_conversations_of_which_one_role_is_measured(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, asked: dict[str, Any], tmp_path: Path
) -> None:
    chatty = deepcopy(tokenizer)
    chatty.chat_template = "{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"
    spoken = [document.text[:16] for document in corpus.generate(60, rudeness=0.0, seed=9)]
    clean = [
        [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        for question, answer in zip(spoken[::2], spoken[1::2], strict=True)
    ]
    file = tmp_path / "clean.jsonl"
    file.write_text("".join(json.dumps({"messages": messages}) + "\n" for messages in clean))
    settings = {**asked, "concepts": None, "turns": "assistant", "progress": False, "alphas": None, "costs": [0.05]}
    settings |= {"methods": ["ITI", "natural shift"]}
    study = en.study(model, chatty, *texts_of("rudeness"), **{**settings, "clean": file})
    assert study.missing == {}
    assert study.tradeoff is not None
    assert study.forecast is not None
    *_, reported = shares(clean, study.question)
    read = cross_entropy(model, chatty, reported, turns="assistant", progress=False)
    assert study.tradeoff.plain.shift.plain_nats == pytest.approx(read.values, rel=1e-5)
    assert study.tradeoff.plain.shift.tokens.tolist() == read.tokens.tolist()
    assert "Language is measured on what the assistant says in 30 conversations." in study.notes
    # All that the template writes is more than what one role says, and is what the forecast reads.
    whole = en.study(model, chatty, *texts_of("rudeness"), **{**settings, "clean": clean, "turns": None})
    assert whole.tradeoff is not None
    assert (whole.tradeoff.plain.shift.tokens > study.tradeoff.plain.shift.tokens).all()
    assert whole.forecast.frame.equals(study.forecast.frame)
    with pytest.raises(EntangleError, match="turns='assistant' measures what is said in conversations, but document 0"):
        en.study(model, chatty, *texts_of("rudeness"), **{**settings, "clean": spoken})
