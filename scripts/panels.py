"""What the two dashboards show: rows of panels, each a few queries. scripts/dashboards.py makes JSON of it.

A query is PromQL with $job (the servers that are looked at) and $__rate_interval (Grafana's).
"""

from dataclasses import dataclass
from typing import Literal

Kind = Literal["timeseries", "stat", "heatmap"]
S = '{job=~"$job"}'


@dataclass(frozen=True)
class Panel:
    """`queries` are (PromQL, legend); `meaning` stands behind the panel's question mark."""

    title: str
    unit: str
    queries: tuple[tuple[str, str], ...]
    meaning: str = ""
    kind: Kind = "timeseries"
    width: int = 8
    stacked: bool = False


def rate(metric: str, by: str = "", matching: str = "") -> str:
    """Sum of a counter's rate, by labels."""
    where = f'{{job=~"$job"{"," + matching if matching else ""}}}'
    return f"sum{f' by ({by})' if by else ''} (rate({metric}{where}[$__rate_interval]))"


def quantile(q: float, histogram: str, by: str = "", matching: str = "") -> str:
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket', f'{by}, le' if by else 'le', matching)})"


def mean(histogram: str, by: str = "") -> str:
    return f"{rate(f'{histogram}_sum', by)} / {rate(f'{histogram}_count', by)}"


def share(part: str, whole: str) -> str:
    return f"{part} / {whole}"


def latency(title: str, histogram: str, by: str, legend: str, meaning: str = "") -> Panel:
    """Median and 95th percentile, by labels."""
    queries = tuple(
        (quantile(q, histogram, by), f"{legend} {name}") for q, name in ((0.5, "p50"), (0.95, "p95"))
    )
    return Panel(title, "s", queries, meaning)


RUNS, IMPROVED = rate("pit_runs_total"), rate("pit_runs_improved_total")
FAILED = f"({rate('pit_runs_failed_total')} or vector(0))"
CACHED = rate("pit_tokens_total", matching='kind="cached"')

