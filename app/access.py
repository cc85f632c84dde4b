"""Which route asks for which scope. What is not listed here is refused: a new route is closed until somebody
says who may use it."""

from typing import Any, Literal

from app.security import Scope

Need = Scope | Literal["open", "any key"]
"""`open`: no key is asked for. `any key`: one is, and any scope will do."""

ROUTES: dict[str, Need] = {
    "/v1/improve": "improve",
    "/v1/score": "improve",
    "/v1/chat/completions": "chat",
    "/v1/completions": "chat",
    "/v1/models": "any key",
    "/v1/files": "batch",
    "/v1/batches": "batch",
    "/v1/feedback": "feedback",
    # A scope of its own: who draws graphs need not see anybody's runs.
    "/metrics": "metrics",
    # What probes ask. It says nothing of requests.
    "/health": "open",
    "/version": "open",
    # The page and the documentation: the same in every installation.
    "/": "open",
    "/runs": "open",
    "/batches": "open",
    "/static": "open",
    "/docs": "open",
    "/openapi.json": "open",
}
"""Each holds for everything below it too, save `/`. Paths are not normalized: nor does the router do it."""
DEPTH = 3
"""Parts of the longest path above."""


def need(path: str) -> Need | None:
    """What this path asks for; None: it is not listed."""
    if (found := ROUTES.get(path)) is not None:
        return found
    # From the front, and not far: a path of 60,000 slashes costs no more than another.
    parts = path.split("/", DEPTH + 1)
    for length in range(DEPTH + 1, 1, -1):
        above = "/".join(parts[:length])
        if above != "/" and (found := ROUTES.get(above)) is not None:
            return found
    return None


def document(schema: dict[str, Any]) -> dict[str, Any]:
    """Say in an OpenAPI document which operations ask for a key, and how they refuse."""
    components = schema.setdefault("components", {})
    components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    for path, operations in schema["paths"].items():
        wanted = need(path)
        if wanted == "open":
            continue
        scopes = [] if wanted in ("any key", None) else [wanted]
        for operation in operations.values():
            operation["security"] = [{"key": scopes}, {}]  # a server may have no keys
            for status, why in (("401", "No valid API key"), ("403", "The key lacks the scope")):
                operation["responses"].setdefault(status, {"description": why})
    return schema
