"""One question to an OpenAI-compatible API, asked until it is answered or its deadline has come.

In the pipeline the LLM judge asks through this. A verdict changes nothing on the server, so everything that
may pass is tried again: no connection, a cut connection, 408, 409, 429, 5xx, an answer that is no completion.
"""

from __future__ import annotations

import asyncio
import random
from dataclasses import dataclass
from typing import Any

import httpx

from training.errors import TrainingError

_PASSING = {408, 409, 425, 429}
_HOPELESS = {
    401: "the API key was not accepted; set it in the variable that evaluation.llm.api_key_env names",
    403: "the API key may not do this",
    404: "no such route or model; look at evaluation.llm.url (it mostly ends with /v1) and .model",
}
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0


class NoAnswer(TrainingError):
    """One question has no answer; others may have."""


class Refused(NoAnswer):
    """The server says that this very question cannot be answered (too long, say)."""


class Hopeless(TrainingError):
    """No question will be answered: the key, the address or the model is wrong."""


@dataclass(frozen=True)
class Answer:
    """What the model wrote, and the tokens that the server counted (0 where it does not count)."""

    text: str
    prompt_tokens: int
    completion_tokens: int


@dataclass
class Asker:
    """Asks one server. `tries` counts requests, repeated ones too."""

    http: httpx.AsyncClient
    retries: int
    deadline_s: float
    first_pause_s: float = FIRST_PAUSE_S
    tries: int = 0

    async def ask(self, body: dict[str, Any]) -> Answer:
        """The answer to a chat completion's body.

        Raises:
            Refused: HTTP 400, 413 or 422.
            Hopeless: HTTP 401, 403 or 404.
            NoAnswer: nothing else helped, `retries` times or until the deadline.
        """
        trouble = "no answer yet"
        try:
            async with asyncio.timeout(self.deadline_s):
                for attempt in range(self.retries + 1):
                    found, wait_s = await self._try(body)
                    if isinstance(found, Answer):
                        return found
                    trouble = found
                    if attempt < self.retries:
                        await asyncio.sleep(max(wait_s, self._pause(attempt)))
        except TimeoutError:
            raise NoAnswer(f"no answer within {self.deadline_s:g} s ({trouble})") from None
        raise NoAnswer(f"no answer after {self.retries + 1} tries ({trouble})")

    def _pause(self, attempt: int) -> float:
        """Exponential, and spread: clients that failed together must not come back together."""
        longest: float = min(LONGEST_PAUSE_S, self.first_pause_s * 2**attempt)
        return longest * random.uniform(0.5, 1.0)

    async def _try(self, body: dict[str, Any]) -> tuple[Answer | str, float]:
        """An answer, or what went wrong and how many seconds the server asks to wait."""
        self.tries += 1
        try:
            response = await self.http.post("chat/completions", json=body)
        except httpx.HTTPError as error:
            return f"the connection failed: {type(error).__name__}", 0.0
        status = response.status_code
        if status == 200:
            answer = _read(response)
            return (answer, 0.0) if answer is not None else ("an answer that is no chat completion", 0.0)
        if status in _HOPELESS:
            raise Hopeless(f"{self.http.base_url}: {_HOPELESS[status]} (HTTP {status})")
        if status in _PASSING or status >= 500:
            return f"HTTP {status}", _seconds(response.headers.get("retry-after", ""))
        raise Refused(f"refused (HTTP {status})")


def _read(response: httpx.Response) -> Answer | None:
    try:
        record = response.json()
        text = record["choices"][0]["message"]["content"]
        usage = record.get("usage") or {}
        counts = (int(usage.get(f"{kind}_tokens") or 0) for kind in ("prompt", "completion"))
        # A model that spent all its tokens on reasoning has written nothing: an unreadable verdict, no fault.
        return Answer("" if text is None else str(text), *counts)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None


def _seconds(value: str) -> float:
    try:
        return min(LONGEST_PAUSE_S, max(0.0, float(value)))
    except ValueError:
        return 0.0
