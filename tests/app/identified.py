"""Identities set by hand: the header x-test-key names the sender."""

from collections.abc import Mapping

from fastapi import FastAPI
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.observe import current
from app.security import SCOPES, Identity, KeyLimits


def identify(app: FastAPI, limits: Mapping[str, KeyLimits]) -> FastAPI:
    """The application, where whoever sends x-test-key is known by it, with the limits of that name."""
    app.user_middleware.append(Middleware(_Identify, limits=limits))
    return app


class _Identify:
    def __init__(self, app: ASGIApp, limits: Mapping[str, KeyLimits]) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        state = current.get()
        given = dict(scope.get("headers") or ()).get(b"x-test-key")
        if state and given:
            name = given.decode()
            state.identity = Identity(name, SCOPES, self.limits.get(name, KeyLimits()))
        await self.app(scope, receive, send)