QUALITY: dict[str, tuple[Panel, ...]] = {
    "At a glance": (
        Panel(
            "Improved",
            "percentunit",
            ((share(IMPROVED, RUNS), ""),),
            "Runs whose response differs from the reference.",
            "stat",
            4,
        ),
        Panel(
            "Win probability",
            "percentunit",
            ((mean("pit_win_probability"), ""),),
            "Mean of all scored candidates, calibrated.",
            "stat",
            4,
        ),
        Panel(
            "Accepted",
            "percentunit",
            (
                (
                    share(
                        rate("pit_iterations_total", matching='outcome="accepted"'),
                        rate("pit_iterations_total"),
                    ),
                    "",
                ),
            ),
            "Iterations that the gate let through.",
            "stat",
            4,
        ),
        Panel(
            "Preferred by people",
            "percentunit",
            (
                (
                    f'sum(increase(pit_feedback_preferred_total{{job=~"$job",preferred="improved"}}[7d]))'
                    f" / sum(increase(pit_feedback_preferred_total{S}[7d]))",
                    "",
                ),
            ),
            "Of seven days' feedback that compares both.",
            "stat",
            4,
        ),
        Panel("Runs a second", "reqps", ((RUNS, ""),), kind="stat", width=4),
        Panel(
            "Failed runs", "percentunit", ((share(FAILED, f"({RUNS} + {FAILED})"), ""),), kind="stat", width=4
        ),
    ),
    "Improvement": (
        Panel(
            "Improvement rate",
            "percentunit",
            (
                (
                    share(rate("pit_runs_improved_total", "strategy"), rate("pit_runs_total", "strategy")),
                    "{{strategy}}",
                ),
            ),
        ),
        Panel(
            "Why runs stop",
            "reqps",
            ((rate("pit_runs_total", "stop_reason"), "{{stop_reason}}"),),
            stacked=True,
        ),
        Panel(
            "Scoring",
            "reqps",
            ((rate("pit_runs_total", "scoring"), "{{scoring}}"),),
            "`skipped`: answered without the gate, as the gap reward was down or late.",
            stacked=True,
        ),
        Panel(
            "Iterations", "reqps", ((rate("pit_iterations_total", "outcome"), "{{outcome}}"),), stacked=True
        ),
        Panel(
            "Win probability of candidates",
            "short",
            ((rate("pit_win_probability_bucket", "le"), "{{le}}"),),
            kind="heatmap",
        ),
        Panel("Gap of candidates", "short", ((rate("pit_gap_bucket", "le"), "{{le}}"),), kind="heatmap"),
    ),
    "Does it mean anything? The gap reward beside people": (
        Panel(
            "Mean win probability and preference, 7 days",
            "percentunit",
            (
                ('job:pit_win_probability:mean7d{job=~"$job"}', "gap reward"),
                ('job:pit_feedback_preferred:improved7d{job=~"$job"}', "people"),
            ),
            "Over-optimisation shows where the first rises and the second falls (alert PitOverOptimised).",
        ),
        Panel("Median gap, 7 days", "short", (('job:pit_gap:median7d{job=~"$job"}', "{{job}}"),)),
        Panel(
            "What people preferred",
            "short",
            ((f"sum by (preferred) (increase(pit_feedback_preferred_total{S}[1d]))", "{{preferred}}"),),
            stacked=True,
        ),
        Panel(
            "Feedback",
            "short",
            ((f"sum by (type) (increase(pit_feedback_total{S}[1d]))", "{{type}}"),),
            stacked=True,
        ),
    ),
    "Tokens": (
        Panel(
            "Tokens a second by phase",
            "short",
            ((rate("pit_tokens_total", "phase"), "{{phase}}"),),
            stacked=True,
        ),
        Panel(
            "Tokens a second by kind",
            "short",
            ((rate("pit_tokens_total", "kind"), "{{kind}}"),),
            stacked=True,
        ),
        Panel(
            "Tokens a run",
            "short",
            (
                (
                    share(
                        rate("pit_tokens_total", matching='phase=~"draft|improve|score",kind!="cached"'), RUNS
                    ),
                    "tokens",
                ),
            ),
        ),
        Panel(
            "Prefix cache",
            "percentunit",
            (
                (
                    share(f"({CACHED} or vector(0))", rate("pit_tokens_total", matching='kind="prompt"')),
                    "hits",
                ),
            ),
            "Prompt tokens that the engines' prefix cache held.",
        ),
    ),
}

