"""Worker processes: what they report and return arrives, whatever ends them is told, and none outlives a
run."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.training.helpers import TINY, tiny_config
from training.config import RunConfig
from training.errors import DataError, TrainingError
from training.runtime import Progress, run_stage
from training.trainers import last_checkpoint

ROOT = Path(__file__).parents[2]
HERE = "tests.training.stage_functions"


def run(config: RunConfig, name: str, seen: list[Progress] | None = None) -> object:
    return run_stage(config, "stage", f"{HERE}:{name}", (seen if seen is not None else []).append)


@pytest.mark.slow
def test_progress_and_the_result_of_rank_0_arrive(tmp_path: Path) -> None:
    seen: list[Progress] = []
    result = run(tiny_config(tmp_path, "processes=2"), "works", seen)
    assert result == {"rank": 0, "size": 2, "threads": "1"}
    assert seen == [Progress(step, 3, f"step {step}") for step in (1, 2, 3)]


@pytest.mark.slow
def test_an_error_of_the_input_comes_back_as_it_was_raised(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"the data is bad\. Mend it") as error:
        run(tiny_config(tmp_path, "processes=2"), "fails")
    assert error.value.line == 3


@pytest.mark.slow
def test_a_bug_is_told_with_the_place_of_its_traceback(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "stage.log"
    with pytest.raises(TrainingError, match=f"exit code 1; its log: {log}.*resume"):
        run(tiny_config(tmp_path), "has_a_bug")
    assert "KeyError: 'no such thing'" in log.read_text()


@pytest.mark.slow
def test_a_killed_worker_ends_the_others(tmp_path: Path) -> None:
    started = time.monotonic()
    with pytest.raises(TrainingError, match="stage-1 ended with exit code -9"):
        run(tiny_config(tmp_path, "processes=2"), "is_killed")
    assert time.monotonic() - started < 300  # rank 0 sleeps for 600 seconds


def gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return True
    return state == "Z"


def wait_for(condition: object, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interrupting_or_killing_the_command_leaves_no_worker(tmp_path: Path, number: signal.Signals) -> None:
    """Also when the workers hang. SIGKILL lets the command clean up nothing, so they must see it end."""
    code = (
        # A shell without job control starts what runs in its background deaf to Ctrl-C, tests and all.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\n"
        "from training.config import load_config\n"
        "from training.runtime import run_stage\n"
        f"config = load_config(Path({str(TINY)!r}), ['output={tmp_path}', 'processes=2'])\n"
        f"run_stage(config, 'stage', '{HERE}:hangs', print)"
    )
    command = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        wait_for(lambda: len(list(tmp_path.glob("pid-*"))) == 2)
        time.sleep(0.2)
        pids = [int(path.read_text()) for path in tmp_path.glob("pid-*")]
        assert not any(map(gone, pids))
        command.send_signal(number)
        command.communicate(timeout=60)
        wait_for(lambda: all(map(gone, pids)), 60)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)


def test_a_save_that_a_kill_cut_short_is_skipped(tmp_path: Path) -> None:
    assert last_checkpoint(tmp_path) is None
    for step, state in ((10, "{}"), (20, "{}"), (100, '{"global_st'), (110, None)):
        path = tmp_path / f"checkpoint-{step}"
        path.mkdir()
        if state is not None:
            (path / "trainer_state.json").write_text(state)
    assert last_checkpoint(tmp_path) == str(tmp_path / "checkpoint-20")
