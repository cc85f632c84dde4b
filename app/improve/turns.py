"""How each strategy phrases one attempt: a generator of turns that is sent the text of each turn it asked
for.

The text of an attempt's last turn is the candidate.
"""

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import Literal

from app.engines.base import Message

ModelName = Literal["policy", "improver"]
Phase = Literal["draft", "feedback", "response"]
StrategyName = Literal["pit", "self_refine", "best_of_n"]

FEEDBACK_TURN = "Give feedback on your answer. {rubric}"
REFINE_TURN = "Rewrite your answer with this feedback."
DEFAULT_RUBRIC = "Make it more helpful: complete, correct, polite and short."


@dataclass(frozen=True, slots=True)
class Turn:
    """One generation: which model, what it reads, and what its text is for."""

    model: ModelName
    messages: list[Message]
    phase: Phase


Attempt = Generator[Turn, str, None]
Strategy = Callable[[Sequence[Message], str], Attempt]


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def pit(improve_turn: str) -> Strategy:
    """PIT: the improver reads the conversation, the response so far and one fixed neutral sentence. No
    rubric."""

    def attempt(prompt: Sequence[Message], baseline: str) -> Attempt:
        yield Turn("improver", [*prompt, assistant(baseline), user(improve_turn)], "response")

    return attempt


def self_refine(rubric: str) -> Strategy:
    """Self-Refine (Madaan et al. 2023): the policy criticises its answer by the rubric, then rewrites it."""

    def attempt(prompt: Sequence[Message], baseline: str) -> Attempt:
        question = user(FEEDBACK_TURN.replace("{rubric}", rubric).strip())
        chat = [*prompt, assistant(baseline), question]
        feedback = yield Turn("policy", chat, "feedback")
        yield Turn("policy", [*chat, assistant(feedback), user(REFINE_TURN)], "response")

    return attempt


def best_of_n() -> Strategy:
    """Best of n: one more answer of the policy, which does not see the first."""

    def attempt(prompt: Sequence[Message], baseline: str) -> Attempt:
        yield Turn("policy", list(prompt), "response")

    return attempt


def draft(prompt: Sequence[Message]) -> Turn:
    """The first response y_0, when the request brings none."""
    return Turn("policy", list(prompt), "draft")
