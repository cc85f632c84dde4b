"""What people say about responses, and the preference pairs that it becomes (docs/feedback.md).

A pair is a snapshot: prompt, both texts and their models are copied out of the run, which may be deleted
before. What makes no pair (two equal texts, an empty one) is refused, but for a rating, which waits for a
second one.
"""

import json
import time
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from pydantic import TypeAdapter

from app.errors import BadRequest, Conflict, NotFound
from app.improve.edits import apply, hunks
from app.improve.gate import same_text
from app.runs import Runs
from app.schemas import ChatMessage
from app.schemas_feedback import (
    Comparison,
    Correction,
    Edits,
    FeedbackList,
    FeedbackOut,
    FeedbackRequest,
    Rating,
    StoredFeedback,
    Texts,
)
from app.security import caller
from app.store.feedback import FeedbackRecord, Pair, Said, Wanted, pair_key
from app.store.records import RunRecord, digest, dumps
from app.store.store import Store
from app.telemetry import Telemetry

PAGE = 100
"""Pairs that an export holds in memory at a time."""
MESSAGES = TypeAdapter(list[ChatMessage])
LINE_ENDS = {ord(end): f"\\u{ord(end):04x}" for end in "\u0085\u2028\u2029"}
"""What JSON leaves as it is and many readers take for the end of a line."""


@dataclass(frozen=True, slots=True)
class RunTexts:
    """The responses of a run that has ended; `iterations` are texts, with whether each was accepted."""

    id: str
    prompt: str
    reference: str
    response: str
    iterations: list[tuple[str, bool]]
    origin: dict[str, Any]

    @classmethod
    def of(cls, record: RunRecord) -> "RunTexts":
        """Raises `Conflict` while it runs, and `BadRequest` where it failed."""
        if record.state == "running":
            raise Conflict("This run has not ended yet. Try again when it has.", param="run", code="running")
        if record.result is None:
            raise BadRequest("This run failed: there is no response to speak of.", param="run")
        result = json.loads(record.result)
        return cls(
            record.id,
            prompt_of(MESSAGES.validate_python(json.loads(record.request)["messages"])),
            result["reference"],
            result["response"],
            [(iteration["text"], iteration["accepted"]) for iteration in result["iterations"]],
            {name: result[name] for name in ("models", "identities", "seed")},
        )

    def text(self, which: str | int, param: str) -> str:
        """Raises `BadRequest` for an iteration that there is not, or that wrote nothing."""
        if isinstance(which, str):
            found = self.reference if which == "reference" else self.response
        elif which > len(self.iterations):
            raise BadRequest(
                f"{param}: the run has {len(self.iterations)} iterations, and no number {which}.", param=param
            )
        else:
            found = self.iterations[which - 1][0]
        if not found.strip():
            raise BadRequest(f"{param}: this response of the run is empty.", param=param)
        return found

    def before(self, which: str | int) -> str:
        """What a response was made from: the run's reference, or an iteration's baseline."""
        earlier = self.iterations[: which - 1] if isinstance(which, int) else []
        return next((text for text, accepted in reversed(earlier) if accepted), self.reference)


def prompt_of(messages: list[ChatMessage]) -> str:
    """The prompt as training reads it, as JSON text."""
    return dumps([{"role": message.role, "content": message.text()} for message in messages])


def comparison(body: Comparison, run: RunTexts) -> tuple[str, list[Pair]]:
    """What the feedback is about, and its pairs. Raises `BadRequest`; so do those below."""
    chosen, rejected = run.text(body.preferred, "preferred"), run.text(body.other, "other")
    return _preferred(run.prompt, chosen, rejected)


def edits(body: Edits, run: RunTexts) -> tuple[str, list[Pair]]:
    """The text with the accepted hunks is better than the new one, of which something was undone, and than
    the old one, of which something was mended."""
    new = run.text(body.response, "response")
    old = run.before(body.response)
    found = hunks(old, new)
    if same_text(old, new):
        raise BadRequest("This response has no edits.", param="response")
    wrong = [number for number in body.accepted if number >= len(found)]
    if wrong or len(set(body.accepted)) < len(body.accepted):
        why = f"there is no hunk {wrong[0]}, the last is {len(found) - 1}" if wrong else "a hunk stands twice"
        raise BadRequest(f"accepted: {why}.", param="accepted")
    taken = apply(old, [found[number] for number in body.accepted])
    if not taken.strip():
        raise BadRequest("accepted: with these hunks alone nothing is left of the text.", param="accepted")
    pairs = [Pair(taken, other) for other in (old, new) if other.strip() and not same_text(taken, other)]
    return _about("edits", run.prompt, old, new), pairs


def correction(body: Correction, run: RunTexts) -> tuple[str, list[Pair]]:
    old = run.text(body.response, "response")
    _, pairs = _preferred(run.prompt, body.text, old, "text")
    return _about("correction", run.prompt, old), pairs


def _preferred(prompt: str, chosen: str, rejected: str, param: str = "other") -> tuple[str, list[Pair]]:
    if same_text(chosen, rejected):
        raise BadRequest("The two responses are the same text: there is nothing to prefer.", param=param)
    return pair_key(caller().owner, prompt, chosen, rejected), [Pair(chosen, rejected)]


def _about(*parts: str) -> str:
    return digest(caller().owner, *parts)


