"""A configuration that no model can be made of is refused in one line, whatever its makers raise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from entangle.errors import EntangleError
from entangle.models import load


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
