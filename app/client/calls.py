"""What is sent for each call, and how its answer is read. No I/O: both clients share it."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, TypedDict, TypeVar, cast
from urllib.parse import quote

import httpx
from pydantic import BaseModel, ValidationError

from app.client.failures import NOT_OURS, NoAnswer, raise_for
from app.improve.options import ScoringMode
from app.improve.turns import StrategyName
from app.schemas import Score, ScoreList
from app.schemas_feedback import FeedbackType

Conversation = str | Sequence[Mapping[str, Any]]
"""Messages in chat form, ending with the user; a text is one message of the user."""
Which = Literal["reference", "response"] | int
Answer = TypeVar("Answer", bound=BaseModel)


class ImproveOptions(TypedDict, total=False):
    """The options of `/v1/improve` (docs/improve.md). What is left out is the server's default."""

    strategy: StrategyName
    max_iterations: int
    candidates: int
    scoring: ScoringMode
    min_win_probability: float
    patience: int
    max_total_tokens: int | None
    deadline_ms: int | None
    rubric: str
    keep: Mapping[str, Any] | None
    temperature: float | None
    top_p: float | None
    max_tokens: int | None
    seed: int | None
    stop: str | Sequence[str] | None
    store: bool | None
    metadata: Mapping[str, str] | None
    view: Literal["text", "edits"]


class FeedbackFields(TypedDict, total=False):
    """The fields of `/v1/feedback`; docs/feedback.md says which `type` takes which."""

    run: str
    preferred: Which | str
    other: Which | str
    accepted: Sequence[int]
    rating: int
    text: str
    response: Which
    messages: Conversation


@dataclass(frozen=True)
class Call:
    """One request."""

    method: str
    path: str
    body: dict[str, Any] | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """Those of httpx's `request` and `stream`. The body's bytes are the same every time."""
        found: dict[str, Any] = {"method": self.method, "url": self.path, "params": dict(self.query)}
        if self.body is None:
            return found | {"headers": dict(self.headers)}
        headers = {"content-type": "application/json", **self.headers}
        return found | {"content": json.dumps(self.body).encode(), "headers": headers}

    def with_key(self, key: str | None) -> "Call":
        """The same with an `Idempotency-Key`, where there is one."""
        return replace(self, headers={**self.headers, "idempotency-key": key}) if key else self


def read(response: httpx.Response, model: type[Answer]) -> Answer:
    """The answer. Raises the server's error, and `NoAnswer` for what no pit serve answers."""
    raise_for(response)
    try:
        return model.model_validate_json(response.content)
    except ValidationError:
        raise NoAnswer(NOT_OURS, code="not_from_pit_serve") from None


def chat(messages: Conversation) -> list[dict[str, Any]]:
    if isinstance(messages, str):
        return [{"role": "user", "content": messages}]
    return [dict(message) for message in messages]


def improve(
    messages: Conversation, reference: str | None, options: ImproveOptions, *, stream: bool = False
) -> Call:
    body: dict[str, Any] = {"messages": chat(messages), **options}
    if reference is not None:
        body["reference"] = reference
    if stream:
        body["stream"] = True
    return Call("POST", "/v1/improve", body)


def score(messages: Conversation, candidate: str | list[str], baseline: str) -> Call:
    several = [candidate] if isinstance(candidate, str) else candidate
    body = {"messages": chat(messages), "candidate": several, "baseline": baseline}
    return Call("POST", "/v1/score", body)


def feedback(type_: FeedbackType, fields: FeedbackFields) -> Call:
    body: dict[str, Any] = {"type": type_, **cast(dict[str, Any], fields)}
    if "messages" in fields:
        body["messages"] = chat(fields["messages"])
    return Call("POST", "/v1/feedback", body)


def list_feedback(limit: int, after: str | None, run: str | None, since: float) -> Call:
    given = {"limit": limit, "after": after, "run": run, "since": since or None}
    query = {name: str(value) for name, value in given.items() if value is not None}
    return Call("GET", "/v1/feedback", query=query)


def runs(limit: int, after: str | None) -> Call:
    return Call("GET", "/v1/improve", query={"limit": str(limit)} | ({"after": after} if after else {}))


def _path(run_id: str) -> str:
    return f"/v1/improve/{quote(run_id, safe='')}"


def run(run_id: str) -> Call:
    return Call("GET", _path(run_id))


def cancel(run_id: str) -> Call:
    return Call("POST", _path(run_id) + "/cancel")


def events(run_id: str, after: int) -> Call:
    return Call("GET", _path(run_id) + "/events", headers={"last-event-id": str(after)})


def export(after: int) -> Call:
    return Call("GET", "/v1/feedback/export", query={"after": str(after)})


def one_or_all(candidate: str | list[str], found: ScoreList) -> Score | list[Score]:
    """One score for one candidate, a list for a list."""
    return found.data[0] if isinstance(candidate, str) else found.data
