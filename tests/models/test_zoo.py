"""Every family of transformers that can be built small: each site right by algebra, or missing with a known reason."""

from __future__ import annotations

import warnings

import pytest
import torch
import transformers
from packaging import version
from transformers import AutoModel, AutoModelForCausalLM
from transformers.modeling_utils import AttentionInterface
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as CAUSAL
from transformers.pytorch_utils import Conv1D

import zoo
from entangle.models import Atlas, AtlasError, hooked
from entangle.models.probe_inputs import probe_inputs
from entangle.models.trace import no_hook_left
from perturbing import Attention

# Causal families that no small configuration was found for: special sizes, or a package that is not there.
NOT_BUILT = set(
    [
        "blt",
        "cohere_compass_text",
        "dbrx",
        "dots3_note",
        "dots3_note_text",
        "gemma3n",
        "gemma3n_text",
        "gemma4_assistant",
        "gemma4_unified_assistant",
        "musicgen",
        "musicgen_melody",
        "qwen4_exp",
        "qwen4_exp_text",
        "xlstm",
        "zamba",
        "zamba2",
    ]
)
ENCODERS = [
    "albert",
    "beit",
    "bert-generation",
    "convbert",
    "data2vec-audio",
    "data2vec-vision",
    "deberta",
    "deberta-v2",
    "deit",
    "dinov2",
    "dinov2_with_registers",
    "dinov3_vit",
    "distilbert",
    "electra",
    "esm",
    "eurobert",
    "fnet",
    "hubert",
    "ibert",
    "ijepa",
    "jina_embeddings_v3",
    "layoutlm",
    "longformer",
    "mobilebert",
    "modernbert",
    "mpnet",
    "mra",
    "nomic_bert",
    "nystromformer",
    "pixio",
    "sew",
    "siglip_vision_model",
    "clip_text_model",
    "clip_vision_model",
    "splinter",
    "timesformer",
    "unispeech",
    "videomae",
    "vit",
    "vit_mae",
    "vit_msn",
    "vivit",
    "wav2vec2",
    "wav2vec2-bert",
    "wav2vec2-conformer",
    "wavlm",
    "yolos",
    "yoso",
    "audio-spectrogram-transformer",
]
ENCODER_DECODERS = [
    "bart",
    "fsmt",
    "led",
    "longt5",
    "m2m_100",
    "marian",
    "mt5",
    "nllb-moe",
    "pegasus_x",
    "prophetnet",
    "speech_to_text",
    "switch_transformers",
    "t5",
    "t5gemma",
    "umt5",
    "whisper",
]
# Whose z is missing in every layer, each looked at.
NO_Z = {
    "convbert": "heads and convolutions are concatenated before the projection",
    "deepseek_v4": "heads are mixed by groups before the projection",
    "diffllama": "pairs of heads are subtracted",
    "falcon_mamba": "no attention",
    "fnet": "Fourier transforms",
    "fsmt": "positions come first, so that heads and positions are interleaved",
    "jetmoe": "a mixture of experts projects each head's result",
    "longformer": "attention in overlapping chunks",
    "mamba": "no attention",
    "mamba2": "no attention",
    "mra": "attention by blocks of a custom kernel",
    "prophetnet": "several streams of tokens",
    "reformer": "attention over hashed buckets",
    "rwkv": "no attention: receptance, key and value of a recurrence",
    "timesformer": "attention over time and space apart",
    "wavlm": "torch's multi_head_attention_forward holds the projection",
    "xlnet": "the projection is an einsum, not a module",
    "yoso": "sampled attention without a softmax",
}  # fmt: skip
NO_EMBEDDING_STATE = {"falcon_mamba", "mamba", "mamba2", "rwkv"}  # whose hidden_states begin with the first block
EXTRA_POSITIONS = {"cpmant", "longformer", "prophetnet"}  # a prompt, padding or streams beside the tokens
NOT_PERTURBED = {"ibert"}  # modules that are handed a scale of quantisation beside each tensor
NO_BLOCKS = {"xlm"}  # attentions and feed-forwards lie in two separate lists
REASONS = (
    "no attention kernel ran",
    "the attention's result reaches no linear module",
    "what the output projection receives is not",
    "attention and its output projection run as one function",
    "where attention ends is unknown",
    "no module receives the residual",
    "no single down projection gives",
    "without mlp_out",
    "no module's output, added to the residual",
    "the block does not take and return",
    "the input of",
    "the output of",
)
# Kept in the default run: one of each kind of structure.
REPRESENTATIVE = set(
    [
        "albert",
        "bart",
        "bitnet",
        "bloom",
        "deepseek_v3",
        "deberta-v2",
        "falcon",
        "falcon_mamba",
        "gemma4_text",
        "gpt_bigcode",
        "gpt_oss",
        "jamba",
        "jetmoe",
        "mixtral",
        "modernbert",
        "mpt",
        "qwen3_next",
        "rwkv",
        "t5",
        "vit",
        "wav2vec2-bert",
        "whisper",
        "xlm",
        "xlnet",
    ]
)


