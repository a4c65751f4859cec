"""Affine forms as weights: the same edit with nothing left to do at run time.

Before an output projection y = W x + c (sites `z`, `mlp_post`), x -> x + (x - m) L R + b makes

    W' = W (I + R^T L^T),    c' = c + W (b - R^T L^T m);

after it (`attn_out`, and `mlp_out` where that is a projection's output) W' = (I + R^T L^T) W and c' likewise. A
constant on the residual stream goes into the bias of the last projection that writes to it. Whether a projection really
is where the edit lands is not taken on trust: the baked model is run beside the steered one. What no weights of the
stock class hold, the model carries in modules of its own (`carried.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from entangle.errors import EntangleError
from entangle.interventions.base import BaseEdit
from entangle.interventions.forms import AffineForm
from entangle.interventions.hooks.plan import Stop, planned
from entangle.interventions.hooks.steer import steer
from entangle.interventions.hooks.timeline import Timeline
from entangle.interventions.weights.carried import EditedModel, carry, saves_whole
from entangle.models.atlas import Atlas
from entangle.models.fingerprint import check_fingerprint
from entangle.models.loading.gguf import unmark
from entangle.models.loading.held import held, untraced
from entangle.models.place import AtlasError, Place
from entangle.models.probe_inputs import probe_inputs
from entangle.models.refusals import refuse_compiled

# Configuration switches that give modules biases, in the order they are tried.
BIAS_SWITCHES = ("attention_bias", "mlp_bias", "use_bias", "enable_bias", "attention_out_bias", "bias")
# The sites whose projection writes a constant on the residual stream at each of these.
WRITERS = {"resid_post": ("mlp_out", "mlp_post", "attn_out"), "resid_mid": ("attn_out",)}


class NoWeightsError(Exception):
    """No weights of the stock class hold an edit; says why."""


def bake(model: Any, edit: BaseEdit, alpha: float | str = 1.0) -> PreTrainedModel:
    """A copy of a model with an affine edit of all tokens worked into it.

    Into its weights wherever they can hold it: where a projection gets its first bias and the model's configuration has
    a switch for biases, the switch is set (other biases that come with it are zero), so `save_pretrained` and
    `from_pretrained` round-trip with the stock class. Otherwise the copy carries the edit in modules of its own: it
    says why in `edit_why`, its `save_pretrained` writes the stock checkpoint and the edit, and `load_baked` reads them.

    Args:
        model: The model; it is not changed.
        edit: An affine edit.
        alpha: Its strength.

    Returns:
        The edited copy: no hooks, nothing to undo; it can be compiled and saved.

    Raises:
        EntangleError: If the edit is not affine, was made for another model or does not fit, or if the model is being
            steered or carries an edit already.

    Example:
        >>> edit = en.AddDirection(directions.vectors[0], layer=1)
        >>> baked = en.interventions.bake(model, edit, alpha=2.0)
        >>> ids = torch.tensor([[5, 6, 7]])
        >>> with en.steer(model, edit, alpha=2.0):
        ...     same = torch.allclose(model(ids).logits, baked(ids).logits, atol=1e-4)
        ...
        >>> same
        True
    """
    model = held(model)
    refuse_compiled(model)
    if Timeline.running(model) is not None:
        raise EntangleError("bake copies the model as it is, but it is being steered now: bake outside the steer block")
    if isinstance(model, EditedModel):
        raise EntangleError("this model carries an edit already: bake Compose([first, second]) into the plain model")
    if edit.fingerprint is not None:
        check_fingerprint(edit.fingerprint, model, what=f"this {type(edit).__name__}", active=False)
    plan = planned(Atlas(model), [edit.affine(alpha) if edit.strength(alpha) else []])
    try:
        return _in_weights(model, edit, alpha, plan)
    except NoWeightsError as reason:
        baked = carry(_copied(model), edit, alpha, why=str(reason))
    difference = _difference(model, baked, edit, alpha)
    if difference is not None:
        raise EntangleError(f"carried by {type(model).__name__}, {difference}: use it with steer(...)")
    return baked


def _copied(model: PreTrainedModel) -> PreTrainedModel:
    """A copy that saves as plain weights, also of one that transformers unpacked from a GGUF file."""
    copied: PreTrainedModel = unmark(untraced(copy.deepcopy(model)))
    return copied


def _in_weights(model: PreTrainedModel, edit: BaseEdit, alpha: float | str, plan: list[Stop]) -> PreTrainedModel:
    """A copy of the stock class with the edit in its weights; a `NoWeightsError` where they cannot hold it."""
    baked = _copied(model)
    places = Atlas(baked)
    for stop in plan:
        form = stop.forms[0]
        if isinstance(form, AffineForm):
            _bake_form(places, stop, form)
    difference = _difference(model, baked, edit, alpha)
    if difference is not None:
        raise NoWeightsError(f"no weights hold it exactly: baked into them, {difference}")
    _switch_biases_on(model, baked)
    saves_whole(baked)
    return baked


def _bake_form(atlas: Atlas, stop: Stop, form: AffineForm) -> None:
    """Write one merged form into the module at, or just before, its place."""
    place = atlas.place(stop.place.site, stop.place.layer)
    if place.side == "input" and _is_projection(place.module):
        weight, bias = _read(place.module)
        _write(place.module, *_before(form, weight, bias))
        return
    for module in _writers(atlas, place.site, place.layer, place.module):
        if place.site.startswith("resid") and not form.is_constant:
            break
        weight, bias = _read(module)
        _write(module, *_after(form, weight, bias))
        return
    what = "constant" if form.is_constant else "map"
    raise NoWeightsError(f"no weights of {type(atlas.model).__name__} hold a {what} at {place.site}")


def _writers(atlas: Atlas, site: str, layer: int, module: nn.Module) -> Iterator[nn.Module]:
    """The projections whose output is, or is added to, the tensor at a site; the likeliest first."""
    if _is_projection(module) and site in ("attn_out", "mlp_out"):
        yield module
    if site == "resid_pre" and layer > 0:
        site, layer = "resid_post", layer - 1
    for other in ("mlp_post",) if site == "mlp_out" else WRITERS.get(site, ()):
        try:
            projection = atlas.module(other, layer)
        except AtlasError:
            continue
        if _is_projection(projection):
            yield projection


def _is_projection(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | Conv1D) and module.weight.is_floating_point()


def _read(module: nn.Module) -> tuple[Float[Tensor, "out in"], Float[Tensor, " out"] | None]:
    """Weight as `[out, in]` and bias of a projection, in double precision."""
    weight: Tensor = module.weight.detach().double()  # type: ignore[operator]
    bias: Tensor | None = module.bias  # type: ignore[assignment]
    return weight.T if isinstance(module, Conv1D) else weight, None if bias is None else bias.detach().double()


def _write(module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> None:
    """Put `[out, in]` and a bias into a projection; `None` leaves what is there."""
    old: Tensor = module.weight  # type: ignore[assignment]
    if weight is not None:
        module.weight = nn.Parameter((weight.T if isinstance(module, Conv1D) else weight).to(old.dtype).contiguous())
    if bias is not None:
        module.bias = nn.Parameter(bias.to(old.dtype))


def _before(form: AffineForm, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a projection that does the edit on its input first; `None` for what stays."""
    form = form.to(weight.device, weight.dtype)
    shift = weight @ form.constant
    mapped = None if form.left is None or form.right is None else weight + (weight @ form.right.T) @ form.left.T
    return mapped, _moved(bias, shift)


