"""Experts, anti-experts and amateurs: each against its formula, and nothing where the two agree."""

import numpy as np
import pytest
import torch

from entangle.errors import EntangleError
from entangle.evaluation import Checkpoint, ContrastiveDecoding, DExperts, SelfDebias, language_shift, strength_for
from entangle.evaluation.language.generation import Sampling, sample
from entangle.evaluation.language.subject import Subject, applied
from entangle.evaluation.methods.mixing import NextLogits
from entangle.interventions import AddDirection
from entangle.models.rows import context_length
from entangle.storage import digest

PROMPTS = ["the cat", "a quick brown fox jumps over", "moon"]
TEXTS = ["the cat sat on the mat", "a quick brown fox jumps over the lazy dog", "the moon"]


def continued(method, model, tokenizer, alpha=1.0):
    with applied(method, model, tokenizer, alpha) as subject:
        return sample(subject, PROMPTS, Sampling(max_new_tokens=6, top_p=1e-6), progress=False)


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].double()


@pytest.fixture
def models(tiny_model):
    return [tiny_model("llama", seed=seed) for seed in (0, 1, 2)]


def test_an_expert_that_is_the_anti_expert_changes_nothing(models, tiny_tokenizer):
    plain, other, _ = models
    same = DExperts(anti_expert=other, expert=other)
    shift = language_shift(plain, tiny_tokenizer, TEXTS, same, alpha=3.0, progress=False)
    np.testing.assert_allclose(shift.kl, 0, atol=1e-5)
    assert continued(same, plain, tiny_tokenizer, 3.0) == continued(same, plain, tiny_tokenizer, 0.0)
    different = DExperts(anti_expert=other, expert=models[2])
    assert language_shift(plain, tiny_tokenizer, TEXTS, different, alpha=3.0, progress=False).kl.min() > 1e-3


def test_logits_move_by_the_difference_of_the_experts(models, tiny_tokenizer):
    plain, wanted, unwanted = models
    for method, parts in (
        (DExperts(unwanted, wanted), (wanted, unwanted)),
        (DExperts(unwanted), (plain, unwanted)),
        (DExperts(expert=wanted), (wanted, plain)),
    ):
        shift = language_shift(plain, tiny_tokenizer, TEXTS, method, alpha=0.7, progress=False)
        for i, text in enumerate(TEXTS):
            ids = tiny_tokenizer(text)["input_ids"]
            z, up, down = (logits(each, ids)[:-1] for each in (plain, *parts))
            logp = (z + 0.7 * (up - down)).log_softmax(-1)
            expected = -logp.gather(-1, torch.tensor(ids[1:])[:, None]).sum().item()
            assert shift.nats[i] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "mamba"])
def test_what_is_generated_follows_the_mixed_logits(kind, tiny_model, tiny_tokenizer):
    plain, unwanted = tiny_model(kind), tiny_model("llama", seed=1)
    found = continued(DExperts(unwanted), plain, tiny_tokenizer, 2.0)
    for prompt, (text,) in zip(PROMPTS, found, strict=True):
        ids = tiny_tokenizer(prompt)["input_ids"]
        new = []
        while len(new) < 6 and tiny_tokenizer.eos_token_id not in new:
            z, anti = (logits(each, [*ids, *new])[-1] for each in (plain, unwanted))
            new.append((z + 2.0 * (z - anti)).argmax().item())
        assert text == tiny_tokenizer.decode(new, skip_special_tokens=True)


def test_the_anti_expert_may_be_the_model_with_an_edit_baked_in(models, tiny_tokenizer):
    plain = models[0]
    edit = AddDirection(torch.ones(32), site="resid_post", layer=2)
    away = DExperts(anti_expert=edit.bake(plain, alpha=0.5))
    alpha = strength_for(plain, tiny_tokenizer, away, TEXTS, kl=0.01)
    shift = language_shift(plain, tiny_tokenizer, TEXTS, away, alpha=alpha, progress=False)
    assert shift.kl.sum() / shift.tokens.sum() == pytest.approx(0.01, rel=0.05)


