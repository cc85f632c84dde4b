"""The reader's labels, and that a reward model starts from its weights."""

import random
from pathlib import Path

import pytest

from tests.training.helpers import alone, tiny_config, tiny_tokenizer
from training.data import Message
from training.errors import TrainingError
from training.reader import VERDICTS, labelled, train_reader
from training.synthetic import reading_exercise


def test_a_verdict_stands_at_the_last_token_of_what_it_judges(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tiny_config(tmp_path))
    rng = random.Random(2)
    for _ in range(50):
        question, response, verdicts = reading_exercise(rng)
        row = labelled(tokenizer, [Message(role="user", content=question.text)], response, verdicts)
        ids, labels = row["input_ids"], row["labels"]
        places = [i for i, label in enumerate(labels) if label >= 0]
        assert [VERDICTS[labels[i]] for i in places] == [verdict for _, verdict in verdicts]
        for place, (end, _) in zip(places, verdicts, strict=True):
            if end <= len(response):
                assert tokenizer.decode(ids[: place + 1]).endswith(response[:end])
            else:
                assert place == len(ids) - 1, "where the reward models have their score"


def test_a_verdict_inside_a_token_is_refused(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tiny_config(tmp_path))
    with pytest.raises(TrainingError, match=r"no token of .* ends at character 999"):
        labelled(tokenizer, [Message(role="user", content="What?")], "It has color red.", [(999, "right")])


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
