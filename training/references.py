"""Responses that are sampled before a stage trains on them: by transformers in the workers, or by vLLM.

The policy's references of RL's phase 1 (METHOD §3), and the refinements of `rft_improver` and `dpo_improver`.
With `references: vllm` an engine in a process of its own writes them (on the machine and the first GPU of the
main worker), and is gone with all its memory before the stage goes on.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.chat import Conversation, encode
from training.errors import ConfigError, TrainingError
from training.machine import end_with_parent
from training.runtime import Progress

if TYPE_CHECKING:
    from training.config import RunConfig
    from training.runtime import Worker

DEADLINE_S = 3600.0
# What an engine of one process on this machine needs; what the user has set stays.
_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "NUMBA_NUM_THREADS": "1",
}
# The engine is none of the training processes, and must not take itself for one.
_LAUNCHERS = (
    "RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT",
    "TORCHELASTIC", "ACCELERATE_", "FSDP_",
)  # fmt: skip


def check_references(config: RunConfig) -> None:
    """Raises `ConfigError`: vLLM is asked for and not installed."""
    if config.references == "vllm" and find_spec("vllm") is None:
        raise ConfigError(
            "references=vllm needs vLLM: pip install 'pit-serve[gpu]', or set references=transformers"
        )


def policy_references(worker: Worker, prompts: Sequence[Conversation]) -> list[str]:
    """y_ref ~ M_P^RL(.|x), sampled beforehand; the same in every worker and after a resume (seeded)."""
    config = worker.config
    temperature = config.sampling.policy_temperature or 1.0
    return write_responses(worker, config.output / "policy", prompts, temperature, config.seed)


def write_responses(
    worker: Worker, source: Path, conversations: Sequence[Conversation], temperature: float, seed: int
) -> list[str]:
    """One response of the checkpoint `source` to each conversation, in its order; the same in every worker.

    A response is cut at the length budget's. `temperature` 0 takes the likeliest token.

    Raises:
        TrainingError: vLLM failed, or was not done within an hour.
    """
    from training.generate import sample_responses
    from training.models import load_causal_lm, load_tokenizer

    tokenizer = load_tokenizer(source)
    most = worker.config.length.response
    if worker.config.references == "transformers":
        model = load_causal_lm(source)
        return sample_responses(
            worker, model, tokenizer, conversations,
            temperature=temperature, max_new_tokens=most, seed=seed,
        )  # fmt: skip
    request = {
        "model": str(source),
        "prompts": encode(tokenizer, list(conversations), generation_prompt=True),
        "temperature": temperature,
        "max_tokens": most,
        "seed": seed,
        "eos": tokenizer.eos_token_id,
    }
    ids = _ask_vllm(worker, request)
    texts: list[str] = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return texts


def _ask_vllm(worker: Worker, request: Mapping[str, Any]) -> list[list[int]]:
    """Token ids of the responses. The main worker has them written to a file, which the others wait for."""
    text = json.dumps(request)
    name = f"samples-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
    question, answer = (worker.directory / f"{name}.{part}.json" for part in ("request", "answer"))
    if worker.main and not answer.exists():
        question.write_text(text, encoding="utf-8")
        count = len(request["prompts"])
        worker.report(Progress(0, count, "vLLM"))
        _run_engine(worker, question, answer)
        worker.report(Progress(count, count, "vLLM"))
    end = time.monotonic() + DEADLINE_S
    while not answer.exists():  # renamed into its place when it is whole
        if time.monotonic() > end:
            raise TrainingError(f"{worker.stage}: no samples of vLLM in {answer} within {DEADLINE_S:.0f} s")
        time.sleep(0.2)
    found: list[list[int]] = json.loads(answer.read_text(encoding="utf-8"))
    return found


def _run_engine(worker: Worker, question: Path, answer: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(_LAUNCHERS)}
    command = [sys.executable, "-m", "training.references", str(question), str(answer)]
    try:
        done = subprocess.run(command, env=_ENVIRONMENT | environment, timeout=DEADLINE_S, check=False)
    except subprocess.TimeoutExpired:
        raise TrainingError(f"{worker.stage}: vLLM was not done within {DEADLINE_S:.0f} s") from None
    if done.returncode != 0:
        log = worker.config.output / "logs" / f"{worker.stage}.log"
        raise TrainingError(
            f"{worker.stage}: vLLM ended with exit code {done.returncode}; its log: {log}. "
            "references=transformers does without it"
        )


def _engine(question: Path, answer: Path) -> None:
    """The life of the engine's process: read a request, write token ids."""
    end_with_parent()
    from vllm import LLM, SamplingParams
    from vllm.platforms import current_platform

    request = json.loads(question.read_text(encoding="utf-8"))
    prompts = request["prompts"]
    arguments: dict[str, Any] = {"generation_config": "vllm", "disable_log_stats": True}
    if current_platform.is_cpu():
        # Blocks of 128 tokens, its default there, cache nothing of a short conversation.
        arguments |= {"dtype": "float32", "enforce_eager": True, "block_size": 32}
    longest = max(map(len, prompts)) + request["max_tokens"]
    # The seed is the engine's: vLLM 0.32 fails on a CPU when a request with its own is read in two parts.
    model = LLM(model=request["model"], max_model_len=longest, seed=request["seed"], **arguments)
    sampling = SamplingParams(
        temperature=request["temperature"], max_tokens=request["max_tokens"],
        stop_token_ids=[request["eos"]], detokenize=False,
    )  # fmt: skip
    outputs = model.generate([{"prompt_token_ids": ids} for ids in prompts], sampling, use_tqdm=False)
    temporary = answer.with_suffix(".part")
    written = [list(output.outputs[0].token_ids) for output in outputs]
    temporary.write_text(json.dumps(written), encoding="utf-8")
    temporary.replace(answer)
    sys.stdout.flush()
    # The engine's own shutdown has nothing to save.
    os._exit(0)


if __name__ == "__main__":
    _engine(Path(sys.argv[1]), Path(sys.argv[2]))
