"""Logs: one line a record, readable or JSON, for our own loggers, uvicorn's and everybody else's.

No line holds any part of a prompt or a response. Of an exception the type and the places are logged and never
its text, which may quote what it choked on; other libraries log at "warning" at least, as some of them log
whole requests below that.
"""

import asyncio
import json
import logging
import os
import time
import traceback
from typing import Any

from app.observe import RequestState, current
from app.settings import Settings

access = logging.getLogger("app.access")
"""One line a request."""


def configure_logging(settings: Settings) -> None:
    """Set every logger of this process up. Call it before vLLM is imported."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    root, level = logging.getLogger(), getattr(logging, settings.log_level.upper())
    root.handlers = [handler]
    root.setLevel(max(level, logging.WARNING))
    for name in ("app", "uvicorn"):
        logging.getLogger(name).setLevel(level)
    access.setLevel(logging.INFO if settings.access_log else logging.CRITICAL)
    # vLLM would bring a handler and a format of its own, unless somebody has configured those.
    if "VLLM_LOGGING_CONFIG_PATH" not in os.environ:
        os.environ.setdefault("VLLM_CONFIGURE_LOGGING", "0")
    logging.getLogger("vllm").setLevel(os.environ.get("VLLM_LOGGING_LEVEL", "ERROR").upper())


def log_access(
    state: RequestState, *, route: str, method: str, status: int, seconds: float, overhead: float
) -> None:
    """The line of a finished request."""
    fields: dict[str, Any] = {
        "request_id": state.request_id,
        "method": method,
        "route": route,
        "status": status,
        "ms": round(1000 * seconds, 2),
        "overhead_ms": round(1000 * overhead, 2),
    }
    for name in ("run_id", "stop_reason", "error"):
        if (value := getattr(state, name)) is not None:
            fields[name] = value
    if state.identity and state.identity.owner:
        fields["key"] = state.identity.owner
    if state.prompt_tokens or state.completion_tokens:
        fields |= {"prompt_tokens": state.prompt_tokens, "completion_tokens": state.completion_tokens}
    if "traceparent" in state.trace:
        fields["trace_id"] = state.trace["traceparent"][3:35]
    access.info("request", extra={"fields": fields})


def quiet_loop_errors(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """An event loop's exception handler: its own one logs the exception with its text."""
    error = context.get("exception")
    kind = type(error).__qualname__ if error else "no exception"
    where = "".join(traceback.format_tb(error.__traceback__)) if error else ""
    logging.getLogger("app").error("the event loop: %s\n%s", kind, where)


class _QuietFormatter(logging.Formatter):
    """Exceptions by their type and their places."""

    def formatException(self, ei: Any) -> str:
        kind, _, trace = ei
        return "".join(traceback.format_tb(trace)) + (kind.__qualname__ if kind else "")


class TextFormatter(_QuietFormatter):
    """`12:34:56.789 INFO app.access: request route=/v1/improve status=200`."""

    default_time_format = "%H:%M:%S"
    default_msec_format = "%s.%03d"

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        record.exc_text = None  # what another formatter made of the exception
        return super().format(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        fields: dict[str, Any] = getattr(record, "fields", {})
        return line + "".join(f" {name}={value}" for name, value in fields.items())


class JsonFormatter(_QuietFormatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        elif (state := current.get()) and "request_id" not in getattr(record, "fields", {}):
            line["request_id"] = state.request_id
        line |= getattr(record, "fields", {})
        return json.dumps(line, ensure_ascii=False, separators=(",", ":"))
