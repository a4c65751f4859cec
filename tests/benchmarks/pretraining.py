"""Tokens a second of pretraining against HuggingFace's Trainer: same model, batch, precision and optimiser, one run.

    python tests/benchmarks/pretraining.py --threads 2

Prints each way's tokens a second and model FLOPs utilisation: 6 operations a parameter and token, and 12 a layer, width
and position of attention (Chowdhery et al. 2022, appendix B), over what one large bf16 matrix product reaches here.
Ways take turns, and the best of each counts. Each is timed after its first steps, where what is compiled compiles.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch
from beside import Parser
from torch.utils.data import Dataset
from transformers import PreTrainedModel, Trainer, TrainerCallback, TrainingArguments

from entangle.composition import Recipe, Training, new_model, train_tokenizer
from entangle.composition.training.pretrain import _step, loss_function

RECIPES = Path(__file__).resolve().parents[2] / "examples" / "recipes"
VOCABULARY = 8192
WARMUP = 3


class Random(Dataset):
    """Sequences of random tokens, as Trainer takes them."""

    def __init__(self, n: int, length: int) -> None:
        self.tokens = torch.randint(0, VOCABULARY, (n, length), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.tokens[index], "labels": self.tokens[index]}


class Clock(TrainerCallback):
    """When the timed steps begin and end."""

    def on_step_end(self, args, state, control, **_):
        if state.global_step == WARMUP:
            self.began = time.perf_counter()
        self.ended = time.perf_counter()


def of_trainer(model: PreTrainedModel, training: Training, steps: int, *, compiled: bool) -> float:
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=WARMUP + steps,
            per_device_train_batch_size=training.batch_size,
            learning_rate=training.learning_rate,
            lr_scheduler_type="cosine",
            weight_decay=training.weight_decay,
            max_grad_norm=training.clip,
            bf16=training.precision == "bf16",
            use_cpu=not torch.cuda.is_available(),
            torch_compile=compiled,
            report_to="none",
            save_strategy="no",
            logging_strategy="no",
            disable_tqdm=True,
        )
        data = Random((WARMUP + steps) * training.batch_size, training.context)
        Trainer(model, arguments, train_dataset=data, callbacks=[clock]).train()
    return steps * training.batch_size * training.context / (clock.ended - clock.began)


def of_pretrain(model: PreTrainedModel, training: Training, steps: int) -> float:
    """The steps of `pretrain`, one after the other."""
    data = Random((WARMUP + steps) * training.batch_size, training.context + 1).tokens
    if training.compile and model.device.type == "cpu":
        model.set_attn_implementation("eager")
    loss_of, optimiser = loss_function(model.train(), training), training.optimiser(model)
    for step, batch in enumerate(data.split(training.batch_size)):
        if step == WARMUP:
            began = time.perf_counter()
        _step(model, batch.to(model.device), loss_of, optimiser, training.clip)
    return steps * training.batch_size * training.context / (time.perf_counter() - began)


def peak(device: torch.device, precision: str, size: int = 4096) -> float:
    """Operations a second of one large matrix product."""
    a = torch.randn(size, size, device=device, dtype=torch.bfloat16 if precision == "bf16" else torch.float32)
    best = float("inf")
    for _ in range(4):
        began = time.perf_counter()
        (a @ a)[0, 0].item()
        best = min(best, time.perf_counter() - began)
    return 2 * size**3 / best


def main() -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", type=Path, default=RECIPES / "laptop.toml")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = Recipe.from_file(options.recipe)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = train_tokenizer(["the cat sat on the mat"], 300)
    architecture = {**recipe.architecture, "vocab_size": VOCABULARY}

    def fresh() -> PreTrainedModel:
        torch._dynamo.reset()
        return new_model(architecture, tokenizer).to(device)

    plain, fused = (Training(**{**vars(recipe.training), "compile": value}) for value in (False, True))
    ways = {
        "Trainer": lambda: of_trainer(fresh(), plain, options.steps, compiled=False),
        "pretrain": lambda: of_pretrain(fresh(), plain, options.steps),
        "Trainer, compiled": lambda: of_trainer(fresh(), plain, options.steps, compiled=True),
        "pretrain, compiled": lambda: of_pretrain(fresh(), fused, options.steps),
    }
    best = dict.fromkeys(ways, 0.0)
    for _ in range(options.rounds):
        for name, way in ways.items():
            best[name] = max(best[name], way())
    model = fresh()
    n_parameters = sum(p.numel() for p in model.parameters())
    config, training = model.config, recipe.training
    attention = 12 * config.num_hidden_layers * config.hidden_size * training.context
    most = peak(device, training.precision)
    print(
        f"{n_parameters:,} parameters, batch {training.batch_size} x {training.context}, {training.precision}, {device}"
    )
    print(f"{options.threads} threads; one large matrix product: {most / 1e12:.2f} TFLOP/s")
    for name, speed in best.items():
        used = speed * (6 * n_parameters + attention) / most
        print(f"{name:20s} {speed:10,.0f} tokens/s   {speed / best['Trainer']:.2f} x Trainer   MFU {used:.1%}")


if __name__ == "__main__":
    main()
