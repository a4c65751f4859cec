"""Scorers that see the prompt beside the answer, and the caches and sweeps that hand it to them."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification

from entangle.errors import EntangleError
from entangle.evaluation import (
    AnswerScorer,
    CachedScorer,
    ClassifierScorer,
    HarmonicMeanScorer,
    LanguageScorer,
    LengthScorer,
    RefusalScorer,
    score,
    scorer_key,
    sees_prompts,
    tradeoff,
)
from entangle.interventions import AddDirection
from tokenizing import tokenizer as kind_of

ASKED = [{"role": "user", "content": "the cat"}]


class Echoes:
    """Share of an answer's words that its prompt says too; keeps what it was asked."""

    name = "echoes"

    def __init__(self):
        self.asked = []

    def __call__(self, texts, prompts=None):
        self.asked += [(text, str(prompt)) for text, prompt in zip(texts, prompts, strict=True)]
        said = [set(str(prompt).split()) for prompt in prompts]
        return np.array(
            [np.mean([word in words for word in text.split()]) for text, words in zip(texts, said, strict=True)]
        )


def test_a_scorer_sees_the_prompt_of_each_text_that_says_something():
    scorer = Echoes()
    np.testing.assert_array_equal(score(scorer, ["a b", " ", "c"], ["a x", "y", "c"]), [0.5, 0, 1])
    assert scorer.asked == [("a b", "a x"), ("c", "c")]
    assert isinstance(scorer, AnswerScorer)


def test_one_that_looks_at_texts_alone_is_not_handed_prompts():
    def alone(texts):
        return np.zeros(len(texts))

    assert not sees_prompts(alone)
    assert score(alone, ["a"], ["b"]).tolist() == [0]


def test_prompts_are_one_a_text_and_are_prompts():
    with pytest.raises(EntangleError, match="one prompt for each text; got 1 for 2"):
        score(Echoes(), ["a", "b"], ["c"])
    with pytest.raises(EntangleError, match="prompt 1 must be a string or a list of messages"):
        score(Echoes(), ["a", "b"], ["c", 3])


def test_the_cache_keys_on_the_prompt_where_the_scorer_sees_it(tmp_path):
    scorer = Echoes()
    cached = CachedScorer(scorer, tmp_path / "scores.db")
    assert cached(["a", "a"], prompts=["a", "b"]).tolist() == [1, 0]
    assert cached(["a", "a"], prompts=["b", "a"]).tolist() == [0, 1]
    assert len(scorer.asked) == 2
    assert cached(["a"], prompts=[[{"role": "user", "content": "a"}]]).shape == (1,)
    assert len(scorer.asked) == 3  # a conversation is another prompt than its words


def test_the_cache_of_a_scorer_of_texts_alone_does_not_ask_again_for_another_prompt():
    calls = []

    def alone(texts):
        calls.extend(texts)
        return np.zeros(len(texts))

    alone.content = lambda: "alone"
    cached = CachedScorer(alone)
    cached(["a"], prompts=["x"])
    cached(["a"], prompts=["y"])
    assert calls == ["a"]


def test_no_prompt_and_answer_share_a_key_with_another_split_of_the_same_characters():
    scorer = Echoes()
    cached = CachedScorer(scorer)
    cached(["b c"], prompts=["a"])
    cached(["c"], prompts=["a b"])
    assert len(scorer.asked) == 2


def test_a_sweep_hands_every_sample_its_prompt(tiny_model, tiny_tokenizer):
    model, scorer = tiny_model("llama"), Echoes()
    edit = AddDirection(torch.ones(32), "resid_post", 1)
    prompts = ["the cat sat", "a dog"]
    sweep = tradeoff(
        model,
        tiny_tokenizer,
        edit,
        alphas=[0.1],
        prompts=prompts,
        scorer=scorer,
        texts=["the quick brown fox", "a cat sat"],
        samples=2,
        max_new_tokens=6,
        progress=False,
    )
    told = {text: prompt for text, prompt in scorer.asked}
    for condition in (sweep.plain, *sweep.changed):
        for prompt, answers in zip(prompts, condition.continuations, strict=True):
            assert all((answer, prompt) in scorer.asked for answer in answers if answer.strip())
    assert set(told.values()) == set(prompts)


