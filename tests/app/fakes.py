"""A fake engine and a fake scorer. tests/contract runs the same assertions against these and the real
ones."""

import asyncio
import hashlib
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass, field

from app.checkpoint import SamplingDefaults
from app.engines.base import (
    Comparison,
    Delta,
    FinishReason,
    Message,
    Prompt,
    Sampling,
    Scores,
    TokenLogprob,
    ToolCallDelta,
    Tools,
)
from app.errors import AppError, ContextTooLong, EngineFailed
from app.improve.gate import GapCalibration
from app.improve.options import Models
from app.runtime import ModelFactory, Served
from app.settings import Settings

WORDS = [
    "the",
    "a",
    "lamp",
    "price",
    "color",
    "is",
    "red",
    "blue",
    "24",
    "36",
    "hello",
    "please",
    "thanks",
    "rude",
    "no",
    "yes",
    "sorry",
    "good",
    "day",
]
IMPROVE_TURN = "Please improve your answer."


def words_of(text: str) -> int:
    return len(text.split())


@dataclass
class FakeEngine:
    """Writes words drawn from `WORDS` by the prompt and the seed, one token a word, or what `script` says.

    Asked for a prompt with tools, it writes `calls` after its words.
    """

    context_length: int = 256
    defaults: SamplingDefaults = field(default_factory=lambda: SamplingDefaults(0.7, max_tokens=12))
    model_id: str = "fake"
    delay_s: float = 0.0
    script: Callable[[Sequence[Message]], str] | None = None
    failure: AppError | None = None
    calls: tuple[ToolCallDelta, ...] = ()
    closed: bool = False
    running: int = 0
    started: int = 0
    aborted: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    prompts: list[list[Message]] = field(default_factory=list)
    samplings: list[Sampling] = field(default_factory=list)
    tools: list[Tools | None] = field(default_factory=list)
    _chats: dict[int, list[Message]] = field(default_factory=dict)

    async def prepare(
        self, messages: Sequence[Message], *, count: bool = True, tools: Tools | None = None
    ) -> Prompt:
        """One id for each turn's role and end, one for each word; the ids are hashes, the first names the
        chat."""
        text = "\n".join(f"{m['role']}:{m['content']}" for m in messages)
        name = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
        self._chats[name] = list(messages)
        self.tools.append(tools)
        ids = [name, *range(1, sum(2 + words_of(m["content"]) for m in messages) + 1)]
        return Prompt(ids, len(ids))

    async def prepare_text(self, text: str | Sequence[int]) -> Prompt:
        if isinstance(text, str):
            return await self.prepare([{"role": "text", "content": text}])
        return Prompt(list(text), len(text))

    async def token_ids(self, messages: Sequence[Message]) -> list[int]:
        content = (await self.prepare(messages)).content
        assert isinstance(content, list)
        return content

    async def generate(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Delta, None]:
        assert isinstance(prompt.content, list)
        prompt_ids: list[int] = prompt.content
        if self.closed:
            raise EngineFailed("The fake engine is closed.")
        self.started += 1
        self.running += 1
        self.prompt_tokens += len(prompt_ids)
        chat = self._chats.get(prompt_ids[0], [])
        self.prompts.append(chat)
        self.samplings.append(sampling)
        finished = False
        try:
            words, ends = self._text(chat, prompt_ids, sampling)
            for number, word in enumerate(words, 1):
                await asyncio.sleep(self.delay_s)
                if self.failure:
                    raise self.failure
                last = number == len(words)
                finished = last
                text = word if number == 1 else " " + word
                self.completion_tokens += 1
                reason: FinishReason = "stop" if ends else "length"
                calls: tuple[ToolCallDelta, ...] = ()
                if last and self.tools and (tools := self.tools[-1]) and tools.choice != "none":
                    reason, calls = "tool_calls", self.calls
                yield Delta(
                    text,
                    1,
                    reason if last else None,
                    logprobs=self._logprobs(text, sampling.logprobs),
                    tool_calls=calls,
                )
            if not words:
                finished = True
                self.completion_tokens += 1
                yield Delta("", 1, "stop")
        finally:
            self.running -= 1
            self.aborted += 0 if finished else 1

    @staticmethod
    def _logprobs(token: str, top: int | None) -> tuple[TokenLogprob, ...]:
        """The word has probability 1/2, each of `top` others an eighth of the one before."""
        if top is None:
            return ()
        others = [(f"{token}{n}", -0.7 - 2.1 * n) for n in range(1, top + 1)]
        return (TokenLogprob(token, -0.7, ((token, -0.7), *others)),)

    def _text(
        self, chat: Sequence[Message], prompt_ids: Sequence[int], sampling: Sampling
    ) -> tuple[list[str], bool]:
        if self.script:
            words = self.script(chat).split()
        else:
            seed = 0 if sampling.temperature == 0 else sampling.seed
            source = random.Random() if seed is None else random.Random(f"{prompt_ids[0]}/{seed}")
            words = [source.choice(WORDS) for _ in range(source.randint(1, 20))]
        text = " ".join(words)
        ends = [text.index(stop) for stop in sampling.stop if stop in text]
        if ends:
            words = text[: min(ends)].split()
        return words[: sampling.max_tokens], len(words) <= sampling.max_tokens

    async def logprobs(self, prompt_ids: Sequence[int], completion_ids: Sequence[int]) -> list[float]:
        return [-1.0 for _ in completion_ids]

    async def check_health(self) -> None:
        if self.closed:
            raise EngineFailed("The fake engine is closed.")

    async def close(self) -> None:
        self.closed = True


