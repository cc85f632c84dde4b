"""The arguments of each vLLM engine: what the checkpoint and the settings say, under the user's --vllm-*
options."""

import dataclasses
import difflib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from app.checkpoint import Checkpoint
from app.errors import CheckpointError
from app.settings import Settings

BLOCK_SIZE = 32
"""Tokens of a prefix cache block on a CPU; vLLM's default of 128 caches nothing of a short conversation."""
SMALLEST_BATCH = 4096
"""Tokens that an engine on a CPU reads in one step at least."""
ADAPTER = "adapter"
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
"""The ranks that vLLM makes room for."""
OURS = ("model", "runner", "convert", "enable_lora")
"""What no option may change: the settings say it."""


def generation(checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
    """The arguments of an engine that generates with a checkpoint's own weights."""
    arguments = _common(checkpoint.path, checkpoint.context_length(settings.max_model_len), settings)
    if arguments["dtype"] == "auto":
        arguments["dtype"] = checkpoint.dtype
    # Or a model may write white space without end where JSON allows it.
    arguments["structured_outputs_config"] = {"backend": "xgrammar", "disable_any_whitespace": True}
    if settings.speculative == "ngram":
        arguments["speculative_config"] = {
            "method": "ngram",
            "num_speculative_tokens": settings.speculative_tokens,
            "prompt_lookup_min": 2,
            "prompt_lookup_max": 4,
        }
    return arguments | _given(settings)


def over_base(base: Path, checkpoints: Sequence[Checkpoint], settings: Settings) -> dict[str, Any]:
    """The arguments of one engine with a base model's weights and an adapter for each checkpoint.

    Raises `CheckpointError` for a checkpoint without adapter.
    """
    ranks = [adapter_rank(checkpoint) for checkpoint in checkpoints]
    fitting = [rank for rank in RANKS if rank >= max(ranks)]
    if not fitting:
        raise CheckpointError(f"--base: an adapter of rank {max(ranks)} is more than vLLM's {RANKS[-1]}.")
    lengths = [checkpoint.context_length(settings.max_model_len) for checkpoint in checkpoints]
    own = generation(checkpoints[lengths.index(max(lengths))], settings)
    return {
        "max_loras": len(checkpoints),
        "max_lora_rank": fitting[0],
        # Training may have added to the tokenizer; the checkpoints' ends what they write.
        "tokenizer": str(checkpoints[0].path),
    } | {**own, "model": str(base), "enable_lora": True}


def adapter_rank(checkpoint: Checkpoint) -> int:
    """The rank of a checkpoint's adapter. Raises `CheckpointError` where there is none to serve."""
    file = checkpoint.path / ADAPTER / "adapter_config.json"
    try:
        return int(json.loads(file.read_text(encoding="utf-8"))["r"])
    except (OSError, ValueError, KeyError, TypeError):
        raise CheckpointError(
            f"{checkpoint.path} has no {ADAPTER}/ that can be read, and --base serves adapters over one"
            " model. Leave --base out: the checkpoint's own weights are merged already."
        ) from None


def pooling(checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
    """The arguments of an engine that scores."""
    arguments = _common(checkpoint.path, checkpoint.context_length(settings.max_model_len), settings)
    if arguments["dtype"] == "auto":
        arguments["dtype"] = checkpoint.dtype
    return arguments | {"runner": "pooling"}


def _common(path: Path, context_length: int, settings: Settings) -> dict[str, Any]:
    from vllm.platforms import current_platform

    on_cpu = current_platform.is_cpu()
    arguments: dict[str, Any] = {
        "model": str(path),
        "max_model_len": context_length,
        "dtype": "float32" if on_cpu and settings.dtype == "auto" else settings.dtype,
        "max_num_seqs": settings.max_num_seqs,
        "enable_prefix_caching": True,
        "generation_config": "vllm",
        "use_tqdm_on_load": False,
        "seed": 0,
    }
    if on_cpu:
        arguments |= {"enforce_eager": True, "block_size": BLOCK_SIZE}
        # A prompt that is read in parts makes vLLM rewind the request's random generator, which a CPU's
        # cannot: one burst of requests with seeds would end the engine.
        arguments |= {"enable_chunked_prefill": False}
        return arguments | {"max_num_batched_tokens": max(SMALLEST_BATCH, context_length)}
    return arguments | {"gpu_memory_utilization": settings.gpu_memory_utilization}


def _given(settings: Settings) -> dict[str, Any]:
    """The user's own arguments. Raises `CheckpointError`."""
    from vllm import AsyncEngineArgs

    return typed({field.name: field.type for field in dataclasses.fields(AsyncEngineArgs)}, settings.vllm)


def typed(fields: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Values of the types that the fields have. On the command line every value is text, or JSON.

    Raises `CheckpointError` for an unknown name, with the closest ones, and for a value of a wrong type.
    """
    found = {}
    for key, value in given.items():
        name = key.replace("-", "_")
        option = f"--vllm-{name.replace('_', '-')}"
        if name in OURS:
            raise CheckpointError(f"{option} cannot be set: it follows from what is served.")
        if name not in fields:
            close = difflib.get_close_matches(name, fields, n=3)
            shown = ", ".join("--vllm-" + one.replace("_", "-") for one in close)
            advice = f" Closest: {shown}." if close else ""
            raise CheckpointError(f"{option}: vLLM's engine has no argument {name!r}.{advice}")
        found[name] = _typed(option, fields[name], value)
    return found


def _typed(option: str, kind: Any, value: Any) -> Any:
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(kind, config=ConfigDict(arbitrary_types_allowed=True))
    except PydanticUserError:  # a type with a configuration of its own
        adapter = TypeAdapter(kind)
    readings = [value]
    if isinstance(value, str):
        try:
            # JSON first: a union of a list and a text would take every list as its text.
            parsed = json.loads(value)
            readings = [parsed, value] if isinstance(parsed, (dict, list)) else [value, parsed]
        except ValueError:
            pass
    reason = ""
    for reading in readings:
        try:
            adapter.validate_python(reading)
            # Validated, but as it was given where that is no text: vLLM makes its configurations itself.
            return adapter.validate_python(reading) if isinstance(reading, str) else reading
        except ValidationError as error:
            reason = reason or error.errors(include_url=False)[0]["msg"]
    raise CheckpointError(f"{option}: {str(value)[:60]!r} does not fit: {reason}.")