def test_contrastive_decoding_is_its_formula_among_plausible_tokens(models, tiny_tokenizer):
    plain, amateur, _ = models
    for method, prefix, other, share in (
        (ContrastiveDecoding(amateur, plausible=0.5), "", amateur, 0.5),
        (ContrastiveDecoding(anti_prompt="the lazy dog and", plausible=0.0), "the lazy dog and", plain, 0.0),
    ):
        shift = language_shift(plain, tiny_tokenizer, TEXTS, method, alpha=0.8, progress=False)
        before = tiny_tokenizer(prefix)["input_ids"] if prefix else []
        for i, text in enumerate(TEXTS):
            ids = tiny_tokenizer(text)["input_ids"]
            p = logits(plain, ids)[:-1].log_softmax(-1)
            q = logits(other, [*before, *ids])[len(before) : -1].log_softmax(-1)
            plausible = p.exp() >= share * p.exp().amax(-1, keepdim=True)
            logp = torch.where(plausible, p + 0.8 * (p - q), p).log_softmax(-1)
            expected = -logp.gather(-1, torch.tensor(ids[1:])[:, None]).sum().item()
            assert shift.nats[i] == pytest.approx(expected, rel=1e-3)


def test_an_amateur_that_is_the_model_itself_changes_nothing(models, tiny_tokenizer):
    itself = ContrastiveDecoding(models[0])
    shift = language_shift(models[0], tiny_tokenizer, TEXTS, itself, alpha=4.0, progress=False)
    np.testing.assert_allclose(shift.kl, 0, atol=1e-5)


def test_strength_0_is_the_plain_model(models, tiny_tokenizer):
    plain = continued(SelfDebias(), models[0], tiny_tokenizer, 0.0)
    for method in (DExperts(models[1]), ContrastiveDecoding(models[1])):
        assert continued(method, models[0], tiny_tokenizer, 0.0) == plain


def test_what_a_method_lacks_or_cannot_use_is_one_clear_line(models, tiny_model, tiny_tokenizer, tmp_path):
    with pytest.raises(EntangleError, match=r"DExperts needs a checkpoint .*; got neither: give anti_expert="):
        DExperts()
    with pytest.raises(EntangleError, match="plausible must be a share"):
        ContrastiveDecoding(plausible=2.0)
    config = models[0].config
    small = type(models[0])(type(config)(**{**config.to_dict(), "vocab_size": 40}))
    for method in (DExperts(small), ContrastiveDecoding(small), Checkpoint(small)):
        with pytest.raises(EntangleError, match="it has 40 tokens, the plain model 96"):
            language_shift(models[0], tiny_tokenizer, TEXTS, method, progress=False)


def test_a_vocabulary_of_the_same_size_in_another_order_is_refused(models, tiny_tokenizer, tmp_path):
    import json

    models[1].save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    same = language_shift(models[0], tiny_tokenizer, TEXTS, DExperts(tmp_path), alpha=1.0, progress=False)
    held = language_shift(models[0], tiny_tokenizer, TEXTS, DExperts(models[1]), alpha=1.0, progress=False)
    np.testing.assert_allclose(same.nats, held.nats, rtol=1e-5)
    file = tmp_path / "tokenizer.json"
    saved = json.loads(file.read_text())
    words = saved["model"]["vocab"]
    one, other = list(words)[10:12]
    words[one], words[other] = words[other], words[one]
    file.write_text(json.dumps(saved))
    for method in (DExperts(tmp_path), Checkpoint(tmp_path)):
        with pytest.raises(EntangleError, match=r"its token 1[01] is .*give one with the plain model's tokenizer"):
            language_shift(models[0], tiny_tokenizer, TEXTS, method, progress=False)


def test_a_saved_sweep_knows_methods_by_their_models(models):
    marks = [digest(each) for each in (DExperts(models[1]), DExperts(models[2]), DExperts(expert=models[1]))]
    marks += [digest(each) for each in (ContrastiveDecoding(models[1]), ContrastiveDecoding())]
    assert len(set(marks)) == 5
    assert digest(DExperts(models[1])) == marks[0]


def test_a_second_reading_does_not_go_on_beyond_its_context(models, tiny_tokenizer):
    """A model with rotary positions would, without a word, at positions that it was never trained on."""
    subject = Subject(models[0], tiny_tokenizer)
    context = context_length(models[0], tiny_tokenizer)
    reading = NextLogits(subject, [[5] * (context - 2), [6]])
    new = torch.tensor([[7], [8]])
    for _ in range(3):  # the prompts, and the two tokens that there is room for
        reading(new)
    with pytest.raises(EntangleError, match=f"longer than its context of {context} tokens: shorten the prompts"):
        reading(new)
