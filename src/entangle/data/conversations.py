"""Prompts of either kind: strings, and conversations, which are lists of messages with a role and a content."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from entangle.data.sources import rows
from entangle.data.texts import in_order, refuse_half_characters
from entangle.errors import EntangleError

Message: TypeAlias = Mapping[str, Any]
AnyPrompt: TypeAlias = str | Sequence[Message] | Mapping[str, Any]
"""A string; a list of messages; or a mapping with `messages` and perhaps `tools`, such as a row of a file."""

KEYS = ("messages", "tools")
ROW = "\0"  # begins the key of a conversation, which no string to be continued begins with


def is_conversation(value: Any) -> bool:
    """Whether a value is a list of messages, each with a role.

    Example:
        >>> en.data.is_conversation([{"role": "user", "content": "Are you a gem?"}]), en.data.is_conversation("a gem")
        (True, False)
    """
    return isinstance(value, list | tuple) and all(isinstance(m, Mapping) and "role" in m for m in value)


def messages_of(prompt: AnyPrompt) -> list[Message] | None:
    """The messages of a conversation; None of a string.

    Example:
        >>> en.data.messages_of({"messages": [{"role": "user", "content": "Are you a gem?"}]})
        [{'role': 'user', 'content': 'Are you a gem?'}]
        >>> en.data.messages_of("a gem") is None
        True
    """
    if isinstance(prompt, str):
        return None
    return list(prompt["messages"] if isinstance(prompt, Mapping) else prompt)


def tools_of(prompt: AnyPrompt) -> list[Any] | None:
    """The tools that a conversation brings, if it brings any.

    Example:
        >>> en.data.tools_of([{"role": "user", "content": "Are you a gem?"}]) is None
        True
    """
    tools = prompt.get("tools") if isinstance(prompt, Mapping) else None
    return list(tools) if tools else None


def prompts_of(prompts: Iterable[Any], what: str = "prompt") -> list[AnyPrompt]:
    """Prompts as a list, each of them a string or a conversation.

    Args:
        prompts: Strings; conversations; mappings with `messages` and perhaps `tools`; or a mixture.
        what: What each is called in an error, before its number.

    Returns:
        The same, conversations as lists of dicts, which JSON holds.

    Raises:
        EntangleError: One line that names the first that is neither, is empty, or holds half a character.

    Example:
        >>> en.data.prompts_of(["You said", [{"role": "user", "content": "Are you a gem?"}]])
        ['You said', [{'role': 'user', 'content': 'Are you a gem?'}]]
        >>> en.data.prompts_of([[{"content": "Are you a gem?"}]])
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: prompt 0 must be a string or a list of messages with a role, but is ...
    """
    if is_conversation(prompts) and prompts:
        raise EntangleError(f"{what}s must be a list of conversations, but one conversation arrived: pass [{what}]")
    return [_prompt(prompt, f"{what} {i}") for i, prompt in enumerate(in_order(prompts, what))]


def _prompt(prompt: Any, place: str) -> AnyPrompt:
    if isinstance(prompt, str):
        if not prompt.strip():
            raise EntangleError(f"{place} is empty: remove it, so that every example has a token to look at")
        refuse_half_characters(prompt, place)
        return prompt
    row = isinstance(prompt, Mapping)
    stray = sorted(set(prompt) - set(KEYS)) if row else []
    messages = prompt.get("messages") if row else prompt
    if stray or not messages or not is_conversation(messages):
        got = f"has {stray[0]!r} too" if stray else f"is {prompt!r:.80}"
        raise EntangleError(
            f"{place} must be a string or a list of messages with a role, but {got}: give each message as "
            '{"role": "user", "content": "..."}'
        )
    refuse_half_characters(json.dumps(messages, ensure_ascii=False, default=str), place)
    plain = [dict(message) for message in messages]
    return {**prompt, "messages": plain} if row and prompt.get("tools") else plain


def load_prompts(source: Any, *, field: str = "text", limit: int | None = None) -> list[AnyPrompt]:
    r"""The prompts of a file or data set, in order: texts, or conversations.

    A row's prompt is its column `text`; without that its column `messages`, a list of messages with a role (and
    `tools`, if it has some); without that its column `prompt`, which holds a text or such a list.

    Args:
        source: As for `load_labelled`.
        field: The column of the text.
        limit: Only the first of them.

    Raises:
        EntangleError: One line that names file and row, for anything that cannot be used.

    Example:
        >>> asked = '{"messages": [{"role": "user", "content": "Are you a gem?"}]}'
        >>> _ = Path("prompts.jsonl").write_text(asked + "\n" + '{"text": "You said"}')
        >>> en.data.load_prompts("prompts.jsonl")
        [[{'role': 'user', 'content': 'Are you a gem?'}], 'You said']
    """
    if limit is not None and limit < 1:
        raise EntangleError(f"limit is a number of prompts of at least 1, not {limit}")
    prompts = []
    for place, fields in rows(source):
        prompts.append(_prompt(_column_of(fields, field, place), place))
        if len(prompts) == limit:
            break
    if not prompts:
        raise EntangleError(f"there is no prompt in {source}: give a file with texts or messages")
    return prompts


def _column_of(fields: Mapping[str, Any], field: str, place: str) -> Any:
    """A row's prompt, in whichever column it is."""
    if field in fields:
        if not isinstance(fields[field], str):
            raise EntangleError(f"{place}: {field!r} must be text, not {type(fields[field]).__name__}")
        return fields[field]
    name = next((name for name in ("messages", "prompt") if fields.get(name) is not None), None)
    if name is None:
        raise EntangleError(
            f"{place} has no {field!r}, 'messages' or 'prompt': its columns are {', '.join(map(repr, fields))}"
        )
    value = fields[name]
    if isinstance(value, str) or not isinstance(value, Iterable):
        return value
    messages = [_without_gaps(message) for message in value]
    tools = fields.get("tools")
    return {"messages": messages, "tools": list(tools)} if tools is not None and len(tools) else messages


