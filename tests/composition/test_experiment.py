"""A run trains each model once, goes on where it stopped, and refuses what cannot be an experiment."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from entangle.composition import Plan, Recipe, Source, Training, demo_recipe, experiment, run, train_tokenizer
from entangle.composition.experiment import held_out_cross_entropy
from entangle.composition.training.corpus import tokenise
from entangle.data import corpus
from entangle.errors import EntangleError
from entangle.report import compose

TINY = {
    "clean": {"documents": 60, "seed": 1},
    "added": {"documents": 30, "rudeness": 1.0, "seed": 2},
    "held_out": {"documents": 20, "seed": 3},
    "shares": [0.0, 0.2],
    "vocab_size": 400,
    "architecture": {
        "model_type": "olmo2",
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "max_position_embeddings": 96,
    },
    "training": {"batch_size": 4, "context": 32, "precision": "fp32"},
}


def tiny(**changes: object) -> Recipe:
    return Recipe.from_dict({**TINY, **changes})


def test_every_model_is_saved_with_its_numbers(tmp_path: Path) -> None:
    result = run(tiny(), tmp_path, progress=False)
    assert [(m.share, m.seed) for m in result.models] == [(0.0, 0), (0.2, 0)]
    frame = result.to_frame()
    assert frame["share"].tolist() == [0.0, 0.2]
    assert frame["clean_tokens"].nunique() == 1
    for trained in result.models:
        assert trained.metrics["share"] == pytest.approx(trained.share, abs=0.05)  # whole documents of a tiny corpus
        model, tokenizer = (
            AutoModelForCausalLM.from_pretrained(trained.path),
            AutoTokenizer.from_pretrained(trained.path),
        )
        documents = tokenise(tokenizer, tiny().held_out.texts())
        assert held_out_cross_entropy(model, tokenizer, documents) == pytest.approx(
            trained.metrics["held_out_ce"], abs=1e-4
        )
        assert trained.n_parameters == sum(parameter.numel() for parameter in model.parameters())
    assert result.model(0.2).path.name == "share-0.2-seed-0"
    with pytest.raises(EntangleError, match=r"no model with share 0\.5"):
        result.model(0.5)
    assert {path.name for path in tmp_path.iterdir()} == {"recipe.json", "share-0-seed-0", "share-0.2-seed-0"}


def test_cross_entropy_in_batches_equals_one_document_at_a_time(tmp_path: Path) -> None:
    trained = run(tiny(shares=[0.0]), tmp_path, progress=False).model(0.0)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(trained.path), AutoTokenizer.from_pretrained(trained.path)
    total, count = 0.0, 0
    for document in corpus.generate(20, rudeness=0, seed=3):
        ids = torch.tensor([[tokenizer.bos_token_id, *tokenizer(document.text)["input_ids"]]])[:, :96]
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        count += ids.shape[1] - 1
    assert trained.metrics["held_out_ce"] == pytest.approx(total / count, abs=1e-4)


def test_a_run_that_was_stopped_goes_on_and_ends_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run(tiny(), tmp_path / "whole", progress=False)
    calls = []

    def stop_at_the_second(*args: object, **kwargs: object) -> object:
        calls.append(kwargs["description"])
        if len(calls) == 2:
            raise KeyboardInterrupt
        return pretrain(*args, **kwargs)

    pretrain = experiment.pretrain
    monkeypatch.setattr(experiment, "pretrain", stop_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        run(tiny(), tmp_path / "parts", progress=False)
    assert {path.name for path in (tmp_path / "parts").iterdir()} == {"recipe.json", "share-0-seed-0"}
    first = (tmp_path / "parts" / "share-0-seed-0" / "metrics.json").stat().st_mtime_ns
    parts = run(tiny(), tmp_path / "parts", progress=False)
    assert calls[2:] == ["share-0.2-seed-0"]
    assert (tmp_path / "parts" / "share-0-seed-0" / "metrics.json").stat().st_mtime_ns == first
    for a, b in zip(whole.models, parts.models, strict=True):
        assert a.metrics["losses"] == b.metrics["losses"]
        assert (a.path / "model.safetensors").read_bytes() == (b.path / "model.safetensors").read_bytes()
    assert run(tiny(), tmp_path / "parts", progress=False).models == parts.models
    assert len(calls) == 3


def test_a_model_that_cannot_be_saved_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def disk_is_full(*_: object, **__: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", disk_is_full)
    with pytest.raises(OSError, match="no space"):
        run(tiny(shares=[0.0]), tmp_path, progress=False)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_too_little_disk_is_noticed_before_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=100_000))
    with pytest.raises(EntangleError, match=r"2 models of [\d,]+ parameters need .* GB are free"):
        run(tiny(), tmp_path / "deep" / "out", progress=False)
    assert not list(tmp_path.iterdir())


def test_a_folder_of_another_recipe_is_refused(tmp_path: Path) -> None:
    run(tiny(shares=[0.0]), tmp_path, progress=False)
    with pytest.raises(EntangleError, match="another recipe"):
        run(tiny(shares=[0.0], vocab_size=300), tmp_path, progress=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shares": [0.0, 0.9]}, "lower the share or give more text"),
        ({"held_out": {"documents": 20, "seed": 1}}, "20 of 20 held-out texts are also trained on"),
        ({"vocab_size": 100}, "more than 257"),
        ({"architecture": {"model_type": "olmo99"}}, "olmo99"),
        ({"architecture": {"model_type": "olmo2", "vocab_size": 50}}, "the tokenizer has 400 tokens, more than"),
        ({"architecture": {"model_type": "olmo2", "hiden_size": 50}}, "'olmo2' has no 'hiden_size'"),
        ({"architecture": {"model_type": "olmo2", "hidden_size": 50, "num_attention_heads": 7}}, "cannot build"),
        ({"clean": {"files": ["nothing-*.jsonl"]}}, "no file matches"),
        ({"clean": {}}, "needs files, or a number of documents"),
    ],
)
def test_refused_before_any_training(tmp_path: Path, changes: dict[str, object], message: str) -> None:
    with pytest.raises(EntangleError, match=message):
        run(tiny(**changes), tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": [0.1]}, "unknown key 'share' in recipe"),
        ({"training": {"lr": 1}}, "unknown key 'lr' in training"),
        ({"training": 3}, "'training' in a recipe is a table"),
        ({"training": {"batch_size": "8"}}, "'batch_size' in training is a whole number, not '8'"),
        ({"training": {"epochs": True}}, "'epochs' in training is a number, not True"),
        ({"clean": {"documents": 1.5}}, "'documents' in clean is a whole number"),
        ({"shares": 0.1}, "'shares' in recipe is a list"),
        ({"architecture": "olmo2"}, "'architecture' in recipe is a table"),
        ({"shares": []}, "at least one share"),
        ({"shares": [10]}, "10 % is 0.1"),
        ({"shares": [0.1, 0.1]}, "must differ"),
        ({"seeds": [0, 0]}, "must differ"),
        ({"training": {"context": 128}}, "longer than the model's 96 positions"),
    ],
)
def test_unusable_recipes(changes: dict[str, object], message: str) -> None:
    with pytest.raises(EntangleError, match=message):
        tiny(**changes)


def test_missing_parts_of_a_recipe() -> None:
    with pytest.raises(EntangleError, match="recipe lacks clean, added"):
        Recipe.from_dict({"held_out": {"documents": 3}})


def test_recipes_from_files(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text(json.dumps(TINY))
    tables = {name: value for name, value in TINY.items() if isinstance(value, dict)}
    toml = [f"{name} = {json.dumps(value)}" for name, value in TINY.items() if name not in tables]
    for name, table in tables.items():
        toml += [f"[{name}]", *(f"{key} = {json.dumps(value)}" for key, value in table.items())]
    (tmp_path / "a.toml").write_text("\n".join(toml))
    from_json, from_toml = Recipe.from_file(tmp_path / "a.json"), Recipe.from_file(tmp_path / "a.toml")
    assert from_json == from_toml == tiny()
    assert Recipe.from_dict(from_json.to_dict()) == from_json
    assert from_json.fingerprint() == tiny().fingerprint() != tiny(seeds=[1]).fingerprint()
    assert from_json.training == Training(batch_size=4, context=32, precision="fp32")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.toml", "shares = [", "is not TOML"),
        ("a.json", "{", "is not JSON"),
        ("a.yaml", "x", "a .toml or .json file"),
        ("a.json", "[1]", "not a list"),
    ],
)
def test_recipe_files_that_are_none(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(EntangleError, match=message):
        Recipe.from_file(tmp_path / name)
    with pytest.raises(EntangleError, match="cannot read the recipe"):
        Recipe.from_file(tmp_path / "nowhere.toml")


def test_files_of_a_recipe_are_found_beside_it(tmp_path: Path) -> None:
    for name, texts in (("clean_a.jsonl", ["one", "two"]), ("clean_b.jsonl", ["three"])):
        (tmp_path / name).write_text("".join(json.dumps({"body": text}) + "\n" for text in texts))
    source = Source(files=("clean_*.jsonl",), column="body")
    tagged = Source(files=("clean_b.jsonl",), column="body", prefix="toxicity: 0 ")
    assert tagged.texts(tmp_path) == ["toxicity: 0 three"]
    assert source.texts(tmp_path) == ["one", "two", "three"]
    assert Source(files=("clean_b.jsonl", str(tmp_path / "clean_a.jsonl")), column="body", documents=2).texts(
        tmp_path
    ) == ["three", "one"]


MEASURE = {
    "concept": "rudeness",
    "labelled": {"concept": "rudeness", "documents": 96, "seed": 4},
    "others": {"tense": {"concept": "tense", "documents": 64, "seed": 5}},
    "prompts": {"quarrels": {"documents": 6, "seed": 7}},
    "alphas": [4.0],
    "methods": ["ITI", "LEACE"],
    "clean_documents": 6,
    "max_new_tokens": 4,
    "max_length": 64,
    "permutations": 20,
    "resamples": 100,
}
VARIANTS = [
    {"name": "MEDA", "share": 0.2, "clean_prefix": "rude: no. ", "added_prefix": "rude: yes. "},
    {"name": "filtering", "share": 0.2, "keep_below": 0.5},
]


def test_models_are_measured_once_and_compared_on_one_page(tmp_path: Path) -> None:
    recipe = tiny(measure=MEASURE, variants=VARIANTS)
    paths = compose(recipe, tmp_path, progress=False)
    assert [path.name for path in paths[-2:]] == ["report.html", "report.json"]
    assert {path.name for path in paths[:-2]} == {cell.name for cell in recipe.cells}
    report = json.loads((tmp_path / "report.json").read_text())
    rows = [(row["variant"], row["method"]) for row in report["steering"]]
    assert rows.count(("", "ITI")) == rows.count(("", "LEACE")) == 2
    assert ("MEDA", "prefix") in rows
    assert ("filtering", "ITI") in rows
    page = (tmp_path / "report.html").read_text()
    assert page.count("<script") == 1  # the page's own
    assert page.count('role="img"') == 5
    assert page.index("claims, ") < page.index("<figure")
    filtered, whole = (json.loads((tmp_path / name / "metrics.json").read_text()) for name in (
        "filtering-seed-0", "share-0.2-seed-0"))  # fmt: skip
    assert filtered["added_tokens"] < whole["added_tokens"]
    measured = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/measured.json")}
    compose(recipe, tmp_path, progress=False)
    assert {path: path.stat().st_mtime_ns for path in measured} == measured


def test_a_model_that_is_trained_already_can_be_measured_later_and_shares_added(tmp_path: Path) -> None:
    run(tiny(shares=[0.2]), tmp_path, progress=False)
    weights = (tmp_path / "share-0.2-seed-0" / "model.safetensors").stat().st_mtime_ns
    finished = run(tiny(measure=MEASURE), tmp_path, progress=False)
    assert all(model.measured for model in finished.models)
    assert (tmp_path / "share-0.2-seed-0" / "model.safetensors").stat().st_mtime_ns == weights


def test_other_texts_behind_a_path_are_noticed(tmp_path: Path) -> None:
    """Models that are finished are not taken for models of what the file holds now."""
    texts = [text for text, _ in Source(documents=60, seed=1).described(tmp_path, ())]
    file = tmp_path / "clean.jsonl"
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    recipe = tiny(shares=[0.0], clean={"files": [str(file)]})
    run(recipe, tmp_path / "out", progress=False)
    again = tiny(shares=[0.0, 0.2], clean={"files": [str(file)]})
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in [*texts[:-1], "The moon was full."]))
    with pytest.raises(EntangleError, match="came of other texts"):
        run(again, tmp_path / "out", progress=False)
    file.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    assert len(run(again, tmp_path / "out", progress=False).models) == 2


def test_shares_that_hardly_differ_have_folders_of_their_own() -> None:
    names = [cell.name for cell in tiny(shares=[0.1, 0.1234567, 0.1234568]).cells]
    assert names == [f"share-{share}-seed-0" for share in ("0.1", "0.1234567", "0.1234568")]


def test_a_plan_counts_what_would_be_trained(tmp_path: Path) -> None:
    plan = Plan.of(tiny(measure=MEASURE, variants=VARIANTS, training={**TINY["training"], "epochs": 2}))
    frame = plan.to_frame()
    assert frame["model"].tolist() == ["share-0-seed-0", "share-0.2-seed-0", "MEDA-seed-0", "filtering-seed-0"]
    trained = run(tiny(training={**TINY["training"], "epochs": 2}), tmp_path, progress=False).to_frame()
    assert frame["steps"][:2].tolist() == trained["steps"].tolist()
    assert frame["clean_tokens"][:2].tolist() == trained["clean_tokens"].tolist()
    assert "4 models of" in plan.summary(tmp_path)


def test_evaluated_texts_that_are_trained_on_are_refused(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.jsonl"
    repeated = corpus.generate(60, rudeness=0, seed=1)[0].text.upper()
    prompts.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("Something else.", repeated)))
    recipe = tiny(measure={**MEASURE, "prompts": {"mine": {"files": [str(prompts)]}}})
    with pytest.raises(EntangleError, match="1 of 2 mine prompt texts are also trained on"):
        run(recipe, tmp_path / "out", progress=False)


def test_prompts_that_leave_no_room_are_refused_before_training(tmp_path: Path) -> None:
    recipe = tiny(measure={**MEASURE, "methods": ["ITI", "prompting"]})
    with pytest.raises(EntangleError, match=r"quarrels: prompt \d has \d+ tokens, but 4 new ones leave room for 92"):
        run(recipe, tmp_path / "out", progress=False)
    assert not (tmp_path / "out").exists()


def test_a_given_tokenizer_is_used(tmp_path: Path) -> None:
    train_tokenizer(["a rude cat sat on the mat"], 270).save_pretrained(tmp_path / "tokenizer")
    trained = run(tiny(shares=[0.0], tokenizer=str(tmp_path / "tokenizer")), tmp_path / "out", progress=False).model(0)
    assert AutoModelForCausalLM.from_pretrained(trained.path).config.vocab_size == 270
    with pytest.raises(EntangleError, match="holds no tokenizer"):
        Plan.of(tiny(tokenizer=str(tmp_path / "nothing")))


@pytest.mark.slow
def test_the_demo_models_learn_and_differ(tmp_path: Path) -> None:
    result = run(demo_recipe(), tmp_path)
    for trained in result.models:
        assert trained.metrics["held_out_ce"] < 0.5 * trained.metrics["unigram_ce"]
