"""A prompt and its answer as the inputs of a classifier that was trained on pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeAlias

from entangle.activations import read_conversations
from entangle.data import AnyPrompt, content_text, messages_of, prompt_text, tools_of
from entangle.errors import EntangleError
from entangle.models import UNLIMITED, as_it_was, encode

Pairs: TypeAlias = Literal["text_pair", "chat"]
PAIRS = ("text_pair", "chat")


def asked(prompt: AnyPrompt) -> str:
    """A prompt as text: what is said in a conversation of one message, else a line for each turn."""
    messages = messages_of(prompt)
    return content_text(messages[0]) if messages is not None and len(messages) == 1 else prompt_text(prompt)


def answered(prompt: AnyPrompt, answer: str) -> AnyPrompt:
    """The conversation in which an answer was given; a string counts as what the user said."""
    messages = messages_of(prompt) or [{"role": "user", "content": str(prompt)}]
    conversation = [*messages, {"role": "assistant", "content": answer}]
    tools = tools_of(prompt)
    return conversation if tools is None else {"messages": conversation, "tools": tools}


def pair_rows(
    tokenizer: Any, prompts: Sequence[AnyPrompt], answers: Sequence[str], how: Pairs, context: int
) -> list[dict[str, list[int]]]:
    """What the tokenizer makes of each prompt and answer: token ids and what goes along with them.

    Args:
        tokenizer: The classifier's.
        prompts: Prompts.
        answers: Their answers.
        how: "text_pair": the tokenizer's own way with two texts, of which the longer is cut where both do not fit;
            "chat": the chat template's way, which is never cut.
        context: Tokens in the longest input.

    Raises:
        EntangleError: A conversation longer than the context.
    """
    if how == "text_pair":
        cut: dict[str, Any] = {"truncation": "longest_first", "max_length": context} if context < UNLIMITED else {}
        with as_it_was(tokenizer):
            read = tokenizer([asked(prompt) for prompt in prompts], list(answers), verbose=False, padding=False, **cut)
        named: Mapping[str, Any] = {name: rows for name, rows in read.items() if name != "attention_mask"}
        return [{name: list(rows[i]) for name, rows in named.items()} for i in range(len(answers))]
    both = [answered(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True)]
    texts = read_conversations(tokenizer, both).texts
    rows = encode(
        tokenizer, texts, max_length=UNLIMITED, add_special_tokens=False, closed=False, what="prompt and answer"
    )
    for i, row in enumerate(rows):
        if len(row) > context:
            raise EntangleError(
                f"prompt and answer {i} have {len(row)} tokens, but the classifier's context holds {context}: "
                "shorten the prompts, or leave out the long ones"
            )
    return [{"input_ids": row} for row in rows]