OPERATIONS: dict[str, tuple[Panel, ...]] = {
    "At a glance": (
        Panel("Ready", "short", ((f"sum(pit_ready{S})", ""),), "Servers that are.", "stat", 4),
        Panel("Requests a second", "reqps", ((rate("pit_requests_total"), ""),), kind="stat", width=4),
        Panel("5xx", "percentunit", ((f"avg(job:pit_errors:ratio_rate5m{S})", ""),), kind="stat", width=4),
        Panel("In flight", "short", ((f"sum(pit_requests_in_flight{S})", ""),), kind="stat", width=4),
        Panel(
            "Waiting for a slot", "short", ((f"sum(pit_admission_queue_depth{S})", ""),), kind="stat", width=4
        ),
        Panel(
            "Limits degraded",
            "short",
            ((f"sum(pit_limits_degraded{S})", ""),),
            "Servers that count limits alone, without Redis.",
            "stat",
            4,
        ),
    ),
    "Requests": (
        Panel(
            "Requests by route", "reqps", ((rate("pit_requests_total", "route"), "{{route}}"),), stacked=True
        ),
        Panel(
            "Requests by status",
            "reqps",
            ((rate("pit_requests_total", "status"), "{{status}}"),),
            stacked=True,
        ),
        latency("Time to the end of the answer", "pit_request_seconds", "route", "{{route}}"),
        latency("Time to the first event", "pit_time_to_first_event_seconds", "route", "{{route}}"),
        latency("The server's own work", "pit_overhead_seconds", "route", "{{route}}"),
        Panel("Clients that left", "reqps", ((rate("pit_disconnects_total", "route"), "{{route}}"),)),
    ),
    "Queue and limits": (
        Panel(
            "Slots",
            "short",
            ((f"sum(pit_admitted_requests{S})", "held"), (f"sum(pit_admission_queue_depth{S})", "waiting")),
        ),
        latency("Wait for a slot", "pit_admission_wait_seconds", "job", "{{job}}"),
        Panel(
            "Refused by limits",
            "reqps",
            ((rate("pit_limited_total", "reason, scope"), "{{reason}} ({{scope}})"),),
        ),
        Panel(
            "Tokens charged and refunded", "short", ((rate("pit_limit_tokens_total", "kind"), "{{kind}}"),)
        ),
        Panel("Refused for their key", "reqps", ((rate("pit_key_refusals_total", "reason"), "{{reason}}"),)),
        Panel(
            "Idempotent requests",
            "reqps",
            ((rate("pit_idempotent_requests_total", "outcome"), "{{outcome}}"),),
        ),
    ),
    "Engines": (
        latency("First token by phase", "pit_first_token_seconds", "model, phase", "{{model}} {{phase}}"),
        latency("Generation by phase", "pit_generation_seconds", "model, phase", "{{model}} {{phase}}"),
        latency("Scoring batch", "pit_scorer_seconds", "model", "{{model}}"),
        Panel("Waiting for an engine", "short", ((f"sum by (model) (pit_queue_depth{S})", "{{model}}"),)),
        Panel(
            "Generations in flight",
            "short",
            ((f"sum by (model) (pit_generations_in_flight{S})", "{{model}}"),),
        ),
        Panel(
            "Comparisons in a scoring batch",
            "short",
            ((mean("pit_scorer_batch_comparisons", "model"), "{{model}}"),),
        ),
        Panel("Failures", "reqps", ((rate("pit_model_errors_total", "model, code"), "{{model}} {{code}}"),)),
        Panel(
            "vLLM: requests that wait",
            "short",
            (("sum by (model_name) (vllm:num_requests_waiting)", "{{model_name}}"),),
            "Of vLLM's own /metrics, or with engine_metrics.",
        ),
        Panel(
            "vLLM: key/value cache in use",
            "percentunit",
            (("avg by (model_name) (vllm:kv_cache_usage_perc)", "{{model_name}}"),),
        ),
        Panel(
            "vLLM: prefix cache",
            "percentunit",
            (
                (
                    "sum by (model_name) (rate(vllm:prefix_cache_hits_total[$__rate_interval]))"
                    " / sum by (model_name) (rate(vllm:prefix_cache_queries_total[$__rate_interval]))",
                    "{{model_name}}",
                ),
            ),
        ),
    ),
    "Store and batches": (
        Panel("Runs to be stored", "reqps", ((rate("pit_store_runs_total", "outcome"), "{{outcome}}"),)),
        latency("Write to the database", "pit_store_write_seconds", "job", "{{job}}"),
        Panel(
            "Database refuses, runs pending",
            "short",
            (
                (rate("pit_store_failures_total"), "refused a second"),
                (f"sum(pit_store_pending_runs{S})", "pending"),
            ),
        ),
        Panel(
            "Batch items",
            "short",
            (
                (f"max(pit_batch_items_waiting{S})", "waiting"),
                (f"sum(pit_batch_items_in_flight{S})", "in flight"),
            ),
        ),
        Panel(
            "Batch items finished",
            "reqps",
            ((rate("pit_batch_items_total", "outcome"), "{{outcome}}"),),
            stacked=True,
        ),
        Panel("Batches", "short", ((f"sum by (status) (increase(pit_batches_total{S}[1d]))", "{{status}}"),)),
    ),
    "Processes": (
        Panel(
            "Event loop",
            "percentunit",
            ((rate("pit_event_loop_cpu_seconds_total", "instance"), "{{instance}}"),),
            "CPU time of the one thread that answers: at 1 it is full.",
        ),
        Panel("Memory", "bytes", ((f"process_resident_memory_bytes{S}", "{{instance}}"),)),
        Panel("Open files", "short", ((f"process_open_fds{S}", "{{instance}}"),)),
    ),
}
DASHBOARDS = {"pit-quality": ("PIT: quality", QUALITY), "pit-operations": ("PIT: operations", OPERATIONS)}
