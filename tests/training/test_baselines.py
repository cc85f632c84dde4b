"""The baselines find what decides a preference and nothing where nothing does."""

import random
from collections.abc import Callable, Sequence

import pytest

from training.baselines import Judged, bag_of_words, length
from training.data import Message, PreferencePair
from training.errors import DataError
from training.judges import Mean, bootstrap_mean

WORDS = [f"word{i}" for i in range(40)]
Baseline = Callable[[Sequence[PreferencePair], Sequence[PreferencePair]], Judged]
both = pytest.mark.parametrize("baseline", [length, bag_of_words])


def text(rng: random.Random, words: int | None = None) -> str:
    return " ".join(rng.choices(WORDS, k=words or rng.randint(5, 30)))


def pair(chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair("p", (Message(role="user", content="Well?"),), chosen, rejected, "made")


def accuracy(judged: Judged) -> Mean:
    return bootstrap_mean([float(m > 0) + 0.5 * float(m == 0) for m in judged.margins])


def by_length(count: int, seed: int, *, shorter: bool) -> list[PreferencePair]:
    """The shorter (or the longer) response is preferred in nine of ten."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        short, long = sorted((text(rng, rng.randint(5, 15)), text(rng, rng.randint(20, 40))), key=len)
        found.append(pair(short, long) if shorter == bool(i % 10) else pair(long, short))
    return found


def by_word(count: int, seed: int) -> list[PreferencePair]:
    """Both responses are equally long; the preferred one says "sorry", in one of ten the other."""
    rng = random.Random(seed)
    found = []
    for i in range(count):
        words = rng.randint(5, 20)
        said, plain = f"Sorry, {text(rng, words)}", f"{rng.choice(WORDS)}, {text(rng, words)}"
        found.append(pair(said, plain) if i % 10 else pair(plain, said))
    return found


def by_chance(count: int, seed: int) -> list[PreferencePair]:
    rng = random.Random(seed)
    return [pair(text(rng), text(rng)) for _ in range(count)]


@pytest.mark.parametrize("shorter", [True, False])
def test_length_learns_which_way_it_counts(shorter: bool) -> None:
    judged = length(by_length(100, 1, shorter=shorter), by_length(200, 2, shorter=shorter))
    assert accuracy(judged).mean == 0.9
    assert judged.model.startswith("shorter" if shorter else "longer")


def test_a_word_decides() -> None:
    training, heldout = by_word(200, 1), by_word(200, 2)
    assert accuracy(bag_of_words(training, heldout)).mean == pytest.approx(0.9, abs=0.02)
    # All are equally long: ties, which count half.
    assert set(length(training, heldout).margins) == {0.0}
    assert accuracy(length(training, heldout)).mean == 0.5


@both
def test_where_nothing_decides_the_interval_covers_a_half(baseline: Baseline) -> None:
    found = accuracy(baseline(by_chance(200, 1), by_chance(400, 2)))
    assert found.low < 0.5 < found.high


def test_regularization_is_chosen_on_the_training_pairs() -> None:
    """Weak where a word decides, strong where nothing does."""

    def strength(training: list[PreferencePair]) -> float:
        return float(bag_of_words(training, training[:1]).model.split("C = ")[1])

    assert strength(by_word(200, 1)) >= 0.1
    assert strength(by_chance(200, 1)) <= 0.01


@both
def test_a_pair_turned_round_has_the_opposite_margin(baseline: Baseline) -> None:
    training, heldout = by_length(60, 1, shorter=True), by_chance(20, 3)
    turned = [pair(p.rejected, p.chosen) for p in heldout]
    margins = baseline(training, heldout).margins
    assert baseline(training, turned).margins == pytest.approx([-m for m in margins])
    assert max(map(abs, margins)) > 0


@both
def test_held_out_pairs_decide_nothing_of_the_fit(baseline: Baseline) -> None:
    training, heldout = by_word(60, 1), by_chance(20, 3)
    alone = [baseline(training, [p]).margins[0] for p in heldout]
    assert baseline(training, heldout).margins == pytest.approx(alone)


@both
def test_too_few_pairs_are_an_error(baseline: Baseline) -> None:
    with pytest.raises(DataError, match="9 pairs to fit a baseline on; at least 10"):
        baseline(by_chance(9, 1), by_chance(9, 2))


@both
def test_responses_without_a_word_are_ties(baseline: Baseline) -> None:
    assert baseline([pair("?!", "...")] * 10, [pair("!", "?")]).margins == [0.0]
