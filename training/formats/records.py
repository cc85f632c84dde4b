"""What every format is parsed to, and the checks that the parsers share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

from training.formats.reading import Where

ROLES = ("system", "user", "assistant")


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """A comparison. `prompts` is the prompt, twice where the format states it for each response.

    `undecided`: people were asked and preferred neither.
    """

    id: str | None
    prompts: tuple[tuple[Message, ...], ...]
    chosen: str
    rejected: str
    source: str | None = None
    references: tuple[str, ...] = ()
    undecided: bool = False


def require(
    record: Mapping[str, Any], where: Where, keys: Sequence[str] = ("prompt", "chosen", "rejected")
) -> None:
    missing = [key for key in keys if key not in record]
    if missing:
        present = ", ".join(sorted(map(str, record))) or "none"
        raise where.error(
            f"no key {' and no key '.join(map(repr, missing))} (keys: {present})", "Is this the right format?"
        )


def messages_of(value: Any, key: str, where: Where) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise where.error(f"{key} must be a list of messages, at least one")
    messages = []
    for index, message in enumerate(value):
        name = f"{key}[{index}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise where.error(f'{name} must be a message {{"role": ..., "content": ...}}')
        if message["role"] not in ROLES:
            raise where.error(f"{name} has role {message['role']!r}; known are {', '.join(ROLES)}")
        messages.append(Message(role=message["role"], content=text_of(message["content"], name, where)))
    return tuple(messages)


def response_of(value: Any, key: str, where: Where) -> str:
    messages = messages_of(value, key, where)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise where.error(f"{key} must be one assistant message; earlier turns belong into the prompt")
    return messages[0]["content"]


def text_of(value: Any, name: str, where: Where) -> str:
    if not isinstance(value, str):
        raise where.error(f"{name} must be text, not {type(value).__name__}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise where.error(f"{name} holds half of a surrogate pair, which no tokenizer can encode")
    return value


def optional_text(record: Mapping[str, Any], key: str, where: Where) -> str | None:
    value = record.get(key)
    if value is None or isinstance(value, int):
        return None if value is None else str(value)
    return text_of(value, key, where)


def asked(question: str) -> tuple[Message, ...]:
    """A prompt of one turn."""
    return (Message(role="user", content=question),)
