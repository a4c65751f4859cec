"""Prompts that a model is to answer: strings as they stand, conversations up to where the assistant begins to speak."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from entangle.activations.inputs.chat import Conversations, Turn, read_conversations, render
from entangle.activations.inputs.examples import Examples
from entangle.activations.inputs.tokens import turn_positions
from entangle.data import AnyPrompt, Message, messages_of, prompts_of
from entangle.errors import EntangleError
from entangle.models.rows import UNLIMITED, check_ids, encode, encode_rows, pad_id

ASKED: list[Message] = [{"role": "user", "content": "a"}]
MARK = "marked"


def prompt_tokens(
    tokenizer: Any,
    prompts: Sequence[AnyPrompt],
    *,
    model: nn.Module | None = None,
    prepend_bos: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """Token ids of prompts, none of them closed, of whatever length.

    A conversation becomes what `tokenizer.apply_chat_template(messages, add_generation_prompt=True)` makes of it, token
    for token: with the beginning that the template writes, if it writes one, and never with a second.

    Args:
        tokenizer: One with a chat template, if there are conversations.
        prompts: Strings, conversations, or a mixture.
        model: What they are for: its vocabulary is kept to.
        prepend_bos: Begin prompts with the beginning-of-sequence token where neither tokenizer nor template does.
        chat_template_kwargs: For `apply_chat_template`, such as `tools` or `enable_thinking`.

    Raises:
        EntangleError: No template, a conversation that it refuses or that ends with the assistant, one that begins
            twice, or an empty prompt.

    Example:
        >>> chat = {"chat_template": "{% for m in messages %}{{ m.content }}{% endfor %} You are"}
        >>> asked = [{"role": "user", "content": "Are you a gem?"}]
        >>> rows = en.activations.prompt_tokens(tokenizer, ["You said", asked], chat_template_kwargs=chat)
        >>> [tokenizer.decode(row) for row in rows]
        ['You said', 'Are you a gem? You are']
    """
    prompts = prompts_of(prompts)
    chats = [i for i, prompt in enumerate(prompts) if not isinstance(prompt, str)]
    # What does not fit is refused by who knows how much room there must be.
    settings: dict[str, Any] = {"max_length": UNLIMITED, "prepend_bos": prepend_bos, "closed": False}
    rows: list[list[int]] = [[] for _ in prompts]
    if len(chats) < len(prompts):
        strings = [i for i, prompt in enumerate(prompts) if isinstance(prompt, str)]
        read = encode(tokenizer, [str(prompts[i]) for i in strings], what="prompt", **settings)
        check_ids(read, model, "prompt")
        for i, row in zip(strings, read, strict=True):
            rows[i] = row
    if chats:
        asked = asked_conversations(tokenizer, [prompts[i] for i in chats], chat_template_kwargs)
        written = encode(tokenizer, asked.texts, what="conversation", add_special_tokens=False, **settings)
        check_ids(written, model, "conversation")
        for i, row in zip(chats, written, strict=True):
            rows[i] = row
    return rows


def asked_conversations(
    tokenizer: Any, conversations: Sequence[AnyPrompt], arguments: Mapping[str, Any] | None = None
) -> Conversations:
    """Conversations as the template writes them for the assistant to go on.

    Raises:
        EntangleError: As `read_conversations`; and a conversation that ends with the assistant.
    """
    options = dict(arguments or {})
    goes_on = bool(options.get("continue_final_message"))
    for i, conversation in enumerate(conversations):
        messages = messages_of(conversation)
        if messages and not goes_on and messages[-1].get("role") == "assistant":
            raise EntangleError(
                f"conversation {i} ends with the assistant, so there is nothing to answer: leave its last message out, "
                "or let the model go on with it (chat_template_kwargs={'continue_final_message': True})"
            )
    return read_conversations(tokenizer, conversations, {"add_generation_prompt": not goes_on, **options})


def answer_ends(tokenizer: Any, chat_template_kwargs: Mapping[str, Any] | None = None) -> list[int]:
    """The special token with which the chat template ends what the assistant says, if it ends it with one.

    Example:
        >>> chat = {"chat_template": "{% for m in messages %}{{ m.content + eos_token }}{% endfor %}"}
        >>> en.activations.answer_ends(tokenizer, chat) == [tokenizer.eos_token_id]
        True
    """
    options = {**(chat_template_kwargs or {}), "add_generation_prompt": False, "continue_final_message": False}
    try:
        text = render(tokenizer, [*ASKED, {"role": "assistant", "content": MARK}], options, "an answer")
    except EntangleError:  # one that takes no such conversation says nothing of where an answer ends
        return []
    after = text.rpartition(MARK)[2].lstrip() if MARK in text else ""
    ids = list(tokenizer(after, add_special_tokens=False)["input_ids"]) if after else []
    return [int(ids[0])] if ids and int(ids[0]) in _special(tokenizer) else []


def _special(tokenizer: Any) -> set[int]:
    added = getattr(tokenizer, "added_tokens_decoder", {})
    return {*tokenizer.all_special_ids, *(token for token, entry in added.items() if entry.special)}


def before_conversation(
    tokenizer: Any, prompt: AnyPrompt, text: str, chat_template_kwargs: Mapping[str, Any] | None = None
) -> AnyPrompt:
    """A conversation with an instruction before it: at the head of its system turn; where it has none, as one; and
    where the template takes no system turn, at the head of the first turn.

    Example:
        >>> chat = {"chat_template": "{% for m in messages %}{{ m.role + ': ' + m.content + ' ' }}{% endfor %}"}
        >>> asked = [{"role": "user", "content": "Are you a gem?"}]
        >>> en.activations.before_conversation(tokenizer, asked, "Be kind. ", chat)
        [{'role': 'system', 'content': 'Be kind.'}, {'role': 'user', 'content': 'Are you a gem?'}]
    """
    first, *rest = messages_of(prompt) or []
    if first.get("role") != "system" and _takes_system(tokenizer, chat_template_kwargs):
        messages = [{"role": "system", "content": text.strip()}, first, *rest]
    else:
        content = first.get("content")
        parts = [{"type": "text", "text": text}, *content] if isinstance(content, list) else f"{text}{content or ''}"
        messages = [{**first, "content": parts}, *rest]
    return {**prompt, "messages": messages} if isinstance(prompt, Mapping) else messages


def _takes_system(tokenizer: Any, arguments: Mapping[str, Any] | None) -> bool:
    options = {k: v for k, v in (arguments or {}).items() if k not in ("tools", "continue_final_message")}
    try:
        return MARK in render(tokenizer, [{"role": "system", "content": MARK}, *ASKED], options, "a system turn")
    except EntangleError:
        return False


def turn_mask(
    tokenizer: Any,
    conversations: Sequence[AnyPrompt],
    turn: Turn,
    *,
    side: Literal["left", "right"] = "left",
    prepend_bos: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> Bool[Tensor, "conversation pos"]:
    """Which tokens of padded prompts belong to a turn, as `steer(..., tokens=...)` takes it.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        conversations: Prompts that the assistant is to answer.
        turn: The turn; its `tokens` choose among the turn's own.
        side: Where the prompts are padded; for `generate`, on the left.
        prepend_bos: As for `prompt_tokens`.
        chat_template_kwargs: As for `prompt_tokens`.

    Returns:
        True at the turn's tokens, shaped as the prompts' input ids.

    Raises:
        EntangleError: As `prompt_tokens`; also a conversation without that turn, or a turn whose tokens cannot be told.

    Example:
        >>> chat = {"chat_template": "{% for m in messages %}{{ m.role + ': ' + m.content + ' ' }}{% endfor %}"}
        >>> asked = [{"role": "system", "content": "a gem"}, {"role": "user", "content": "a useless turnip"}]
        >>> mask = en.activations.turn_mask(tokenizer, [asked], en.Turn(role="user"), chat_template_kwargs=chat)
        >>> mask.sum().item()  # the last token of what the user says
        1
    """
    asked = asked_conversations(tokenizer, conversations, chat_template_kwargs)
    read = encode_rows(
        tokenizer,
        asked.texts,
        max_length=UNLIMITED,
        prepend_bos=prepend_bos,
        add_special_tokens=False,
        closed=False,
        what="conversation",
    )
    examples = Examples(read.ids, pad_id(tokenizer), source=asked, added=read.added)
    width = max(examples.lengths)
    mask = torch.zeros((len(examples), width), dtype=torch.bool)
    for i, (start, end) in enumerate(turn_positions(turn, examples, tokenizer)):
        shift = width - examples.lengths[i] if side == "left" else 0
        mask[i, [shift + p for p in _within(turn.tokens, start, end, i)]] = True
    return mask


def _within(tokens: str | int, start: int, end: int, i: int) -> range:
    """The positions of a turn that its `tokens` name."""
    if isinstance(tokens, str):
        ends = {"last": (end - 1, end), "first": (start, start + 1)}.get(tokens, (start, end))
        return range(*ends)
    if not start - end <= tokens < end - start:
        raise EntangleError(f"token {tokens} of a turn was asked for, but that of conversation {i} has {end - start}")
    place = start + tokens % (end - start)
    return range(place, place + 1)
