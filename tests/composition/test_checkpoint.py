"""A training that was stopped, at any step and as often as you like, ends with the weights of one that was not."""

from pathlib import Path
from random import Random

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from entangle.composition import Training, new_model, train_tokenizer
from entangle.composition.training import pretrain as pretraining
from entangle.composition.training.pretrain import pretrain
from entangle.errors import EntangleError

ARCHITECTURE = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": True,
}
TRAINING = Training(batch_size=2, context=8, learning_rate=1e-2, precision="fp32", epochs=2)
TOKENS = torch.randint(0, 250, (401,), generator=torch.Generator().manual_seed(0))  # 50 steps
N_STEPS = 50


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_tokenizer(["the cat sat on the mat"], 260)


class Stopped(BaseException):
    """As a signal would stop it."""


def train_with_stops(
    tokenizer: PreTrainedTokenizerFast, path: Path, stops: list[int], every: int, monkeypatch: pytest.MonkeyPatch
) -> tuple[PreTrainedModel, list[float]]:
    """Train, stopping when so many steps of all attempts together have been made."""
    step, made = pretraining._step, 0

    def counted(*args: object) -> float:
        nonlocal made
        if made in stops:
            stops.remove(made)
            raise Stopped
        made += 1
        return step(*args)

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "_step", counted)
        while True:
            model = new_model(ARCHITECTURE, tokenizer)
            try:
                history = pretrain(model, TOKENS, TRAINING, checkpoint=path, checkpoint_steps=every, progress=False)
            except Stopped:
                continue
            assert not stops
            return model, history.losses


def test_stopped_trainings_end_as_undisturbed_ones(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = new_model(ARCHITECTURE, tokenizer)
    losses = pretrain(whole, TOKENS, TRAINING, progress=False).losses
    assert len(losses) == N_STEPS
    rng = Random(1)
    for attempt in range(4):
        stops = sorted(rng.sample(range(N_STEPS), 5))
        path = tmp_path / f"{attempt}.checkpoint"
        model, resumed = train_with_stops(tokenizer, path, stops, rng.choice((1, 7)), monkeypatch)
        assert resumed == losses
        for (name, a), b in zip(whole.named_parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b), name
    assert not list(tmp_path.iterdir())


def test_moments_matter(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: going on from the weights without the optimiser's moments ends elsewhere."""
    whole = new_model(ARCHITECTURE, tokenizer)
    losses = pretrain(whole, TOKENS, TRAINING, progress=False).losses
    load = pretraining.load_checkpoint

    def without_moments(path: Path, model: PreTrainedModel, optimiser: torch.optim.Optimizer, key: str) -> list[float]:
        found = load(path, model, optimiser, key)
        optimiser.state.clear()
        return found

    monkeypatch.setattr(pretraining, "load_checkpoint", without_moments)
    _, resumed = train_with_stops(tokenizer, tmp_path / "c", [30], 10, monkeypatch)
    assert resumed[:31] == losses[:31]
    assert resumed != losses


def test_checkpoints_of_other_trainings_and_broken_ones_are_refused(
    tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"

    save = pretraining.save_checkpoint

    def save_then_stop(*args: object) -> None:
        save(*args)
        raise Stopped

    with monkeypatch.context() as patch:
        patch.setattr(pretraining, "save_checkpoint", save_then_stop)
        with pytest.raises(Stopped):
            pretrain(new_model(ARCHITECTURE, tokenizer), TOKENS, TRAINING, checkpoint=path, checkpoint_steps=5)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]
    for tokens, seed in ((TOKENS + 1, 0), (TOKENS, 1)):
        with pytest.raises(EntangleError, match="the checkpoint of another training"):
            pretrain(new_model(ARCHITECTURE, tokenizer), tokens, TRAINING, seed=seed, checkpoint=path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(EntangleError, match="no checkpoint that can be read"):
        pretrain(new_model(ARCHITECTURE, tokenizer), TOKENS, TRAINING, checkpoint=path)
