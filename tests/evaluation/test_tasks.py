"""lm-evaluation-harness through its Python API, on a task made here."""

import json

import numpy as np
import pytest
import torch

from entangle.errors import EntangleError
from entangle.evaluation import Checkpoint, Prompt, task_scores
from entangle.interventions import AddDirection

pytest.importorskip("lm_eval")

QUESTIONS = [
    {"question": q, "choices": ["the cat", "a fox", "the moon"], "answer": i % 3}
    for i, q in enumerate(["who sat on the mat", "who jumps", "what looked", "the lazy", "a quick", "over the"] * 3)
]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tasks")
    (folder / "questions.jsonl").write_text("\n".join(map(json.dumps, QUESTIONS)))
    (folder / "animals.yaml").write_text(
        f"""
task: animals
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder / "questions.jsonl"}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
target_delimiter: " "
metric_list:
  - metric: acc
"""
    )
    return folder


def likeliest(model, tokenizer, question):
    """The choice with the highest log-probability after the question, written out."""
    before = tokenizer(question["question"])["input_ids"]
    totals = []
    for choice in question["choices"]:
        ids = tokenizer(f"{question['question']} {choice}")["input_ids"]
        with torch.no_grad():
            logp = model(torch.tensor([ids])).logits[0].double().log_softmax(-1)
        totals.append(sum(logp[i - 1, ids[i]].item() for i in range(len(before), len(ids))))
    return int(np.argmax(totals))


def test_accuracy_is_that_of_the_likeliest_choices(tasks, tiny_model, tiny_tokenizer):
    plain, other = tiny_model("llama"), tiny_model("llama", seed=1)
    row = task_scores(plain, tiny_tokenizer, ["animals"], Checkpoint(other), include_path=tasks).iloc[0]
    right = {
        name: np.mean([likeliest(model, tiny_tokenizer, q) == q["answer"] for q in QUESTIONS])
        for name, model in {"plain": plain, "changed": other}.items()
    }
    assert (row["task"], row["metric"], row["n"]) == ("animals", "acc", len(QUESTIONS))
    assert (row["plain"], row["changed"]) == pytest.approx((right["plain"], right["changed"]))
    assert row["change"] == pytest.approx(right["changed"] - right["plain"])
    assert row["change_low"] <= row["change"] <= row["change_high"]


def test_no_strength_no_change_and_no_hook_left(tasks, tiny_model, tiny_tokenizer):
    model = tiny_model("llama")
    edit = AddDirection(torch.ones(32), site="resid_post", layer=1)
    row = task_scores(model, tiny_tokenizer, ["animals"], edit, alpha=0, include_path=tasks, limit=5).iloc[0]
    assert (row["n"], row["change"], row["p"]) == (5, 0, 1)
    task_scores(model, tiny_tokenizer, ["animals"], edit, alpha=9, include_path=tasks, limit=2)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.slow  # reads all of the harness's own task definitions
def test_what_the_harness_cannot_do(tasks, tiny_model, tiny_tokenizer):
    with pytest.raises(EntangleError, match="no task 'nothing_of_the_kind'"):
        task_scores(tiny_model("llama"), tiny_tokenizer, ["nothing_of_the_kind"], Prompt(), include_path=tasks)
    with pytest.raises(EntangleError, match="no harness tasks given"):
        task_scores(tiny_model("llama"), tiny_tokenizer, [], Prompt(), include_path=tasks)
    with pytest.raises(EntangleError, match="Prompt changes what is around one"):
        task_scores(tiny_model("llama"), tiny_tokenizer, ["animals"], Prompt(), include_path=tasks, limit=2)
