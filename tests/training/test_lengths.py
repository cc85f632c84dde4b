"""Pairs longer than the budget are left out and counted; a budget without room in the model is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.training.helpers import alone, tiny_config, tiny_language_model, tiny_tokenizer
from training.config import RunConfig
from training.data import Message, PreferencePair, write_pairs
from training.errors import ConfigError, DataError
from training.lengths import check_room, fitting_pairs


def part(config: RunConfig, *rows: tuple[str, str, str]) -> None:
    (config.output / "data").mkdir(parents=True)
    written = [
        PreferencePair(str(i), (Message(role="user", content=x),), better, worse, "test")
        for i, (x, better, worse) in enumerate(rows)
    ]
    write_pairs(config.output / "data" / "sft.jsonl", written)


def words(tokenizer: Any, tokens: int, letter: str = ".") -> str:
    """A text of exactly so many tokens."""
    text = letter * tokens
    assert len(tokenizer(text)["input_ids"]) == tokens
    return text


def test_each_limit_counts_to_the_token(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "length={prompt: 12, response: 9, reference: 10}")
    tokenizer = tiny_tokenizer(config)
    # Two tokens of template for the prompt, one end of turn for a response.
    prompt, better, worse = words(tokenizer, 10), words(tokenizer, 8), words(tokenizer, 9, "?")
    part(
        config,
        (prompt, better, worse),
        (prompt + ".", better, worse),
        (prompt, better + ".", worse),
        (prompt, better, worse + "?"),
    )
    assert [pair.id for pair in fitting_pairs(alone(config, "policy_sft"), tokenizer, "sft")] == ["0"]
    record = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert (record["stage"], record["part"], record["pairs"], record["too_long"]) == (
        "policy_sft",
        "sft",
        4,
        3,
    )


def test_no_pair_that_fits_is_an_error_that_says_how_long_they_are(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "length={prompt: 8, response: 8, reference: 8}")
    tokenizer = tiny_tokenizer(config)
    part(config, (words(tokenizer, 20), words(tokenizer, 3), words(tokenizer, 4)))
    with pytest.raises(
        DataError, match=r"none of the 1 pairs of sft .* 22, 4 and 5 tokens\. Raise length\.prompt"
    ):
        fitting_pairs(alone(config, "policy_sft"), tokenizer, "sft")


def test_a_budget_that_the_model_has_no_room_for_is_refused(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    tokenizer = tiny_tokenizer(config)
    model = tiny_language_model(config, tokenizer)
    check_room(config, tokenizer, model.config)
    with pytest.raises(ConfigError, match=r"prompt 400 .* the model has 512 positions"):
        check_room(tiny_config(tmp_path, "length.prompt=400"), tokenizer, model.config)


def test_no_more_is_measured_than_is_needed(tmp_path: Path) -> None:
    config = tiny_config(tmp_path, "length={prompt: 12, response: 9, reference: 10}")
    tokenizer = tiny_tokenizer(config)
    rows = [(f"{i}", "yes" if i % 3 else words(tokenizer, 50), "no") for i in range(300)]
    part(config, *rows)
    worker = alone(config, "reward")
    kept = fitting_pairs(worker, tokenizer, "sft", enough=50)
    assert [pair.id for pair in kept] == [str(i) for i in range(300) if i % 3][:50]
    counted = json.loads((config.output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()[-1])
    assert 75 <= counted["pairs"] < 300 and counted["too_long"] == -(-counted["pairs"] // 3)
    assert len(fitting_pairs(worker, tokenizer, "sft", enough=1_000)) == 200
    drawn = fitting_pairs(worker, tokenizer, "sft", enough=50, shuffled=True)
    assert len(drawn) == 50 and drawn != kept
    assert drawn == fitting_pairs(worker, tokenizer, "sft", enough=50, shuffled=True)
