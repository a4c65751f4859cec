"""A language model as a judge: what it is asked, in both orders, calibrated and refused where it knows nothing."""

import numpy as np
import pytest
import torch
from sklearn.isotonic import IsotonicRegression
from sklearn.model_selection import train_test_split

from entangle.errors import EntangleError
from entangle.evaluation import JudgeScorer, score, scorer_key
from entangle.evaluation.scoring.calibrating import Calibration, apart
from tokenizing import WORDS, tokenizer

CHAT = (
    "{{ bos_token }}{% for m in messages %}{{ 'the ' + m.content + ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'house ' }}{% endif %}"
)
QUESTION = "ran very far"


def texts(n, seed=0):
    rng = np.random.default_rng(seed)
    return [" ".join(rng.choice(WORDS, rng.integers(2, 7))) for _ in range(n)]


@pytest.fixture
def judge(tiny_model):
    def make(kind="bos", chat=None, **settings):
        read = tokenizer(kind)
        read.chat_template = chat
        return JudgeScorer(tiny_model("llama"), read, QUESTION, **{"answers": ("cat", "dog"), **settings})

    return make


@pytest.mark.parametrize("chat", [None, CHAT])
@pytest.mark.parametrize("prompts", [None, ["an old house", "by the river", "moon"]])
def test_it_is_the_softmax_over_the_answers_after_each_order(chat, prompts, judge, tiny_model):
    asked = judge(chat=chat)
    some = texts(3)
    for batch_tokens in (1, 8192):
        asked.batch_tokens = batch_tokens
        p, mass = asked.ask(some, prompts)
        for i, text in enumerate(some):
            for k, options in enumerate(("cat or dog", "dog or cat")):
                middle = f"Text: {text}" if prompts is None else f"Prompt: {prompts[i]}\n\nAnswer: {text}"
                content = f"{QUESTION}\n\n{middle}\n\nReply with one word, {options}."
                if chat is None:
                    ids = asked.tokenizer(content + "\nReply:")["input_ids"]
                else:
                    messages = [{"role": "user", "content": content}]
                    ids = asked.tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)[
                        "input_ids"
                    ]
                logits = tiny_model("llama")(torch.tensor([ids])).logits[0, -1].double()
                cat, dog = (asked.tokenizer.convert_tokens_to_ids(word) for word in ("cat", "dog"))
                assert p[i, k] == pytest.approx(logits[[cat, dog]].softmax(-1)[0].item(), abs=1e-5)
        assert ((mass > 0) & (mass < 1)).all()


def test_which_answer_is_named_first_makes_no_difference_once_both_orders_are_asked(judge):
    some = texts(6)
    one = judge(unchecked=True)(some)
    np.testing.assert_allclose(judge(answers=("dog", "cat"), counts="cat", unchecked=True)(some), one, atol=1e-6)
    np.testing.assert_allclose(judge(counts="dog", unchecked=True)(some), 1 - one, atol=1e-6)
    # One order alone is another matter.
    single = judge(both_orders=False, unchecked=True)(some)
    swapped = judge(answers=("dog", "cat"), counts="cat", both_orders=False, unchecked=True)(some)
    assert np.abs(single - swapped).max() > 1e-3


def test_it_is_not_believed_before_it_was_compared_with_labels(judge):
    with pytest.raises(EntangleError, match="never compared with labels"):
        judge()(texts(2))
    some = texts(80)
    raw = judge().ask(some)[0].mean(-1)
    labels = (raw > np.median(raw)).astype(int)
    judged = judge().fit(some, labels)
    assert judged.report["auroc"] == 1
    assert judged.report["auroc_low"] < 1
    assert judged.report["n_fit"] == judged.report["n_held_out"] == 40
    assert judged.report["brier"] < judged.report["brier_raw"]
    assert 0 <= judged.report["order_flips"] <= 1
    assert np.corrcoef(score(judged, some), labels)[0, 1] > 0.8
    assert scorer_key(judged) != scorer_key(judge(unchecked=True))


def test_one_that_tells_nothing_is_refused_unless_asked_for(judge):
    some, labels = texts(80), np.arange(80) % 2
    with pytest.raises(EntangleError, match=r"AUROC 0\.\d\d \[.*\] on 40 texts held out, but 0.7 is asked for"):
        judge().fit(some, labels)
    taken = judge().fit(some, labels, least=0)
    assert taken.report["auroc"] < 0.7
    assert np.ptp(taken(some)) < 0.5  # calibrated, it says that it does not know


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_calibration_undoes_overconfidence_on_texts_it_has_not_seen(kind):
    rng = np.random.default_rng(0)
    truth = rng.uniform(0.05, 0.95, 6000)
    labels = (rng.uniform(size=len(truth)) < truth).astype(int)
    odds = np.log(truth / (1 - truth))
    said = 1 / (1 + np.exp(-(3 * odds + 1)))  # too sure by three, and leaning to yes
    fit, rest = slice(0, 3000), slice(3000, None)
    calibration = Calibration.fit(kind, said[fit], labels[fit])
    calibrated = calibration(said[rest])
    assert np.abs(calibrated - truth[rest]).mean() < 0.03 < np.abs(said[rest] - truth[rest]).mean()
    order = np.argsort(said[rest])
    assert (np.diff(calibrated[order]) >= 0).all()
    if kind == "isotonic":
        theirs = IsotonicRegression(out_of_bounds="clip").fit(said[fit], labels[fit]).predict(said[rest])
        np.testing.assert_allclose(calibrated, theirs, atol=1e-9)
    else:
        np.testing.assert_allclose(calibration.numbers, [1 / 3, -1 / 3], atol=0.05)


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"answers": ("cat", "old house")}, "'old house' is 2 tokens"),
        ({"answers": ("the cat", "the dog")}, "start with the same token"),
        ({"answers": ("cat", "catsup")}, None),  # an unknown word is one token, and another than a known one
        ({"answers": ("catsup", "mustard")}, "start with the same token"),
        ({"answers": ("cat",)}, "two answers or more"),
        ({"answers": ("cat", "cat")}, "all different"),
        ({"counts": "fox"}, "counts='fox' is none of the answers"),
        ({"template": "{question} {options}"}, r"holds \{text\} and \{options\}"),
    ],
)
@pytest.mark.parametrize("chat", [None, CHAT])
def test_answers_that_no_single_token_tells_apart_are_refused(settings, error, chat, judge):
    if error is None:
        judge(chat=chat, **settings)
        return
    with pytest.raises(EntangleError, match=error) as caught:
        judge(chat=chat, **settings)
    assert "\n" not in str(caught.value)


