"""Every setting of the server in one model: command line > PIT_* environment > YAML file > defaults."""

import difflib
import os
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict


class SettingsError(Exception):
    """A setting that cannot be used. The message names the setting and says what it should be."""


def _split(value: Any) -> Any:
    """Commas separate addresses in the environment, and in one option."""
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, (list, tuple)):
        return value
    return [part.strip() for one in given for part in str(one).split(",") if part.strip()]


def _upstream(url: str) -> str:
    """An upstream's address without the /v1 that OpenAI's clients write at its end."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.username:
        raise ValueError(f"{url!r} is no address of a server; write http://HOST:PORT")
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


Upstreams = Annotated[
    tuple[Annotated[str, AfterValidator(_upstream)], ...], NoDecode, BeforeValidator(_split)
]


def _limits_url(url: SecretStr) -> SecretStr:
    """The value may hold a password: no error shows it."""
    scheme, _, rest = url.get_secret_value().partition("://")
    if scheme not in ("redis", "rediss", "valkey", "valkeys", "unix") or not rest:
        raise ValueError("is no address of a Redis; write redis://[USER:PASSWORD@]HOST:PORT[/DATABASE]")
    return url


def default_database() -> str:
    """An SQLite file in the user's state directory."""
    state = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return f"sqlite:///{state}/pit-serve/pit.db"


