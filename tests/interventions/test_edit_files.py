"""Edits on disk: what is read is what was written, and what cannot be is refused."""

from __future__ import annotations

import json

import pytest
import torch

from entangle.errors import EntangleError
from entangle.interventions import (
    ITI,
    Ablate,
    AddDirection,
    Affine,
    Clamp,
    Compose,
    Edit,
    Erase,
    SAEFeature,
    Scale,
    Set,
    When,
    steer,
)

V = torch.randn(32, generator=torch.Generator().manual_seed(0))
W = torch.randn(32, 2, generator=torch.Generator().manual_seed(1))
EDITS = [
    AddDirection(V, "resid_post", 1),
    AddDirection(V[:8], "blocks.1.attn.hook_z", None, 2),
    Ablate(W.T, "resid_mid", 0, mean=V),
    Scale(V, 2.5, "mlp_out", 1),
    Set(V, -1.0, "resid_pre", 2),
    Clamp(V, high=0.5, site="attn_out", layer=1),
    Affine("resid_post", 1, None, V, W, W.T, V),
    Erase(V, W, W.T, "resid_post", 2),
    ITI([(0, 1), (2, 3)], torch.eye(8)[:2], torch.tensor([0.5, 2.0]), toward=1),
    When(AddDirection(V, "resid_post", 2), V, 0.3, "resid_post", 1),
    Compose([Ablate(V, "resid_post", 0), When(Clamp(V, 0, 1, layer=1), V, layer=1)]),
]


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: type(edit).__name__)
def test_round_trip(tiny_model, tmp_path, edit):
    model = tiny_model("llama")
    ids = torch.randint(3, 96, (2, 9), generator=torch.Generator().manual_seed(0))
    edit.save_pretrained(tmp_path / "edit", model=model)
    loaded = type(edit).from_pretrained(tmp_path / "edit", model=model)
    assert type(loaded) is type(edit)
    outcomes = []
    for each in (edit, loaded):
        with steer(model, each, alpha=1.5), torch.no_grad():
            outcomes.append(model(input_ids=ids).logits)
    assert torch.equal(*outcomes)
    assert sorted(p.name for p in (tmp_path / "edit").iterdir()) == ["README.md", "edit.json", "edit.safetensors"]
    assert loaded.fingerprint is not None


def test_another_model_is_refused_on_loading_and_on_use(tiny_model, tmp_path):
    mine, other = tiny_model("llama", 0), tiny_model("llama", 1)
    EDITS[0].save_pretrained(tmp_path, model=mine)
    with pytest.raises(EntangleError, match="another model"):
        Edit.from_pretrained(tmp_path, model=other)
    loaded = Edit.from_pretrained(tmp_path)
    with pytest.raises(EntangleError, match="another model"):
        steer(other, loaded)
    with pytest.raises(EntangleError, match="another model"):
        loaded.save_pretrained(tmp_path / "again", model=other)


def damage(path, change):
    settings = json.loads((path / "edit.json").read_text())
    settings.pop("checksum")  # as in files of older versions, which had none
    change(settings)
    (path / "edit.json").write_text(json.dumps(settings))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: (p / "edit.json").unlink(), "holds no edit"),
        (lambda p: (p / "edit.safetensors").unlink(), r"edit\.safetensors is missing"),
        (lambda p: (p / "edit.safetensors").write_bytes(b"not that"), r"edit\.safetensors, .* is damaged"),
        (lambda p: (p / "edit.json").write_text("{"), "cannot be read"),
        (lambda p: damage(p, lambda s: s.update(version=99)), "version 99"),
        (
            lambda p: damage(p, lambda s: s["edit"].update({"class": "Teleport"})),
            "Teleport, which this library does not know",
        ),
        (lambda p: damage(p, lambda s: s["edit"]["fields"]["vector"].update(tensor="lost")), "names lost"),
    ],
)
def test_damaged_files_are_refused_in_one_line(tmp_path, change, message):
    EDITS[0].save_pretrained(tmp_path)
    change(tmp_path)
    with pytest.raises(EntangleError, match=message) as caught:
        Edit.from_pretrained(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_class_of_edit_is_checked(tmp_path):
    EDITS[0].save_pretrained(tmp_path)
    with pytest.raises(EntangleError, match="holds a AddDirection, not a ITI"):
        ITI.from_pretrained(tmp_path)


def test_an_autoencoder_has_no_file_format(tmp_path):
    class Identity:
        def encode(self, x):
            return x

        decode = encode

    with pytest.raises(EntangleError, match="no file format"):
        SAEFeature(Identity(), 0, 1.0, layer=0).save_pretrained(tmp_path / "edit")
    assert not (tmp_path / "edit").exists()


def test_push_to_hub_uploads_the_directory(monkeypatch, tmp_path):
    """The hub's client is replaced by one that keeps what it is given."""
    import shutil

    import huggingface_hub

    calls = []

    class Hub:
        def __init__(self, token=None):
            calls.append(token)

        def create_repo(self, repo_id, private, exist_ok):
            calls.append((repo_id, private, exist_ok))

        def upload_folder(self, repo_id, folder_path, commit_message):
            shutil.copytree(folder_path, tmp_path / "hub")
            return f"https://hub/{repo_id}/commit/1"

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    assert EDITS[8].push_to_hub("me/edit", private=True, token="t") == "https://hub/me/edit/commit/1"
    assert calls == ["t", ("me/edit", True, True)]
    loaded = ITI.from_pretrained(tmp_path / "hub")
    assert loaded.heads == EDITS[8].heads
    assert torch.equal(loaded.directions, EDITS[8].directions)


def test_an_edit_of_ones_own_cannot_take_the_name_of_one_here():
    """A saved edit goes by its class's name: read back, one would be the other. Names of one's own may be redefined."""
    body = {"forms": lambda self, alpha=1.0: []}
    for _ in range(2):
        assert issubclass(type("Mine", (Edit,), body), Edit)
    with pytest.raises(EntangleError, match="is called Erase already"):
        type("Erase", (Edit,), body)
