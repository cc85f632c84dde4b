"""Later generations: what feedback becomes, when one is promoted, what is written, what a kill leaves."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from tests.training.helpers import TINY, publish_tiny, tiny_config
from training.checkpoint import check_files, content_hash, update_manifest
from training.config import GenerationConfig, RunConfig
from training.data import PreferencePair, load_pairs, write_pairs
from training.errors import CheckpointError, ConfigError, DataError, TrainingError
from training.feedback import PARTS, read_feedback, replay
from training.generations import generations, live, next_config, promote, run_generation
from training.judges import WinRate
from training.prepare import prepare_data
from training.promotion import (
    accuracy,
    decide,
    outcomes_of_probabilities,
    outcomes_of_scores,
    win_rate,
)
from training.synthetic import make_pairs

ROOT = Path(__file__).parents[2]
SMALL = (
    "feedback.minimum=60", "feedback.prompts=20",
    "feedback.rft_improver={optimizer: {learning_rate: 0.0005, batch: 2, epochs: 1}, prompts: 4, samples: 2}",
)  # fmt: skip
GAP = {
    "reads": "pair",
    "centering": "antisymmetric",
    "calibration": {"a": 1.0, "b": 0.0, "ece": 0.0, "n": 1},
}


def prompts(found: list[PreferencePair]) -> set[str]:
    return {pair.prompt[0]["content"] for pair in found}


def feedback_file(path: Path, count: int = 120, seed: int = 77) -> Path:
    write_pairs(path, make_pairs(count, seed=seed))
    return path


@pytest.fixture
def prepared(tmp_path: Path) -> RunConfig:
    """A run whose data is ready, with nothing trained."""
    config = tiny_config(tmp_path / "run", *SMALL)
    prepare_data(config)
    return config


@pytest.fixture
def finished(prepared: RunConfig) -> RunConfig:
    """The same with untrained checkpoints in the places of trained ones."""
    for role in ("policy", "improver", "gap_reward", "reward"):
        publish_tiny(prepared, role)
    publish_tiny(prepared, "policy", prepared.output / "base")
    update_manifest(prepared.output / "gap_reward", {"gap": GAP})
    return prepared


def opened(config: RunConfig, file: Path, number: int = 1) -> RunConfig:
    """A generation's configuration, opened as run_generation does it."""
    from training import generations as module

    found = module._open(config, file)
    assert found.number == number
    return next_config(config, found)


# ---------------------------------------------------------------------------------------------------- data


def test_no_prompt_stands_in_two_parts_and_none_is_lost(prepared: RunConfig, tmp_path: Path) -> None:
    found = read_feedback(prepared, feedback_file(tmp_path / "feedback.jsonl"))
    parts = [prompts(found.parts[name]) for name in (*PARTS, "heldout")]
    assert all(parts)
    assert sum(map(len, parts)) == len(set.union(*parts))
    assert sum(map(len, found.parts.values())) == found.report.kept


def test_prompts_of_the_original_held_out_data_are_left_out_and_reported(
    prepared: RunConfig, tmp_path: Path
) -> None:
    heldout = load_pairs("chat_pairs", prepared.output / "data" / "heldout.jsonl").pairs
    write_pairs(tmp_path / "feedback.jsonl", [*make_pairs(120, seed=77), *heldout[:5]])
    found = read_feedback(prepared, tmp_path / "feedback.jsonl")
    kept = set.union(*(prompts(part) for part in found.parts.values()))
    assert not kept & prompts(heldout)
    assert found.held_out_before >= 5
    assert "held out for comparisons" in found.text()


def test_what_is_no_help_desk_prompt_is_left_out(prepared: RunConfig, tmp_path: Path) -> None:
    other = PreferencePair("x", ({"role": "user", "content": "Tell me a joke."},), "No.", "Yes.", "s")
    write_pairs(tmp_path / "feedback.jsonl", [*make_pairs(120, seed=77), other])
    assert read_feedback(prepared, tmp_path / "feedback.jsonl").foreign == 1


def test_too_little_feedback_says_how_much_is_needed(prepared: RunConfig, tmp_path: Path) -> None:
    file = feedback_file(tmp_path / "feedback.jsonl", 20)
    with pytest.raises(DataError, match=r"20 usable pairs.*at least 60 are needed.*Collect 40 more"):
        read_feedback(prepared, file)


@given(sizes=st.lists(st.integers(0, 8), min_size=1, max_size=4), count=st.integers(0, 40))
def test_replay_is_even_and_never_repeats(sizes: list[int], count: int) -> None:
    made = [[f"{i}-{j}" for j in range(size)] for i, size in enumerate(sizes)]
    drawn: list[Any] = replay(made, count, "seed")  # type: ignore[arg-type]
    assert len(drawn) == len(set(drawn)) == min(count, sum(sizes))
    taken = [sum(d.startswith(f"{i}-") for d in drawn) for i in range(len(sizes))]
    for mine, size in zip(taken, sizes, strict=True):
        assert mine == size or mine >= max(taken) - 1


