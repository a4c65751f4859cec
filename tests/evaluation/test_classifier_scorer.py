"""HuggingFace classifiers as scorers, against their own unpadded forward."""

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, pipeline

from entangle.errors import EntangleError
from entangle.evaluation import ClassifierScorer
from tokenizing import WORDS, tokenizer

TEXTS = ["the cat", "a quick brown fox jumps over the lazy dog", "moon", "the mat and the mat", "sat on"]
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48, "vocab_size": 96}


def classifier(model_type, labels, seed=0, **config):
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        model_type,
        **SIZES,
        pad_token_id=config.pop("pad_token_id", 0),
        **({} if model_type == "xlnet" else {"max_position_embeddings": 66}),
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
        **config,
    )
    model = AutoModelForSequenceClassification.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)
    return model


@pytest.mark.parametrize("model_type", ["bert", "roberta", "llama"])
def test_scores_are_those_of_each_text_alone(model_type, tiny_tokenizer):
    model = classifier(model_type, ["neutral", "insult", "threat"])
    expected = []
    for text in TEXTS:
        ids = torch.tensor([tiny_tokenizer(text)["input_ids"]])
        expected.append(model(ids).logits.softmax(-1)[0, [1, 2]].sum().item())
    for batch_tokens in (1, 20, 8192):
        scorer = ClassifierScorer(model, ["insult", "threat"], tokenizer=tiny_tokenizer, batch_tokens=batch_tokens)
        np.testing.assert_allclose(scorer(TEXTS), expected, atol=1e-5)
        np.testing.assert_allclose(scorer(TEXTS[::-1])[::-1], expected, atol=1e-5)
    other = ClassifierScorer(model, ["neutral"], tokenizer=tiny_tokenizer)
    np.testing.assert_allclose(other(TEXTS), 1 - np.array(expected), atol=1e-5)


def test_labels_that_do_not_exclude_each_other_take_the_largest_sigmoid(tiny_tokenizer):
    model = classifier("bert", ["toxic", "insult"], problem_type="multi_label_classification")
    ids = torch.tensor([tiny_tokenizer(TEXTS[0])["input_ids"]])
    expected = model(ids).logits.sigmoid().max().item()
    scorer = ClassifierScorer(model, ["toxic", "insult"], tokenizer=tiny_tokenizer)
    assert scorer(TEXTS[:1])[0] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("model_type", ["bert", "roberta"])
def test_texts_longer_than_the_context_are_cut(model_type, tiny_tokenizer):
    model = classifier(model_type, ["neutral", "toxic"])
    scorer = ClassifierScorer(model, ["toxic"], tokenizer=tiny_tokenizer)
    assert 0 <= scorer(["the cat sat on the mat " * 50])[0] <= 1


def test_an_unknown_label_lists_those_there_are(tiny_tokenizer):
    model = classifier("bert", ["neutral", "toxic"])
    with pytest.raises(EntangleError, match="no label 'hate'; its labels are neutral, toxic"):
        ClassifierScorer(model, ["hate"], tokenizer=tiny_tokenizer)
    with pytest.raises(EntangleError, match="needs the labels that count as toxic"):
        ClassifierScorer(model, [], tokenizer=tiny_tokenizer)
    with pytest.raises(EntangleError, match="needs its tokenizer"):
        ClassifierScorer(model, ["toxic"])


def test_from_a_directory_and_not_from_a_language_model(tmp_path, tiny_tokenizer, tiny_model):
    model = classifier("bert", ["neutral", "toxic"])
    model.save_pretrained(tmp_path / "classifier")
    tiny_tokenizer.save_pretrained(tmp_path / "classifier")
    loaded = ClassifierScorer(tmp_path / "classifier", ["toxic"])
    np.testing.assert_allclose(
        loaded(TEXTS), ClassifierScorer(model, ["toxic"], tokenizer=tiny_tokenizer)(TEXTS), atol=1e-6
    )
    tiny_model("llama").save_pretrained(tmp_path / "lm")
    tiny_tokenizer.save_pretrained(tmp_path / "lm")
    with pytest.raises(EntangleError, match="no trained classification head"):
        ClassifierScorer(tmp_path / "lm", ["LABEL_1"])
    with pytest.raises(EntangleError, match="no text-classification model"):
        ClassifierScorer(tmp_path / "nothing", ["toxic"])


