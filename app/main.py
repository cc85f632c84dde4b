"""`create_app`: wiring and lifespan, nothing else."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response
from starlette.routing import Match

from app import __version__
from app.api import chat, completions, health, improve, models, runs
from app.errors import AppError, BadRequest, from_status
from app.middleware import RequestContext, error_response
from app.observe import observed
from app.runs import Runs
from app.runtime import ModelFactory, Runtime, Served, start_models
from app.schemas import ERRORS
from app.settings import Settings
from app.telemetry import Telemetry
from app.tracing import OpenTelemetryTracer


def create_app(settings: Settings, factory: ModelFactory = start_models) -> FastAPI:
    """The ASGI application. `factory` starts the models; the server answers /health while it does.

    Raises `StoreError` for a database that cannot be used.
    """
    telemetry = Telemetry()
    kept = Runs(settings, telemetry)
    measured = _observing(factory, telemetry)

    async def start(settings: Settings) -> Served:
        if kept.store:
            await kept.store.open()
        served = await measured(settings)
        if kept.store:
            kept.store.start()
        return served

    runtime = Runtime(settings, start)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        runtime.start()
        yield
        await kept.stop()
        await runtime.stop()
        if isinstance(telemetry.tracer, OpenTelemetryTracer):
            await asyncio.to_thread(telemetry.tracer.close)

    app = FastAPI(
        title="pit-serve",
        version=__version__,
        description="Improve responses with implicit self-improvement (PIT).",
        lifespan=lifespan,
        redirect_slashes=False,
    )
    app.state.runtime, app.state.telemetry, app.state.started = runtime, telemetry, time.time()
    app.state.runs = kept
    app.add_middleware(
        RequestContext, settings=settings, telemetry=telemetry, lifecycle=runtime.lifecycle
    )
    app.add_exception_handler(AppError, _app_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    for module in (improve, runs, chat, completions, models, health):
        app.include_router(module.router, responses=ERRORS)
    return app


def _observing(factory: ModelFactory, telemetry: Telemetry) -> ModelFactory:
    """The factory, whose models are measured. Traces begin once the models are up: a process that has threads
    should not fork."""

    async def start(settings: Settings) -> Served:
        served = await factory(settings)
        if settings.otlp_endpoint and telemetry.tracer is None:
            telemetry.tracer = OpenTelemetryTracer(settings)
        return replace(served, models=observed(served.models, telemetry))

    return start


TYPE_NAMES = {"str", "int", "float", "bool", "NamedTool"}


async def _app_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, AppError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself. Its own text is not shown."""
    assert isinstance(error, HTTPException)
    response = error_response(from_status(error.status_code, _printable(request.url.path), request.method))
    response.headers.update(error.headers or {})
    if error.status_code == 405:
        response.headers["allow"] = ", ".join(sorted(_methods(request)))
    return response


def _methods(request: Request) -> set[str]:
    """What the routes of this path answer together: each knows its own methods alone."""
    found: set[str] = set()
    for route in request.app.routes:
        if route.matches(request.scope)[0] is not Match.NONE:
            found |= getattr(route, "methods", None) or set()
    return found


async def _validation_error(_: Request, error: Exception) -> Response:
    """The first thing that is wrong with the body, with the field's name and without its value."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    # A place begins with where it is: body, query or path.
    kind, place = first["type"], [str(part) for part in first["loc"][1:]]
    if kind != "extra_forbidden":
        # Where a field takes several types, the place ends with the type that was tried.
        place = [part for part in place if part not in TYPE_NAMES and "[" not in part]
    if kind == "json_invalid":
        return error_response(BadRequest("The body is not valid JSON.", code="invalid_json"))
    name = _printable(".".join(place)) or None
    if kind == "extra_forbidden":
        message = (
            f"Unknown field {name!r}: it is not supported here. Remove it; /openapi.json lists the fields."
        )
        return error_response(BadRequest(message, param=name, code="unknown_field"))
    if kind == "missing":
        if name is None:
            return error_response(BadRequest("The body is empty. Send a JSON object.", code="missing_field"))
        return error_response(BadRequest(f"{name} is missing.", param=name, code="missing_field"))
    if name is None:
        message = "The body is not a JSON object. Send one with the header content-type: application/json."
        return error_response(BadRequest(message, code="invalid_json"))
    reason = first["msg"].removeprefix("Value error, ")
    return error_response(BadRequest(f"{name}: {reason}.", param=name))


def _printable(text: str) -> str:
    """A client's text as it may appear in an error: short, and encodable."""
    return text[:200].encode("utf-8", "backslashreplace").decode()
