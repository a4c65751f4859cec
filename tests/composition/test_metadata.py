"""Metadata before documents, and the cooldown without: no document is lost, no loss is taken over metadata, and a
training that is stopped on either side of the switch ends as one that was not."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_experiment import MEASURE, TINY, tiny
from torch.nn import functional as F
from transformers import PreTrainedModel

from entangle.composition import Plan, Source, Training, Variant, new_model, run, train_tokenizer
from entangle.composition.training import pretrain as pretraining
from entangle.composition.training.corpus import mix, tokenise
from entangle.composition.training.metadata import Prefix, condition
from entangle.composition.training.pretrain import loss_function, pretrain
from entangle.composition.training.stream import Stream
from entangle.errors import EntangleError

TOKENIZER = train_tokenizer(["Source: the shed. the cat sat on the mat", "a dog ran. Source: the sea"], 300)
BOS = TOKENIZER.bos_token_id
SMALL = Training(batch_size=2, context=8, learning_rate=1e-2, precision="fp32")


def test_a_prefix_says_what_is_known_of_a_document() -> None:
    prefix = Prefix("{source}, {part}: {{{source}}}\n")
    assert prefix.columns == ("source", "part")
    assert prefix.before({"source": "wiki", "part": "2"}) == "wiki, 2: {wiki}\n"
    assert Prefix("toxicity: 0.1\n").before({}) == "toxicity: 0.1\n"
    assert Prefix("").columns == ()


@pytest.mark.parametrize("text", ["{}", "{0}", "{a.b}", "{a[0]}", "{a:>3}", "{a!r}", "{", "a}"])
def test_prefixes_that_cannot_be_read(text: str) -> None:
    with pytest.raises(EntangleError, match="the prefix"):
        Prefix(text)


def test_columns_come_from_rows_file_names_and_the_built_in_corpus(tmp_path: Path) -> None:
    rows = [{"text": "one", "source": "wiki", "year": 1990.0}, {"text": "two", "source": "blog", "year": 2001}]
    (tmp_path / "old.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = Source(files=("old.jsonl",), prefix="> ", without=())
    assert source.described(tmp_path, ["source", "year", "file"]) == [
        ("> one", {"source": "wiki", "year": "1990", "file": "old"}),
        ("> two", {"source": "blog", "year": "2001", "file": "old"}),
    ]
    with pytest.raises(EntangleError, match="has no 'domain': its columns are"):
        source.described(tmp_path, ["domain"])
    (tmp_path / "gap.jsonl").write_text('{"text": "three", "source": null}\n')
    with pytest.raises(EntangleError, match="has nothing in 'source'"):
        Source(files=("gap.jsonl",)).described(tmp_path, ["source"])
    made = Source(documents=20, seed=1).described(columns=["topic"])
    assert {known["topic"] for _, known in made} == {"kitchen", "harbour"}
    with pytest.raises(EntangleError, match="the built-in corpus has no 'source'"):
        Source(documents=20, seed=1).described(columns=["source"])


WORDS = st.sampled_from(["the cat", "a dog ran", "mat", "sat on the mat " * 3])
SAID = st.sampled_from(["", "Source: the shed. ", "Source: the sea. "])


@given(st.lists(st.tuples(WORDS, SAID), min_size=1, max_size=30), st.floats(0, 0.9), st.integers(0, 3))
def test_all_documents_once_and_none_of_the_metadata_in_the_cooldown(
    rows: list[tuple[str, str]], cooldown: float, seed: int
) -> None:
    said = [about for _, about in rows]
    mixture = mix(tokenise(TOKENIZER, [text for text, _ in rows]), None, 0.0, seed=seed)
    stream = condition(mixture, said, TOKENIZER, cooldown)
    switch = len(stream.tokens) if stream.cooldown is None else stream.cooldown
    assert stream.scored is not None
    assert torch.equal(stream.tokens[stream.scored], torch.from_numpy(mixture.documents.tokens))
    assert stream.scored[switch:].all()
    at = 0
    for place, origin in enumerate(mixture.origins):
        document = mixture.documents.take(np.array([place])).tokens.tolist()
        metadata = TOKENIZER(said[origin])["input_ids"] if at < switch else []
        expected = [document[0], *metadata, *document[1:]]
        assert stream.tokens[at : at + len(expected)].tolist() == expected
        scored = stream.scored[at : at + len(expected)].tolist()
        assert scored == [True, *[False] * len(metadata), *[True] * (len(document) - 1)]
        at += len(expected)
    # The cooldown has its share, and would not with one document less.
    begins = np.flatnonzero(stream.tokens.numpy() == BOS)
    assert len(stream.tokens) - switch >= cooldown * len(stream.tokens)
    if cooldown and switch < begins[-1]:
        longer = len(TOKENIZER(said[mixture.origins[int((begins < switch).sum())]])["input_ids"])
        following = begins[begins > switch][0]
        assert len(stream.tokens) - following < cooldown * (len(stream.tokens) + longer)


@given(st.integers(20, 90), st.integers(20, 90), st.sampled_from([1.0, 2.0, 1.5]), st.integers(0, 3))
def test_the_cooldown_is_trained_on_last(before: int, after: int, epochs: float, seed: int) -> None:
    training = Training(batch_size=2, context=4, epochs=epochs)
    stream = Stream(torch.arange(before + after), cooldown=before)
    batches = list(stream.batches(training, seed))
    assert len(batches) == stream.n_steps(training)
    n_first = training.n_steps(before)
    first, last = torch.cat(batches[:n_first]), torch.cat(batches[n_first:])
    assert first.max() + training.context < before <= last.min()
    assert last.max() + training.context < before + after
    for visited, n_sequences in ((first, (before - 1) // 4), (last, (after - 1) // 4)):
        assert visited[:n_sequences].unique().numel() == min(n_sequences, len(visited))
    assert not torch.equal(torch.cat(batches), torch.cat(list(stream.batches(training, seed + 1))))


def test_a_part_with_less_than_a_batch_makes_no_steps() -> None:
    training = Training(batch_size=2, context=4)
    assert Stream(torch.arange(40), cooldown=9).n_steps(training) > 0
    assert Stream(torch.arange(40), cooldown=8).n_steps(training) == 0
    assert Stream(torch.arange(40), cooldown=32).n_steps(training) == 0


@pytest.fixture
def model() -> PreTrainedModel:
    return new_model(TINY["architecture"], TOKENIZER)


def test_no_loss_is_taken_over_metadata(model: PreTrainedModel) -> None:
    ids = torch.randint(1, 250, (3, 9), generator=torch.Generator().manual_seed(0))
    scored = torch.rand(3, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    with torch.no_grad():
        losses = F.cross_entropy(model(input_ids=ids[:, :-1]).logits.mT, ids[:, 1:], reduction="none")
    loss_of = loss_function(model, SMALL)
    assert loss_of(ids, scored).item() == pytest.approx(losses[scored[:, 1:]].mean().item(), abs=1e-5)
    assert loss_of(ids).item() == pytest.approx(losses.mean().item(), abs=1e-5)
    assert abs(losses[scored[:, 1:]].mean() - losses.mean()) > 1e-3  # the control: the two are told apart


ARCHITECTURE = {**TINY["architecture"], "hidden_size": 16, "intermediate_size": 24}
HALVES = ["the cat sat on the mat", "a dog ran"]


def conditioned_stream(cooldown: float) -> Stream:
    """Two kinds of documents, each after the name of its kind but for the cooldown."""
    texts = HALVES * 60
    said = ["Source: the shed. ", "Source: the sea. "] * 60
    return condition(mix(tokenise(TOKENIZER, texts), None, 0.0), said, TOKENIZER, cooldown)


class Stopped(BaseException):
    """As a signal would stop it."""


@pytest.mark.parametrize("around", [-1, 0, 1])
def test_a_training_stopped_around_the_switch_ends_as_an_undisturbed_one(
    around: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = conditioned_stream(0.3)
    assert stream.cooldown is not None
    switch, n_steps = SMALL.n_steps(stream.cooldown), stream.n_steps(SMALL)
    assert 5 < switch < n_steps - 5
    whole = new_model(ARCHITECTURE, TOKENIZER)
    losses = pretrain(whole, stream, SMALL, progress=False).losses
    save, path = pretraining.save_checkpoint, tmp_path / "state"

    def save_then_stop(*args: object) -> None:
        save(*args)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "save_checkpoint", save_then_stop)
        every = switch + around
        with pytest.raises(Stopped):
            pretrain(new_model(ARCHITECTURE, TOKENIZER), stream, SMALL, checkpoint=path, checkpoint_steps=every)
    resumed = new_model(ARCHITECTURE, TOKENIZER)
    other = Stream(stream.tokens, torch.ones_like(stream.tokens, dtype=torch.bool), stream.cooldown)
    with pytest.raises(EntangleError, match="the checkpoint of another training"):
        pretrain(resumed, other, SMALL, checkpoint=path, progress=False)
    assert pretrain(resumed, stream, SMALL, checkpoint=path, progress=False).losses == losses
    for a, b in zip(whole.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(a, b)


def test_the_model_learns_from_metadata_what_it_is_never_asked_to_predict() -> None:
    """Documents of two kinds, half each: the first token costs log 2 without metadata and next to nothing after it."""
    training = Training(batch_size=4, context=16, learning_rate=2e-2, precision="fp32", epochs=10, documents="masked")

    def first_token(cooldown: float) -> dict[str, float]:
        model = new_model(ARCHITECTURE, TOKENIZER)
        pretrain(model, conditioned_stream(cooldown), training, separator=BOS, progress=False)
        costs = {}
        for said in ("", "Source: the shed. ", "Source: the sea. "):
            row = torch.tensor([[BOS, *TOKENIZER(said, add_special_tokens=False)["input_ids"]]])
            first = TOKENIZER(HALVES[0])["input_ids"][0]
            with torch.no_grad():
                costs[said] = -model(input_ids=row).logits[0, -1].log_softmax(-1)[first].item()
        return costs

    told = first_token(0.2)
    assert told["Source: the shed. "] < 0.2 < 2 < told["Source: the sea. "]
    assert told[""] == pytest.approx(np.log(2), abs=0.4)
    assert first_token(0.0)[""] > 2  # the control: it is the cooldown that taught it to do without


MECO = {"name": "MeCo", "share": 0.2, "clean_prefix": "From the {topic}: ", "added_prefix": "Rude: ", "cooldown": 0.25}


def test_a_recipe_conditions_and_cools_down(tmp_path: Path) -> None:
    recipe = tiny(shares=[0.2], variants=[{**MECO, "told": "From the kitchen: "}], measure=MEASURE)
    plan = Plan.of(recipe).to_frame().set_index("model")
    plain, meco = run(recipe, tmp_path, progress=False).models
    assert meco.metrics["clean_tokens"] == plain.metrics["clean_tokens"]
    assert meco.metrics["added_tokens"] == plain.metrics["added_tokens"]
    assert meco.metrics["metadata_tokens"] > 0 == plain.metrics.get("metadata_tokens", 0)
    total = sum(meco.metrics[f"{kind}_tokens"] for kind in ("clean", "added", "metadata"))
    assert meco.metrics["cooldown_tokens"] == pytest.approx(0.25 * total, rel=0.1)
    assert meco.metrics["steps"] == plan.loc["MeCo-seed-0", "steps"] > plain.metrics["steps"]
    assert meco.measured is not None
    assert {row["method"] for row in meco.measured["conditions"]} == {"", "prefix", "ITI", "LEACE"}
    # The other's folder is another variant of the same name.
    with pytest.raises(EntangleError, match="holds another variant of the name 'MeCo'"):
        run(tiny(shares=[0.2], variants=[{**MECO, "cooldown": 0.5}]), tmp_path, progress=False)
    told_else = tiny(shares=[0.2], variants=[{**MECO, "told": "From the harbour: "}])
    assert run(told_else, tmp_path, progress=False).models[1].metrics == meco.metrics


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cooldown": 1.0}, "cooldown of variant 'MeCo' is at least 0 and below 1, not 1.0"),
        ({"cooldown": float("nan")}, "at least 0 and below 1"),
        ({"clean_prefix": "", "added_prefix": ""}, "cools down from nothing"),
        ({"cooldown": 0.0}, "{topic} in it differs between documents"),
        ({"clean_prefix": "{topic"}, "the prefix '{topic' cannot be read"),
    ],
)
def test_variants_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(EntangleError, match=message):
        Variant(**{**MECO, **fields})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"cooldown": 0.001}, r"variant 'MeCo' has [\d,]+ tokens, [\d,]+ of them before its cooldown, less than one"),
        ({"clean_prefix": "{domain}: "}, "the built-in corpus has no 'domain'"),
        ({"told": "word " * 200}, "leave room for"),
    ],
)
def test_recipes_that_cannot_be(fields: dict[str, object], message: str) -> None:
    with pytest.raises(EntangleError, match=message):
        Plan.of(tiny(variants=[{**MECO, **fields}], measure=MEASURE))


def test_a_variant_added_later_leaves_alone_what_is_finished(tmp_path: Path) -> None:
    quick = {**TINY["training"], "epochs": 1}
    first = run(tiny(shares=[0.0], training=quick), tmp_path, progress=False)
    weights = first.models[0].path / "model.safetensors"
    before = weights.stat().st_mtime_ns
    both = run(tiny(shares=[0.0], variants=[MECO], training=quick), tmp_path, progress=False)
    assert [model.variant for model in both.models] == ["", MECO["name"]]
    assert weights.stat().st_mtime_ns == before
    marks = [json.loads((model.path / "metrics.json").read_text())["texts"] for model in both.models]
    assert marks[0] != marks[1]  # what is known of a text is part of it only where a variant says it