@dataclass
class FakeScorer:
    """r_gap = value(candidate) - value(baseline) + `offset`: r_gap(y, y) is not zero, as in a trained
    model."""

    value: Callable[[str], float] = lambda text: sum(map(len, text.split())) % 17 / 4
    offset: float = 0.7
    context_length: int = 512
    model_id: str = "fake-gap"
    delay_s: float = 0.0
    failure: AppError | None = None
    fail_from_call: int = 0
    calls: int = 0
    tokens: int = 0
    down: AppError | None = None
    closed: bool = False

    async def encode(self, comparison: Comparison) -> list[int]:
        texts = [m["content"] for m in comparison.messages] + [comparison.baseline, comparison.candidate]
        return list(range(sum(2 + words_of(text) for text in texts)))

    async def score(self, comparisons: Sequence[Comparison]) -> Scores:
        self.calls += 1
        await asyncio.sleep(self.delay_s)
        if self.failure and self.calls > self.fail_from_call:
            raise self.failure
        lengths = [len(await self.encode(comparison)) for comparison in comparisons]
        if max(lengths) > self.context_length:
            raise ContextTooLong("Too long for the fake gap reward.", param="messages")
        values = [self.value(c.candidate) - self.value(c.baseline) + self.offset for c in comparisons]
        self.tokens += sum(lengths)
        return Scores(values, sum(lengths))

    async def check_health(self) -> None:
        if self.down:
            raise self.down

    async def close(self) -> None:
        self.closed = True


def fake_models(
    policy: FakeEngine | None = None,
    improver: FakeEngine | None = None,
    scorer: FakeScorer | None = None,
    **calibration: float,
) -> Models:
    """Models of fakes, with a gap reward calibrated by a = 2, b = 0 and centred by r_gap(y, y)."""
    return Models(
        policy=policy or FakeEngine(model_id="fake-policy"),
        improver=improver or FakeEngine(model_id="fake-improver"),
        scorer=scorer or FakeScorer(),
        calibration=GapCalibration("self", **{"a": 2.0, "b": 0.0, **calibration}),
        improve_turn=IMPROVE_TURN,
    )


def factory_of(models: Models) -> ModelFactory:
    """A model factory that gives these models at once."""

    async def close() -> None:
        for model in (models.policy, models.improver, models.scorer):
            if model:
                await model.close()

    async def start(_: Settings) -> Served:
        return Served(models, close, "fake")

    return start
