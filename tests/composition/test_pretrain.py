"""Training: the loss is the model's own, the data order is a permutation, and the same seed gives the same weights."""

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from entangle.composition import Training, new_model, train_tokenizer
from entangle.composition.training.pretrain import (
    check_masks_documents,
    document_positions,
    loss_function,
    pretrain,
)
from entangle.composition.training.stream import Stream
from entangle.errors import EntangleError

ARCHITECTURE = {
    "model_type": "olmo2",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
SMALL = Training(batch_size=4, context=16, learning_rate=1e-2, precision="fp32")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the cat sat on the mat", "a dog ran over the mat"], 280)


def stream(length: int, seed: int = 0) -> torch.Tensor:
    """A cycle of five tokens with rare slips: easy to learn, but not to know in advance."""
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.arange(length) % 5 + 10
    slips = torch.rand(length, generator=generator) < 0.02
    return torch.where(slips, torch.randint(20, 30, (length,), generator=generator), tokens)


def weights(model: PreTrainedModel) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_same_seed_same_weights_and_the_global_random_state_is_left_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    torch.manual_seed(123)
    before = torch.get_rng_state()
    trained = []
    for initial, order in ((0, 0), (0, 0), (0, 1), (1, 0)):
        model = new_model(ARCHITECTURE, tokenizer, seed=initial)
        pretrain(model, stream(2000), SMALL, seed=order, progress=False)
        trained.append(weights(model))
    assert torch.equal(trained[0], trained[1])
    assert not torch.equal(trained[0], trained[2])
    assert not torch.equal(trained[0], trained[3])
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_training_learns_what_can_be_learnt(tokenizer: PreTrainedTokenizerFast, precision: str) -> None:
    training = Training(batch_size=4, context=16, learning_rate=1e-2, precision=precision, epochs=3)
    model = new_model(ARCHITECTURE, tokenizer, seed=0)
    history = pretrain(model, stream(4000), training, progress=False)
    assert history.losses[0] == pytest.approx(math.log(len(tokenizer)), rel=0.1)
    assert sum(history.losses[-10:]) / 10 < 0.5 < math.log(5)  # log 5 is what a model without context can reach
    assert history.tokens == len(history.losses) * 4 * 16
    assert not model.training
    assert all(p.dtype == torch.float32 for p in model.parameters())


def test_shuffled_tokens_teach_nothing_beyond_their_frequencies(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = stream(4000)
    tokens = tokens[torch.randperm(len(tokens), generator=torch.Generator().manual_seed(0))]
    history = pretrain(new_model(ARCHITECTURE, tokenizer), tokens, SMALL, progress=False)
    assert sum(history.losses[-10:]) / 10 > 1.5


def test_the_first_loss_is_the_models_own(tokenizer: PreTrainedTokenizerFast) -> None:
    tokens = stream(65)  # exactly one batch
    model = new_model(ARCHITECTURE, tokenizer)
    rows = torch.stack([tokens[i * 16 : i * 16 + 17] for i in range(4)])
    with torch.no_grad():
        expected = model(input_ids=rows, labels=rows).loss.item()
    assert pretrain(model, tokens, SMALL, progress=False).losses == [pytest.approx(expected, abs=1e-5)]


def test_every_epoch_visits_every_sequence_once() -> None:
    batches = Stream(torch.arange(41)).batches(Training(batch_size=4, context=4, epochs=2), 3)
    seen = (torch.cat(list(batches)) // 4).tolist()
    assert sorted(seen[:10]) == sorted(seen[10:]) == list(range(10))
    assert seen[:10] != seen[10:] != list(range(10))


def test_the_learning_rate_rises_then_falls_to_a_tenth() -> None:
    training = Training(learning_rate=1.0, warmup=0.1)
    rates = [training.rate(step, 100) for step in range(100)]
    assert rates[:10] == pytest.approx([(i + 1) / 10 for i in range(10)])
    assert all(a > b for a, b in pairwise(rates[10:]))
    assert rates[10] == 1.0
    assert training.rate(100, 100) == pytest.approx(0.1)


def test_a_wsd_stays_at_the_peak_until_its_decay() -> None:
    training = Training(learning_rate=1.0, warmup=0.1, schedule="wsd", decay=0.2)
    rates = [training.rate(step, 100) for step in range(100)]
    assert rates[10:81] == [1.0] * 71
    assert all(a > b for a, b in pairwise(rates[80:]))
    assert training.rate(100, 100) == pytest.approx(0.1)


def test_the_token_that_begins_documents_is_learnt_though_it_pads(tokenizer: PreTrainedTokenizerFast) -> None:
    begins = tokenizer.bos_token_id
    tokens = torch.tensor([begins, 10, 11, 12] * 100)
    model = new_model(ARCHITECTURE, tokenizer)
    assert model.config.pad_token_id == model.generation_config.pad_token_id == tokenizer.pad_token_id == begins
    embedding = model.get_input_embeddings().weight[begins].detach().clone()
    pretrain(model, tokens, Training(batch_size=4, context=16, precision="fp32", epochs=4), progress=False)
    assert embedding.norm() > 0 < (model.get_input_embeddings().weight[begins] - embedding).norm()
    with torch.no_grad():
        alone = model(input_ids=torch.tensor([[begins]])).logits[0, -1].softmax(-1)
    assert alone.argmax() == 10


def test_masked_documents_lose_as_much_as_alone(tokenizer: PreTrainedTokenizerFast) -> None:
    begins = tokenizer.bos_token_id
    first, second = [begins, 10, 11, 12, 13], [begins, 14, 15, 16]
    model = new_model(ARCHITECTURE, tokenizer)
    both = torch.tensor([[*first, *second, begins]])

    def loss(documents: str, row: torch.Tensor) -> float:
        training = Training(documents=documents, precision="fp32")
        return loss_function(model, training, begins)(row).item()

    alone = [torch.tensor([[*document, begins]]) for document in (first, second)]
    expected = (5 * loss("packed", alone[0]) + 4 * loss("packed", alone[1])) / 9
    assert loss("masked", both) == pytest.approx(expected, abs=1e-6)
    assert loss("packed", both) != pytest.approx(expected, abs=1e-6)  # the control: packed documents see each other


def test_positions_begin_anew_with_every_document() -> None:
    ids = torch.tensor([[5, 9, 1, 1, 9, 9, 2], [9, 1, 1, 1, 1, 1, 9]])
    assert document_positions(ids, 9).tolist() == [[0, 0, 1, 2, 0, 0, 1], [0, 1, 2, 3, 4, 5, 0]]


def test_models_that_cannot_mask_documents_are_refused(tiny_model: Callable[..., PreTrainedModel]) -> None:
    check_masks_documents(tiny_model("llama"), 1)
    with pytest.raises(EntangleError, match="OPTForCausalLM does not keep packed documents apart"):
        check_masks_documents(tiny_model("opt"), 1)
    with pytest.raises(EntangleError, match="pass separator="):
        loss_function(tiny_model("llama"), Training(documents="masked"))


def test_a_vocabulary_may_be_larger_than_the_tokenizers(tokenizer: PreTrainedTokenizerFast) -> None:
    assert new_model({**ARCHITECTURE, "vocab_size": 512}, tokenizer).config.vocab_size == 512
    with pytest.raises(EntangleError, match="more than the architecture's vocab_size of 100"):
        new_model({**ARCHITECTURE, "vocab_size": 100}, tokenizer)


@pytest.mark.slow
def test_fused_training_is_the_same_but_for_rounding(tokenizer: PreTrainedTokenizerFast) -> None:
    losses = []
    for fused in (False, True):
        training = Training(batch_size=4, context=16, learning_rate=1e-3, precision="fp32", compile=fused)
        losses.append(pretrain(new_model(ARCHITECTURE, tokenizer), stream(2000), training, progress=False).losses)
    assert losses[0] == pytest.approx(losses[1], abs=1e-3)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"precision": "fp16"}, "not 'fp16'"),
        ({"epochs": 0}, "epochs"),
        ({"batch_size": -1}, "batch_size"),
        ({"schedule": "step"}, "'cosine' or 'wsd', not 'step'"),
        ({"documents": "apart"}, "'packed' or 'masked'"),
        ({"decay": 2.0}, "decay of a training is a share"),
    ],
)
def test_unusable_training(fields: dict[str, object], message: str) -> None:
    with pytest.raises(EntangleError, match=message):
        Training(**fields)


def test_too_few_tokens_and_unknown_architectures(tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(EntangleError, match=r"40 tokens are less than one batch \(65\)"):
        pretrain(new_model(ARCHITECTURE, tokenizer), stream(40), SMALL, progress=False)
    with pytest.raises(EntangleError, match="transformers cannot build an architecture 'olmo99'"):
        new_model({"model_type": "olmo99"}, tokenizer)


def test_a_diverging_loss_is_reported(tokenizer: PreTrainedTokenizerFast) -> None:
    model = new_model(ARCHITECTURE, tokenizer)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(EntangleError, match="the loss is nan at step 0"):
        pretrain(model, stream(200), SMALL, progress=False)
