"""`GET /v1/models`, and which model a request means."""

from typing import Any

from fastapi import APIRouter, Request

from app.errors import NotFound
from app.runtime import Runtime

router = APIRouter(tags=["openai"])


@router.get("/v1/models")
async def list_models(request: Request) -> dict[str, Any]:
    """The models that this server answers as."""
    names = model_names(request.app.state.runtime)
    return {"object": "list", "data": [_model(name, request) for name in names]}


@router.get("/v1/models/{model:path}")
async def retrieve_model(model: str, request: Request) -> dict[str, Any]:
    """One of them."""
    find_model(request.app.state.runtime, model)
    return _model(model, request)


def find_model(runtime: Runtime, name: str) -> str:
    """`policy` or `pit`, for a name that a request gives. Raises `NotFound` and `Overloaded`."""
    names = model_names(runtime)
    if name not in names:
        raise NotFound(
            f"This server has no model {name[:100]!r}. It has: {', '.join(names)}.",
            param="model",
            code="model_not_found",
        )
    return names[name]


def model_names(runtime: Runtime) -> dict[str, str]:
    """Every name that this server answers to, and the model that it means."""
    models = runtime.models
    found = (["policy"] if models.policy else []) + (["pit"] if models.policy and models.improver else [])
    aliases = dict(alias.split("=") for alias in runtime.settings.served_model_name)
    return {name: name for name in found} | {n: model for n, model in aliases.items() if model in found}


def _model(name: str, request: Request) -> dict[str, Any]:
    created = int(request.app.state.started)
    return {"id": name, "object": "model", "created": created, "owned_by": "pit-serve"}
