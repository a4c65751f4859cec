"""What every test may use: tiny random models of many architectures, a tiny tokenizer, the data beside the project."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # before huggingface_hub is imported: no test asks a network

from hypothesis import settings
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from tiny import CAUSAL, VOCABULARY, build

settings.register_profile("any machine", deadline=None)  # no test may fail because something else runs beside it
settings.load_profile("any machine")
REPOSITORY = Path(__file__).resolve().parent.parent
SHARED = Path(os.environ.get("ENTANGLE_SHARED", REPOSITORY.parent / "shared"))


@pytest.fixture(scope="session")
def tiny_model() -> Callable[..., PreTrainedModel]:
    """`tiny_model("llama")`: a random model of that type, 3 layers, d_model 32; shared, so leave it unchanged."""
    return lambda model_type="llama", seed=0: without_recorders(build(model_type, seed))


def without_recorders(model: PreTrainedModel) -> PreTrainedModel:
    """The model without what transformers left on it when an earlier test asked for hidden states."""
    for module in model.modules():
        for key, hook in list(module._forward_hooks.items()):
            if str(hook.__module__).endswith("output_capturing"):
                del module._forward_hooks[key]
        vars(module).pop("_output_capturing_hooks_installed", None)
    return model


@pytest.fixture(params=CAUSAL)
def causal_lm(request: pytest.FixtureRequest) -> PreTrainedModel:
    """Each of the tiny causal language models in turn."""
    return without_recorders(build(request.param, 0))


@pytest.fixture(scope="session")
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-pair tokenizer of `VOCABULARY` tokens, trained here; pads, begins and ends as SIZES says."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=["<pad>", "<s>", "</s>", "<unk>"])
    tokenizer.train_from_iterator(
        ["the quick brown fox jumps over the lazy dog", "a cat sat on the mat and looked at the moon"] * 4, trainer
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with the real data and models; tests that use it are marked `shared`."""
    if not (SHARED / "models").is_dir():
        pytest.skip(f"needs the data and models beside the project; none at {SHARED} (set ENTANGLE_SHARED)")
    return SHARED


@pytest.fixture(autouse=True)
def _close_figures() -> Iterator[None]:
    """Figures that a test drew are closed after it."""
    yield
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None:
        pyplot.close("all")
