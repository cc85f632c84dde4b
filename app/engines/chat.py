"""Conversations to token ids, by the checkpoint's own tokenizer and chat template."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from app.engines.base import Comparison, Message
from app.errors import BadRequest, CheckpointError

MESSAGE_TOKENS = 16
"""More than a chat template writes around a message."""


def most_tokens(messages: Sequence[Message]) -> int:
    """An upper bound of a conversation's length as a prompt: no token is shorter than a byte of UTF-8. Tool
    calls count as their JSON."""
    total = MESSAGE_TOKENS * (len(messages) + 1)
    for message in messages:
        total += len((message["content"] or "").encode("utf-8", "replace"))
        if calls := message.get("tool_calls"):
            total += len(json.dumps(calls))
    return total


class ChatEncoder:
    """The tokenizer of a checkpoint. Imports transformers when it is made."""

    def __init__(self, path: Path) -> None:
        """Raises `CheckpointError` for a tokenizer that cannot be read or has no chat template."""
        from transformers import AutoTokenizer

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise CheckpointError(
                f"{path} has no tokenizer that can be read. Publish the checkpoint again."
            ) from error
        if not self._tokenizer.chat_template:
            raise CheckpointError(
                f"The tokenizer of {path} has no chat template. Add chat_template.jinja: conversations are"
                " rendered with it."
            )

        # A template that does not know the role would write it as a stranger's: developer is OpenAI's newer
        # name of system.
        self._knows_developer = "developer" in str(self._tokenizer.chat_template)

    def encode(
        self,
        messages: Sequence[Message],
        *,
        generation_prompt: bool,
        tools: list[dict[str, Any]] | None = None,
    ) -> list[int]:
        """Token ids of the conversation. Raises `BadRequest` when the template refuses it."""
        from jinja2 import TemplateError

        try:
            text = self._tokenizer.apply_chat_template(
                [self._for_template(message) for message in messages],
                tokenize=False,
                add_generation_prompt=generation_prompt,
                tools=tools,
            )
        except TemplateError:
            raise BadRequest(
                "The model's chat template cannot render these messages: check the order of the roles.",
                param="messages",
            ) from None
        # The template writes every special token itself.
        ids: list[int] = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids

    def _for_template(self, message: Message) -> dict[str, Any]:
        """A message as templates read it: the arguments of tool calls as objects. Raises `BadRequest`."""
        shown: dict[str, Any] = dict(message)
        if message["role"] == "developer" and not self._knows_developer:
            shown["role"] = "system"
        if calls := message.get("tool_calls"):
            try:
                shown["tool_calls"] = [_with_arguments(call) for call in calls]
            except ValueError:
                raise BadRequest(
                    "The arguments of a tool call in messages are not valid JSON.", param="messages"
                ) from None
        return shown

    def encode_text(self, text: str) -> list[int]:
        """Token ids of a plain text, with the special tokens that the tokenizer puts around one."""
        ids: list[int] = self._tokenizer(text)["input_ids"]
        return ids

    def encode_comparison(self, comparison: Comparison, improve_turn: str | None) -> list[int]:
        """Token ids of the gap reward's input."""
        return self.encode(comparison_chat(comparison, improve_turn), generation_prompt=False)


def comparison_chat(comparison: Comparison, improve_turn: str | None) -> list[Message]:
    """The gap reward's input as a conversation: the baseline, the improve turn, the candidate.

    Without an improve turn, the conversation and the candidate alone.
    """
    candidate: Message = {"role": "assistant", "content": comparison.candidate}
    if improve_turn is None:
        return [*comparison.messages, candidate]
    return [
        *comparison.messages,
        {"role": "assistant", "content": comparison.baseline},
        {"role": "user", "content": improve_turn},
        candidate,
    ]


def _with_arguments(call: dict[str, Any]) -> dict[str, Any]:
    function = call["function"]
    return call | {"function": function | {"arguments": json.loads(function["arguments"] or "{}")}}
