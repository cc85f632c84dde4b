"""What pydantic refuses, as an error for the client."""

from collections.abc import Mapping
from typing import Any

from app.errors import BadRequest, printable

TYPE_NAMES = {"str", "int", "float", "bool", "NamedTool"}


def refusal(error: Mapping[str, Any], *, place: int, variant: str | None = None) -> BadRequest:
    """One of pydantic's errors, with the field's name and without its value. `place` is where the field's
    name begins in `loc`: behind what FastAPI puts there (body, query, path), or at 0. `variant` is the body's
    `type`, which comes before the name where there are several types of body."""
    kind, names = error["type"], [str(part) for part in error["loc"][place:]]
    if kind.startswith("union_tag_"):
        known = f" {error['ctx']['expected_tags']}" if "expected_tags" in error["ctx"] else ""
        missing = kind == "union_tag_not_found"
        message = "type is missing." if missing else f"type must be one of{known}."
        return BadRequest(message, param="type", code="missing_field" if missing else None)
    if variant is not None and names[:1] == [variant]:
        del names[0]
    if kind != "extra_forbidden":
        # Where a field takes several types, the place ends with the type that was tried.
        names = [name for name in names if name not in TYPE_NAMES and "[" not in name]
    if kind == "json_invalid":
        return BadRequest("The body is not valid JSON.", code="invalid_json")
    name = printable(".".join(names)) or None
    if kind == "extra_forbidden":
        message = (
            f"Unknown field {name!r}: it is not supported here. Remove it; /openapi.json lists the fields."
        )
        return BadRequest(message, param=name, code="unknown_field")
    if kind == "missing":
        if name is None:
            return BadRequest("The body is empty. Send a JSON object.", code="missing_field")
        return BadRequest(f"{name} is missing.", param=name, code="missing_field")
    if name is None:
        message = "The body is not a JSON object. Send one with the header content-type: application/json."
        return BadRequest(message, code="invalid_json")
    reason = error["msg"].removeprefix("Value error, ")
    return BadRequest(f"{name}: {reason}.", param=name)