class Feedback:
    """The feedback of a server."""

    def __init__(self, runs: Runs, telemetry: Telemetry) -> None:
        self.runs, self.telemetry = runs, telemetry

    def _store(self) -> Store:
        if self.runs.store is None:
            raise NotFound(
                "This server keeps no feedback (database: none): start it with --database to have it.",
                code="feedback_not_kept",
            )
        return self.runs.store

    async def add(self, body: FeedbackRequest) -> FeedbackOut:
        """Store it; it is on the disk when this returns.

        Raises `NotFound` for a run that is not there or another's, `BadRequest` for what cannot be a
        preference, `Conflict` for a run that has not ended, `Overloaded` when the database does not answer.
        """
        store = self._store()
        run = None if isinstance(body, Texts) else await self._run(body.run)
        record = self._record(body, run)
        async with store.database.answering():
            pairs = await store.feedback.add(record)
        self.telemetry.feedback.labels(record.kind).inc()
        if verdict := _verdict(record.kind, pairs, run):
            self.telemetry.feedback_preferred.labels(verdict).inc()
        return FeedbackOut(
            id=record.id,
            created=int(record.created),
            type=body.type,
            run=record.run_id,
            pairs=len(pairs),
        )

    async def _run(self, run_id: str) -> RunTexts:
        try:
            record = await self.runs.get(run_id)
        except NotFound:
            raise self.runs.no_run("run") from None
        return RunTexts.of(record)

    def _record(self, body: FeedbackRequest, run: RunTexts | None) -> FeedbackRecord:
        rated = None
        match body:
            case Texts():
                prompt = prompt_of(body.messages)
                subject, pairs = _preferred(prompt, body.preferred, body.other)
                said: dict[str, Any] = {}
            case Rating():
                assert run is not None
                rated, pairs = (run.text(body.response, "response"), body.rating), []
                subject = _about("rating", run.id, rated[0])
                said = {"response": body.response, "rating": body.rating}
            case Comparison():
                assert run is not None
                subject, pairs = comparison(body, run)
                said = {"preferred": body.preferred, "other": body.other}
            case Edits():
                assert run is not None
                subject, pairs = edits(body, run)
                said = {"response": body.response, "accepted": body.accepted}
            case Correction():
                assert run is not None
                subject, pairs = correction(body, run)
                said = {"response": body.response}
        origin = run.origin if run else {"models": {}, "identities": {}, "seed": None}
        return FeedbackRecord(
            id=f"fb_{uuid.uuid4().hex}",
            owner=caller().owner,
            created=time.time(),
            kind=body.type,
            run_id=run.id if run else None,
            subject=subject,
            prompt=run.prompt if run else prompt,
            provenance=dumps({"run": run.id if run else None, **origin, "said": said}),
            pairs=pairs,
            rated=rated,
        )

    async def latest(
        self, limit: int, after: str | None, run: str | None, since: float
    ) -> FeedbackList:
        """The caller's latest feedback (everybody's, for an admin), or that before the feedback `after`.
        Raises `BadRequest` for an `after` that is not there, `Overloaded` when the database does not
        answer."""
        store = self._store()
        async with store.database.answering():
            found = await store.feedback.latest(
                caller(), limit=limit + 1, after=after, run_id=run, since=since
            )
        if found is None:
            raise BadRequest("after is not the id of feedback.", param="after")
        return FeedbackList(data=[_stored(said) for said in found[:limit]], has_more=len(found) > limit)

    async def export(self, after: int, since: float) -> AsyncGenerator[str, None]:
        """The caller's pairs (all pairs, for an admin), as lines of JSON; those that come meanwhile are left
        to the next export. Raises `Overloaded` when the database does not answer, in the middle too."""
        store, identity = self._store(), caller()
        async with store.database.answering():
            until = await store.feedback.last()
        return self._lines(store, Wanted(until, since, identity.may("admin"), identity.owner), after)

    @staticmethod
    async def _lines(store: Store, wanted: Wanted, after: int) -> AsyncGenerator[str, None]:
        while True:
            async with store.database.answering():
                rows = await store.feedback.page(wanted, after, PAGE)
            if rows:
                yield "".join(map(_line, rows))
            if len(rows) < PAGE:
                return
            after = rows[-1].number


def _stored(said: Said) -> StoredFeedback:
    return StoredFeedback(
        id=said.id,
        created=int(said.created),
        type=said.kind,
        run=said.run_id,
        pairs=said.pairs,
        said=json.loads(said.provenance)["said"],
        replaced_by=said.replaced_by,
    )


def _line(row: Any) -> str:
    """A pair in chat form, as one line. Its parts are JSON as they are stored."""
    head = dumps({"id": f"pair_{row.key[:32]}", "source": f"feedback/{row.kind}"})
    place = dumps(
        {"cursor": row.number, "feedback": row.id, "created": int(row.created), "type": row.kind}
    )
    line = (
        f'{head[:-1]},"prompt":{row.prompt},"chosen":[{{"role":"assistant","content":{row.chosen}}}],'
        f'"rejected":[{{"role":"assistant","content":{row.rejected}}}],'
        f'"provenance":{place[:-1]},{row.provenance[1:]}}}\n'
    )
    return line.translate(LINE_ENDS)


def _verdict(kind: str, pairs: list[Pair], run: RunTexts | None) -> str | None:
    """Whether a person preferred what the loop made to what it was made from: improved, reference, or part
    (of the edits). None where these were not compared."""
    if run is None or kind == "correction":
        return None
    if kind == "edits" and len(pairs) > 1:
        return "part"
    for pair in pairs:
        if pair.rejected == run.reference:
            return "improved"
        if pair.chosen == run.reference:
            return "reference"
    return None
