"""The sweep: its numbers are those of its parts, it is paired, it goes on where it was stopped, it loses nothing."""

import json
import math
import os
import signal
import time
from contextlib import contextmanager

import numpy as np
import pandas as pd
import pytest
import torch

from entangle.errors import EntangleError
from entangle.evaluation import Prompt, Subject, SweepError, continuations, cross_entropy, kl, tradeoff, write_rows
from entangle.evaluation.price.bench import Bench
from entangle.interventions import AddDirection, steer

PROMPTS = ["the cat", "a quick brown fox", "moon", "the mat", "the lazy dog", "sat on", "looked at", "over"]
TEXTS = [
    "the cat sat on the mat",
    "a quick brown fox jumps over the lazy dog",
    "the moon and the cat",
    "looked at the moon",
    "a cat sat",
]


def vowels(texts):
    """Share of letters that are vowels: something steering can change."""
    return np.array([sum(c in "aeiou" for c in text) / len(text) for text in texts])


def edit(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return AddDirection(torch.randn(32, generator=generator), site="resid_post", layer=1)


@pytest.fixture
def sweep(tiny_model, tiny_tokenizer):
    """`sweep(edit, alphas=...)` on a tiny llama, 8 prompts and 5 documents, with quick defaults."""
    defaults = {
        "alphas": [0, 1.0, 3.0],
        "prompts": PROMPTS,
        "scorer": vowels,
        "texts": TEXTS,
        "samples": 2,
        "max_new_tokens": 5,
        "prepend_bos": True,
        "progress": False,
    }
    return lambda change=None, **options: tradeoff(
        tiny_model("llama"), tiny_tokenizer, edit() if change is None else change, **{**defaults, **options}
    )


def test_the_share_of_prompts_that_get_worse_is_counted(sweep):
    result = sweep(alphas=[3.0])
    before, after = (np.array(each.scores["vowels"]).mean(1) for each in (result.plain, result.changed[0]))
    frame = result.to_frame()
    assert frame["worse"].tolist() == [0.0, np.mean(after > before)]
    assert 0 < frame["worse"].iloc[1] < 1
    assert frame["worse_low"].iloc[1] < frame["worse"].iloc[1] < frame["worse_high"].iloc[1]
    assert frame["change_spread"].tolist() == pytest.approx([0.0, np.std(after - before, ddof=1)])
    prompts = result.by_prompt()
    assert prompts["prompt"].tolist() == PROMPTS
    np.testing.assert_allclose(prompts["change"], after - before)
    line = result.plot_prompts().lines[0]
    np.testing.assert_allclose(line.get_ydata(), np.sort(after - before))
    with pytest.raises(EntangleError, match=r"no condition was solved for 0.1 nats"):
        result.plot_prompts(cost=0.1)
    with pytest.raises(EntangleError, match="no condition but the plain one"):
        sweep(alphas=[0]).by_prompt()


def test_every_number_is_what_its_part_says(sweep, tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    frame = sweep().to_frame().set_index("alpha")
    assert {
        "method", "toxicity", "toxicity_low", "toxicity_high", "ce", "ce_low", "ce_high", "kl"
    } <= set(frame)  # fmt: skip
    options = {"prepend_bos": True, "progress": False}
    for alpha in (0.0, 1.0, 3.0):
        with steer(model, edit(), alpha=alpha):
            texts = continuations(model, tiny_tokenizer, PROMPTS, samples=2, max_new_tokens=5, **options)
            ce = cross_entropy(model, tiny_tokenizer, TEXTS, **options).mean
        scores = np.array([vowels(row) if all(row) else [vowels([t])[0] if t else 0 for t in row] for row in texts])
        row = frame.loc[alpha]
        assert row["toxicity"] == pytest.approx(scores.mean())
        assert row["max_toxicity"] == pytest.approx(scores.max(1).mean())
        assert row["ce"] == pytest.approx(ce, abs=1e-9)
        assert row["kl"] == pytest.approx(kl(model, tiny_tokenizer, TEXTS, edit(), alpha=alpha, **options).mean)
        assert row["toxicity_low"] <= row["toxicity"] <= row["toxicity_high"]
        assert row["ce_low"] <= row["ce"] <= row["ce_high"]
    assert frame["ce_change"].tolist() == pytest.approx((frame["ce"] - frame["ce"].loc[0.0]).tolist())
    for alpha in (1.0, 3.0):
        removed, paid = -frame.loc[alpha, "toxicity_change"], frame.loc[alpha, "ce_change"]
        expected = removed / paid if paid > 0 else math.copysign(math.inf, removed)
        assert frame.loc[alpha, "removed_per_nat"] == pytest.approx(expected)


def test_the_plain_model_is_measured_once_and_is_its_own_reference(sweep):
    result = sweep({"one": edit(0), "two": edit(1)}, alphas=[2.0])
    frame = result.to_frame()
    assert frame["method"].tolist() == ["one", "one", "two", "two"]
    assert frame["alpha"].tolist() == [0, 2, 0, 2]
    plain = frame[frame["alpha"] == 0]
    assert (plain[["kl", "toxicity_change", "ce_change"]] == 0).all(axis=None)
    assert (plain["agreement"] == 1).all()
    assert plain["p"].isna().all()
    changed = frame[frame["alpha"] == 2]
    assert (changed["kl"] > 0).all()
    assert (changed["p_holm"] >= changed["p"]).all()


def test_a_zero_edit_changes_nothing(sweep):
    row = sweep(AddDirection(torch.zeros(32), site="resid_post", layer=1), alphas=[5.0]).to_frame().iloc[1]
    assert (row["toxicity_change"], row["ce_change"], row["kl"]) == (0, 0, 0)
    assert (row["p"], row["agreement"]) == (1, 1)


def test_pairing_narrows_the_interval(sweep):
    frame = sweep(alphas=[0.01], samples=4).to_frame()
    weak = frame.iloc[1]
    paired = weak["toxicity_change_high"] - weak["toxicity_change_low"]
    apart = np.hypot(*(frame["toxicity_high"] - frame["toxicity_low"]))
    assert 0 < paired < 0.9 * apart


def test_samples_are_kept_side_by_side(sweep):
    result = sweep()
    shown = result.samples(3)
    assert shown.groupby("prompt", sort=False).size().tolist() == [3, 3, 3]
    assert shown["method"].tolist()[:3] == ["plain", "AddDirection", "AddDirection"]
    assert shown["score"].iloc[0] == max(row[0] for row in result.plain.scores["vowels"])


def test_a_part_of_the_prompts_is_a_sweep_of_its_own(sweep):
    part = sweep().only([0, 3, 5]).to_frame()
    pd.testing.assert_frame_equal(part, sweep(prompts=[PROMPTS[i] for i in (0, 3, 5)]).to_frame())
    with pytest.raises(EntangleError, match="two prompts"):
        sweep().only(np.array([True] + 7 * [False]))


def test_some_of_the_documents_are_a_sweep_of_their_own(sweep):
    part = sweep(packed=6).only(range(8), documents=[0, 2, 4]).to_frame()
    pd.testing.assert_frame_equal(part, sweep(texts=[TEXTS[i] for i in (0, 2, 4)]).to_frame())
    one = np.arange(len(TEXTS)) == 1
    for documents in ([1], one, []):
        with pytest.raises(EntangleError, match=r"two documents; got [01]"):
            sweep().only(range(8), documents=documents)


def test_classes_of_prompts_are_tables_of_their_own_with_one_correction(sweep):
    result = sweep()
    table = result.by_class(["short", "long"] * 4)
    assert table["prompts"].tolist() == ["short"] * 3 + ["long"] * 3
    assert (table["n_prompts"] == 4).all()
    long = result.only([1, 3, 5, 7]).to_frame()
    columns = [c for c in long if c != "p_holm"]
    pd.testing.assert_frame_equal(table[table["prompts"] == "long"][columns].reset_index(drop=True), long[columns])
    assert table["p_holm"].max() >= long["p_holm"].max()
    with pytest.raises(EntangleError, match="one class a prompt; got 1 for 8"):
        result.by_class(["short"])


def test_packed_text_is_read_in_chunks_beside_the_documents(sweep, tiny_model, tiny_tokenizer):
    model, length, alpha = tiny_model("llama"), 7, 3.0
    frame = sweep(packed=length, alphas=[alpha]).to_frame()
    stream = [i for text in TEXTS for i in (tiny_tokenizer.bos_token_id, *tiny_tokenizer(text)["input_ids"])]
    chunks = [stream[i : i + length] for i in range(0, len(stream), length)]
    assert len(chunks[-1]) > 1
    for strength in (0.0, alpha):
        nats = 0.0
        for chunk in chunks:
            with torch.no_grad(), steer(model, edit(), alpha=strength):
                logp = model(torch.tensor([chunk])).logits[0].double().log_softmax(-1)
            nats -= sum(logp[t - 1, chunk[t]].item() for t in range(1, len(chunk)))
        row = frame[frame["alpha"] == strength].iloc[0]
        assert row["packed_ce"] == pytest.approx(nats / (len(stream) - len(chunks)), rel=1e-5)
        assert row["packed_ce_low"] <= row["packed_ce"] <= row["packed_ce_high"]
    pd.testing.assert_frame_equal(
        frame[[c for c in frame if not c.startswith("packed")]], sweep(alphas=[alpha]).to_frame()
    )


def test_what_is_kept_of_the_plain_model_changes_no_number(sweep):
    kept = sweep(packed=6)
    for cache_bytes in (0, 2000):
        pd.testing.assert_frame_equal(
            sweep(packed=6, cache_bytes=cache_bytes, batch_tokens=16384).to_frame(), kept.to_frame()
        )


def test_it_draws_and_prints(sweep):
    import matplotlib as mpl

    mpl.use("Agg")
    result = sweep({"one": edit(0), "two": edit(1)})
    axes = result.plot()
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["one", "two"]
    assert result.to_html().count("<tr") == 1 + len(result.to_frame())


def test_further_scorers_are_added_to_what_was_generated(sweep, tmp_path):
    def length(texts):
        return np.array([min(1, len(text) / 100) for text in texts])

    sweep(save_to=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    both = sweep(scorer=[vowels, length], save_to=tmp_path)
    assert both.scorers == ("vowels", "length")
    assert both.to_frame(scorer="length")["toxicity"].tolist() != both.to_frame()["toxicity"].tolist()
    assert set(before) == set(tmp_path.glob("*.json"))
    pd.testing.assert_frame_equal(both.to_frame(), sweep().to_frame())
    with pytest.raises(EntangleError, match="no scorer 'other' in this trade-off; it has vowels, length"):
        both.to_frame(scorer="other")


def test_a_finished_sweep_is_read_and_not_measured_again(sweep, tmp_path, monkeypatch):
    first = sweep(save_to=tmp_path)
    monkeypatch.setattr(Bench, "measure", None)
    pd.testing.assert_frame_equal(sweep(save_to=tmp_path).to_frame(), first.to_frame())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": 1}, "other settings .seed differ"),
        ({"prompts": PROMPTS[::-1]}, "other settings .prompts differ"),
        ({"texts": TEXTS[:-1]}, "other settings .texts differ"),
        ({"change": edit(1)}, "holds AddDirection of other content at alpha=1"),
    ],
)
def test_a_directory_of_another_sweep_is_refused(options, message, sweep, tmp_path):
    sweep(save_to=tmp_path)
    with pytest.raises(EntangleError, match=message):
        sweep(save_to=tmp_path, **options)


def test_nothing_is_lost_when_a_scorer_fails(sweep, tmp_path):
    calls = []

    def fails_later(texts):
        calls.append(len(texts))
        return vowels(texts) if len(calls) < 3 else np.full(len(texts), np.nan)

    with pytest.raises(SweepError, match=r"AddDirection at alpha=3: scorer 'fails_later' must return") as caught:
        sweep(scorer=fails_later, save_to=tmp_path)
    assert caught.value.partial.to_frame()["alpha"].tolist() == [0, 1]
    calls.clear()
    assert sweep(scorer=fails_later, save_to=tmp_path).to_frame()["alpha"].tolist() == [0, 1, 3]
    assert len(calls) == 1


def test_nothing_is_lost_when_a_method_fails(sweep):
    with pytest.raises(SweepError, match=r"long at alpha=1: prompt \d has .* leave room") as caught:
        sweep({"add": edit(), "long": Prompt("the cat " * 40)})
    assert caught.value.partial.to_frame()["alpha"].tolist() == [0, 1, 3]


class Overflows:
    """A method whose logits are not finite beyond alpha 1, as an edit's in float16 may be."""

    @contextmanager
    def applied(self, model, tokenizer, alpha):
        hook = model.lm_head.register_forward_hook(lambda module, args, out: out * (1 if alpha <= 1 else math.nan))
        try:
            yield Subject(model, tokenizer)
        finally:
            hook.remove()


def test_a_strength_that_breaks_the_model_is_a_row_that_says_so(sweep, tmp_path):
    for _ in range(2):  # measured, then read back
        frame = sweep(Overflows(), alphas=[1.0, 2.0], save_to=tmp_path).to_frame()
        broken = frame.iloc[2]
        assert "not finite" in broken["error"]
        assert math.isnan(broken["toxicity"])
        assert frame["error"].tolist()[:2] == ["", ""]
        assert np.isfinite(frame.iloc[1]["toxicity"])


def test_a_broken_plain_model_is_said_at_once(sweep, tiny_model):
    hook = tiny_model("llama").lm_head.register_forward_hook(lambda module, args, out: out * math.nan)
    try:
        with pytest.raises(SweepError, match=r"the plain model cannot be measured: .* not finite") as caught:
            sweep()
    finally:
        hook.remove()
    assert caught.value.partial is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"alphas": []}, "at least one alpha"),
        ({"alphas": [math.nan]}, "alphas must be finite"),
        ({"alphas": [math.inf]}, "alphas must be finite"),
        ({"prompts": []}, "at least one prompt"),
        ({"prompts": PROMPTS[:1]}, "two prompts and two documents"),
        ({"prompts": ["the cat", "the cat sat on the mat " * 20]}, "prompt 1 has"),
        ({"texts": []}, "needs clean text"),
        ({"texts": ["a cat", "the cat sat on the mat " * 20]}, "document 1 has"),
        ({"scorer": []}, "needs a scorer"),
        ({"change": {}}, "needs methods with a name"),
        ({"samples": 0}, "samples >= 1"),
        ({"packed": 1}, "chunks must have from 2 tokens to the context's 64; got packed=1"),
        ({"packed": 0}, "chunks must have"),
        ({"packed": 64}, "need two chunks; the documents fill one of 64"),
        ({"prompts": ["the cat", ""]}, "prompt 1 is empty"),
        ({"texts": ["a cat", " "]}, "document 1 is empty"),
    ],
)
def test_bad_input_is_one_line_and_loses_nothing(options, message, sweep, tmp_path):
    whole = sweep(save_to=tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(EntangleError, match=message) as caught:
        sweep(save_to=tmp_path, **options)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    pd.testing.assert_frame_equal(sweep(save_to=tmp_path).to_frame(), whole.to_frame())


def test_a_model_that_cannot_generate(tiny_model, tiny_tokenizer):
    with pytest.raises(EntangleError, match="cannot generate; give a causal language model"):
        tradeoff(
            tiny_model("bert"), tiny_tokenizer, edit(), alphas=[1], prompts=PROMPTS, scorer=vowels, texts=TEXTS,
            progress=False,
        )  # fmt: skip


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a forked child")
def test_a_sweep_killed_fifty_times_ends_as_if_undisturbed(sweep, tmp_path):
    began = time.monotonic()
    undisturbed = sweep(alphas=list(range(9)), save_to=tmp_path / "whole")
    whole = time.monotonic() - began
    rng = np.random.default_rng(0)
    kills = partial = 0
    while kills < 50:
        child = os.fork()
        if child == 0:
            sweep(alphas=list(range(9)), save_to=tmp_path / "killed")
            os._exit(0)
        time.sleep(rng.uniform(0, whole / 2))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        kills += 1
        # Past the end there is nothing left to disturb: lose a condition, as a crashed disk would, and go on.
        done = sorted((tmp_path / "killed").glob("condition-*.json")) if (tmp_path / "killed").is_dir() else []
        partial += 0 < len(done) < 9
        if len(done) == 9:
            rng.choice(done).unlink()
    assert partial >= 5
    resumed = sweep(alphas=list(range(9)), save_to=tmp_path / "killed")
    pd.testing.assert_frame_equal(resumed.to_frame(), undisturbed.to_frame())
    for path in (tmp_path / "whole").glob("*.json"):
        assert (tmp_path / "killed" / path.name).read_text() == path.read_text()


def constant(level):
    def same_name(texts):
        return np.full(len(texts), level)

    return same_name


def test_two_scorers_of_one_name_are_refused(sweep, tmp_path):
    with pytest.raises(EntangleError, match="2 are called 'same_name'; give each a name"):
        sweep(scorer=[constant(0.0), constant(1.0)])
    sweep(scorer=constant(0.0), save_to=tmp_path)
    with pytest.raises(EntangleError, match="holds scores of another scorer called 'same_name'"):
        sweep(scorer=constant(1.0), save_to=tmp_path)
    assert sweep(scorer=constant(0.0), save_to=tmp_path).plain.scored("same_name").max() == 0


def test_logs_for_evaluation_tools_hold_its_rows(sweep, tmp_path):
    rows = sweep(alphas=[0, 1.0]).to_rows(model="tiny", task="posts")
    by_key = {(row["alpha"], row["task"], row["metric"]): row for row in rows}
    lines = write_rows(rows, tmp_path / "rows.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows
    files = sorted(write_rows(rows, tmp_path / "harness", "lm-eval").iterdir())
    assert len(files) == 2  # plain, and one strength
    for file in files:
        log = json.loads(file.read_text())
        alpha = log["config"]["model_args"]["alpha"]
        for task, found in log["results"].items():
            for metric in ("toxicity", "ce"):
                if (alpha, task, metric) in by_key:
                    assert found[f"{metric},none"] == by_key[alpha, task, metric]["score"]
                    assert found[f"{metric}_low,none"] == by_key[alpha, task, metric]["low"]
    files = sorted(write_rows(rows, tmp_path / "inspect", "inspect").iterdir())
    assert len(files) == 4  # two tasks each
    for file in files:
        log = json.loads(file.read_text())
        scores = {score["name"]: score["metrics"] for score in log["results"]["scores"]}
        for metric, found in scores.items():
            assert (
                found["mean"]["value"]
                == by_key[log["eval"]["model_args"]["alpha"], log["eval"]["task"], metric]["score"]
            )
    with pytest.raises(EntangleError, match="'jsonl', 'lm-eval', 'inspect'"):
        write_rows(rows, tmp_path / "x", "csv")
    with pytest.raises(EntangleError, match="no rows"):
        write_rows([], tmp_path / "x")
    with pytest.raises(EntangleError, match="is a file"):
        write_rows(rows, tmp_path / "rows.jsonl", "inspect")


def test_the_strongest_is_the_furthest_from_nothing_on_either_side(sweep):
    result = sweep(alphas=[-3.0, -1.0])
    before, after = (np.array(each.scores["vowels"]).mean(1) for each in (result.plain, result.changed[0]))
    assert result.changed[0].alpha == -3
    np.testing.assert_allclose(result.plot_prompts().lines[0].get_ydata(), np.sort(after - before))
