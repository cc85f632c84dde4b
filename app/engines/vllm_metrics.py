"""vLLM's own metrics (vllm:*), of several engines in one registry.

vLLM's logger puts its metrics into the process's default registry, and takes those of the engine before away.
"""

import threading
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_making = threading.Lock()


def stat_logger(registry: CollectorRegistry) -> Any:
    """A `StatLoggerFactory` for AsyncLLM: vLLM's Prometheus logger, with metrics in `registry`, which its
    engines share. They tell each other apart by the label `model_name`."""
    from vllm.v1.metrics.loggers import PrometheusStatLogger
    from vllm.v1.metrics.perf import PerfMetricsProm
    from vllm.v1.spec_decode.metrics import SpecDecodingProm

    def shared(kind: Any) -> Any:
        def make(name: str, documentation: str, labelnames: Any = (), **options: Any) -> Any:
            options.pop("registry", None)
            with _making:
                found = registry._names_to_collectors.get(name)
                return found or kind(name, documentation, list(labelnames), registry=registry, **options)

        return staticmethod(make)

    class SharedSpecDecoding(SpecDecodingProm):  # type: ignore[misc]
        _counter_cls = shared(Counter)

    class SharedPerformance(PerfMetricsProm):  # type: ignore[misc]
        _counter_cls = shared(Counter)

    class SharedStatLogger(PrometheusStatLogger):  # type: ignore[misc]
        _gauge_cls = shared(Gauge)
        _counter_cls = shared(Counter)
        _histogram_cls = shared(Histogram)
        _spec_decoding_cls = SharedSpecDecoding
        _perf_metrics_cls = SharedPerformance

        def log_metrics_info(self, type: str, config_obj: Any) -> None:
            """As vLLM's, with the model's name: two engines have two configurations of the cache."""
            for index, (model, *_) in self.per_engine_labelvalues.items():
                info = {**config_obj.metrics_info(), "engine": str(index), "model_name": str(model)}
                gauge = self._gauge_cls(f"vllm:{type}_info", f"Information of the engine's {type}", info)
                gauge.labels(**info).set(1)

    return SharedStatLogger
