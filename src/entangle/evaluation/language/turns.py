"""Conversations as documents: what they are as tokens, and which of these a role says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from entangle.activations import Conversations, Examples, Turn, before_conversation, read_conversations, turn_positions
from entangle.data import AnyPrompt
from entangle.errors import EntangleError
from entangle.models import UNLIMITED, encode, encode_rows

NOBODY = -1
"""The owner of a token that is not measured."""


def conversation_rows(
    tokenizer: Any,
    conversations: Sequence[AnyPrompt],
    *,
    max_length: int | None,
    prepend_bos: bool,
    chat_template_kwargs: Mapping[str, Any] | None,
) -> list[list[int]]:
    """Token ids of whole conversations, as the chat template writes them."""
    return encode(
        tokenizer,
        read_conversations(tokenizer, conversations, chat_template_kwargs).texts,
        max_length=max_length or UNLIMITED,
        prepend_bos=prepend_bos,
        add_special_tokens=False,
        closed=False,
        what="conversation",
    )


def turn_owners(
    tokenizer: Any,
    documents: Sequence[AnyPrompt],
    rows: Sequence[Sequence[int]],
    role: str,
    *,
    prepend_bos: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[list[int]]:
    """The number of the document for each token of what a role says in it, `NOBODY` for every other token.

    Args:
        tokenizer: A fast tokenizer with a chat template.
        documents: Conversations.
        rows: Their tokens, cut or not.
        role: Whose turns are measured: what they say, without the marks that the template puts around it.
        prepend_bos: As the rows were made.
        chat_template_kwargs: As the rows were made.

    Raises:
        EntangleError: A document that is no conversation, or that has no token of that role.
    """
    strings = [i for i, document in enumerate(documents) if isinstance(document, str)]
    if strings:
        raise EntangleError(
            f"turns={role!r} measures what is said in conversations, but document {strings[0]} is a string: give "
            "conversations, or leave turns out"
        )
    read = read_conversations(tokenizer, documents, chat_template_kwargs)
    encoded = encode_rows(
        tokenizer, read.texts, max_length=UNLIMITED, prepend_bos=prepend_bos, add_special_tokens=False, closed=False
    )
    owners = []
    for i, row in enumerate(rows):
        full = encoded.ids[i]
        cut = 0 if full[: len(row)] == list(row) else len(full) - len(row)  # what was cut off before it
        owner_of_token = [NOBODY] * len(full)
        alone = Examples([full], 0, source=read.alone(i), added=[encoded.added[i]])
        for start, end in _spoken(read, i, role, alone, tokenizer):
            owner_of_token[start:end] = [i] * (end - start)
        owners.append(owner_of_token[cut : cut + len(row)])
        if i not in owners[-1][1:]:
            raise EntangleError(
                f"document {i} has no token that the {role} says: leave it out, or raise max_length so that it is kept"
            )
    return owners


def _spoken(read: Conversations, i: int, role: str, alone: Examples, tokenizer: Any) -> list[tuple[int, int]]:
    turns = [message for message in read.messages[i] if message["role"] == role]
    spoken = [k for k, message in enumerate(turns) if str(message.get("content") or "").strip()]
    return [turn_positions(Turn(k, role), alone, tokenizer)[0] for k in spoken]


def after_instruction(
    tokenizer: Any,
    documents: Sequence[AnyPrompt],
    rows: Sequence[list[int]],
    owners: Sequence[Sequence[int]],
    instruction: str,
    *,
    prepend_bos: bool = False,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> tuple[list[list[int]], list[int]]:
    """Conversations with an instruction in their system turn, and by how many positions that moves what is measured.

    Raises:
        EntangleError: Something is measured that stands before the instruction, or is written differently after it.
    """
    instructed = [before_conversation(tokenizer, each, instruction, chat_template_kwargs) for each in documents]
    settings: dict[str, Any] = {
        "max_length": None,
        "prepend_bos": prepend_bos,
        "chat_template_kwargs": chat_template_kwargs,
    }
    plain, changed = (conversation_rows(tokenizer, each, **settings) for each in (documents, instructed))
    placed, starts = [], []
    for i, (row, before, after) in enumerate(zip(rows, plain, changed, strict=True)):
        same = next((n for n, (a, b) in enumerate(zip(before[::-1], after[::-1], strict=False)) if a != b), len(before))
        first = next(place for place, owner in enumerate(owners[i]) if owner != NOBODY)
        if before[: len(row)] != row or first < len(before) - same or first < 1:
            raise EntangleError(
                f"an instruction in the system turn of conversation {i} changes tokens that are measured: measure what "
                "the assistant says (turns='assistant'), and cut conversations on the right"
            )
        placed.append(after[: len(after) - (len(before) - len(row))])
        starts.append(len(after) - len(before))
    return placed, starts