def test_a_generation_trains_on_feedback_and_earlier_pairs_but_not_on_held_out_ones(
    finished: RunConfig, tmp_path: Path
) -> None:
    child = opened(finished, feedback_file(tmp_path / "feedback.jsonl"))
    prepare_data(child)
    data = child.output / "data"
    own = {part: load_pairs("chat_pairs", data / "feedback" / f"{part}.jsonl").pairs for part in PARTS}
    all_ = {part: load_pairs("chat_pairs", data / f"{part}.jsonl").pairs for part in PARTS}
    heldout = load_pairs("chat_pairs", data / "heldout.jsonl").pairs
    assert all(len(all_[part]) == 2 * len(own[part]) for part in PARTS)
    assert not set.union(*(prompts(part) for part in all_.values())) & prompts(heldout)


# ---------------------------------------------------------------------------------------------------- verdict

RATE = st.builds(
    lambda delta, low: WinRate(100, 50.0, 50.0 - delta, delta, delta - low, delta + low),
    st.floats(-50, 50),
    st.floats(0, 50),
)


@given(RATE, RATE, st.floats(0, 1))
def test_promotion_needs_both_conditions(feedback: WinRate, original: WinRate, tolerance: float) -> None:
    bars = decide(feedback, original, tolerance)
    assert bars[0].passed == (feedback.low > 0 and feedback.delta > 0)
    assert bars[1].passed == (original.low > -100 * tolerance)
    # A wider tolerance never takes a promotion back.
    assert all(
        b.passed <= wider.passed for b, wider in zip(bars, decide(feedback, original, 1.01), strict=True)
    )


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=30))
def test_equal_improvers_are_not_promoted(scores: list[float]) -> None:
    rate = win_rate(outcomes_of_scores(scores, scores))
    assert (rate.win, rate.lose, rate.delta, rate.low, rate.high) == (0, 0, 0, 0, 0)
    assert not decide(rate, rate, 0.02)[0].passed


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), min_size=1, max_size=30))
def test_turning_the_comparison_round_turns_its_figures(scores: list[tuple[float, float]]) -> None:
    a, b = [list(column) for column in zip(*scores, strict=True)]
    one, other = win_rate(outcomes_of_scores(a, b)), win_rate(outcomes_of_scores(b, a))
    assert (one.win, one.lose, one.delta) == (other.lose, other.win, -other.delta)


def test_the_same_text_is_a_tie_whatever_the_judge_says() -> None:
    found = outcomes_of_probabilities([0.9, 0.8], ["a", "b"], ["a", "c"])
    assert found == [(0.0, 0.0), (0.8, pytest.approx(0.2))]


def test_accuracy_counts_a_half_as_half_a_hit() -> None:
    found = accuracy([0.9, 0.1, 0.5, 0.9], [0.9, 0.9, 0.9, 0.9])
    assert (found.n, found.live, found.next) == (4, 62.5, 100.0)
    assert found.low <= 37.5 <= found.high


# ---------------------------------------------------------------------------------------------------- lineage


def test_the_settings_digest_names_what_a_generation_starts_from_by_content(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)

    def digest(**changes: Any) -> str:
        known = {"number": 1, "parent": tmp_path, "checkpoints": {"improver": "a"}, "file": tmp_path}
        record = GenerationConfig.model_validate({**known, "feedback": "f", **changes})
        return config.model_copy(update={"generation": record}).digest("improver")

    assert digest() == digest(parent=tmp_path / "moved", file=tmp_path / "moved")
    others = [digest(number=2), digest(checkpoints={"improver": "b"}), digest(feedback="g")]
    assert len({config.digest("improver"), digest(), *others}) == 5


def test_a_published_generation_says_what_it_came_from(finished: RunConfig, tmp_path: Path) -> None:
    child = opened(finished, feedback_file(tmp_path / "feedback.jsonl"))
    manifest = check_files(publish_tiny(child, "improver"))
    assert manifest["generation"] == 1
    assert manifest["parent"] == content_hash(finished.output / "improver")
    first = check_files(finished.output / "improver")
    assert (first["generation"], first["parent"]) == (0, None)


def test_sections_of_feedback_stand_in_the_place_of_the_runs_own(prepared: RunConfig) -> None:
    section = {"optimizer": {"learning_rate": 0.5, "batch": 8, "steps": 1}}
    config = tiny_config(prepared.output, f"feedback.sft_improver={json.dumps(section)}")
    known = {"number": 1, "parent": ".", "checkpoints": {}, "file": "f", "feedback": "h"}
    child = next_config(config, GenerationConfig.model_validate(known))
    assert child.sft_improver.optimizer.learning_rate == 0.5
    assert child.output == prepared.output / "generations" / "1"


