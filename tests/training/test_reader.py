"""The reader's labels, and that a reward model starts from its weights."""

import json
import random
from pathlib import Path

import pytest

from tests.training.helpers import alone, tiny_config, tiny_tokenizer
from training.chat import encode, gap_messages, reward_messages
from training.data import Message
from training.errors import TrainingError
from training.helpdesk import make_question
from training.reader import VERDICTS, labelled, train_reader
from training.synthetic import reading_exercise


def test_a_verdict_stands_at_the_last_token_of_what_it_judges(tmp_path: Path) -> None:
    config = tiny_config(tmp_path)
    tokenizer = tiny_tokenizer(config)
    rng = random.Random(2)
    for count in (1, 2) * 20:
        question = make_question(rng)
        prompt = [Message(role="user", content=question.text)]
        exercises = [reading_exercise(question, rng) for _ in range(count)]
        row = labelled(tokenizer, prompt, exercises, config.improve_turn)
        ids, labels = row["input_ids"], row["labels"]
        responses = [response for response, _ in exercises]
        read = gap_messages(prompt, responses[-1], responses[0], config.improve_turn)
        assert ids == encode(tokenizer, [read if count == 2 else reward_messages(prompt, responses[0])])[0]
        places = [i for i, label in enumerate(labels) if label >= 0]
        wanted = [(response, *verdict) for response, verdicts in exercises for verdict in verdicts]
        assert [VERDICTS[labels[i]] for i in places] == [verdict for _, _, verdict in wanted]
        for place, (response, end, _) in zip(places, wanted, strict=True):
            judged = response[:end] if end <= len(response) else f"{response}{tokenizer.eos_token}"
            assert tokenizer.decode(ids[: place + 1]).endswith(judged)


def test_a_verdict_inside_a_token_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tiny_config(tmp_path))
    with pytest.raises(TrainingError, match=r"no token of .* ends at character 999"):
        labelled(
            tokenizer, [Message(role="user", content="What?")], [("It has color red.", [(999, "right")])], "-"
        )


@pytest.mark.slow
def test_a_reward_model_starts_from_the_reader(tmp_path: Path) -> None:
    from training.checkpoint import read_manifest
    from training.models import load_reward_model

    config = tiny_config(tmp_path / "run")
    tiny_tokenizer(config).save_pretrained(config.output / "base")
    train_reader(alone(config, "reader"))
    assert read_manifest(config.output / "reader")["role"] == "reader"
    first, second = (load_reward_model(config.output / "reader", seed).state_dict() for seed in (1, 2))
    assert first["score.weight"].shape[0] == 1
    assert not first["score.weight"].equal(second["score.weight"]), "a new head, seeded"
    assert all(w.equal(second[name]) for name, w in first.items() if name != "score.weight")


def reader_metrics(output: Path, figure: str) -> list[float]:
    lines = (output / "metrics.jsonl").read_text().splitlines()
    return [record[figure] for record in map(json.loads, lines) if figure in record]


@pytest.mark.slow
def test_a_reader_that_cannot_count_is_begun_anew_and_the_best_attempt_is_kept(tmp_path: Path) -> None:
    from training.checkpoint import read_manifest

    config = tiny_config(tmp_path / "run", "reader.attempts=3")
    tiny_tokenizer(config).save_pretrained(config.output / "base")
    train_reader(alone(config, "reader"))
    counts = reader_metrics(config.output, "eval_counts")
    assert len(counts) == 3 and len(set(counts)) > 1, "other weights, other exercises"
    manifest = read_manifest(config.output / "reader")
    assert manifest["metrics"]["counts"] == max(counts)
    # A command that was killed just before the end tests what it has trained, and trains nothing again.
    losses = len(reader_metrics(config.output, "loss"))
    train_reader(alone(config, "reader"))
    assert reader_metrics(config.output, "eval_counts") == counts * 2
    assert len(reader_metrics(config.output, "loss")) == losses
    assert read_manifest(config.output / "reader")["files"] == manifest["files"]


@pytest.mark.slow
def test_the_first_attempt_that_counts_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.reader.COUNTS", 0.0)
    config = tiny_config(tmp_path / "run", "reader.attempts=3")
    tiny_tokenizer(config).save_pretrained(config.output / "base")
    train_reader(alone(config, "reader"))
    assert len(reader_metrics(config.output, "eval_counts")) == 1
