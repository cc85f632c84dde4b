"""Requests of several owners on a server without keys: the header x-owner says who sends one, x-admin that it
may all."""

from typing import Any

from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

from app.observe import current
from app.security import SCOPES, Identity


class ByHeader:
    """An ASGI middleware that stands right inside of RequestContext."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers, state = Headers(scope=scope), current.get()
        if scope["type"] == "http" and state and "x-owner" in headers:
            scopes = SCOPES if "x-admin" in headers else SCOPES - {"admin"}
            state.identity = Identity(headers["x-owner"], frozenset(scopes))
        await self.app(scope, receive, send)


def know_owners(client: Any) -> None:
    """Before its first request."""
    client.app.user_middleware.insert(1, Middleware(ByHeader))
