"""Prompts of either kind, read from files and told apart; what cannot be used is one line that names the row."""

from __future__ import annotations

import json

import pandas as pd
import pytest

from entangle.data import load_prompts, prompt_key, prompt_text, prompts_of, tools_of
from entangle.errors import EntangleError

ASKED = [{"role": "user", "content": "Are you a gem?"}]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_hold_texts_or_messages_or_a_prompt(tmp_path):
    tools = [{"type": "function", "function": {"name": "look"}}]
    rows = [
        {"text": "You said", "messages": ASKED},  # a column text is read first, as in every other file
        {"messages": ASKED, "label": 1},
        {"prompt": ASKED, "completion": "Yes."},
        {"prompt": "You said"},
        {"messages": ASKED, "tools": tools},
    ]
    read = load_prompts(written(tmp_path / "prompts.jsonl", rows))
    assert read == ["You said", ASKED, ASKED, "You said", {"messages": ASKED, "tools": tools}]
    assert tools_of(read[-1]) == tools
    assert load_prompts(tmp_path / "prompts.jsonl", limit=2) == read[:2]


def test_a_table_gives_what_a_file_gives(tmp_path):
    longer = [{"role": "system", "content": "Be kind."}, *ASKED]
    table = pd.DataFrame({"messages": [ASKED, longer]})
    assert load_prompts(table) == [ASKED, longer]
    table.to_parquet(tmp_path / "prompts.parquet")
    assert load_prompts(tmp_path / "prompts.parquet") == [ASKED, longer]


@pytest.mark.parametrize(
    ("row", "error"),
    [
        ({"messages": []}, "line 2 must be a string or a list of messages with a role"),
        ({"messages": [{"content": "a"}]}, "line 2 must be a string or a list of messages"),
        ({"prompt": " "}, "line 2 is empty"),
        ({"question": "a"}, "line 2 has no 'text', 'messages' or 'prompt': its columns are 'question'"),
        ({"text": ASKED}, "line 2: 'text' must be text"),
        ({"messages": 3}, "line 2 must be a string or a list of messages"),
    ],
)
def test_a_row_that_is_no_prompt_is_named(row, error, tmp_path):
    with pytest.raises(EntangleError, match=error) as caught:
        load_prompts(written(tmp_path / "prompts.jsonl", [{"text": "a"}, row]))
    assert "\n" not in str(caught.value)


def test_a_key_is_of_what_is_asked_and_of_nothing_else():
    keys = [
        prompt_key(prompt)
        for prompt in ("Are you a gem?", ASKED, [*ASKED, *ASKED], {"messages": ASKED, "tools": [{"name": "look"}]})
    ]
    assert len(set(keys)) == 4
    assert prompt_key({"messages": ASKED}) == prompt_key(tuple(ASKED)) == keys[1]
    assert prompt_key([{"content": "Are you a gem?", "role": "user"}]) == keys[1]


def test_a_conversation_reads_as_its_turns():
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "look"}}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    assert prompt_text([parts, called]) == 'user: a\nb\nassistant: {"tool_calls": [{"function": {"name": "look"}}]}'
    assert prompt_text("a <b>") == "a <b>"
    assert prompts_of([tuple(ASKED)]) == [ASKED]
