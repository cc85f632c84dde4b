"""The blind A/B page of `pit-train judge serve`: two responses beside each other, judged by keys.

In the pipeline this collects people's verdicts for an evaluation. Nothing that the browser gets says which
system wrote a response; which one stands on the left is drawn for each annotator and task.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import FastAPI, HTTPException, Query, Request, Response
from fastapi.responses import FileResponse, JSONResponse
from pydantic import BaseModel, ConfigDict, StringConstraints
from starlette.middleware.trustedhost import TrustedHostMiddleware

from training.judges.people import Said, Task, Tasks, VerdictFile

PAGE = Path(__file__).with_name("page")
Annotator = Annotated[str, StringConstraints(pattern=r"^[\w .@-]{1,40}$", strip_whitespace=True)]
Choice = Literal["left", "right", "tie", "skip"]
HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
}


class Given(BaseModel):
    """One verdict from the page."""

    model_config = ConfigDict(extra="forbid")
    annotator: Annotator
    key: str
    choice: Choice


class Who(BaseModel):
    """Whose last verdict is taken back."""

    model_config = ConfigDict(extra="forbid")
    annotator: Annotator


def create_app(tasks: Tasks, verdicts: VerdictFile, hosts: list[str]) -> FastAPI:
    """The application. `hosts`: what a browser may have in its address; another site cannot reach it by a
    name of its own (DNS rebinding), and cannot send JSON across origins."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=hosts)
    known = {task.key: task for task in tasks.tasks}

    @app.middleware("http")
    async def headers(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        response.headers.update(HEADERS)
        return response

    @app.get("/")
    async def page() -> FileResponse:
        return FileResponse(PAGE / "page.html")

    @app.get("/page.{kind}")
    async def part(kind: Literal["js", "css"]) -> FileResponse:
        return FileResponse(PAGE / f"page.{kind}")

    @app.exception_handler(OSError)
    async def full(request: Request, error: Exception) -> JSONResponse:
        detail = "This could not be written to the disk, and is not kept. Tell who runs the page."
        return JSONResponse({"detail": detail}, 507, HEADERS)

    # The handlers are coroutines that never wait: what one of them does to the file, no other interrupts.

    @app.get("/api/task")
    async def task(annotator: Annotated[Annotator, Query()]) -> dict[str, Any]:
        return _state(tasks, verdicts, annotator)

    @app.post("/api/verdict")
    async def verdict(given: Given) -> dict[str, Any]:
        if given.key not in known:
            raise HTTPException(404, "There is no such contest. Load the page again.")
        left = left_text(tasks.seed, given.annotator, given.key)
        value = {"left": 1 - 2 * left, "right": 2 * left - 1, "tie": 0, "skip": None}[given.choice]
        said = Said(given.annotator, given.key, value)
        before = [one for one in verdicts.said.get(given.annotator, []) if one.key == given.key]
        if before and before[-1] != said:
            raise HTTPException(409, "You have judged this one already. Take it back first (u).")
        if not before:  # sent again after a lost answer, it is not kept twice
            verdicts.add(said, left)
        return _state(tasks, verdicts, given.annotator)

    @app.post("/api/undo")
    async def undo(who: Who) -> dict[str, Any]:
        verdicts.undo(who.annotator)
        return _state(tasks, verdicts, who.annotator)

    return app


def left_text(seed: int, annotator: str, key: str) -> int:
    """Which of a task's texts, 0 or 1, stands on the left for this annotator."""
    return hashlib.sha256(f"{seed}/{annotator}/{key}".encode()).digest()[0] % 2


def _state(tasks: Tasks, verdicts: VerdictFile, annotator: str) -> dict[str, Any]:
    """Progress and the next task, as the page shows them."""
    done = {said.key for said in verdicts.said.get(annotator, [])}
    following = next((task for task in tasks.tasks if task.key not in done), None)
    shown = None if following is None else _shown(following, left_text(tasks.seed, annotator, following.key))
    return {"done": len(done), "total": len(tasks.tasks), "task": shown}


def _shown(task: Task, left: int) -> dict[str, Any]:
    return {
        "key": task.key,
        "prompt": task.prompt,
        "left": task.texts[left],
        "right": task.texts[1 - left],
    }
