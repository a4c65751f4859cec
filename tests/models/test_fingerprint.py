"""A model's mark: another for any change of what it computes, the same for any that leaves that alone."""

from __future__ import annotations

import functools
import json
from copy import deepcopy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

import entangle as en
from entangle.activations import Activations, collect
from entangle.errors import EntangleError
from entangle.interventions import AddDirection
from entangle.models import Atlas, attach, check_fingerprint, fingerprint, tokenizer_fingerprint
from tiny import SIZES, enlarge

IDS = torch.arange(3, 24).view(3, 7)
TEXTS = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


@functools.cache
def shared_llama(**changes):
    torch.manual_seed(0)
    return enlarge(LlamaForCausalLM(LlamaConfig(**{**SIZES, **changes})).eval())


@pytest.fixture
def llama():
    return deepcopy(shared_llama())


def differing(mark, other):
    return {name for name in mark if mark[name] != other[name]}


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


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_one_bit_of_any_weight_is_another_model(data):
    """Written through memory that it shares, so that no version counter of a tensor sees it."""
    model = shared_llama()
    mark = fingerprint(model)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    memory = tensors[data.draw(st.sampled_from(sorted(tensors)))].detach().reshape(-1).view(torch.uint8).numpy()
    place, bit = data.draw(st.integers(0, len(memory) - 1)), 1 << data.draw(st.integers(0, 7))
    memory[place] ^= bit
    try:
        assert differing(mark, fingerprint(model)) == {"weights"}
    finally:
        memory[place] ^= bit
    assert fingerprint(model) == mark


def mul_(model, path, factor=2.0):
    with torch.no_grad():
        model.get_parameter(path).mul_(factor)


def swap(model, path, module):
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, module)