class Settings(BaseSettings):
    """The server's settings. Build it with `load_settings`, which also reads the YAML file."""

    model_config = SettingsConfigDict(env_prefix="PIT_", extra="forbid", frozen=True, env_ignore_empty=True)

    policy: Path | None = Field(
        default=None, description="checkpoint directory of the policy: drafts, Self-Refine"
    )
    improver: Path | None = Field(default=None, description="checkpoint directory of the improver")
    gap_reward: Path | None = Field(
        default=None, description="checkpoint directory of the gap reward: the gate"
    )
    policy_url: Upstreams = Field(
        default=(), description="upstream servers that have the policy; commas or several options"
    )
    improver_url: Upstreams = Field(default=(), description="upstream servers that have the improver")
    gap_reward_url: Upstreams = Field(
        default=(), description="vLLM servers (--runner pooling) that have the gap reward"
    )
    policy_model: str | None = Field(
        default=None, description="the policy's name upstream; the upstream's first model without it"
    )
    improver_model: str | None = Field(default=None, description="the improver's name upstream")
    gap_reward_model: str | None = Field(default=None, description="the gap reward's name upstream")
    improve_turn: str | None = Field(
        default=None, description="the sentence that asks for an improvement, where no pit.json says it"
    )
    upstream_api_key: SecretStr | None = Field(
        default=None, description="key that the upstreams ask for; better given in the environment"
    )
    upstream_start_timeout_s: float = Field(
        default=60.0, ge=0, description="how long a start waits for the first upstream to answer"
    )
    upstream_connect_timeout_s: float = Field(
        default=5.0, gt=0, description="how long a connection, and an answer to a health check, may take"
    )
    upstream_silence_timeout_s: float = Field(
        default=120.0, gt=0, description="wait for an upstream's first token, and between two"
    )
    upstream_timeout_s: float = Field(default=600.0, gt=0, description="deadline of one upstream request")
    upstream_retries: int = Field(default=2, ge=0, description="attempts after the first")
    upstream_health_interval_s: float = Field(
        default=5.0, gt=0, description="pause between two health checks of an upstream, in seconds"
    )
    upstream_health_path: str = Field(
        default="/health",
        pattern=r"^/\S*$",
        description="what is asked then; of LiteLLM /health/readiness, as its /health calls every model",
    )
    upstream_breaker_failures: int = Field(
        default=5, ge=1, description="failures in a row after which an upstream is left alone for a while"
    )
    upstream_sticky_slack: int = Field(
        default=8, ge=0, description="requests that a conversation's upstream may have over the least busy"
    )
    host: str = Field(default="127.0.0.1", description="address to listen on")
    port: int = Field(default=8000, ge=0, le=65535, description="port to listen on; 0 picks a free one")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="number format of the engines; auto: the checkpoint's own"
    )
    kv_cache_gib: int = Field(default=1, ge=1, description="key/value cache of each engine on a CPU, in GiB")
    gpu_memory_utilization: float = Field(
        default=0.4, gt=0, le=1, description="share of a GPU's memory that each engine takes"
    )
    max_num_seqs: int = Field(default=64, ge=1, description="sequences that an engine decodes at a time")
    max_model_len: int = Field(
        default=8192,
        ge=16,
        description="context of checkpoints without a manifest, in tokens (at most the model's own)",
    )
    base: Path | None = Field(
        default=None,
        description="model under the adapters of policy and improver, which then share one engine",
    )
    scorer: Literal["auto", "transformers", "vllm"] = Field(
        default="auto",
        description="what runs the gap reward; auto: transformers on a CPU, vLLM's pooling on a GPU",
    )
    speculative: Literal["ngram"] | None = Field(
        default=None, description="draft tokens by looking up what was written before, the reference for one"
    )
    speculative_tokens: int = Field(default=5, ge=1, le=64, description="tokens drafted at a time")
    vllm: dict[str, Any] = Field(
        default_factory=dict, description="arguments of vLLM's AsyncEngineArgs, by name"
    )
    engine_start: Literal["fork", "spawn"] = Field(
        default="fork",
        description="how engine processes start: fork is 20 s faster, spawn starts from nothing",
    )
    scoring_timeout_s: float = Field(
        default=30.0, gt=0, description="deadline of one batch of gap scores, in seconds"
    )
    tool_call_parser: str | None = Field(
        default=None, description="vLLM's parser of tool calls, as hermes; none: no tools"
    )
    served_model_name: tuple[Annotated[str, Field(pattern=r"^[^=\s]{1,200}=(policy|pit)$")], ...] = Field(
        default=(), description="more names of the models, as NAME=policy or NAME=pit"
    )
    watchdog_s: float = Field(
        default=20.0,
        gt=0,
        description="an engine that owes tokens and gives none for so long, in seconds, counts as hung",
    )
    probe_s: float = Field(
        default=5.0, gt=0, description="after so long without a request an engine is tested with one token"
    )
    restart_hung_s: float = Field(
        default=60.0, ge=0, description="how long an engine may hang, in seconds, before it is started again"
    )
    restart_delay_s: float = Field(
        default=1.0, gt=0, description="pause after a restart that failed; it doubles up to a minute"
    )
    verify: bool = Field(default=True, description="check file hashes and golden samples before readiness")
    max_body_bytes: int = Field(default=2_000_000, ge=1_000, description="largest request body")
    body_timeout_s: float = Field(
        default=30.0, gt=0, description="how long a request's body may take to arrive, in seconds"
    )
    max_header_bytes: int = Field(
        default=32_768, ge=1_000, description="largest head of a request: its address and headers"
    )
    header_timeout_s: float = Field(
        default=15.0, gt=0, description="how long a request's head may take to arrive, in seconds"
    )
    write_timeout_s: float = Field(
        default=60.0,
        gt=0,
        description="a client that takes nothing of its answer for so long, in seconds, loses it",
    )
    max_connections: int = Field(
        default=2_000, ge=1, description="connections at a time; requests on others are refused with 503"
    )
    ping_interval_s: float = Field(
        default=10.0, gt=0, le=15, description="silence after which a stream sends a comment"
    )
    shutdown_grace_s: float = Field(
        default=20.0, ge=0, description="how long, in seconds, running requests may finish after SIGTERM"
    )
    database: str = Field(
        default_factory=default_database,
        description="where runs are kept: sqlite:///FILE, postgresql://USER:PASSWORD@HOST/NAME, or none",
    )
    store: bool = Field(default=True, description="keep runs whose request does not say `store` itself")
    store_timeout_s: float = Field(
        default=2.0, gt=0, description="how long an answer waits for its run to be stored, in seconds"
    )
    retention_days: float = Field(
        default=30.0, ge=0, description="stored runs older than this are deleted; 0: never"
    )
    retention_mb: float = Field(
        default=1000.0, ge=0, description="beyond this size the oldest stored runs are deleted; 0: never"
    )
    require_keys: Literal["auto", "always", "insecure-never"] = Field(
        default="auto",
        description="whether API keys are asked for; auto: once there is one, and always beyond loopback;"
        " insecure-never: another gateway decides who comes here",
    )
    api_keys: SecretStr | None = Field(
        default=None,
        description="keys beside the database's: `NAME KEY [SCOPE ...]`, semicolons or lines between them;"
        " better given in the environment",
    )
    api_keys_file: Path | None = Field(default=None, description="file of such keys, read at the start")
    keys_outage_s: float = Field(
        default=300.0, ge=5, description="how long known keys are good while the database does not answer"
    )
    requests_per_minute: int | None = Field(
        default=None, ge=1, description="requests that generate or score, of all senders together"
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, description="tokens read and written for all senders together"
    )
    max_concurrency: int | None = Field(
        default=1000, ge=1, description="requests answered at a time; those beyond it wait"
    )
    max_queue: int = Field(default=1000, ge=0, description="requests that may wait for a slot")
    queue_timeout_s: float = Field(default=30.0, gt=0, description="how long a request waits for a slot")
    key_requests_per_minute: int | None = Field(
        default=None, ge=1, description="requests of each key that has no limit of its own"
    )
    key_tokens_per_minute: int | None = Field(
        default=None, ge=1, description="tokens of each key that has no limit of its own"
    )
    key_concurrency: int | None = Field(
        default=None, ge=1, description="requests at a time of each key that has no limit of its own"
    )
    limits_url: Annotated[SecretStr, AfterValidator(_limits_url)] | None = Field(
        default=None, description="Redis or Valkey that several servers count in: redis://HOST:PORT"
    )
    limits_lease_s: float = Field(
        default=30.0, ge=1, description="slots of a server that died come back after so long, in seconds"
    )
    batch_concurrency: int = Field(
        default=8, ge=0, le=1000, description="batch items that this server works on at a time; 0: none"
    )
    batch_lease_s: float = Field(
        default=60.0,
        gt=0,
        description="a batch item whose server said nothing for so long, in seconds, is taken by another",
    )
    batch_max_lines: int = Field(default=50_000, ge=1, description="lines of a batch's input file")
    max_file_bytes: int = Field(default=200_000_000, ge=1_000, description="largest file that is uploaded")
    max_files_bytes_per_key: int = Field(
        default=10_000_000_000,
        ge=0,
        description="bytes of a key's files together: beyond it no upload is taken; 0: no limit",
    )
    file_retention_days: float = Field(
        default=30.0, ge=0, description="files, and batches that have ended, are deleted after this; 0: never"
    )
    feedback_retention_days: float = Field(
        default=0.0, ge=0, description="feedback older than this is deleted with its pairs; 0: never"
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="warning", description="what is logged beside the lines of the requests"
    )
    log_format: Literal["text", "json"] = Field(default="text", description="form of a line of the log")
    access_log: bool = Field(default=True, description="one line in the log for each request")
    engine_metrics: bool = Field(
        default=False, description="show vLLM's own metrics at /metrics too; costs some CPU time a token"
    )
    otlp_endpoint: str | None = Field(
        default=None, description="send traces to this OTLP collector over HTTP (needs the extra otel)"
    )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource, dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:  # fmt: skip
        """Only the command line (given as arguments) and the environment; the YAML file is merged below
        both."""
        return init_settings, env_settings


