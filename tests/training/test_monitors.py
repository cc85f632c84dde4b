"""The figures and penalties of RL that do not come from a reward model."""

from training.monitors import repeated_ngrams


def test_repeated_ngrams_counts_only_what_stood_before() -> None:
    assert repeated_ngrams([1, 2, 3, 4, 5]) == 0
    assert repeated_ngrams([1, 2, 3, 4, 1, 2, 3, 4]) == 1
    assert repeated_ngrams([7] * 6) == 2  # three 4-grams, all the same
    assert repeated_ngrams([1, 2]) == 0