LAYER = "model.layers.1"
CHANGES = {
    "a head knocked out in place": lambda m: mul_(m, f"{LAYER}.self_attn.v_proj.weight", 0),
    "a write to .data": lambda m: m.get_parameter(f"{LAYER}.mlp.down_proj.weight").data[-1].zero_(),
    "new .data": lambda m: setattr(m.lm_head.weight, "data", m.lm_head.weight.data * 2),
    "a buffer": lambda m: m.model.rotary_emb.inv_freq.mul_(1.01),
    "a tensor that is no buffer": lambda m: setattr(m.get_submodule(LAYER), "shift", torch.ones(2)),
    "eps of a norm": lambda m: setattr(m.model.norm, "variance_epsilon", 1.0),
    "scaling of attention": lambda m: setattr(m.get_submodule(LAYER).self_attn, "scaling", 0.5),
    "an activation module": lambda m: swap(m, f"{LAYER}.mlp.act_fn", nn.GELU()),
    "a block replaced": lambda m: swap(m, f"{LAYER}.mlp", nn.Identity()),
    "half precision": lambda m: m.half(),
    "one part in another precision": lambda m: m.lm_head.bfloat16(),
    "a setting in the configuration": lambda m: setattr(m.config, "attention_multiplier", 3.0),
    "a forward of the user's": lambda m: setattr(m.model.norm, "forward", lambda x: 2 * x),
    "a hook": lambda m: m.model.norm.register_forward_hook(lambda module, args, output: 2 * output),
    "a hook before": lambda m: m.model.norm.register_forward_pre_hook(lambda module, args: (2 * args[0],)),
    "a function attached to a site": lambda m: attach(Atlas(m).place("z", 1), lambda x: 2 * x),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_what_is_computed_changes_the_mark(change, llama):
    mark = fingerprint(llama)
    CHANGES[change](llama)
    assert fingerprint(llama) != mark


@pytest.mark.parametrize(
    "setting",
    [
        {"rope_theta": 100.0},
        {"hidden_act": "gelu"},
        {"rms_norm_eps": 1.0},
        {"tie_word_embeddings": True},
        {"sliding_window": 3},
    ],
    ids=str,
)
def test_whatever_the_configuration_says_of_the_computation_is_in_the_mark(setting):
    plain = shared_llama()
    other = LlamaForCausalLM(LlamaConfig(**{**SIZES, **setting})).eval()
    other.load_state_dict(plain.state_dict())
    assert "configuration" in differing(fingerprint(plain), fingerprint(other))


def scattered(model):
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data = parameter.data.T.contiguous().T  # the same numbers in another order of memory


def run(model):
    model(IDS, output_hidden_states=True)
    model.generate(IDS[:1], max_new_tokens=3)


def share(model):
    down = model.get_parameter(f"{LAYER}.mlp.down_proj.weight")
    down.data = torch.cat([down.data, down.data])[: len(down)]


def steered_and_over(model):
    with en.steer(model, AddDirection(torch.ones(32), "resid_post", 1)):
        model(IDS)


SAME = {
    "moved in memory": deepcopy,
    "in DataParallel": nn.DataParallel,
    "compiled": torch.compile,
    "strides": scattered,
    "run": run,
    "frozen": lambda m: m.requires_grad_(False),
    "in training": lambda m: m.train(),
    "gradient checkpointing": lambda m: m.gradient_checkpointing_enable(),
    "inputs that require gradients": lambda m: m.enable_input_require_grads(),
    "another kernel of attention": lambda m: m.set_attn_implementation("eager"),
    "another name": lambda m: setattr(m.config, "_name_or_path", "elsewhere"),
    "without a cache": lambda m: setattr(m.config, "use_cache", False),
    "a hook that is gone": lambda m: m.model.norm.register_forward_hook(lambda *_: None).remove(),
    "captured from": lambda m: collect(m, None, TEXTS, progress=False) and None,
    "steered and over": steered_and_over,
    "tensors that share memory": share,
}


@pytest.mark.parametrize("what", SAME)
def test_what_leaves_the_computation_alone_leaves_the_mark_alone(what, llama):
    mark = fingerprint(llama)
    other = SAME[what](llama)
    assert fingerprint(other if isinstance(other, nn.Module) else llama) == mark


def test_the_order_of_parameters_does_not_matter():
    def model(names):
        torch.manual_seed(0)
        parts = {"a": nn.Linear(3, 3), "b": nn.Linear(3, 3)}
        return nn.ModuleDict({name: parts[name] for name in names})

    assert fingerprint(model("ab")) == fingerprint(model("ba"))
    exchanged = model("ab")
    exchanged["a"], exchanged["b"] = exchanged["b"], exchanged["a"]
    assert fingerprint(exchanged) != fingerprint(model("ab"))


def test_a_tied_head_is_read_once_and_known_under_both_names():
    tied = shared_llama(tie_word_embeddings=True)
    mark = fingerprint(tied)
    assert mark["n_parameters"] == fingerprint(shared_llama())["n_parameters"] - tied.lm_head.weight.numel()
    apart = deepcopy(tied)
    apart.lm_head.weight = nn.Parameter(apart.lm_head.weight.detach().clone())
    assert fingerprint(apart)["weights"] == mark["weights"]  # it computes the same
    mul_(apart, "lm_head.weight")
    assert fingerprint(apart)["weights"] != mark["weights"]


LONGROPE = {
    **{"rope_type": "longrope", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 32},
    **{"short_factor": [1.0] * 4, "long_factor": [1.0, 2.0, 3.0, 4.0]},
}
DYNAMIC = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10_000.0}


@pytest.mark.parametrize("rope", [DYNAMIC, LONGROPE], ids=["dynamic", "longrope"])
def test_a_long_text_makes_another_model_only_if_short_ones_are_computed_otherwise_after_it(rope):
    """Both kinds change their frequencies for a long text; transformers 5.9 does not set the dynamic ones back."""
    model, short = deepcopy(shared_llama_with(dict(rope))), torch.arange(3, 12)[None]
    mark, before = fingerprint(model), model.model.rotary_emb.inv_freq.clone()
    with torch.no_grad():
        plain = model(short).logits
        assert fingerprint(model) == mark
        model(torch.ones(1, 200, dtype=torch.long))
        assert not torch.equal(model.model.rotary_emb.inv_freq, before)
        during = fingerprint(model)
        same = torch.equal(model(short).logits, plain)
    assert (during == mark) == same
    assert (fingerprint(model) == mark) == same
    assert same or rope is DYNAMIC


