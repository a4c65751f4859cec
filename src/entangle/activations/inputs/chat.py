"""Conversations through the tokenizer's chat template, and where in the result each turn is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any, Literal

from jinja2 import TemplateError

from entangle.data import AnyPrompt, Message, is_conversation, messages_of, tools_of
from entangle.errors import EntangleError

Span = tuple[int, int]
PARTS = ("content", "turn", "generated")
GENERATION = re.compile(r"\{%-?\s*generation\b")


@dataclass(frozen=True)
class Turn:
    """Tokens of one turn of each conversation, for `collect(..., tokens=Turn(...))`.

    `Turn()` is the last token of what the last message says, `Turn(role="assistant", tokens="mean")` the mean over the
    assistant's last answer, `Turn(0, role="user")` the last token of the user's first message.

    Attributes:
        index: Which turn, from 0, or negative from the end; among those of `role` if that is given.
        role: `"system"`, `"user"`, `"assistant"` or whatever the conversations use.
        tokens: `"last"`, `"first"`, `"mean"`, `"all"` or an integer, within the turn.
        part: `"content"`: the message's own text; every token that overlaps it. `"turn"`: the header and end mark that
            the template puts around it as well. `"generated"`: what the template marks with `{% generation %}` as
            written by the assistant, which most often is the content and the end mark.

    Example:
        >>> en.Turn(role="assistant", tokens="mean")
        Turn(index=-1, role='assistant', tokens='mean', part='content')
        >>> en.Turn(part="middle")
        Traceback (most recent call last):
            ...
        entangle.errors.EntangleError: the part of a turn must be one of content, turn, generated, but ...
    """

    index: int = -1
    role: str | None = None
    tokens: Literal["last", "first", "mean", "all"] | int = "last"
    part: Literal["content", "turn", "generated"] = "content"

    def __post_init__(self) -> None:
        if self.part not in PARTS:
            raise EntangleError(f"the part of a turn must be one of {', '.join(PARTS)}, but is {self.part!r}")
        if self.part == "generated" and self.role not in (None, "assistant"):
            raise EntangleError(f"only the assistant's turns are generated, but role={self.role!r} was asked for")


@dataclass(frozen=True)
class Conversations:
    """Conversations and what the chat template makes of them.

    Attributes:
        messages: Of each conversation, each with a `role` and a `content`.
        texts: Each conversation as the template writes it.
        arguments: Of `apply_chat_template`, such as `add_generation_prompt`.
        tools: Of each conversation that brings its own.

    Example:
        >>> chat = {"chat_template": "{% for m in messages %}{{ m.role + ': ' + m.content + ' ' }}{% endfor %}"}
        >>> asked = [{"role": "user", "content": "Are you a gem?"}]
        >>> en.activations.read_conversations(tokenizer, [asked], chat).texts
        ['user: Are you a gem? ']
    """

    messages: list[list[Message]]
    texts: list[str]
    arguments: dict[str, Any]
    tools: dict[int, list[Any]] = field(default_factory=dict)

    def arguments_of(self, i: int) -> dict[str, Any]:
        """Of `apply_chat_template` for one of them."""
        return {**self.arguments, "tools": self.tools[i]} if i in self.tools else self.arguments

    def alone(self, i: int) -> Conversations:
        """One of them by itself."""
        return Conversations([self.messages[i]], [self.texts[i]], self.arguments_of(i))


def read_conversations(
    tokenizer: Any, conversations: Sequence[AnyPrompt], arguments: Mapping[str, Any] | None = None
) -> Conversations:
    """Each conversation as the tokenizer's chat template writes it.

    Args:
        tokenizer: One with a chat template, unless `arguments` brings one.
        conversations: Lists of messages with `role` and `content`, or mappings with `messages` and `tools`.
        arguments: For `apply_chat_template`: `add_generation_prompt`, `chat_template`, `tools`, or what the template
            itself knows, such as `enable_thinking`.

    Raises:
        EntangleError: No tokenizer or template, something that is no conversation, or one the template refuses.

    Example:
        >>> chat = {"chat_template": "{% for m in messages %}{{ m.role + ': ' + m.content + ' ' }}{% endfor %}"}
        >>> asked = [{"role": "user", "content": "Are you a gem?"}, {"role": "assistant", "content": "Yes."}]
        >>> en.activations.read_conversations(tokenizer, [asked], chat).texts
        ['user: Are you a gem? assistant: Yes. ']
    """
    if tokenizer is None:
        raise EntangleError("conversations need a tokenizer, but None arrived: pass it, or pass tokenised tensors")
    options = dict(arguments or {})
    if not options.get("chat_template") and not getattr(tokenizer, "chat_template", None):
        raise EntangleError(
            "conversations need a tokenizer with a chat template, and this one has none: set tokenizer.chat_template, "
            "or pass chat_template_kwargs={'chat_template': ...}"
        )
    messages, tools = [], {}
    for i, conversation in enumerate(conversations):
        own = messages_of(conversation)
        if not is_conversation(own) or not own:
            raise EntangleError(f"conversation {i} must be a list of messages with a role, but is {conversation!r:.80}")
        messages.append(own)
        if (brought := tools_of(conversation)) is not None:
            tools[i] = brought
    read = Conversations(messages, [], options, tools)
    texts = [render(tokenizer, own, read.arguments_of(i), f"conversation {i}") for i, own in enumerate(messages)]
    return Conversations(messages, texts, options, tools)


def turn_span(turn: Turn, conversations: Conversations, i: int, tokenizer: Any) -> Span:
    """The characters of a turn (its `"content"`, or the whole `"turn"`) in the text of conversation `i`.

    The content is found by letting the template write the conversation with a mark in its place, and the whole turn by
    letting it write the conversation up to there; either must agree with the text, character for character.

    Raises:
        EntangleError: The conversation has no such turn, or the template writes it differently in its place.
    """
    messages, text = conversations.messages[i], conversations.texts[i]
    k, arguments, name = _message(turn, messages, i), conversations.arguments_of(i), f"conversation {i}"
    if turn.part == "turn":
        settings = {**arguments, "add_generation_prompt": False}
        until = render(tokenizer, messages[:k], settings, name) if k else ""
        through = render(tokenizer, messages[: k + 1], settings, name)
        if not (text.startswith(through) and through.startswith(until) and until != through):
            raise EntangleError(
                f"the chat template writes turn {k} of conversation {i} differently when more follows, so its ends "
                "cannot be told: use part='content'"
            )
        return len(until), len(through)
    content = messages[k].get("content")
    if not isinstance(content, str) or not content.strip():
        raise EntangleError(f"turn {k} of conversation {i} says no text: choose another turn, or part='turn'")
    mark = "marked"
    while mark in text:
        mark += "marked"
    marked = [*messages[:k], {**messages[k], "content": mark}, *messages[k + 1 :]]
    before, *others = render(tokenizer, marked, arguments, name).split(mark)
    inner = text[len(before) : len(text) - len(others[0])] if len(others) == 1 else ""
    same = len(others) == 1 and text == before + inner + others[0]
    if not same or not inner.strip() or inner.strip() not in content:
        raise EntangleError(
            f"the chat template changes what turn {k} of conversation {i} says, so its tokens cannot be told: use "
            "part='turn' or 'generated', or a token mask"
        )
    start = len(before) + len(inner) - len(inner.lstrip())
    return start, start + len(inner.strip())


def generated_span(turn: Turn, conversations: Conversations, i: int, tokenizer: Any) -> Span:
    """The tokens, `[start, end)`, that the template marks as generated in the assistant's turn of conversation `i`.

    Raises:
        EntangleError: The template marks nothing (it has no `{% generation %}`), or not once a turn.
    """
    messages, arguments = conversations.messages[i], conversations.arguments_of(i)
    template = arguments.get("chat_template") or tokenizer.get_chat_template()
    if not GENERATION.search(template):
        raise EntangleError(
            "this chat template marks nothing as generated (it has no {% generation %}): use part='content' or 'turn'"
        )
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, return_dict=True, return_assistant_tokens_mask=True, **arguments
    )
    position, spans = 0, []
    for generated, run in groupby(encoded["assistant_masks"]):
        length = len(list(run))
        if generated:
            spans.append((position, position + length))
        position += length
    turns = [k for k, message in enumerate(messages) if message["role"] == "assistant"]
    if len(spans) != len(turns):
        raise EntangleError(
            f"the chat template marks {len(spans)} runs of tokens as generated in the {len(turns)} assistant turns of "
            f"conversation {i}: use part='content' or 'turn'"
        )
    k = _message(Turn(turn.index, "assistant"), messages, i)
    return spans[turns.index(k)]


def _message(turn: Turn, messages: Sequence[Message], i: int) -> int:
    """Which message a turn is."""
    turns = [k for k, message in enumerate(messages) if turn.role in (None, message["role"])]
    if not -len(turns) <= turn.index < len(turns):
        of_role = "" if turn.role is None else f" of the {turn.role}"
        raise EntangleError(
            f"turn {turn.index}{of_role} was asked for, but conversation {i} has {len(turns)}: select another, or "
            "remove the conversation"
        )
    return turns[turn.index]


def render(tokenizer: Any, messages: Sequence[Message], arguments: Mapping[str, Any], name: str) -> str:
    """Messages as the chat template writes them.

    Raises:
        EntangleError: The template refuses them; one line with the name and why.
    """
    try:
        text = tokenizer.apply_chat_template(list(messages), tokenize=False, **arguments)
    except (TemplateError, ValueError, TypeError, KeyError) as error:
        why = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EntangleError(f"the chat template does not take {name}: {why}") from error
    return str(text)
