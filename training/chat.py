"""What each model reads, as chat messages: the conversation is the interface (METHOD §4).

The improver's input is an ordinary chat, `prompt`, the reference as the assistant's turn, and one fixed
neutral sentence as the user's next turn; the gap reward reads the same chat with the candidate as the last
turn. So any chat template works, and training and serving agree when both render these messages with the
checkpoint's own template.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from jinja2 import TemplateError

from training.data import Message
from training.errors import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Conversation = list[Message]

# For models that only read and come without a template of their own (encoders).
PLAIN_TEMPLATE = (
    "{{ cls_token }}{% for message in messages %}"
    "{{ message['role'] }}: {{ message['content'] }}{{ sep_token }}"
    "{% endfor %}"
)


def assistant(content: str) -> Message:
    return Message(role="assistant", content=content)


def improver_messages(prompt: Sequence[Message], reference: str, improve_turn: str) -> Conversation:
    """(x, y_ref) as the improver reads it; the generation prompt follows."""
    return [*prompt, assistant(reference), Message(role="user", content=improve_turn)]


def gap_messages(
    prompt: Sequence[Message], candidate: str, baseline: str, improve_turn: str | None
) -> Conversation:
    """r_gap(x, candidate, baseline): is the candidate, which stands last, better than the baseline?

    Without an improve turn the candidate is read alone (the ablation with pointwise differences).
    """
    if improve_turn is None:
        return reward_messages(prompt, candidate)
    return [*improver_messages(prompt, baseline, improve_turn), assistant(candidate)]


def reward_messages(prompt: Sequence[Message], response: str) -> Conversation:
    """r(x, response), the pointwise reward."""
    return [*prompt, assistant(response)]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    conversations: Sequence[Conversation],
    *,
    generation_prompt: bool = False,
) -> list[list[int]]:
    """Token ids of each conversation, exactly as the chat template renders it.

    Raises:
        CheckpointError: the template refuses one (a system message, say, or roles that do not alternate).
    """
    try:
        ids: list[list[int]] = tokenizer.apply_chat_template(
            list(conversations),
            add_generation_prompt=generation_prompt,
            return_dict=False,
            # No warning of what is too long: the callers leave it out or cut it, and say so.
            tokenizer_kwargs={"verbose": False},
        )
    except TemplateError as error:
        roles = sorted({", ".join(m["role"] for m in messages) for messages in conversations})[:5]
        raise CheckpointError(
            f"the chat template refuses a conversation ({error}); those to render have the roles "
            f"{'; '.join(roles)}. Use another model, or data that its template takes"
        ) from error
    return ids


def encode_completion(
    tokenizer: PreTrainedTokenizerBase, messages: Conversation, response: str
) -> tuple[list[int], list[int]]:
    """(prompt ids with the generation prompt, ids of the response with the template's end of turn).

    Raises:
        CheckpointError: the template does not render a conversation as an extension of its own generation
            prompt.
    """
    prompt = encode(tokenizer, [messages], generation_prompt=True)[0]
    whole = encode(tokenizer, [[*messages, assistant(response)]])[0]
    if whole[: len(prompt)] != prompt:
        raise CheckpointError(
            "the chat template renders an answered conversation differently from its generation prompt "
            "(templates that insert or drop reasoning do); use a template whose answer continues the prompt"
        )
    return prompt, whole[len(prompt) :]


def completion_example(
    tokenizer: PreTrainedTokenizerBase, messages: Conversation, response: str
) -> dict[str, list[int]]:
    """What fine-tuning learns a response from: a loss on its tokens alone. Raises as `encode_completion`."""
    prompt, completion = encode_completion(tokenizer, messages, response)
    return {"input_ids": prompt + completion, "labels": [-100] * len(prompt) + completion}
