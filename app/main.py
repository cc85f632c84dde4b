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
from app.access import document
from app.api import batches, chat, completions, feedback, files, health, improve, models, pages, runs
from app.api.validation import refusal
from app.batch.service import UPLOAD_OVERHEAD, Batches
from app.errors import AppError, from_status
from app.feedback import Feedback
from app.idempotency import Executions, Idempotency
from app.keys import KeyRing
from app.limits.limits import Limits
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

    Raises `StoreError` for a database that cannot be used, `SettingsError` for API keys or limits.
    """
    telemetry = Telemetry()
    kept, limits = Runs(settings, telemetry), Limits(settings, telemetry)
    keys = KeyRing(settings, kept.store.database if kept.store else None, telemetry)
    measured = _observing(factory, telemetry)

    async def start(settings: Settings) -> Served:
        if kept.store:
            await kept.store.open()
        await keys.start()
        served = await measured(settings)
        keys.settle()
        if kept.store:
            kept.store.start()
        batched.start()
        return served

    runtime, executions = Runtime(settings, start), Executions()
    batched = Batches(settings, kept.store, runtime, telemetry)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncGenerator[None, None]:
        runtime.start()
        limits.start()
        yield
        await batched.stop()
        await executions.stop()
        await keys.stop()
        await kept.stop()
        await limits.stop()
        await runtime.stop()
        if isinstance(telemetry.tracer, OpenTelemetryTracer):
            await asyncio.to_thread(telemetry.tracer.close)

    app = FastAPI(
        title="pit-serve",
        version=__version__,
        description="Improve responses with implicit self-improvement (PIT).",
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,  # ours is in pages.py
        redoc_url=None,
    )
    app.state.runtime, app.state.telemetry, app.state.started = runtime, telemetry, time.time()
    app.state.runs, app.state.keys, app.state.limits, app.state.batches = kept, keys, limits, batched
    app.state.feedback = Feedback(kept, telemetry)
    app.add_middleware(Idempotency, runs=kept, runtime=runtime, telemetry=telemetry, live=executions)
    app.add_middleware(
        RequestContext,
        settings=settings,
        telemetry=telemetry,
        lifecycle=runtime.lifecycle,
        keys=keys,
        uploads={"/v1/files": settings.max_file_bytes + UPLOAD_OVERHEAD},
    )
    app.add_exception_handler(AppError, _app_error)
    app.add_exception_handler(RequestValidationError, _validation_error)
    app.add_exception_handler(HTTPException, _http_error)
    for module in (improve, runs, feedback, chat, completions, files, batches, models, health, pages):
        app.include_router(module.router, responses=ERRORS)
    app.openapi = lambda: document(FastAPI.openapi(app))  # type: ignore[method-assign]
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


async def _app_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, AppError)
    return error_response(error)


async def _http_error(request: Request, error: Exception) -> Response:
    """What the framework refuses by itself. Its own text is not shown."""
    assert isinstance(error, HTTPException)
    response = error_response(from_status(error.status_code, request.url.path, request.method))
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
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    variant = error.body.get("type") if isinstance(error.body, dict) else None
    return error_response(refusal(first, place=1, variant=variant))