def test_frequencies_of_each_type_of_layers_are_set_back():
    class Rotary(nn.Module):
        """As those of models whose types of layers have frequencies of their own."""

        def __init__(self):
            super().__init__()
            self.rope_type, self.original_max_seq_len = {"full": "dynamic", "sliding": "default"}, 64
            for name in ("full_inv_freq", "full_original_inv_freq", "sliding_inv_freq"):
                self.register_buffer(name, torch.ones(4), persistent=False)

    rotary = Rotary()
    mark = fingerprint(rotary)
    rotary.full_inv_freq, rotary.full_max_seq_len_cached = torch.full((4,), 0.5), torch.tensor(200)
    assert fingerprint(rotary) == mark
    rotary.full_max_seq_len_cached = 64  # it was set back, but the frequencies are others
    assert differing(mark, fingerprint(rotary)) == {"weights"}
    rotary.full_inv_freq = torch.ones(4)
    assert fingerprint(rotary) == mark
    rotary.sliding_inv_freq = torch.full((4,), 0.5)  # nothing sets these back
    assert differing(mark, fingerprint(rotary)) == {"weights"}


def shared_llama_with(rope):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, rope_parameters=rope)).eval()


@pytest.fixture
def adapted(llama):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    model = peft.get_peft_model(llama, config).eval()
    model.add_adapter("second", config)
    return model


ADAPTERS = {
    "another one active": lambda m: m.set_adapter("second"),
    "merged": lambda m: m.merge_adapter(),
    "scaled": lambda m: [part.scale_layer(2.0) for part in m.modules() if hasattr(part, "scale_layer")],
    "deleted": lambda m: m.delete_adapter("second"),
}


@pytest.mark.parametrize("change", ADAPTERS)
def test_an_adapter_switched_is_another_model(change, adapted):
    mark = fingerprint(adapted)
    ADAPTERS[change](adapted)
    assert fingerprint(adapted) != mark


def test_an_adapter_disabled_is_another_model_until_it_is_back(adapted):
    mark = fingerprint(adapted)
    with adapted.disable_adapter():
        assert fingerprint(adapted) != mark
    assert fingerprint(adapted) == mark


def test_prompt_tuning_disabled_is_another_model(llama):
    peft = pytest.importorskip("peft")
    model = peft.get_peft_model(llama, peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)).eval()
    mark = fingerprint(model)
    with model.disable_adapter():
        assert fingerprint(model) != mark
    assert fingerprint(model) == mark


def test_steering_is_in_the_mark_by_what_it_does(llama):
    plain = fingerprint(llama)

    def steered(*numbers, tokens="all", **place):
        where = {"site": "resid_post", "layer": 1, **place}
        edits = [AddDirection(number * torch.ones(32), **where) for number in numbers]
        with en.steer(llama, edits, tokens=tokens):
            llama(IDS)
            return fingerprint(llama)

    one = steered(1)
    assert differing(plain, one) == {"active"}
    assert steered(1) == one
    others = [steered(2), steered(1, layer=2), steered(1, tokens="prompt"), steered(1, site="resid_mid")]
    assert len({mark["active"] for mark in (plain, one, *others)}) == 6
    assert steered(1, 1) == others[0]  # two constants are added as one
    with en.steer(llama, AddDirection(torch.ones(32), "resid_post", 1), alpha=0):
        assert fingerprint(llama) == plain  # it does nothing


def test_activations_under_an_edit_are_not_taken_for_the_plain_models(llama, tmp_path):
    edit = AddDirection(torch.ones(32), "resid_post", 0)

    def stored(folder):
        return collect(llama, None, TEXTS, sites="resid_post", save_to=tmp_path / folder, progress=False)["resid_post"]

    plain = stored("plain")
    with en.steer(llama, edit):
        with pytest.raises(EntangleError, match=r"other edits or hooks .*: choose another directory"):
            stored("plain")
        with pytest.raises(EntangleError, match="other edits or hooks on it: close the steer block"):
            Activations.load(tmp_path / "plain", model=llama)
        steered = stored("steered")
    with en.steer(llama, edit):
        assert torch.equal(stored("steered"), steered)
    assert torch.equal(stored("plain"), plain)
    assert not torch.equal(plain, steered)


