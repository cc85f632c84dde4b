"""Identities set by hand: the header x-test-key names the sender, x-test-admin says that it may all."""

from collections.abc import Mapping

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.observe import current
from app.security import SCOPES, Identity, KeyLimits


def identify(app: FastAPI, limits: Mapping[str, KeyLimits] | None = None) -> FastAPI:
    """The application, before its first request, where whoever sends x-test-key is known by it, with the
    limits of that name."""
    # Right inside of RequestContext.
    app.user_middleware.insert(1, Middleware(_Identify, limits=limits or {}))
    return app


class _Identify:
    def __init__(self, app: ASGIApp, limits: Mapping[str, KeyLimits]) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state, headers = current.get(), dict(scope.get("headers") or ())
        if state and (given := headers.get(b"x-test-key")):
            name = given.decode()
            scopes = SCOPES if b"x-test-admin" in headers else SCOPES - {"admin"}
            state.identity = Identity(name, scopes, self.limits.get(name, KeyLimits()))
        await self.app(scope, receive, send)