def classifier(model_type, n_labels, **config):
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = AutoConfig.for_model(
        model_type, **sizes, vocab_size=96, pad_token_id=0, max_position_embeddings=66, num_labels=n_labels, **config
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


ANSWERS = ["sat on the mat", "moon", "a fox and a dog ran far away"]
QUESTIONS = ["the cat", "an old house by the river", "where"]


def test_pairs_are_what_the_tokenizer_makes_of_two_texts_with_their_types():
    tokenizer = kind_of("cls_sep")
    tokenizer.backend_tokenizer.post_processor = _pair_template()
    model = classifier("bert", 3)
    expected, untyped = [], []
    for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
        inputs = tokenizer(question, answer, return_tensors="pt", return_token_type_ids=True)
        assert inputs["token_type_ids"].sum() > 0
        expected.append(model(**inputs).logits.softmax(-1)[0, 1].item())
        del inputs["token_type_ids"]
        untyped.append(model(**inputs).logits.softmax(-1)[0, 1].item())
    tokenizer.model_input_names = ["input_ids", "token_type_ids", "attention_mask"]
    for batch_tokens in (1, 8192):
        scorer = ClassifierScorer(model, ["LABEL_1"], tokenizer=tokenizer, pairs="text_pair", batch_tokens=batch_tokens)
        np.testing.assert_allclose(scorer(ANSWERS, prompts=QUESTIONS), expected, atol=1e-5)
    assert np.abs(np.array(expected) - untyped).max() > 1e-3  # the types matter to this model
    alone = ClassifierScorer(model, ["LABEL_1"], tokenizer=tokenizer)
    assert np.abs(alone(ANSWERS) - expected).max() > 1e-3
    assert scorer_key(alone) != scorer_key(scorer)


def _pair_template():
    from tokenizers.processors import TemplateProcessing

    return TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 4), ("[SEP]", 5)]
    )


def test_a_reward_model_scores_the_sigmoid_of_its_logit_on_the_conversation():
    tokenizer = kind_of("bos")
    tokenizer.chat_template = "{{ bos_token }}{% for m in messages %}{{ m.role + ' ' + m.content + ' ' }}{% endfor %}"
    model = classifier("llama", 1)
    scorer = ClassifierScorer(model, tokenizer=tokenizer, pairs="chat")
    for prompts in (QUESTIONS, [[{"role": "user", "content": q}] for q in QUESTIONS]):
        expected = []
        for question, answer in zip(QUESTIONS, ANSWERS, strict=True):
            messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
            ids = tokenizer.apply_chat_template(messages, return_tensors="pt", return_dict=True)["input_ids"]
            expected.append(model(ids).logits.sigmoid().item())
        np.testing.assert_allclose(scorer(ANSWERS, prompts=prompts), expected, atol=1e-5)


def test_pairs_without_prompts_and_labels_that_are_missing_are_refused():
    tokenizer = kind_of("bos")
    with pytest.raises(EntangleError, match="no prompts arrived"):
        ClassifierScorer(classifier("llama", 1), tokenizer=tokenizer, pairs="text_pair")(["the cat"])
    with pytest.raises(EntangleError, match="needs the labels"):
        ClassifierScorer(classifier("bert", 2), tokenizer=tokenizer)
    with pytest.raises(EntangleError, match="pairs must be one of"):
        ClassifierScorer(classifier("bert", 2), ["LABEL_0"], tokenizer=tokenizer, pairs="both")
    long = [" ".join(["cat"] * 70)]
    tokenizer.chat_template = "{% for m in messages %}{{ m.content + ' ' }}{% endfor %}"
    with pytest.raises(EntangleError, match="have 71 tokens, but the classifier's context holds 66"):
        ClassifierScorer(classifier("llama", 1), tokenizer=tokenizer, pairs="chat")(["cat"], prompts=long)
    cut = ClassifierScorer(classifier("llama", 1), tokenizer=tokenizer, pairs="text_pair")
    assert np.isfinite(cut(["cat"], prompts=long)).all()


def test_the_harmonic_mean_is_scipys_and_zero_where_a_part_is():
    from scipy.stats import hmean

    rng = np.random.default_rng(0)
    values = rng.uniform(0.05, 1, (3, 20))
    names = [str(i) for i in range(20)]

    def part(k):
        def scorer(texts):
            return np.array([values[k, int(text)] for text in texts])

        scorer.__name__ = f"part{k}"
        return scorer

    three = HarmonicMeanScorer({f"part{k}": part(k) for k in range(3)})
    np.testing.assert_allclose(three(names), hmean(values))
    # AxBench's, on 0 to 2, is twice ours.
    np.testing.assert_allclose(2 * three(names), hmean(2 * values))
    values[1, 3] = 0
    assert three(names)[3] == 0
    np.testing.assert_allclose(three(["0"], prompts=["a prompt"]), three(["0"]))
    with pytest.raises(EntangleError, match="two scorers or more"):
        HarmonicMeanScorer({"one": part(0)})


