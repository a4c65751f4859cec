"""A configuration that no model can be made of is refused in one line, whatever its makers raise."""

from __future__ import annotations

import json
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from entangle.activations import collect
from entangle.errors import EntangleError
from entangle.models import Atlas, AtlasError, atlas, load


@pytest.mark.parametrize(
    "changes",
    [
        {"architectures": [5]},
        {"architectures": "Olmo2ForCausalLM"},
        {"hidden_size": "32"},
        {"hidden_size": 0},
        {"num_attention_heads": 0},
        {"hidden_act": "nope"},
        {"quantization_config": "x"},
        {"num_hidden_layers": [3]},
    ],
    ids=str,
)
def test_it_is_one_line(
    changes: dict[str, Any],
    tmp_path: Path,
    tiny_model: Callable[..., PreTrainedModel],
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> None:
    tiny_model("olmo2").save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert load(tmp_path)  # the control
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    with pytest.raises(EntangleError) as error:
        load(tmp_path)
    assert "\n" not in str(error.value)


def test_weights_that_are_no_numbers_are_told_by_name(
    tiny_model: Callable[..., PreTrainedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = deepcopy(tiny_model("olmo2"))
    assert Atlas(broken)  # the control
    monkeypatch.setattr(atlas, "_SURVEYS", {})  # where the sites are is found once for all models of a structure
    with torch.no_grad():
        broken.model.embed_tokens.weight.view(-1)[:] = float("nan")
    with pytest.raises(AtlasError, match=r"hold NaN or inf \(model\.embed_tokens\.weight\)"):
        Atlas(broken)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.int64])
def test_activations_are_not_kept_in_a_type_that_cuts_them_off(
    dtype: torch.dtype, tiny_model: Callable[..., PreTrainedModel]
) -> None:
    ids = {"input_ids": torch.tensor([[5, 6, 7]])}
    with pytest.raises(EntangleError, match="store_dtype must be a floating type"):
        collect(tiny_model("olmo2"), None, ids, store_dtype=dtype, progress=False)
    assert (
        collect(tiny_model("olmo2"), None, ids, store_dtype=torch.float16, progress=False)["z"].dtype == torch.float16
    )
