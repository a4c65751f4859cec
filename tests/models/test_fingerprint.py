from __future__ import annotations

import json
from copy import deepcopy

import pytest
import torch

from entangle.errors import EntangleError
from entangle.models import check_fingerprint, fingerprint


def test_same_weights_same_mark(tiny_model, tmp_path):
    model = tiny_model("llama")
    mark = fingerprint(model)
    assert json.loads(json.dumps(mark)) == mark
    assert mark["architecture"] == "LlamaForCausalLM"
    assert mark["hidden_size"] == 32
    assert mark["n_parameters"] == sum(p.numel() for p in model.parameters())
    model.save_pretrained(tmp_path)
    check_fingerprint(mark, type(model).from_pretrained(tmp_path), what="these")


def test_other_weights_other_mark(tiny_model):
    model = tiny_model("llama")
    with pytest.raises(EntangleError, match=r"^these came from another model \(weights .*: use the model"):
        check_fingerprint(fingerprint(model), tiny_model("llama", 1), what="these")
    with pytest.raises(EntangleError, match="architecture LlamaFor"):
        check_fingerprint(fingerprint(model), tiny_model("gpt2"), what="these")
    edited = deepcopy(model)
    with torch.no_grad():
        edited.model.layers[1].self_attn.o_proj.weight[0, 0] += 1
    assert fingerprint(edited)["n_parameters"] == fingerprint(model)["n_parameters"]