def _after(form: AffineForm, weight: Tensor, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Weight and bias of a projection that does the edit on its output."""
    form = form.to(weight.device, weight.dtype)
    shift = form.constant
    if form.left is None or form.right is None:
        return None, _moved(bias, shift)
    shift = shift if bias is None else shift + (bias @ form.left) @ form.right
    return weight + form.right.T @ (form.left.T @ weight), _moved(bias, shift)


def _moved(bias: Tensor | None, shift: Tensor) -> Tensor | None:
    if not shift.any():
        return None
    return shift if bias is None else bias + shift


def _switch_biases_on(model: PreTrainedModel, baked: PreTrainedModel) -> None:
    """Find the configuration under which the stock class has exactly the biases that baking made, or none fewer."""
    new = _names(baked) - _names(model)
    if not new:
        return
    off = [name for name in BIAS_SWITCHES if getattr(model.config, name, None) is False]
    for switches in [*([name] for name in off), off]:
        config = copy.deepcopy(model.config)
        for name in switches:
            setattr(config, name, True)
        with torch.device("meta"):
            stock = type(model)(config)
        if new <= _names(stock) and _names(model) <= _names(stock):
            for name in _names(stock) - _names(baked):
                _add_zero_bias(baked, name)
            for name in switches:
                setattr(baked.config, name, True)
            return
    raise NoWeightsError(
        f"the configuration of {type(model).__name__} has no switch for the biases that the edit needs"
    )


def _names(model: nn.Module) -> set[str]:
    return {name for name, _ in model.named_parameters(remove_duplicate=False)}


def _add_zero_bias(model: nn.Module, name: str) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    weight: Tensor = module.weight  # type: ignore[assignment]
    setattr(module, leaf, nn.Parameter(torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)))


def _difference(model: PreTrainedModel, baked: PreTrainedModel, edit: BaseEdit, alpha: float | str) -> str | None:
    """How the baked model differs from the steered one; `None` where it computes the same.

    Judged by the edit's own effect, on copies in single precision at least: half precision rounds logits by more than a
    weak edit moves them. What remains of rounding there is that of the weights that hold the edit, a part of it.
    """
    if not edit.strength(alpha):
        return None
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    exact = torch.promote_types(dtype, torch.float32)
    inputs = probe_inputs(model)
    with torch.inference_mode(False), torch.no_grad():
        reference = untraced(copy.deepcopy(model)).to(exact).eval()
        plain = _output(reference, inputs)
        with steer(reference, edit, alpha=alpha):
            steered = _output(reference, inputs)
        del reference
        difference = (_output(copy.deepcopy(baked).to(exact).eval(), inputs) - steered).abs().max()
    effect = (steered - plain).abs().max()
    rounding = (1e-9 if exact == torch.float64 else 1e-6) * max(1.0, float(steered.abs().max()))
    share = {torch.float64: 1e-6, torch.float32: 1e-3}.get(dtype, 5e-2)
    if difference <= share * effect + rounding:
        return None
    name = type(edit).__name__
    return f"this {name} differs from its hooks by {difference:.2g} where it moves the output by {effect:.2g}"


def _output(model: PreTrainedModel, inputs: dict[str, Tensor]) -> Tensor:
    output = model(**inputs)
    tensor: Tensor = output.logits if hasattr(output, "logits") else output.last_hidden_state
    return tensor


def constants(model: nn.Module, edit: BaseEdit, alpha: float | str) -> dict[Place, Float[Tensor, " d_out"]]:
    """What an edit that only adds constants adds to module outputs.

    Args:
        model: The model.
        edit: An affine edit without a map.
        alpha: Its strength.

    Returns:
        For each place the vector that it adds to the output of the place's module: W b for a constant b before a
        projection W.

    Raises:
        EntangleError: If the edit has a map, or acts before something that is no projection.
    """
    results: dict[Place, Tensor] = {}
    for stop in planned(Atlas(model), [edit.affine(alpha)]):
        form, place = stop.forms[0], stop.place
        where = f"{place.site} in layer {place.layer}"
        if not isinstance(form, AffineForm) or not form.is_constant:
            raise EntangleError(f"this format adds vectors, but the edit at {where} is a map: bake it instead")
        vector = form.constant
        if place.side == "input":
            if not _is_projection(place.module):
                raise EntangleError(
                    f"this format adds to module outputs, but {where} is an input: bake the edit instead"
                )
            weight, _ = _read(place.module)
            vector = weight @ vector.to(weight.device, weight.dtype)
        results[place] = vector.float().cpu()
    return results
