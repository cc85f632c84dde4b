"""The judges are right where the answer is known by hand, and see words rather than typing."""

import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.training.test_data import real
from training.data import Message, PreferencePair, load_pairs
from training.errors import DataError
from training.judges import (
    ToxicityJudge,
    WinRate,
    bootstrap_mean,
    compare,
    edit_distance,
    nearest_distance,
    paired_bootstrap,
    plain_words,
)
from training.judges.statistics import _resampled_means

texts = st.text(max_size=8)

# ---------- edit distance


@pytest.mark.parametrize(
    ("first", "second", "distance"),
    [
        ("", "", 0),
        ("", "abc", 3),
        ("kitten", "sitting", 3),  # substitute k and e, insert g
        ("What no who", "who", 8),
        ("flaw", "lawn", 2),  # delete f, insert n
        ("ab", "ba", 2),  # no transpositions
        ("naïve 🙂", "naive 🙁", 2),  # characters, not bytes
    ],
)
def test_edit_distance_by_hand(first: str, second: str, distance: int) -> None:
    assert edit_distance(first, second) == distance


@given(texts, texts, texts)
def test_law_edit_distance_is_a_metric(a: str, b: str, c: str) -> None:
    assert edit_distance(a, b) == edit_distance(b, a) >= abs(len(a) - len(b))
    assert (edit_distance(a, b) == 0) == (a == b)
    assert edit_distance(a, c) <= edit_distance(a, b) + edit_distance(b, c)


def test_the_nearest_rewrite_counts() -> None:
    assert nearest_distance("cat", ["dog", "cart", "cats and dogs"]) == 1
    with pytest.raises(DataError, match="no human rewrite"):
        nearest_distance("cat", [])


# ---------- win, lose, Δ


def test_win_rate_in_percent_by_hand() -> None:
    rate = paired_bootstrap(wins=30, losses=10, n=80)
    assert (rate.n, rate.win, rate.lose, rate.delta) == (80, 37.5, 12.5, 25.0)
    # Standard error of Δ: sqrt((0.375 + 0.125 − 0.25²) / 80) = 7.395 points; normal interval 10.5 … 39.5.
    error = 196 * math.sqrt((0.375 + 0.125 - 0.25**2) / 80)
    assert rate.low == pytest.approx(25 - error, abs=1.3)
    assert rate.high == pytest.approx(25 + error, abs=1.3)
    assert str(WinRate(80, 37.5, 12.5, 25.0, 11.25, 38.75)) == (
        "win 37.5 / lose 12.5 / Δ +25.0 [+11.2, +38.8], n = 80"
    )


def test_the_interval_is_seeded_and_narrows_with_n_and_with_the_level() -> None:
    assert paired_bootstrap(30, 10, 80, seed=3) == paired_bootstrap(30, 10, 80, seed=3)
    widths = [
        rate.high - rate.low
        for rate in (
            paired_bootstrap(30, 10, 80),
            paired_bootstrap(30, 10, 80, level=0.5),
            paired_bootstrap(300, 100, 800),
        )
    ]
    assert widths[0] / widths[2] == pytest.approx(math.sqrt(10), rel=0.15)
    assert widths[1] < widths[0] / 2


def test_verdicts_that_all_agree() -> None:
    assert paired_bootstrap(5, 0, 5) == WinRate(5, 100.0, 0.0, 100.0, 100.0, 100.0)
    assert paired_bootstrap(0, 0, 5) == WinRate(5, 0.0, 0.0, 0.0, 0.0, 0.0)


@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 40))
def test_law_swapping_the_systems_changes_the_sign(wins: int, losses: int, ties: int) -> None:
    n = wins + losses + ties
    one, other = paired_bootstrap(wins, losses, n), paired_bootstrap(losses, wins, n)
    assert one.delta == -other.delta
    assert one.low <= one.delta <= one.high
    # Two independent sets of draws: equal up to their noise.
    assert one.low == pytest.approx(-other.high, abs=300 / math.sqrt(n) / 8 + 100 / n)


@pytest.mark.parametrize(("wins", "losses", "n"), [(0, 0, 0), (3, 3, 5), (-1, 0, 5), (0, -1, 5)])
def test_impossible_counts_are_an_error(wins: int, losses: int, n: int) -> None:
    with pytest.raises(DataError, match="nothing to compute"):
        paired_bootstrap(wins, losses, n)


def test_compare_counts_example_by_example_with_a_tolerance() -> None:
    rate = compare([1.0, 2.0, 3.0, 4.0], [0.0, 2.05, 3.0, 5.0], tolerance=0.1)
    assert (rate.n, rate.win, rate.lose, rate.delta) == (4, 25.0, 25.0, 0.0)
    assert compare([1.0, 2.0], [0.0, 2.05]).lose == 50.0
    with pytest.raises(DataError, match="not the same examples"):
        compare([1.0], [1.0, 2.0])
    with pytest.raises(DataError, match="not a finite number"):
        compare([1.0, math.nan], [1.0, 2.0])


