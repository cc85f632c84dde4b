"""Bad input ends `pit-train` with one readable message and exit status 2, before anything is trained."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.training.helpers import TINY, alone, tiny_config, tiny_tokenizer
from training import cli
from training.data import load_pairs
from training.errors import DataError
from training.lengths import fitting_pairs
from training.prepare import prepare_data

ROOT = Path(__file__).parents[2]


def pit_train(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["pit-train", *arguments])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert isinstance(end.value.code, int)
    return end.value.code


def chat_line(number: int) -> str:
    def message(role: str, content: str) -> list[dict[str, str]]:
        return [{"role": role, "content": content}]

    record = {
        "prompt": message("user", f"Question {number}?"),
        "chosen": message("assistant", "Yes."),
        "rejected": message("assistant", "No."),
    }
    return json.dumps(record)


def test_a_line_that_is_not_json_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join([*map(chat_line, range(40)), '{"prompt": ', chat_line(41)]))
    arguments = ["reader=null", "data.format=chat_pairs", f"data.path={path}", f"output={tmp_path / 'run'}"]
    assert pit_train(monkeypatch, "run", str(TINY), *arguments) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {path}, line 41: not JSON")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["reader=null", "data.format=chat_pairs", "data.path=none.jsonl"],
            "error: none.jsonl: no such file. Set data.path to",
        ),
        (["data.pears=3"], "data.pears"),
        (["processes=5"], "choose a multiple"),
    ],
)
def test_what_is_wrong_is_said(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    overrides: list[str],
    message: str,
) -> None:
    assert pit_train(monkeypatch, "run", str(TINY), *overrides, f"output={tmp_path / 'run'}") == 2
    assert message in capsys.readouterr().err


def test_the_command_itself_prints_no_traceback() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "training.cli", "run", "none.yaml"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert (
        done.stderr
        == "error: none.yaml: cannot be read (No such file or directory); give the path of a YAML file\n"
    )


def hh_line(turns: list[str], chosen: str, rejected: str, other_prompt: str | None = None) -> str:
    speakers = ["Human", "Assistant"] * len(turns)
    prompt = "".join(f"\n\n{who}: {said}" for who, said in zip(speakers, turns, strict=False))
    return json.dumps(
        {
            "chosen": f"{prompt}\n\nAssistant: {chosen}",
            "rejected": f"{other_prompt or prompt}\n\nAssistant: {rejected}",
        }
    )


def hh_file(path: Path) -> Path:
    """Sixty conversations of one to three questions, one of them far too long; one with two prompts."""
    lines = []
    for i in range(60):
        turns = [f"Can you help me with number {i}?", "Sure.", "And then?", "Then rest.", "Why?"][
            : 1 + 2 * (i % 3)
        ]
        lines.append(hh_line(turns, f"Because of {i}.", "I do not know."))
    lines.insert(7, hh_line(["word " * 3_000], "Yes.", "No."))
    lines.insert(9, hh_line(["Which prompt?"], "This.", "That.", other_prompt="\n\nHuman: Another prompt?"))
    path.write_text("\n".join(lines))
    return path


HH = [
    "reader=null",
    "data.format=hh_rlhf",
    "data.heldout=15",
    "length={prompt: 100, reference: 40, response: 40}",
]


def test_hh_rlhf_is_read_reported_and_kept_to_the_length_budget(tmp_path: Path) -> None:
    """Pairs with two prompts are told by line, conversations over the budget are counted, the rest is
    rendered."""
    path = hh_file(tmp_path / "hh.jsonl")
    config = tiny_config(tmp_path / "run", *HH, f"data.path={path}", "data.split=[0.4, 0.3, 0.3]")
    told = prepare_data(config)
    assert "62 pairs read, 61 kept" in told
    assert "1 left out, the two conversations have different prompts: line 10" in told
    report = json.loads((config.output / "data" / "report.json").read_text())
    assert report["files"][0]["differing_prompts"]["lines"] == [10]
    tokenizer = tiny_tokenizer(config)
    left_out, longest = 0, 0
    for part in ("sft", "reward", "rl", "heldout"):
        kept = fitting_pairs(alone(config, "policy_sft"), tokenizer, part)
        left_out += len(load_pairs("chat_pairs", config.output / "data" / f"{part}.jsonl").pairs) - len(kept)
        longest = max(longest, *(len(pair.prompt) for pair in kept))
    records: list[dict[str, Any]] = [
        json.loads(line) for line in (config.output / "metrics.jsonl").read_text().splitlines()
    ]
    assert left_out == sum(record["too_long"] for record in records) == 1
    assert longest == 5


def test_a_response_that_nobody_gave_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "hh.jsonl"
    path.write_text(json.dumps({"chosen": "\n\nHuman: Hi", "rejected": "\n\nHuman: Hi"}))
    with pytest.raises(DataError, match="line 1: chosen does not end with"):
        prepare_data(tiny_config(tmp_path / "run", *HH, f"data.path={path}"))
