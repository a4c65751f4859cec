"""lm-evaluation-harness through its Python API, on a task made here."""

import json

import numpy as np
import pytest
import torch

from entangle.errors import EntangleError
from entangle.evaluation import Checkpoint, Harness, Prompt, behaviours, task_scores
from entangle.interventions import AddDirection, steer

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


def test_a_behaviour_of_the_harness_is_its_questions(tasks, tiny_model, tiny_tokenizer):
    model, other = tiny_model("llama"), Checkpoint(tiny_model("llama", seed=1))
    row = task_scores(model, tiny_tokenizer, ["animals"], other, include_path=tasks).iloc[0]
    asked = {"animals": Harness("animals", include_path=tasks)}
    moved = behaviours(model, tiny_tokenizer, {"other": other}, asked, alpha=1, null=0, progress=False)
    found = moved.to_frame().iloc[0]
    for column in ("n", "plain", "changed", "change", "p"):
        assert found[column] == pytest.approx(row["change" if column == "change" else column])
    wrong = {"a": Harness("animals", metric="f1", include_path=tasks)}
    with pytest.raises(EntangleError, match=r"'animals' has the metrics acc; give metric= one of them"):
        behaviours(model, tiny_tokenizer, {"other": other}, wrong, alpha=1, null=0, progress=False)
    with pytest.raises(EntangleError, match="the harness measures models, and this method changes what is around one"):
        behaviours(model, tiny_tokenizer, Prompt(), asked, alpha=1, null=0, progress=False)


def test_a_group_is_all_its_tasks(tasks, tiny_model, tiny_tokenizer):
    (tasks / "others.yaml").write_text((tasks / "animals.yaml").read_text().replace("task: animals", "task: others"))
    (tasks / "zoo.yaml").write_text("group: zoo\ntask:\n  - animals\n  - others\n")
    options = {"include_path": tasks, "limit": 4}
    table = task_scores(tiny_model("llama"), tiny_tokenizer, ["zoo"], Checkpoint(tiny_model("llama", 1)), **options)
    assert sorted(table["task"]) == ["animals", "others"]
    assert table["plain"].nunique() == table["changed"].nunique() == 1


def test_questions_that_cannot_be_had(tasks, tiny_model, tiny_tokenizer, tmp_path):
    moved = (tasks / "animals.yaml").read_text().replace("questions.jsonl", "gone.jsonl")
    (tmp_path / "animals.yaml").write_text(moved)
    with pytest.raises(EntangleError, match=r"could not get the questions of animals: .*gone.jsonl"):
        task_scores(tiny_model("llama"), tiny_tokenizer, ["animals"], [], alpha=0, include_path=tmp_path)


@pytest.mark.shared
def test_mmlus_own_definition_on_questions_made_here(shared, tmp_path):
    from pathlib import Path

    import lm_eval

    from entangle.models.loading import load

    questions = [
        {"question": f"What is {a} plus {b}?", "choices": [str(a + b + (i - a) % 4) for i in range(4)], "answer": a % 4}
        for a in range(1, 5)
        for b in range(1, 5)
    ]
    for split in ("test", "dev"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(map(json.dumps, questions)))
    template = Path(lm_eval.__file__).parent / "tasks" / "mmlu" / "default" / "_default_template_yaml"
    (tmp_path / "sums.yaml").write_text(
        f"""
include: {template}
task: sums
dataset_path: json
dataset_name: null
dataset_kwargs:
  data_files:
    test: {tmp_path / "test.jsonl"}
    dev: {tmp_path / "dev.jsonl"}
"""
    )
    model, tokenizer = load(shared / "models" / "olmo2-4m-clean")
    d_model = model.config.hidden_size
    edit = AddDirection(4 * torch.nn.functional.normalize(torch.ones(d_model), dim=0), site="resid_post", layer=2)
    row = task_scores(model, tokenizer, ["sums"], edit, alpha=8.0, include_path=tmp_path, num_fewshot=0).iloc[0]

    def accuracy():
        right = 0
        for q in questions:
            choices = "".join(f"\n{letter}. {text}" for letter, text in zip("ABCD", q["choices"], strict=True))
            before = tokenizer(f"{q['question']}{choices}\nAnswer:")["input_ids"]
            letters = [tokenizer(f" {letter}")["input_ids"][0] for letter in "ABCD"]
            with torch.no_grad():
                right += int(model(torch.tensor([before])).logits[0, -1, letters].argmax()) == q["answer"]
        return right / len(questions)

    assert (row["task"], row["metric"], row["n"]) == ("sums", "acc", 16)
    assert row["plain"] == accuracy()
    with steer(model, edit, alpha=8.0):
        assert row["changed"] == accuracy()


@pytest.mark.slow  # reads all of the harness's own task definitions
def test_what_the_harness_cannot_do(tasks, tiny_model, tiny_tokenizer):
    with pytest.raises(EntangleError, match="no task 'nothing_of_the_kind'"):
        task_scores(tiny_model("llama"), tiny_tokenizer, ["nothing_of_the_kind"], Prompt(), include_path=tasks)
    with pytest.raises(EntangleError, match="no harness tasks given"):
        task_scores(tiny_model("llama"), tiny_tokenizer, [], Prompt(), include_path=tasks)
    from entangle.evaluation.language.tasks import _task_manager

    assert {"mmlu", "mmlu_anatomy", "hellaswag"} <= set(_task_manager(["mmlu"], None).all_tasks)
    with pytest.raises(EntangleError, match="Prompt changes what is around one"):
        task_scores(tiny_model("llama"), tiny_tokenizer, ["animals"], Prompt(), include_path=tasks, limit=2)
