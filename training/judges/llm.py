"""A language model as a judge, over an OpenAI-compatible API.

In the pipeline this serves evaluation only. As in the paper each two responses are judged in both orders, and
a disagreement is a tie (METHOD §5 c). The paper prints no prompt: ours is llm_prompt.txt, and its hash is
part of the judge's settings. Every answer is kept in a file, so that a second run asks nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from training.data import Message
from training.errors import ConfigError, TrainingError
from training.judges.cache import AnswerCache, key_of
from training.judges.llm_client import FIRST_PAUSE_S, Asker, NoAnswer, Refused
from training.judges.protocol import Contest, Cost, Verdict
from training.judges.settings import LlmSettings

PROMPT = Path(__file__).with_name("llm_prompt.txt")
FIELDS = ("conversation", "first", "second")
CHARACTERS_A_TOKEN = 4
"""For the estimate alone: English text has about four."""
FAILURES = 10
"""So many questions may go unanswered, or be refused one after the other, before the judge gives up: more is
a server that is not well, or does not take such questions at all."""
DISAGREE, SAME, UNREADABLE, UNANSWERED = (
    "the two orders disagree", "the same text", "unreadable verdict", "no answer",
)  # fmt: skip


@dataclass
class LlmJudge:
    """See `Judge`. `cache` is where answers are kept; `progress` hears done and total of a call's questions.

    Raises:
        ConfigError: the prompt file cannot be read or lacks a field, or the cache is something else.
    """

    given: LlmSettings
    cache: Path
    progress: Callable[[int, int], None] = lambda done, total: None
    first_pause_s: float = FIRST_PAUSE_S
    name: str = "llm"
    _cost: Cost = field(default=Cost(), init=False)
    tries: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._template = _template(self.given.prompt or PROMPT)

    @property
    def settings(self) -> Mapping[str, Any]:
        given = self.given
        return {
            "model": given.model,
            "prompt": "sha256:" + hashlib.sha256(self._template.encode()).hexdigest(),
            "temperature": given.temperature,
            "max_tokens": given.max_tokens,
            "extra": given.extra,
        }

    # ---------------------------------------------------------------------------------------- cost

    def estimate(self, contests: Sequence[Contest]) -> Cost:
        """Of the questions that no kept answer answers: four characters are taken for a token, and every
        answer to be as long as it may."""
        with AnswerCache(self.cache) as cache:
            questions = self._questions(contests, cache)
            asking = {contest for contest, key, _ in self._needed(contests) if key in questions}
        read = sum(len(_content(body)) for body in questions.values()) // CHARACTERS_A_TOKEN
        return self._priced(
            Cost(
                contests=len(contests),
                known=len(contests) - len(asking),
                calls=len(questions),
                prompt_tokens=read,
                completion_tokens=len(questions) * self.given.max_tokens,
            )
        )

    def cost(self) -> Cost:
        return self._cost

    def _priced(self, cost: Cost) -> Cost:
        prices = self.given.prices
        if prices is None:
            return cost
        money = cost.prompt_tokens * prices.prompt + cost.completion_tokens * prices.completion
        return cost + Cost(money=money / 1e6)

    # ---------------------------------------------------------------------------------------- judging

    def judge(self, contests: Sequence[Contest]) -> list[Verdict]:
        """See `Judge`. A question that the server refuses leaves its contest without a verdict.

        Raises:
            TrainingError: the key, the address or the model is wrong, or too many questions went unanswered;
                what was answered is kept.
        """
        started = time.monotonic()
        with AnswerCache(self.cache) as cache:
            questions = self._questions(contests, cache)
            failed = asyncio.run(self._ask(questions, cache)) if questions else {}
            verdicts = [self._verdict(contest, cache, failed) for contest in contests]
        self._cost += Cost(contests=len(contests), seconds=time.monotonic() - started)
        return verdicts

    def _needed(self, contests: Sequence[Contest]) -> list[tuple[int, str, dict[str, Any]]]:
        """(index of the contest, key, body) of each order of each contest of two different texts."""
        return [
            (i, key_of(body), body)
            for i, contest in enumerate(contests)
            if contest.first != contest.second
            for body in self._orders(contest)
        ]

    def _questions(self, contests: Sequence[Contest], cache: AnswerCache) -> dict[str, dict[str, Any]]:
        """What must be asked, by key: each question once."""
        return {key: body for _, key, body in self._needed(contests) if cache.get(key) is None}

    def _orders(self, contest: Contest) -> tuple[dict[str, Any], dict[str, Any]]:
        x, a, b = contest.example.prompt, contest.first, contest.second
        return self._body(x, a, b), self._body(x, b, a)

    def _body(self, prompt: Sequence[Message], first: str, second: str) -> dict[str, Any]:
        texts = {"conversation": _conversation(prompt), "first": first, "second": second}
        # In one pass: a response that holds "{second}" says just that.
        content = re.sub(r"\{(conversation|first|second)\}", lambda m: texts[m[1]], self._template)
        given = self.given
        body: dict[str, Any] = {
            "model": given.model,
            "messages": [{"role": "user", "content": content}],
            given.tokens_name: given.max_tokens,
        }
        if given.temperature is not None:
            body["temperature"] = given.temperature
        return body | given.extra

    async def _ask(self, questions: Mapping[str, dict[str, Any]], cache: AnswerCache) -> dict[str, str]:
        """Ask, keep each answer as it comes; return why some have none, by key."""
        given, failed = self.given, dict[str, str]()
        waiting, done = iter(questions.items()), 0
        unanswered = in_a_row = 0
        limits = httpx.Limits(max_connections=given.concurrency)
        async with httpx.AsyncClient(
            base_url=given.url + "/", headers=self._headers(), timeout=given.timeout_s, limits=limits
        ) as http:
            asker = Asker(http, given.retries, given.deadline_s, self.first_pause_s)

            async def work() -> None:
                nonlocal done, unanswered, in_a_row
                for key, body in waiting:
                    try:
                        answer = await asker.ask(body)
                    except NoAnswer as error:
                        failed[key] = str(error)
                        unanswered += not isinstance(error, Refused)
                        in_a_row += 1
                        if max(unanswered, in_a_row) >= FAILURES:
                            raise TrainingError(_gave_up(given.url, error)) from None
                    else:
                        in_a_row = 0
                        read, written = answer.prompt_tokens, answer.completion_tokens
                        cache.add(key, given.model, answer.text, read, written)
                        self._cost += self._priced(
                            Cost(calls=1, prompt_tokens=read, completion_tokens=written)
                        )
                    done += 1
                    self.progress(done, len(questions))

            try:
                async with asyncio.TaskGroup() as group:
                    for _ in range(min(given.concurrency, len(questions))):
                        group.create_task(work())
            except* TrainingError as errors:
                raise errors.exceptions[0] from None
            finally:
                self.tries += asker.tries
        return failed

    def _headers(self) -> dict[str, str]:
        key = os.environ.get(self.given.api_key_env, "")
        return {"authorization": f"Bearer {key}"} if key else {}

    def _verdict(self, contest: Contest, cache: AnswerCache, failed: Mapping[str, str]) -> Verdict:
        if contest.first == contest.second:
            return Verdict(0, SAME)
        values = []
        for body, sign in zip(self._orders(contest), (1, -1), strict=True):
            text = cache.get(key_of(body))
            if text is None:
                return Verdict(None, failed.get(key_of(body), UNANSWERED).partition(" (")[0])
            value = read_verdict(text)
            if value is None:
                return Verdict(None, UNREADABLE)
            values.append(sign * value)
        return Verdict(values[0]) if values[0] == values[1] else Verdict(0, DISAGREE)


def read_verdict(text: str) -> int | None:
    """+1 for A, −1 for B, 0 for a tie, None where none can be read. The last verdict counts."""
    mark = r"[*_`\s]*"
    found = re.findall(rf"verdict{mark}[:=]{mark}\[*(a|b|tie)\b", text, re.IGNORECASE)
    found = found or re.findall(r"\[\[(a|b|tie)\]\]", text, re.IGNORECASE)
    if not found and (alone := re.fullmatch(r"\W*(a|b|tie)\W*", text, re.IGNORECASE)):
        found = [alone[1]]
    return {"a": 1, "b": -1, "tie": 0}[found[-1].lower()] if found else None


def _conversation(prompt: Sequence[Message]) -> str:
    return "\n\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def _content(body: Mapping[str, Any]) -> str:
    return str(body["messages"][0]["content"])


def _template(path: Path) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: the judge's prompt cannot be read; name a text file") from error
    missing = [name for name in FIELDS if f"{{{name}}}" not in text]
    if missing:
        raise ConfigError(f"{path}: the judge's prompt has no {{{missing[0]}}}; see {PROMPT.name}")
    return text


def _gave_up(url: str, error: NoAnswer) -> str:
    return (
        f"the judge at {url} left {FAILURES} questions unanswered, the last: {error}. "
        "Its answers so far are kept; run the same command again to go on"
    )
