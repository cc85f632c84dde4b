"""The lines of a batch: one request of the input file, one result of the output file or of the error file."""

import json
import uuid
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from app.api.render import dumps
from app.errors import printable

LONGEST_CUSTOM_ID = 512


class BadLine(Exception):
    """A line that is no request of this batch. `message` is for the client's eyes."""

    def __init__(self, code: str, message: str, param: str | None = None) -> None:
        super().__init__(message)
        self.code, self.message, self.param = code, message, param

    def at(self, line: int | None) -> dict[str, Any]:
        """As a batch's `errors` hold it."""
        return {"code": self.code, "message": self.message, "param": self.param, "line": line}


@dataclass(frozen=True, slots=True)
class RequestLine:
    """A request; `body` is JSON text."""

    custom_id: str
    body: str


async def split_lines(
    chunks: AsyncGenerator[bytes, None], longest: int
) -> AsyncGenerator[tuple[int, bytes | None], None]:
    """The lines of a file that are not blank, numbered from 1; None for one of more than `longest` bytes,
    which is never whole in memory."""
    number, buffer, too_long = 1, bytearray(), False
    async for chunk in chunks:
        for part in _parts(chunk):
            whole = part.endswith(b"\n")
            if len(buffer) + len(part) > longest + 1:
                too_long = True
                buffer.clear()
            elif not too_long:
                buffer += part
            if whole:
                if too_long or buffer.strip():
                    yield number, None if too_long else bytes(buffer)
                number, too_long = number + 1, False
                buffer.clear()
    if too_long or buffer.strip():
        yield number, None if too_long else bytes(buffer)


def _parts(chunk: bytes) -> list[bytes]:
    """The chunk, cut after each line feed and nowhere else (`splitlines` cuts at a carriage return too)."""
    *lines, rest = chunk.split(b"\n")
    return [line + b"\n" for line in lines] + ([rest] if rest else [])


def parse_request(raw: bytes, endpoint: str) -> RequestLine:
    """Raises `BadLine`."""
    try:
        line = json.loads(raw)
    except (ValueError, RecursionError):
        raise BadLine("invalid_json_line", "This line is not parseable as valid JSON.") from None
    if not isinstance(line, dict):
        raise BadLine("invalid_json_line", "This line is not a JSON object.")
    for name in ("custom_id", "method", "url", "body"):
        if name not in line:
            raise BadLine("missing_required_parameter", f"{name} is missing.", name)
    if unknown := sorted(line.keys() - {"custom_id", "method", "url", "body"}):
        name = printable(unknown[0])
        raise BadLine("unknown_parameter", f"Unknown field {name!r}: remove it.", name)
    custom_id = printable_custom_id(line)
    if line["method"] != "POST":
        raise BadLine("invalid_method", "method must be POST.", "method")
    if line["url"] != endpoint:
        message = f"url must be the batch's endpoint, {endpoint}."
        raise BadLine("mismatched_endpoint", message, "url")
    if not isinstance(line["body"], dict):
        raise BadLine("invalid_body", "body is not a JSON object.", "body")
    # In ASCII: a database's text holds neither NUL nor half of a surrogate pair.
    return RequestLine(custom_id, json.dumps(line["body"], separators=(",", ":")))


def printable_custom_id(line: dict[str, Any]) -> str:
    """The custom_id of a line, which a database and a file can hold. Raises `BadLine`."""
    found = line.get("custom_id")
    if not isinstance(found, str) or not 0 < len(found) <= LONGEST_CUSTOM_ID or "\0" in found:
        message = f"custom_id is no text of 1 to {LONGEST_CUSTOM_ID} characters."
        raise BadLine("invalid_custom_id", message, "custom_id")
    try:
        found.encode()
    except UnicodeEncodeError:
        raise BadLine("invalid_custom_id", "custom_id holds half of a surrogate pair.", "custom_id") from None
    return found


def result_line(custom_id: str, request_id: str, status: int, body: str) -> str:
    """The line of a request that was executed; `body` is JSON text."""
    head = dumps({"id": f"batch_req_{uuid.uuid4().hex}", "custom_id": custom_id})[:-1]
    response = f'{{"status_code":{status},"request_id":{dumps(request_id)},"body":{body}}}'
    return f'{head},"response":{response},"error":null}}'


def unexecuted_line(custom_id: str, code: str, message: str) -> str:
    """The line of a request that was not executed."""
    found = {
        "id": f"batch_req_{uuid.uuid4().hex}",
        "custom_id": custom_id,
        "response": None,
        "error": {"code": code, "message": message},
    }
    return dumps(found)