def test_an_answer_is_written_as_the_template_writes_it(judge):
    """Some templates put a space before the assistant's words, which makes another token of them."""
    spaced = CHAT.replace("'the '", "('' if m.role == 'user' else ' ')")
    pieces = judge("bytes", spaced.replace("'house '", "'house'"), answers=("y", "n"))
    tokens = [pieces.tokenizer.decode([token]) for token in pieces.tokens]
    assert all(len(token.strip()) == 1 for token in tokens)


def test_a_text_too_long_for_the_judge_is_named(judge):
    with pytest.raises(EntangleError, match=r"text 1 with the judge's question has \d+ tokens, but the context leaves"):
        judge(unchecked=True)(["cat", " ".join(["cat"] * 70)])


def test_a_template_of_ones_own_reads_braces_in_texts_as_they_are(judge):
    asked = judge(template="{text} {options}", unchecked=True)
    assert asked._content("{question} cat", None, ("a", "b")) == "{question} cat a or b"
    assert np.isfinite(asked(["{cat}"])).all()


def test_a_judge_is_asked_what_it_was_compared_on(judge):
    """Its calibration and its AUROC are of one question: with prompts beside the texts it would be asked another."""
    some, prompts = texts(60), ["an old house"] * 60
    labels = (judge().ask(some)[0].mean(-1) > np.median(judge().ask(some)[0].mean(-1))).astype(int)
    alone, beside = judge().fit(some, labels, least=0), judge().fit(some, labels, prompts=prompts, least=0)
    np.testing.assert_array_equal(alone(some[:4], prompts[:4]), alone(some[:4]))
    np.testing.assert_array_equal(score(alone, some[:4], prompts[:4]), alone(some[:4]))
    with pytest.raises(EntangleError, match="on answers beside their prompts, but no prompts arrived: pass prompts="):
        beside(some[:4])
    other = ["moon"] * 4
    assert np.abs(beside(some[:4], prompts[:4]) - beside(some[:4], other)).max() > 1e-4
    assert scorer_key(alone) != scorer_key(beside)
    # One that was never compared is asked whatever arrives.
    raw = judge(unchecked=True)
    assert np.abs(raw(some[:4]) - raw(some[:4], prompts[:4])).max() > 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"answers": "cat"}, "answers must be a list of strings, but one string arrived"),
        ({"answers": {"cat", "dog"}}, "answers must be in an order, but a set has none"),
        ({"template": '{text} {options} {"a": 1}'}, "a judge's template holds {text} and {options}.* nothing else in"),
        ({"template": "{text} {options} {answer}"}, "a judge's template holds {text} and {options}.* nothing else in"),
        ({"template": "{text} {options} {}"}, "a judge's template holds {text} and {options}.* nothing else in"),
    ],
)
def test_a_question_that_cannot_be_written_is_refused(settings, message, judge):
    with pytest.raises(EntangleError, match=message) as caught:
        judge(**settings)
    assert "\n" not in str(caught.value)


def test_a_template_with_a_place_for_the_prompt_needs_one(judge):
    asked = judge(template="{question} {{ {prompt} }} {text} {options}", unchecked=True)
    assert asked(["the cat"], ["moon"]).shape == (1,)
    with pytest.raises(EntangleError, match="template has a place for the prompt, but no prompts arrived"):
        asked(["the cat"])
    with pytest.raises(EntangleError, match="texts must be a list of strings, but one string arrived"):
        judge(unchecked=True)("the cat")
    with pytest.raises(EntangleError, match=r"least is an AUROC from 0 to 1.* got nan"):
        judge().fit(texts(40), np.arange(40) % 2, least=float("nan"))


def test_copies_of_an_answer_to_one_prompt_are_never_on_both_sides():
    some, labels = texts(40), np.arange(40) % 2
    for prompts, n in ((None, 40), (["moon", "river"] * 20, 40)):
        known = some * 3 if prompts is None else list(zip(some * 3, prompts * 3, strict=True))
        fit, rest = apart(known, np.tile(labels, 3), 0.5, seed=0, least=2)
        assert not {known[i] for i in fit} & {known[i] for i in rest}
        assert sorted([*fit, *rest]) == list(range(3 * n))
        assert np.tile(labels, 3)[fit].mean() == 0.5
    # Without copies it is scikit-learn's own split, row for row.
    expected = train_test_split(np.arange(40), test_size=0.5, stratify=labels, random_state=3)
    for ours, theirs in zip(apart(some, labels, 0.5, seed=3, least=2), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
