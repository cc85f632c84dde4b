"""Contrast pairs: what is preferred was written by a person, and what is not lost or gained something."""

import random

from hypothesis import given
from hypothesis import strategies as st

from training.contrast import contrast_pairs, damage
from training.data import Message, PreferencePair

WORDS = st.sampled_from(["who", "what", "was", "the", "first", "king", "of", "Norway", "?"])
TEXTS = st.lists(WORDS, min_size=1).map(" ".join)


def a_pair(name: str, chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair(name, (Message(role="user", content="Ask."),), chosen, rejected, "test")


@given(TEXTS, TEXTS, st.integers(0, 10_000))
def test_damage_leaves_something_and_adds_only_words_that_it_was_given(
    text: str, other: str, seed: int
) -> None:
    damaged = damage(text, other, random.Random(seed)).split()
    assert damaged
    assert set(damaged) <= {*text.split(), *other.split()}
    assert len(damaged) <= len(text.split()) + 12


@given(st.lists(TEXTS, min_size=2, max_size=6), st.integers(0, 10_000))
def test_what_is_preferred_was_written_by_a_person(texts: list[str], seed: int) -> None:
    pairs = [a_pair(str(i), text, f"uh no {text}") for i, text in enumerate(texts)]
    found = contrast_pairs(pairs, 40, seed)
    assert found == contrast_pairs(pairs, 40, seed)
    for pair in found:
        source = pairs[int(pair.id.split("-")[0])]
        assert pair.chosen in (source.chosen, source.rejected)
        assert pair.rejected not in ("", pair.chosen)
        assert pair.prompt == source.prompt


def test_most_of_the_content_lost_is_worse_than_the_draft() -> None:
    texts = ("Who was the first king of Norway?", "When did the war end?", "Where is the tower?")
    found = contrast_pairs([a_pair(str(i), t, f"uh no {t}") for i, t in enumerate(texts)], 300, 1)
    drafts = [pair for pair in found if pair.chosen.startswith("uh")]
    assert 60 < len(drafts) < 140
    assert all(len(p.rejected.split()) <= len(p.chosen.split()) / 2 or p.rejected in texts for p in drafts)


def test_one_pair_has_no_other() -> None:
    assert contrast_pairs([a_pair("0", "a b", "a c")], 5, 1) == []
