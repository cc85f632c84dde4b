"""Launched processes (torchrun, accelerate launch): the result of forked workers, and no wait without end."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.training.helpers import TINY, tiny_config
from tests.training.test_runtime import gone, wait_for
from training import launched
from training.errors import DataError, TrainingError
from training.launched import _End, _Group, _Stage
from training.machine import Place

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
STAGES = ("base", "policy_sft", "improver_sft", "reader", "reward", "gap_reward", "policy", "improver")
TORCHRUN = (str(BIN / "torchrun"), "--standalone", "--nproc-per-node", "2")
SECONDS = 900  # on a busy machine; about 20 where nothing else runs


def environment() -> dict[str, str]:
    """Without a place among processes that somebody else has launched."""
    return {k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE", "LOCAL_RANK")}


def finish(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=SECONDS, check=False
    )


# ------------------------------------------------------------------------------- whole runs, two processes


def arguments(output: Path, processes: str) -> tuple[str, ...]:
    """The tiny run, with the optimizer that may be sharded."""
    stages = ("base", "sft_policy", "sft_improver", "reader", "reward", "gap_reward")
    adamw = (f"{stage}.optimizer.kind=adamw" for stage in stages)
    return ("run", str(TINY), f"output={output}", f"processes={processes}", *adamw)


@pytest.fixture(scope="module")
def forked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same run as one command that forks two workers."""
    output = tmp_path_factory.mktemp("forked") / "run"
    done = finish(sys.executable, "-m", "training.cli", *arguments(output, "2"))
    assert done.returncode == 0, done.stderr
    return output


def weights(output: Path) -> dict[str, dict[str, torch.Tensor]]:
    return {stage: load_file(output / stage / "model.safetensors") for stage in STAGES}


@pytest.mark.slow
def test_torchrun_killed_and_resumed_ends_where_forked_workers_end(forked: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    command = [*TORCHRUN, "-m", "training.cli", *arguments(output, "auto")]
    log = (tmp_path / "log").open("w")
    process = subprocess.Popen(command, cwd=ROOT, env=environment(), stdout=log, stderr=log)
    try:
        saves = output / "stages" / "improver_sft"
        wait_for(lambda: process.poll() is not None or any(saves.glob("*/trainer_state.json")), SECONDS)
        assert process.poll() is None, (tmp_path / "log").read_text()
        workers = children(process.pid)
        assert len(workers) == 2
    finally:
        process.kill()
        process.wait()
    # The launcher could not tell them; what they wrote from now on would meet the next run.
    wait_for(lambda: all(map(gone, workers)), 60)
    done = finish(*command)
    assert done.returncode == 0, done.stderr
    assert "policy_sft: finished before" in done.stdout
    assert done.stdout.count("done in") == 1
    ours, theirs = weights(output), weights(forked)
    for stage in STAGES:
        assert all(torch.equal(ours[stage][name], value) for name, value in theirs[stage].items()), stage


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
def test_fsdp2_publishes_whole_weights(forked: Path, tmp_path: Path) -> None:
    """By the configuration that is shipped; each process holds half of every weight while it trains."""
    output = tmp_path / "run"
    done = finish(
        str(BIN / "accelerate"), "launch", "--config_file", "training/accelerate/fsdp2.yaml",
        "--num_processes", "2", "tests/training/fsdp_on_cpu.py", *arguments(output, "auto"),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr + "".join(p.read_text()[-3000:] for p in output.glob("logs/*"))
    ours, theirs = weights(output), weights(forked)
    for stage in STAGES:
        assert ours[stage].keys() == theirs[stage].keys()
        for name, value in theirs[stage].items():
            assert torch.allclose(ours[stage][name], value, atol=1e-4), (stage, name)


# --------------------------------------------------------------------------------------- what goes wrong


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "expected"),
    [
        ("fails", "error: the data is bad, line 3. Mend it"),
        ("fails_beside_a_collective", "error: process 1: the data is bad"),
    ],
)
def test_an_error_of_the_input_is_told_once(tmp_path: Path, function: str, expected: str) -> None:
    """Also one that only a process has that nobody listens to: the first waits for it in a collective."""
    done = finish(*TORCHRUN, "-m", "tests.training.stage_functions", str(tmp_path), function)
    assert done.returncode != 0
    assert done.stderr.count("error: ") == done.stderr.count("the data is bad") == 1, done.stderr
    assert expected.split(",")[0] in done.stderr


def new_store() -> Any:
    return torch.distributed.HashStore()  # type: ignore[attr-defined]


def group(store: Any, rank: int, size: int = 2) -> _Group:
    return _Group(Place(rank, size), store, sys.stdout)


def test_what_the_first_says_is_heard_in_order_and_errors_come_back(tmp_path: Path) -> None:
    store = new_store()
    first, second = group(store, 0), group(store, 1)
    config = tiny_config(tmp_path)
    number = first.say(_Stage(config, "base", "module:function"))
    assert second.hear() == (number, _Stage(config, "base", "module:function"))
    second.ended(number, DataError("bad", line=3))
    with pytest.raises(DataError, match="bad") as error:
        first.wait_for_others(number, "base")
    assert error.value.line == 3
    first.say(_End(2))
    assert second.next_comes_within(1)
    assert second.hear()[1] == _End(2)


@pytest.mark.parametrize(
    ("limit", "wait", "message"),
    [
        ("NEXT_STAGE_S", lambda store: group(store, 1).hear(), "process 0 has not gone on within 0 s"),
        ("STAGE_END_S", lambda store: group(store, 0).wait_for_others(1, "base"), "process 1 has not ended"),
    ],
)
def test_every_wait_has_a_deadline(
    monkeypatch: pytest.MonkeyPatch, limit: str, wait: Callable[[Any], object], message: str
) -> None:
    monkeypatch.setattr(launched, limit, 0.2)
    store = new_store()
    store.set_timeout(timedelta(seconds=60))
    started = time.monotonic()
    with pytest.raises(TrainingError, match=message):
        wait(store)
    assert time.monotonic() - started < 10


# ------------------------------------------------------------------------------- the shipped configurations


CONFIGURATIONS = sorted((ROOT / "training" / "accelerate").glob("*.yaml"))


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_accelerate_takes_the_configurations_that_are_shipped(path: Path) -> None:
    """ZeRO-3 too, which cannot run here: every key is one that `accelerate launch` knows."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    config = load_config_from_file(str(path))  # refuses keys that it does not know
    known = vars(launch_command_parser().parse_args(["--config_file", str(path), "script"]))
    for section in (config.fsdp_config, config.deepspeed_config):
        assert section.keys() <= known.keys(), section.keys() - known.keys()
    assert config.mixed_precision == "no"  # model.dtype of a run decides