def test_names_tell_checkpoints_apart(tiny_tokenizer):
    one, two = (classifier("bert", ["neutral", "toxic"], seed=s) for s in (0, 1))
    names = {ClassifierScorer(m, ["toxic"], tokenizer=tiny_tokenizer).name for m in (one, two, one)}
    assert len(names) == 2


def test_a_model_without_padding_is_refused(tiny_tokenizer):
    model = classifier("llama", ["neutral", "toxic"])
    model.config.pad_token_id = None
    with pytest.raises(EntangleError, match="no padding token"):
        ClassifierScorer(model, ["toxic"], tokenizer=tiny_tokenizer)


DECODERS = {
    "llama": {"num_key_value_heads": 2, "head_dim": 8},
    "gpt2": {},
    "qwen2": {"num_key_value_heads": 2},
    "xlnet": {"d_inner": 48, "d_head": 8},  # reads the last column
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
}


@pytest.mark.parametrize("pad", [0, 3, 95, -1, 999])
@pytest.mark.parametrize("model_type", ["bert", "roberta", *DECODERS])
def test_what_else_is_in_a_batch_changes_no_score(model_type, pad):
    """Whatever id the head looks for, and whatever the tokenizer pads with."""
    if pad not in (range(96) if model_type == "bert" else range(60)) and model_type in ("roberta", "bert"):
        pytest.skip("cannot be built with such an id")
    fields = DECODERS.get(model_type, {})
    model = classifier(model_type, ["neutral", "toxic"], pad_token_id=pad if pad in range(96) else 0, **fields)
    model.config.pad_token_id = pad
    ours = tokenizer("unadded")  # pads with its end of text
    texts = ["the cat", "the cat sat on a mat and looked at moon", "dog", "far away from the old house"]
    with torch.no_grad():
        alone = [model(torch.tensor([ours(text)["input_ids"]])).logits.softmax(-1)[0, 1].item() for text in texts]
    for batch_tokens in (1, 24, 8192):
        scorer = ClassifierScorer(model, ["toxic"], tokenizer=ours, batch_tokens=batch_tokens)
        np.testing.assert_allclose(scorer(texts), alone, atol=2e-5)


@pytest.mark.parametrize("kind", ["bos", "bos_eos", "cls_sep", "eos", "characters", "pieces"])
@pytest.mark.parametrize("model_type", ["bert", "llama"])
@pytest.mark.parametrize("sides", [("right", "right"), ("left", "left")])
def test_scores_are_those_of_huggingfaces_pipeline_one_text_at_a_time(model_type, kind, sides):
    """Also of texts longer than the context, whose closing token stays."""
    model = classifier(model_type, ["neutral", "toxic"], **DECODERS.get(model_type, {}))
    ours = tokenizer(kind, truncation_side=sides[0], padding_side=sides[1], model_max_length=12)
    texts = ["the cat", "the cat sat on a mat and looked at moon", " ".join(WORDS), "</s> dog"]
    pipe = pipeline("text-classification", model=model, tokenizer=ours, top_k=None)
    expected = []
    for text in texts:
        (scores,) = pipe([text], truncation=True, max_length=12)
        expected.append(next(entry["score"] for entry in scores if entry["label"] == "toxic"))
    np.testing.assert_allclose(ClassifierScorer(model, ["toxic"], tokenizer=ours)(texts), expected, atol=2e-5)


def test_padding_that_the_head_mistakes_for_text_would_change_a_score():
    """The control: the same padded batch, run by hand."""
    model = classifier("llama", ["neutral", "toxic"], pad_token_id=0, **DECODERS["llama"])
    rows = [[7, 8, 0, 0], [7, 8, 9, 10]]
    batch = torch.tensor([[3 if token == 0 else token for token in row] for row in rows])
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    with torch.no_grad():
        padded = model(input_ids=batch, attention_mask=mask).logits[0]
        assert (padded - model(torch.tensor([[7, 8]])).logits[0]).abs().max() > 0.01


def test_a_classifier_left_in_training_scores_without_dropout():
    model = classifier("bert", ["neutral", "toxic"], hidden_dropout_prob=0.5)
    scorer = ClassifierScorer(model, ["toxic"], tokenizer=tokenizer("cls_sep"))
    before = scorer(["the cat", "dog"])
    model.train()
    np.testing.assert_array_equal(scorer(["the cat", "dog"]), before)
    assert model.training
