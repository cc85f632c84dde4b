"""The edit view: hunks that rebuild a text, all of them or some."""

import time
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.improve.edits import Hunk, apply, hunks

texts = st.lists(st.sampled_from(["the", "lamp", "is", "red", " ", "  ", "\n", "é", "👍", "."])).map("".join)


@given(old=texts, new=texts)
def test_all_hunks_give_the_new_text(old: str, new: str) -> None:
    found = hunks(old, new)
    assert apply(old, found) == new
    assert (found == ()) == (old == new)


@given(old=texts, new=texts, data=st.data())
def test_some_hunks_change_what_they_say_and_nothing_else(old: str, new: str, data: st.DataObject) -> None:
    """A person takes a part: those places are new, every other character is old."""
    found = hunks(old, new)
    chosen = data.draw(st.lists(st.sampled_from(found), unique=True) if found else st.just([]))
    text, offset = apply(old, chosen), 0
    position = 0
    for hunk in sorted(chosen, key=lambda hunk: hunk.start):
        assert text[position + offset : hunk.start + offset] == old[position : hunk.start]
        assert text[hunk.start + offset :].startswith(hunk.after)
        offset += len(hunk.after) - len(hunk.before)
        position = hunk.end
    assert text[position + offset :] == old[position:]
    for before, after in pairwise(found):
        assert before.end < after.start


def test_hunks_are_of_words_and_say_what_they_do() -> None:
    assert hunks("the lamp is red", "the big lamp is blue") == (
        Hunk("insert", 4, 4, "", "big "),
        Hunk("replace", 12, 15, "red", "blue"),
    )
    assert hunks("no thanks", "no") == (Hunk("delete", 2, 9, " thanks", ""),)


def test_a_hunk_of_another_text_is_refused() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        apply("the lamp", hunks("a lamp", "a table"))
    one = Hunk("delete", 0, 3, "the", "")
    with pytest.raises(ValueError, match="does not fit"):
        apply("the lamp", [one, one])


def test_a_long_and_monotonous_text_costs_no_more_than_a_moment() -> None:
    started = time.process_time()
    hunks("a b " * 20_000, "b a c " * 20_000)
    assert time.process_time() - started < 2