def test_an_edit_of_the_model_may_act_inside_another(llama):
    acts = collect(llama, None, TEXTS, sites="z", progress=False)
    marked = AddDirection(torch.ones(32), "resid_post", 1, fingerprint=acts.fingerprint)
    with en.steer(llama, AddDirection(torch.ones(32), "resid_post", 0)), en.steer(llama, marked):
        llama(IDS)
    llama.model.norm.weight.data[0] += 1
    with pytest.raises(EntangleError, match="this AddDirection came from another model"):
        en.steer(llama, marked)


def test_a_mark_of_an_earlier_version_says_what_to_do(llama):
    now = fingerprint(llama)
    old = {name: now[name] for name in ("architecture", "model_type", "hidden_size", "n_parameters", "dtype")}
    old["weights"] = "a" * 64
    with pytest.raises(EntangleError, match=r"earlier version.*make them anew") as raised:
        check_fingerprint(old, llama, what="this edit")
    assert "\n" not in str(raised.value)
    with pytest.raises(EntangleError, match=r"another model .architecture GPT2"):
        check_fingerprint({**old, "architecture": "GPT2LMHeadModel"}, llama, what="this edit")


def test_weights_that_are_not_there_are_refused():
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SIZES))
    with pytest.raises(EntangleError, match=r"has no numbers .* load the model's weights first"):
        fingerprint(model)


@pytest.mark.parametrize("bits", [4, 8])
def test_the_scales_of_quantised_weights_are_weights(bits, tmp_path):
    pytest.importorskip("bitsandbytes")
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 4}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=96)).save_pretrained(tmp_path)
    quantised = BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
    model = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantised, device_map="cpu")
    again = AutoModelForCausalLM.from_pretrained(tmp_path, quantization_config=quantised, device_map="cpu")
    mark = fingerprint(model)
    assert fingerprint(again) == mark
    weight = model.model.layers[0].mlp.down_proj.weight
    (weight.SCB if bits == 8 else weight.quant_state.absmax).mul_(2)
    assert differing(mark, fingerprint(model)) == {"weights"}


def test_a_users_own_forward_is_known_by_its_code():
    def model(body):
        space = {"nn": nn}
        exec(f"class Own(nn.Module):\n    def forward(self, x):\n        return {body}\n", space)
        return space["Own"]()

    assert fingerprint(model("x + 1")) == fingerprint(model("x + 1"))
    assert fingerprint(model("x + 1")) != fingerprint(model("x + 2"))


def test_a_tokenizer_is_known_by_how_it_cuts(tiny_tokenizer, tmp_path):
    mark = tokenizer_fingerprint(tiny_tokenizer)
    tiny_tokenizer(["the cat", "a"], padding=True, truncation=True, max_length=1)  # which the backend remembers
    assert tokenizer_fingerprint(tiny_tokenizer) == mark
    tiny_tokenizer.save_pretrained(tmp_path)
    assert tokenizer_fingerprint(type(tiny_tokenizer).from_pretrained(tmp_path)) == mark
    tiny_tokenizer.legacy = True  # a remark that a fast tokenizer does not go by
    assert tokenizer_fingerprint(tiny_tokenizer) == mark
    others = {mark}
    for change in (
        lambda t: t.add_tokens(["moon moon"]),
        lambda t: t.add_special_tokens({"additional_special_tokens": ["<x>"]}),
        lambda t: setattr(t, "chat_template", "{{ messages }}"),
        lambda t: setattr(t, "model_max_length", 3),
        lambda t: setattr(t, "truncation_side", "left"),
        lambda t: setattr(t.backend_tokenizer, "normalizer", lowercase()),
    ):
        tokenizer = deepcopy(tiny_tokenizer)
        change(tokenizer)
        others.add(tokenizer_fingerprint(tokenizer))
    assert len(others) == 7


def lowercase():
    from tokenizers.normalizers import Lowercase

    return Lowercase()