def families():
    names = [*(n for n in CAUSAL if n not in NOT_BUILT), *ENCODERS, *ENCODER_DECODERS]
    return [pytest.param(n, marks=() if n in REPRESENTATIVE else pytest.mark.slow) for n in dict.fromkeys(names)]


def build(family):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return zoo.tiny(family, AutoModelForCausalLM if family in CAUSAL else AutoModel)


def close(a, b):
    return (a - b).abs().max() <= 1e-5 * max(1.0, float(b.abs().max()))


def run(model, atlas, monkeypatch):
    """Every site as the hooks see it, what the attention interface returned, and the model's own hidden states."""
    seen, kernels = {}, []
    original = AttentionInterface.get_interface

    def recording(self, implementation, default):
        function = original(self, implementation, default)

        def call(*args, **kwargs):
            out = function(*args, **kwargs)
            kernels.append(out[0].clone())
            return out

        return call

    monkeypatch.setattr(AttentionInterface, "get_interface", recording)
    places = [atlas.place(site, layer) for site in atlas.sites for layer in atlas.layers(site)]
    keep = [(p, lambda x, p=p: seen.__setitem__((p.site, p.layer), x.clone())) for p in places]
    with torch.no_grad(), hooked(keep), no_hook_left(model):
        out = model(**probe_inputs(model), output_hidden_states=True)
    for name in ("decoder_hidden_states", "hidden_states"):
        states = getattr(out, name, None)
        if states is not None and len(states) == atlas.n_layers + 1:
            return seen, kernels, states
    return seen, kernels, None


@pytest.mark.parametrize("family", families())
def test_family(family, monkeypatch):
    model = build(family)
    if family in NO_BLOCKS:
        with pytest.raises(AtlasError, match="no list of blocks"):
            Atlas(model)
        return
    atlas = Atlas(model)
    assert bool(atlas.layers("z")) == (family not in NO_Z)
    for site in ("resid_pre", "z", "attn_out", "resid_mid", "mlp_post", "mlp_out", "resid_post"):
        for layer in range(atlas.n_layers):
            reason = atlas.reason(site, layer)
            assert reason is None or reason.startswith(REASONS)

    seen, kernels, states = run(model, atlas, monkeypatch)
    notes = atlas.table().set_index(["layer", "site"])["note"]
    with torch.no_grad():
        for layer in atlas.layers("z"):
            z = seen["z", layer]
            attn_out = atlas.place("z", layer).out_projection(z.reshape(-1, z.shape[-1]))
            attn_out = attn_out[0] if isinstance(attn_out, tuple) else attn_out  # I-BERT returns a scale as well
            assert close(attn_out.reshape(-1), seen["attn_out", layer].reshape(-1))
            flat = [kernel.reshape(-1) for kernel in kernels if kernel.numel() == z.numel()]
            if flat and "gated" not in notes[layer, "z"] and "normed" not in notes[layer, "z"]:
                assert any(torch.equal(kernel, z.reshape(-1)) for kernel in flat)
        for layer in atlas.layers("mlp_post"):
            neurons = seen["mlp_post", layer]
            mlp_out = atlas.module("mlp_post", layer)(neurons.reshape(-1, neurons.shape[-1]))
            assert close(mlp_out.reshape(-1), seen["mlp_out", layer].reshape(-1))
    if states is not None:
        first = 0 if family in NO_EMBEDDING_STATE else 1
        for layer in range(atlas.n_layers - 1):  # the last is often normalised
            if ("resid_post", layer) in seen and family not in EXTRA_POSITIONS:
                assert close(seen["resid_post", layer], states[layer + first])

    if atlas.layers("z") and family not in NOT_PERTURBED:
        z_is_where_attention_ends(model, atlas.place("z", atlas.layers("z")[-1]))


def z_is_where_attention_ends(model, place):
    """What changes a head's slice of z moves attention's result as the weight says and nothing that attention computed
    before; what changes the input of another linear module of the attention does not look so.
    """
    attention, generator = Attention(model, place), torch.Generator().manual_seed(0)
    head = torch.zeros(place.size)
    head[-place.d_head :] = torch.randn(place.d_head, generator=generator)
    assert attention.moves(place.module, head) == (False, True)
    others = []
    for module in attention.others:
        size = module.nx if isinstance(module, Conv1D) else module.weight.shape[1]
        others.append(attention.moves(module, torch.randn(size, generator=generator)))
    assert any(upstream for upstream, _ in others)  # queries, for one
    assert not any(follows for _, follows in others)


@pytest.mark.slow
def test_z_is_found_in_enough_families():
    """Everything that was built, less what a person has seen to have no z that a hook can reach."""
    names = {param.values[0] for param in families()}
    assert len(names - NO_Z.keys() - NO_BLOCKS) >= 0.9 * len(names)
    assert len(names) >= 0.92 * len({*CAUSAL, *ENCODERS, *ENCODER_DECODERS})
    if version.parse(transformers.__version__) >= version.parse("5.24"):
        assert len(names) >= 239