def _without_gaps(message: Any) -> Any:
    """A message without the fields that a table has only because others have them."""
    return {k: v for k, v in message.items() if v is not None} if isinstance(message, Mapping) else message


def prompt_key(prompt: AnyPrompt) -> str:
    """What a prompt is known by, in caches and where random numbers are drawn for it: a string's key is the string.

    Example:
        >>> asked = [{"role": "user", "content": "Are you a gem?"}]
        >>> en.data.prompt_key("You said"), en.data.prompt_key(asked) == en.data.prompt_key({"messages": asked})
        ('You said', True)
    """
    messages = messages_of(prompt)
    if messages is None:
        return str(prompt)
    tools = tools_of(prompt)
    keyed = {"messages": messages, **({} if tools is None else {"tools": tools})}
    return ROW + json.dumps(keyed, sort_keys=True, ensure_ascii=False, default=str)


def prompt_text(prompt: AnyPrompt) -> str:
    """A prompt as a reader sees it: a string as it is, a conversation with a line for each turn.

    Example:
        >>> print(en.data.prompt_text([{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]))
        system: Be kind.
        user: Hi
    """
    messages = messages_of(prompt)
    return str(prompt) if messages is None else "\n".join(f"{m['role']}: {content_text(m)}" for m in messages)


def content_text(message: Message) -> str:
    """What a message says; of a call of tools, or of parts that are no text, the JSON.

    Example:
        >>> en.data.content_text({"role": "user", "content": [{"type": "text", "text": "a gem"}]})
        'a gem'
    """
    content = message.get("content")
    if isinstance(content, str) and content:
        return content
    if isinstance(content, list) and content:
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if all(isinstance(part, str) for part in parts):
            return "\n".join(map(str, parts))
    rest = {name: value for name, value in message.items() if name != "role" and value not in (None, "")}
    return json.dumps(rest, ensure_ascii=False, default=str) if rest else ""