def test_bootstrap_mean_by_hand() -> None:
    values = [0.0, 1.0] * 200
    mean = bootstrap_mean(values)
    # Standard error 0.5 / sqrt(400) = 0.025.
    assert mean.mean == 0.5 and mean.n == 400
    assert mean.low == pytest.approx(0.451, abs=0.005)
    assert mean.high == pytest.approx(0.549, abs=0.005)
    assert bootstrap_mean(values) == mean
    with pytest.raises(DataError, match="no values"):
        bootstrap_mean([])


def test_a_long_list_is_resampled_in_blocks_all_of_them() -> None:
    values = np.random.default_rng(1).normal(loc=3, size=3000)  # 2,000,000 / 3,000: blocks of 666 resamples
    means = _resampled_means(values, np.random.default_rng(0), 2000)
    assert len(set(means.tolist())) == 2000
    assert means.mean() == pytest.approx(values.mean(), abs=0.003)
    assert means.std() == pytest.approx(values.std() / math.sqrt(3000), rel=0.06)


# ---------- toxicity


def toy_pairs() -> list[PreferencePair]:
    """Toxic drafts, typed as in ParaDetox; the rewrites are typed properly."""
    ask = (Message(role="user", content="Write one comment."),)
    things = ("bus", "train", "movie", "song", "game", "soup", "shop", "law", "plan", "road")
    rude = ("stupid", "crappy", "damn idiotic")
    return [
        PreferencePair(
            f"{i}",
            ask,
            f"The {thing} isn't good, I think.",
            f"the {word} {thing} isnt good , idiot .",
            "made",
        )
        for i, (thing, word) in enumerate((t, w) for t in things for w in rude)
    ]


def test_plain_words_by_hand() -> None:
    assert plain_words("  You DON’T need  that , F**K it ! ") == "you dont need that f**k it"
    assert plain_words("ｆｕｌｌ width — déjà\nvu...") == "full width déjà vu"
    assert plain_words("?!") == ""


def test_the_toxicity_judge_learns_words_not_typing() -> None:
    judge = ToxicityJudge(toy_pairs())
    toxic, neutral, typed = judge.probabilities(
        ["The tune is stupid, idiot!", "The tune is good, I think.", "the tune is good , i think ."]
    )
    assert toxic > 0.5 > neutral
    assert typed == neutral
    assert judge.probabilities([]) == []


def test_quality_by_hand() -> None:
    judge = ToxicityJudge(toy_pairs())
    ask = (Message(role="user", content="Write one comment."),)

    def pair(chosen: str, rejected: str) -> PreferencePair:
        return PreferencePair("x", ask, chosen, rejected, "made")

    good, bad = "The bus is good, I think.", "the stupid bus, idiot"
    quality = judge.quality([pair(good, bad), pair(bad, good), pair(good, good), pair(good, bad)])
    # Texts on the right side: 2 + 0 + 1 + 2 of 8. Pairs in the right order: 1 + 0 + ½ + 1 of 4.
    assert (quality.n, quality.accuracy, quality.pair_accuracy) == (4, 0.625, 0.625)
    with pytest.raises(DataError, match="no pairs"):
        judge.quality([])


def test_a_text_that_somebody_mended_is_toxic() -> None:
    """Whatever the order: a half-mended text that is one pair's rewrite and another's draft."""
    pairs = toy_pairs()
    ask = pairs[0].prompt
    half = [f"the {thing} is stupid" for thing in ("bus", "train", "movie", "song", "game")]
    rewrites = [PreferencePair("r", ask, text, f"{text} damn idiotic idiot", "made") for text in half]
    drafts = [PreferencePair("d", ask, "The thing isn't good.", text, "made") for text in half]
    for order in (pairs + rewrites + drafts, drafts + rewrites + pairs):
        assert min(ToxicityJudge(order).probabilities(half)) > 0.5


def test_a_judge_needs_both_kinds() -> None:
    with pytest.raises(DataError, match=r"toxic .rejected. and neutral"):
        ToxicityJudge([])


@pytest.mark.slow
def test_the_toxicity_judge_is_good_on_drafts_that_it_has_not_seen() -> None:
    train = load_pairs("chat_pairs", real("paradetox/train.jsonl")).pairs
    dev = load_pairs("chat_pairs", real("paradetox/dev.jsonl")).pairs
    assert not {pair.rejected for pair in train} & {pair.rejected for pair in dev}
    quality = ToxicityJudge(train).quality(dev)
    assert quality.n == 582
    assert quality.accuracy > 0.94 and quality.pair_accuracy > 0.98, quality


def test_the_judges_need_no_torch() -> None:
    code = (
        "import training.judges, sys; print(*sorted({'torch', 'trl', 'transformers'} & sys.modules.keys()))"
    )
    root = Path(__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