def load_settings(config: Path | None = None, **command_line: Any) -> Settings:
    """Merge the sources. `command_line` values that are None count as not given.

    Raises `SettingsError` for a file that cannot be read, an unknown key, or a value out of range.
    """
    given = {key: value for key, value in command_line.items() if value is not None}
    from_file = _read_yaml(config) if config else {}
    try:
        environment = Settings(**given)
        # What the environment and the command line left unset comes from the file.
        missing = {key: value for key, value in from_file.items() if key not in environment.model_fields_set}
        return Settings(**{**missing, **given}) if missing else environment
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = ".".join(str(part) for part in first["loc"])
        if first["type"] == "extra_forbidden":
            raise SettingsError(f"setting {name!r} is not known{nearest_setting(name)}") from None
        raise SettingsError(f"setting {name!r}: {first['msg']}") from None


def nearest_setting(name: str) -> str:
    """`; did you mean 'port'?`, or nothing where no setting has such a name."""
    close = difflib.get_close_matches(name, Settings.model_fields, n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"cannot read the configuration file {path}: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError):
        raise SettingsError(f"{path} is not valid YAML: write one `setting: value` a line") from None
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise SettingsError(f"{path} must hold `setting: value` lines, and holds a {type(content).__name__}")
    return {str(key).replace("-", "_"): value for key, value in content.items()}
