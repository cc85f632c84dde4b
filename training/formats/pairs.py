"""How people hand preference pairs on: the chat form, the text of HH-RLHF, TRL's preference types."""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import takewhile
from typing import Any

from training.formats.reading import Where
from training.formats.records import (
    Message,
    Record,
    asked,
    messages_of,
    optional_text,
    require,
    response_of,
    text_of,
)

_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


def chat_record(record: Mapping[str, Any], where: Where) -> Record:
    require(record, where)
    prompt = messages_of(record["prompt"], "prompt", where)
    if prompt[-1]["role"] != "user":
        raise where.error(f"the last message of the prompt has role {prompt[-1]['role']}, it must be user")
    references = record.get("references", [])
    if not isinstance(references, list):
        raise where.error(f"references must be a list of strings, not {type(references).__name__}")
    return Record(
        id=optional_text(record, "id", where),
        prompts=(prompt,),
        chosen=response_of(record["chosen"], "chosen", where),
        rejected=response_of(record["rejected"], "rejected", where),
        source=optional_text(record, "source", where),
        references=tuple(text_of(text, "references", where) for text in references),
    )


def hh_record(record: Mapping[str, Any], where: Where) -> Record:
    require(record, where, ("chosen", "rejected"))
    chosen_prompt, chosen = _hh_conversation(text_of(record["chosen"], "chosen", where), "chosen", where)
    rejected_prompt, rejected = _hh_conversation(
        text_of(record["rejected"], "rejected", where), "rejected", where
    )
    return Record(None, (chosen_prompt, rejected_prompt), chosen, rejected)


def _hh_conversation(text: str, key: str, where: Where) -> tuple[tuple[Message, ...], str]:
    """The prompt and the last response of a conversation."""
    before, *rest = _HH_TURN.split(text)
    if before.strip() or not rest or rest[0] != "Human":
        raise where.error(f'{key} does not begin with "\\n\\nHuman:"', "Is this the right format?")
    turns = list(zip(rest[::2], (said.strip() for said in rest[1::2]), strict=True))
    if turns[-1][0] != "Assistant":
        raise where.error(f'{key} does not end with an "Assistant:" turn, so it has no response')
    prompt: list[Message] = []
    for speaker, said in turns[:-1]:
        role = "user" if speaker == "Human" else "assistant"
        if prompt and prompt[-1]["role"] == role:
            # Chat templates want roles to alternate.
            prompt[-1]["content"] = f"{prompt[-1]['content']}\n\n{said}".strip()
        else:
            prompt.append(Message(role=role, content=said))
    return tuple(prompt), turns[-1][1]


def preference_record(record: Mapping[str, Any], where: Where) -> Record:
    """Any of TRL's four preference types: plain or conversational, the prompt explicit or implicit."""
    require(record, where, ("chosen", "rejected"))
    if isinstance(record["chosen"], list):
        prompts, chosen, rejected = _conversational(record, where)
    else:
        prompts, chosen, rejected = _plain(record, where)
    identity, source = optional_text(record, "id", where), optional_text(record, "source", where)
    return Record(identity, prompts, chosen.strip(), rejected.strip(), source)


def _conversational(
    record: Mapping[str, Any], where: Where
) -> tuple[tuple[tuple[Message, ...], ...], str, str]:
    """The responses may stand alone or, as in UltraFeedback, at the end of the conversation they answer,
    whether or not a prompt is given beside it."""
    given = record.get("prompt")
    prompt: tuple[Message, ...] = ()
    if given is not None:
        prompt = asked(given) if isinstance(given, str) else messages_of(given, "prompt", where)
    prompts, responses = [], []
    for key in ("chosen", "rejected"):
        *before, last = messages_of(record[key], key, where)
        if last["role"] != "assistant" or not (before or prompt):
            raise where.error(f"{key} must be a conversation that ends with an assistant message")
        if before and any(message not in before for message in prompt):
            raise where.error(f"{key} is a conversation in which the prompt does not stand")
        prompts.append(tuple(before) or prompt)
        responses.append(last["content"])
    return tuple(prompts), responses[0], responses[1]


def _plain(record: Mapping[str, Any], where: Where) -> tuple[tuple[tuple[Message, ...], ...], str, str]:
    chosen, rejected = (text_of(record[key], key, where) for key in ("chosen", "rejected"))
    if record.get("prompt") is not None:
        return (asked(text_of(record["prompt"], "prompt", where)),), chosen, rejected
    cut = implicit_prompt(chosen, rejected)
    if not chosen[:cut].strip():
        raise where.error(
            "no key 'prompt', and chosen and rejected have no common beginning", "Add the prompt to the line"
        )
    return (asked(chosen[:cut].strip()),), chosen[cut:], rejected[cut:]


def implicit_prompt(chosen: str, rejected: str) -> int:
    """Characters of the prompt that both texts begin with, up to a space: no word is cut in two.

    As TRL reads it, the prompt is the longest common beginning; responses that begin alike lose those words.
    """
    alike = (a == b for a, b in zip(chosen, rejected, strict=False))
    common = sum(1 for _ in takewhile(bool, alike))
    inside = any(
        common < len(text) and not text[common].isspace() for text in (chosen, rejected)
    ) and not chosen[:common].endswith((" ", "\n"))
    return max(chosen.rfind(" ", 0, common), chosen.rfind("\n", 0, common)) + 1 if inside else common