def test_one_file_is_one_generation_and_an_unfinished_one_blocks_the_next(
    finished: RunConfig, tmp_path: Path
) -> None:
    file = feedback_file(tmp_path / "feedback.jsonl")
    opened(finished, file)
    opened(finished, file)
    assert [g.number for g in generations(finished.output)] == [1]
    with pytest.raises(TrainingError, match="is not finished"):
        opened(finished, feedback_file(tmp_path / "other.jsonl", seed=78))
    decision = finished.output / "generations" / "1" / "promotion.json"
    decision.write_text('{"promoted": false}')
    second = opened(finished, tmp_path / "other.jsonl", 2)
    assert second.generation is not None and second.generation.parent == finished.output


def test_what_cannot_go_on_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path / "run")
    with pytest.raises(CheckpointError, match="no finished run"):
        run_generation(config, tmp_path / "feedback.jsonl", Console())
    known = {"number": 1, "parent": ".", "checkpoints": {}, "file": "f", "feedback": "h"}
    later = config.model_copy(update={"generation": GenerationConfig.model_validate(known)})
    with pytest.raises(ConfigError, match="of the original run"):
        run_generation(later, tmp_path / "feedback.jsonl", Console())


def test_a_reader_of_the_live_link_never_finds_it_missing(tmp_path: Path) -> None:
    for number in (1, 2):
        (tmp_path / "generations" / str(number)).mkdir(parents=True)
    assert live(tmp_path) == tmp_path
    promote(tmp_path, 1)
    assert os.readlink(tmp_path / "live") == "generations/1"
    seen, stop = set(), threading.Event()

    def read() -> None:
        while not stop.is_set():
            seen.add(live(tmp_path))

    reader = threading.Thread(target=read)
    reader.start()
    for i in range(300):
        promote(tmp_path, 1 + i % 2)
    stop.set()
    reader.join()
    assert seen <= {tmp_path / "generations" / "1", tmp_path / "generations" / "2"}
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".live")] == []


# ---------------------------------------------------------------------------------------------------- all


def has_saved(directory: Path) -> bool:
    """Whether a stage's trainer has saved; a stage that is ready takes its directory away meanwhile."""
    with contextlib.suppress(FileNotFoundError):
        return any(directory.glob("stages/*/checkpoint-*/trainer_state.json"))
    return False


@pytest.mark.slow
def test_a_generation_that_was_killed_goes_on_and_is_decided_once(
    finished: RunConfig, tmp_path: Path
) -> None:
    """The first generation's checkpoints are untrained: what they hold decides nothing here."""
    file, root = feedback_file(tmp_path / "feedback.jsonl"), finished.output
    directory = root / "generations" / "1"
    command = [sys.executable, "-m", "training.cli", "run", str(TINY), "--from-feedback", str(file)]
    with (tmp_path / "killed.log").open("w") as log:
        process = subprocess.Popen(
            [*command, f"output={root}", *SMALL],
            cwd=ROOT, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 600
            while not has_saved(directory):
                assert process.poll() is None, (tmp_path / "killed.log").read_text()
                assert time.monotonic() < deadline
                time.sleep(0.01)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    assert not (directory / "promotion.json").exists()
    promoted = run_generation(finished, file, Console(quiet=True))
    decision = json.loads((directory / "promotion.json").read_text())
    assert decision["promoted"] == promoted == all(bar["passed"] for bar in decision["reasons"])
    assert decision["judge"] == "gold" and decision["feedback"]["win_rate"]["n"] <= 20
    assert (root / "live").is_symlink() == promoted
    manifest = check_files(directory / "improver")
    assert (manifest["generation"], manifest["parent"]) == (1, content_hash(root / "improver"))
    anchor = check_files(directory / "improver_rft")
    assert (anchor["generation"], anchor["parent"]) == (1, content_hash(root / "improver"))
    assert manifest["anchor"] == content_hash(directory / "improver_rft")
    assert check_files(directory / "gap_reward")["gap"]["calibration"]["n"] > 0
    assert content_hash(directory / "policy") == content_hash(root / "policy")
    assert check_files(root / "policy")["generation"] == 0
    before = {p: p.stat().st_mtime_ns for p in directory.glob("*/*") if p.parent.name != "logs"}
    metrics = (directory / "metrics.jsonl").read_text()
    assert run_generation(finished, file, Console(quiet=True)) == promoted
    assert {p: p.stat().st_mtime_ns for p in before} == before
    assert (directory / "metrics.jsonl").read_text() == metrics
