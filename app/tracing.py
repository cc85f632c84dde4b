"""OpenTelemetry: spans of requests, runs, iterations, generations and scorings, sent by OTLP over HTTP.

Nothing of OpenTelemetry is imported unless `otlp_endpoint` is set; it is the extra `otel`. Attributes follow
the GenAI semantic conventions (gen_ai.*); what they have no name for is pit.*. What the SDK reads from OTEL_*
variables (the sampler, headers, the service's name) holds.
"""

import importlib.util
import os
from collections.abc import Mapping
from typing import Any

from app import __version__
from app.observe import Attributes, Span
from app.settings import Settings, SettingsError

FLUSH_MS = 3000
"""How long a stopping server may take to send its last spans."""


def check_tracing(settings: Settings) -> None:
    """Raises `SettingsError` where spans are wanted and cannot be sent."""
    if settings.otlp_endpoint is None:
        return
    if not settings.otlp_endpoint.startswith(("http://", "https://")):
        raise SettingsError(
            f"otlp_endpoint is {settings.otlp_endpoint!r}, and must be a URL like http://127.0.0.1:4318 (OTLP"
            " over HTTP)."
        )
    for name in ("opentelemetry.sdk", "opentelemetry.exporter.otlp.proto.http"):
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
        if found is None:
            raise SettingsError(
                f"otlp_endpoint is set, and the module {name} is not installed: pip install"
                " 'pit-serve[otel]', or leave otlp_endpoint out."
            )


class OpenTelemetryTracer:
    """A `Tracer` over an OpenTelemetry provider of its own: the process's global one is left alone."""

    def __init__(self, settings: Settings, processor: Any = None) -> None:
        """`processor` takes the finished spans in place of the exporter to `otlp_endpoint`."""
        from opentelemetry import trace
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.trace.propagation import tracecontext

        if processor is None:
            processor = _exporting(settings)
        name = os.environ.get("OTEL_SERVICE_NAME", "pit-serve")
        resource = Resource.create({"service.name": name, "service.version": __version__})
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("pit-serve", __version__)
        self._context = trace.set_span_in_context
        self._propagator = tracecontext.TraceContextTextMapPropagator()
        self._kinds = {
            "internal": trace.SpanKind.INTERNAL,
            "client": trace.SpanKind.CLIENT,
            "server": trace.SpanKind.SERVER,
        }

    def start(
        self,
        name: str,
        attributes: Attributes,
        *,
        parent: Span | None = None,
        remote: Mapping[str, str] | None = None,
        kind: str = "internal",
    ) -> "OpenTelemetrySpan":
        if isinstance(parent, OpenTelemetrySpan):
            context = self._context(parent.span)
        else:
            context = self._propagator.extract(dict(remote or {}))
        span = self._tracer.start_span(
            name, context=context, kind=self._kinds[kind], attributes=dict(attributes)
        )
        return OpenTelemetrySpan(span, self)

    def headers_of(self, span: Any) -> dict[str, str]:
        carrier: dict[str, str] = {}
        self._propagator.inject(carrier, context=self._context(span))
        return carrier

    def close(self) -> None:
        """Send what is left. Blocks for some seconds at most."""
        self._provider.force_flush(FLUSH_MS)
        self._provider.shutdown()


class OpenTelemetrySpan:
    """See `Span`."""

    __slots__ = ("span", "tracer")

    def __init__(self, span: Any, tracer: OpenTelemetryTracer) -> None:
        self.span, self.tracer = span, tracer

    def set(self, attributes: Attributes) -> None:
        self.span.set_attributes(attributes)

    def end(self, error: str | None = None) -> None:
        if error is not None:
            from opentelemetry.trace import StatusCode

            self.span.set_attribute("error.type", error)
            self.span.set_status(StatusCode.ERROR)
        self.span.end()

    def headers(self) -> dict[str, str]:
        return self.tracer.headers_of(self.span)


def _exporting(settings: Settings) -> Any:
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
    from opentelemetry.sdk.trace.export import BatchSpanProcessor

    assert settings.otlp_endpoint is not None
    endpoint = settings.otlp_endpoint.rstrip("/")
    if not endpoint.endswith("/v1/traces"):
        endpoint += "/v1/traces"
    return BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint, timeout=FLUSH_MS / 1000))
