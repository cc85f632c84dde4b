"""Whether the server lives, whether it is ready, its version, its metrics."""

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from app import __version__
from app.runtime import Runtime
from app.telemetry import Telemetry

router = APIRouter(tags=["operations"])


@router.get("/health/live")
async def live() -> dict[str, str]:
    """The process answers. Says nothing about the models."""
    return {"status": "ok"}


@router.get("/health/ready", responses={503: {}})
@router.get("/health", responses={503: {}})
async def ready(request: Request) -> Any:
    """200 when every engine is up and gave its golden samples again; 503 with the reasons until then.

    `degraded` names what does not work while requests are still answered: a gap reward that is down,
    limits whose Redis is."""
    runtime: Runtime = request.app.state.runtime
    if reasons := await _not_ready_because(request):
        message = f"Not ready: {'; '.join(reasons)}."
        error = {"message": message, "type": "overloaded_error", "param": None, "code": "not_ready"}
        body = {"status": "unavailable", "reasons": reasons, "error": error}
        return JSONResponse(body, status_code=503, headers={"retry-after": "5"})
    degraded = [*await runtime.degraded_because(), *request.app.state.limits.degraded_because()]
    return {"status": "ok", "reasons": [], "degraded": degraded}


async def _not_ready_because(request: Request) -> list[str]:
    """What keeps the models, the database or the keys from work, fit to be shown."""
    reasons: list[str] = await request.app.state.runtime.not_ready_because()
    if (store := request.app.state.runs.store) and store.problem:
        reasons.append(store.problem.rstrip("."))
    if problem := request.app.state.keys.problem:
        reasons.append(problem)
    return reasons


@router.get("/version")
async def version(request: Request) -> dict[str, str]:
    """The version of the server and of its engine."""
    runtime: Runtime = request.app.state.runtime
    return {"version": __version__, "engine": runtime.served.engine_version if runtime.served else ""}


@router.get("/metrics", response_class=PlainTextResponse)
async def metrics(request: Request) -> Response:
    """Prometheus metrics: pit_*, and the engines' own."""
    runtime: Runtime = request.app.state.runtime
    telemetry: Telemetry = request.app.state.telemetry
    telemetry.ready.set(0 if await _not_ready_because(request) else 1)
    engines = runtime.served.engine_metrics if runtime.served else None
    return Response(telemetry.render(engines), media_type="text/plain; version=0.0.4; charset=utf-8")
