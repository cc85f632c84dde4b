"""What the models read: no text is lost, an answer continues its prompt, nobody types a control token."""

from functools import cache
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.chat import (
    assistant,
    encode,
    encode_completion,
    gap_messages,
    improver_messages,
    reward_messages,
)
from training.data import Message
from training.errors import CheckpointError
from training.tokenizer import CHAT_TEMPLATE, END, PAD, ROLES, train_tokenizer

TEXT = st.text(st.characters(codec="utf-8"))
QUESTION = [Message(role="user", content="What is the price?")]


@cache
def tokenizer() -> Any:
    return train_tokenizer(["The price of the lamp is 24 euros. Please tell me the price."] * 4, 320, 128)


@given(TEXT)
def test_decoding_gives_back_any_text(text: str) -> None:
    ids = tokenizer()(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    assert tokenizer().decode(ids) == text


@given(TEXT, TEXT)
def test_the_completion_continues_the_prompt_exactly(question: str, response: str) -> None:
    """Training on the answer and generating after the prompt see the same ids."""
    messages = [Message(role="user", content=question)]
    prompt, completion = encode_completion(tokenizer(), messages, response)
    assert prompt == encode(tokenizer(), [messages], generation_prompt=True)[0]
    assert prompt + completion == encode(tokenizer(), [[*messages, assistant(response)]])[0]
    assert completion[-1] == tokenizer().eos_token_id


def test_a_turn_costs_two_tokens() -> None:
    ids = encode(tokenizer(), [QUESTION])[0]
    assert tokenizer().convert_ids_to_tokens([ids[0], ids[-1]]) == ["<|user|>", END]
    assert len(ids) == 2 + len(tokenizer()(QUESTION[0]["content"])["input_ids"])


@given(st.lists(st.sampled_from([PAD, END, *(f"<|{role}|>" for role in ROLES), "<", "|", "a", "<|", "|>"])))
def test_what_people_type_never_becomes_a_control_token(parts: list[str]) -> None:
    """Else a user could end the turn and speak as the assistant."""
    ids = encode(tokenizer(), [[Message(role="user", content="".join(parts))]])[0]
    assert not set(ids[1:-1]) & set(tokenizer().all_special_ids + control_ids())
    assert ids[-1] == tokenizer().eos_token_id


def control_ids() -> list[int]:
    ids: list[int] = tokenizer().convert_tokens_to_ids([PAD, END, *(f"<|{role}|>" for role in ROLES)])
    return ids


def test_a_template_that_rewrites_the_prompt_is_refused() -> None:
    fickle = train_tokenizer(["a b c"], 300, 64)
    fickle.chat_template = CHAT_TEMPLATE.replace("'<|assistant|>' }}", "'<|assistant|>(thinking)' }}")
    with pytest.raises(CheckpointError, match="template"):
        encode_completion(fickle, QUESTION, "24 euros.")


def test_what_each_model_reads() -> None:
    improver = improver_messages(QUESTION, "draft", "Improve.")
    assert [(m["role"], m["content"]) for m in improver] == [
        ("user", "What is the price?"), ("assistant", "draft"), ("user", "Improve."),
    ]  # fmt: skip
    assert gap_messages(QUESTION, "new", "old", "Improve.") == [
        *improver_messages(QUESTION, "old", "Improve."), assistant("new"),
    ]  # fmt: skip
    assert reward_messages(QUESTION, "y") == [*QUESTION, assistant("y")]
