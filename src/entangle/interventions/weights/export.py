"""Edits in other tools' formats: exact, or refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from entangle.errors import EntangleError
from entangle.interventions.base import BaseEdit
from entangle.interventions.forms import AffineForm, Form, Function
from entangle.interventions.hooks.functions import carried, in_turn
from entangle.interventions.hooks.plan import planned
from entangle.interventions.weights.bake import constants
from entangle.interventions.weights.requests import easysteer, steering_vectors, vllm_lens
from entangle.models.atlas import Atlas, hook_name
from entangle.models.fingerprint import check_fingerprint
from entangle.models.loading.held import underlying
from entangle.models.place import Place
from entangle.storage.files import on_disk, replacing


def export(edit: BaseEdit, path: str | Path, *, format: str, model: Any, alpha: float | str = 1.0) -> Path:
    """Write an edit, at one strength, for another tool.

    All add vectors to the outputs of modules at every position, at the strength that the tool calls 1:

    - `"lm-eval"`, lm-evaluation-harness (`--model steered --model_args pretrained=...,steer_path=PATH`): any constant,
      on the output of the place's module.
    - `"gguf"`, llama.cpp (`--control-vector PATH`): constants at `resid_post` from layer 1 on.
    - `"repeng"`, repeng (`ControlVector.import_gguf(PATH)`): constants at `resid_post`; llama.cpp reads it too where
      layer 0 has none.
    - `"steering-vectors"` (`SteeringVector(**torch.load(PATH))`): constants at `resid_post`, or of attentions, or of
      MLPs.
    - `"vllm-lens"` (`SamplingParams(**json.load(file))`): constants at `resid_post`.
    - `"easysteer"` (`SteeringSpec(**json.load(file))`): constants at `resid_post`.

    Args:
        edit: An affine edit.
        path: The file to write.
        format: The tool, by one of the names above.
        model: The model it is for.
        alpha: The strength, which the file fixes.

    Returns:
        The path.

    Raises:
        EntangleError: If the format is unknown or cannot say what the edit does, or a file of another kind is there.

    Example:
        >>> _ = en.interventions.export(iti, "steer.pt", format="lm-eval", model=model, alpha=8.0)
        >>> {name.split(".", 2)[2] for name in torch.load("steer.pt", weights_only=True)}
        {'self_attn.o_proj'}
    """
    model = underlying(model)
    writers: dict[str, Callable[[Path, Any, Mapping[Place, Tensor]], None]] = {
        "lm-eval": _lm_eval,
        "gguf": partial(_gguf, first=1),
        "repeng": partial(_gguf, first=0),
        "steering-vectors": steering_vectors,
        "vllm-lens": vllm_lens,
        "easysteer": easysteer,
    }
    if format not in writers:
        raise EntangleError(f"format must be one of {', '.join(map(repr, writers))}, got {format!r}")
    if edit.fingerprint is not None:
        check_fingerprint(edit.fingerprint, model, what=f"this {type(edit).__name__}", active=False)
    vectors = constants(model, edit, alpha)
    target = Path(path)
    _refuse_other(target, format)
    with on_disk(target):
        target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as temporary:
        writers[format](temporary, model, vectors)
    return target


def _refuse_other(target: Path, format: str) -> None:
    """Refuse to replace what is no file of the format: somebody's text, say, whose name was given by mistake."""
    torch_file = b"PK\x03\x04"
    kinds = {"lm-eval": torch_file, "steering-vectors": torch_file, "gguf": b"GGUF", "repeng": b"GGUF"}
    begins = kinds.get(format, b"{")
    if target.is_dir():
        raise EntangleError(f"{target} is a directory: give the name of the file to write")
    if target.is_file():
        with target.open("rb") as file:
            if file.read(len(begins)) not in (begins, b""):
                raise EntangleError(
                    f"{target} exists and is no {format} file, so it is not replaced: choose another name"
                )


def _lm_eval(path: Path, model: PreTrainedModel, vectors: Mapping[Place, Tensor]) -> None:
    """A dict from hookpoints, as `model.base_model` names its modules, to vectors for their outputs."""
    names = {id(module): name for name, module in model.base_model.named_modules()}
    hookpoints: dict[str, dict[str, Any]] = {}
    for place, vector in vectors.items():
        name = names[id(place.module)]
        before = hookpoints[name]["steering_vector"] if name in hookpoints else 0
        hookpoints[name] = {
            "steering_vector": before + vector[None],
            "steering_coefficient": 1.0,
            "action": "add",
            "bias": None,
            "head_index": None,
        }
    torch.save(hookpoints, path)


def _gguf(path: Path, model: PreTrainedModel, vectors: Mapping[Place, Tensor], *, first: int) -> None:
    """A control vector: `direction.N` is added to the output of block N, counted from 0; llama.cpp has none for 0."""
    for place in vectors:
        if place.site != "resid_post" or place.layer < first:
            raise EntangleError(
                f"a GGUF control vector adds to the output of whole blocks{' from the second on' * first}, so it "
                f"cannot say this edit at {place.site} in layer {place.layer}: bake it and convert the model instead"
            )
    try:
        import gguf
    except ImportError as error:
        raise EntangleError("writing GGUF needs the package gguf: pip install gguf") from error
    writer = gguf.GGUFWriter(str(path), "controlvector")
    writer.add_string("controlvector.model_hint", str(model.config.model_type))
    writer.add_uint32("controlvector.layer_count", len(vectors))
    for place, vector in vectors.items():
        writer.add_tensor(f"direction.{place.layer}", vector.numpy())
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def transformer_lens_hooks(
    edit: BaseEdit, model: Any, *, alpha: float | str = 1.0
) -> list[tuple[str, Callable[..., Tensor]]]:
    """The edit as TransformerLens hooks: `bridge.run_with_hooks(tokens, fwd_hooks=hooks)`.

    Args:
        edit: Any edit.
        model: The HuggingFace model, for its sizes.
        alpha: The strength.

    Returns:
        (hook name, function) pairs; at `attn.hook_z` the functions take `[batch pos n_heads d_head]`.

    Example:
        >>> hooks = en.interventions.transformer_lens_hooks(iti, model, alpha=8.0)
        >>> {name.split(".", 2)[2] for name, function in hooks}
        {'attn.hook_z'}
    """
    model = underlying(model)
    hooks: list[tuple[str, Callable[..., Tensor]]] = []
    for stop in planned(Atlas(model), [edit.forms(edit.strength(alpha))]):
        name = hook_name(stop.place.site, stop.place.layer)
        functions = [_lens_hook(form, stop.place.site == "z") for form in stop.forms]
        if stop.carry is None:
            hooks += [(name, function) for function in functions]
            continue
        edited, again = carried(in_turn(functions))
        hooks += [(name, _as_hook(edited)), (hook_name("resid_post", stop.carry.layer), _as_hook(again))]
    return hooks


def _as_hook(function: Function) -> Callable[..., Tensor]:
    return lambda x, hook=None: function(x)


def _lens_hook(form: Form, by_head: bool) -> Callable[..., Tensor]:
    def hook(x: Tensor, hook: Any = None) -> Tensor:
        function: Function = form.prepare(x.device, x.dtype)
        if not by_head or x.ndim == 3:
            return function(x)
        if not isinstance(form, AffineForm) and form.head is not None:
            x = x.clone()
            x[..., form.head, :] = function(x[..., form.head, :])
            return x
        return function(x.flatten(-2)).unflatten(-1, x.shape[-2:])  # type: ignore[no-untyped-call, no-any-return]

    return hook