REFUSED = [
    "I'm sorry, but I can't help with that.",
    "I’m sorry, but I cannot assist with this request.",
    "As an AI language model, I don't have opinions about people.",
    "Sorry, I can't do that.",
    "I must respectfully decline to write this.",
    "I am not able to provide instructions for that.",
    "Unfortunately, that is against our usage policies.",
    "I won't be able to help you with that.",
]
ANSWERED = [
    "I'm sorry for your loss. Here is what you can do.",
    "Paris is the capital of France.",
    "I can't wait to show you! First, boil the water.",
    "You cannot divide by zero, so the answer is undefined.",
    "Sure, I can help with that.",
    "He said that he would not help, and she left.",
    "As an assistant, my job is to help. The answer is 42.",
]


def test_refusals_are_told_from_answers_that_use_the_same_words():
    assert RefusalScorer()(REFUSED).tolist() == [1] * len(REFUSED)
    assert RefusalScorer()(ANSWERED).tolist() == [0] * len(ANSWERED)
    assert RefusalScorer()(["x" * 400 + " I can't help with that."]).tolist() == [0]
    with pytest.raises(EntangleError, match="no regular expression"):
        RefusalScorer(phrases=("(",))


TEXTS = {
    "en": "The price of the house was too high for them, and they left it as it was.",
    "de": "Der Preis des Hauses war für sie zu hoch, und sie haben es nicht gekauft.",
    "fr": "Le prix de la maison est trop élevé pour eux, et ils ne sont pas dans la ville.",
    "es": "El precio de la casa es muy alto para ellos, y no lo han comprado en la ciudad.",
    "it": "Il prezzo della casa è troppo alto per loro, e non sono più nella città.",
    "pt": "O preço da casa não é muito alto, mas para eles foi uma surpresa do ano.",
    "nl": "De prijs van het huis is niet te hoog voor hen, en dat is ook goed.",
    "ru": "Цена дома была слишком высокой.",
    "ja": "家の値段はとても高かったです。",
    "zh": "房子的价格太高了。",
    "ko": "집값이 너무 비쌌다.",
    "el": "Το σπίτι ήταν πολύ ακριβό.",
}


def test_each_language_is_told_from_the_others():
    names = list(TEXTS)
    scores = np.array([LanguageScorer(language)([TEXTS[other] for other in names]) for language in names])
    assert (scores.argmax(0) == np.arange(len(names))).all()
    assert (np.diag(scores) > 0.5).all()
    assert (scores - np.diag(np.diag(scores)) < 0.5).all()
    with pytest.raises(EntangleError, match="'tlh' is not known"):
        LanguageScorer("tlh")


def test_length_in_words_and_in_tokens(tiny_tokenizer):
    text = "the quick brown fox"
    assert LengthScorer(most=8)([text]).tolist() == [0.5]
    n_tokens = len(tiny_tokenizer(text, add_special_tokens=False)["input_ids"])
    scorer = LengthScorer(most=2 * n_tokens, tokenizer=tiny_tokenizer)
    assert scorer([text, text * 5]).tolist() == [0.5, 1]
    assert scorer_key(scorer) != scorer_key(LengthScorer(most=2 * n_tokens))


def test_one_string_is_no_list_of_phrases_and_scorers_have_names():
    with pytest.raises(EntangleError, match="phrases must be a list of strings, but one string arrived"):
        RefusalScorer(phrases="sorry")  # every text with an s in it would refuse
    assert RefusalScorer(phrases=["sorry"])(["So be it", "Sorry, no"]).tolist() == [0, 1]
    with pytest.raises(EntangleError, match=r"a mean needs scorers by name, .* got a list"):
        HarmonicMeanScorer([LengthScorer(4), LanguageScorer("en")])


def test_words_are_no_scores():
    def words(texts):
        return ["high"] * len(texts)

    with pytest.raises(EntangleError, match="scorer 'words' must return one number for each text; got"):
        score(words, ["a"])
