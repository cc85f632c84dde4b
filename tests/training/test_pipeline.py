"""The whole pipeline as people run it: killed at any point it goes on, and what is finished stays as it is.

The three runs of tiny.yaml differ only in how they were run: at once, killed several times, in two processes.
"""

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.training.helpers import TINY
from tests.training.test_bad_input import HH, hh_file
from training.checkpoint import check_files

pytestmark = pytest.mark.slow
soak = pytest.mark.skipif(os.environ.get("PIT_SOAK") != "1", reason="takes many minutes; PIT_SOAK=1 runs it")

ROOT = Path(__file__).parents[2]
STAGES = ("base", "policy_sft", "improver_sft", "reader", "reward", "gap_reward", "policy", "improver")
SECONDS = 900  # for one run on a busy machine; about 20 where nothing else runs


def command(output: Path, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "training.cli", "run", str(TINY), f"output={output}", *arguments]


def run(output: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(output, *arguments), cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False
    )


def kill_when(output: Path, reached: Callable[[], bool], *arguments: str) -> None:
    """Run, and kill the command with all its workers as soon as `reached`."""
    with (output.parent / "killed.log").open("a") as log:
        process = subprocess.Popen(
            command(output, *arguments), cwd=ROOT, stdout=log, stderr=log, start_new_session=True
        )
        try:
            deadline = time.monotonic() + SECONDS
            while not reached():
                assert process.poll() is None, (output.parent / "killed.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.002)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def weights(output: Path) -> dict[str, str]:
    files = {stage: output / stage / "model.safetensors" for stage in STAGES}
    return {
        stage: hashlib.sha256(path.read_bytes()).hexdigest() for stage, path in files.items() if path.exists()
    }


def times(output: Path) -> dict[str, int]:
    return {stage: (output / stage / "model.safetensors").stat().st_mtime_ns for stage in STAGES}


def check_finished(output: Path, stages: tuple[str, ...] = STAGES) -> None:
    """Every checkpoint is whole and calibrated, nothing half-done lies about, metrics are JSON lines."""
    for stage in stages:
        assert check_files(output / stage)["role"] in ("policy", "improver", "reader", "reward", "gap_reward")
    assert check_files(output / "gap_reward")["gap"]["calibration"]["n"] > 0
    assert [p.name for p in output.iterdir() if p.name.startswith(".") and p.name != ".lock"] == []
    assert list((output / "stages").iterdir()) == []
    records = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    assert {record["stage"] for record in records} == {*stages, "calibrate"}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run without interruption."""
    output = tmp_path_factory.mktemp("uninterrupted") / "run"
    done = run(output)
    assert done.returncode == 0, done.stderr
    assert "done in" in done.stdout
    check_finished(output)
    return output


def test_a_run_that_was_killed_again_and_again_ends_where_an_uninterrupted_one_ends(
    finished: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"

    def saved(stage: str) -> bool:
        return any((output / "stages" / stage).glob("checkpoint-*/trainer_state.json"))

    kill_when(output, lambda: (output / "data" / "sft.jsonl").exists())
    kill_when(output, lambda: saved("base"))
    kill_when(output, lambda: saved("improver_sft"))
    early = {stage: weights(output)[stage] for stage in ("base", "policy_sft")}
    kill_when(output, lambda: any(output.glob(".gap_reward.*")) or (output / "gap_reward").exists())
    kill_when(output, lambda: saved("improver"))
    before = weights(output)
    assert before.keys() == {*STAGES} - {"improver"}
    assert before.items() >= early.items()
    done = run(output)
    assert done.returncode == 0, done.stderr
    assert "policy: finished before" in done.stdout
    check_finished(output)
    assert weights(output).items() >= before.items()
    assert weights(output) == weights(finished)


@soak
def test_ten_kills_at_random_times(finished: Path, tmp_path: Path) -> None:
    """Wherever it is killed, in whichever stage, import or write.

    A life lasts a random part of an uninterrupted run, on a busy machine too: most end before the run does.
    A run that comes to its end in spite of them is compared, and another one begun.
    """
    whole = (finished / "improver" / "model.safetensors").stat().st_mtime - (
        finished / "config.yaml"
    ).stat().st_mtime
    rng, output, killed = random.Random(2026), tmp_path / "run-0", 0
    while killed < 10:
        end = time.monotonic() + rng.uniform(0.1, 0.8) * whole
        try:
            kill_when(output, lambda end=end: time.monotonic() > end)  # type: ignore[misc]
        except AssertionError:
            check_finished(output)
            assert weights(output) == weights(finished)
            output = tmp_path / f"run-{killed}"
            assert not output.exists(), "a run came to its end, and no kill reached the next one"
            continue
        killed += 1
    assert run(output).returncode == 0
    check_finished(output)
    assert weights(output) == weights(finished)


def test_a_second_run_trains_nothing(finished: Path) -> None:
    before = times(finished), (finished / "metrics.jsonl").read_text()
    done = run(finished)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("finished before") == len(STAGES)
    assert (times(finished), (finished / "metrics.jsonl").read_text()) == before


def test_other_settings_are_refused_unless_asked_for(finished: Path) -> None:
    """Runs last of those that share the finished run: it trains the improver again."""
    before = times(finished)
    config = (finished / "config.yaml").read_text()
    refused = run(finished, "rl_improver.beta=0.2")
    assert refused.returncode == 2
    assert refused.stderr.count("\n") == 1
    assert f"{finished / 'improver'} was trained with other settings" in refused.stderr
    assert "--retrain" in refused.stderr and "output=DIR" in refused.stderr
    assert times(finished) == before
    assert (finished / "config.yaml").read_text() == config
    done = run(finished, "rl_improver.beta=0.2", "--retrain")
    assert done.returncode == 0, done.stderr
    changed = {stage for stage in STAGES if times(finished)[stage] != before[stage]}
    assert changed == {"improver"}
    check_finished(finished)


def test_a_save_of_other_settings_is_not_gone_on_from(tmp_path: Path) -> None:
    """A kill in the middle of a stage, then another size of model: the stage starts anew."""
    output = tmp_path / "run"
    kill_when(output, lambda: any((output / "stages" / "base").glob("checkpoint-*/trainer_state.json")))
    kill_when(output, lambda: (output / "base").exists(), "base.model.hidden=128")
    assert json.loads((output / "base" / "config.json").read_text())["hidden_size"] == 128


def test_two_processes_that_are_killed_and_resumed(tmp_path: Path) -> None:
    output = tmp_path / "run"
    kill_when(output, lambda: any(output.glob("stages/policy_sft/checkpoint-*")), "processes=2")
    done = run(output, "processes=2")
    assert done.returncode == 0, done.stderr
    check_finished(output)


def test_only_one_run_works_in_a_directory(tmp_path: Path) -> None:
    import fcntl

    output = tmp_path / "run"
    output.mkdir()
    with (output / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        refused = run(output)
    assert refused.returncode == 2
    assert "another run is at work there" in refused.stderr
    assert not (output / "data").exists()


def test_hh_rlhf_trains_to_the_end(tmp_path: Path) -> None:
    """Conversations of several turns, one of 3,000 words: told and left out, never an index error."""
    path = hh_file(tmp_path / "hh.jsonl")
    done = run(
        tmp_path / "run", *HH, f"data.path={path}", "data.split=[0.4, 0.3, 0.3]", "sft_policy.replay=1"
    )
    assert done.returncode == 0, done.stderr + "".join(p.read_text() for p in tmp_path.glob("run/logs/*"))
    assert "different prompts: line 10" in " ".join(done.stdout.split())
    assert "longer than the length budget" in " ".join(done.stdout.split())
    check_finished(tmp_path / "run", tuple(stage for stage in STAGES if stage != "reader"))
