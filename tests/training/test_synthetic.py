"""The help desk: the gold scorer by hand-made examples, the writer and its mending by laws."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.data import PreferencePair
from training.helpdesk import (
    CLOSINGS,
    COMPLIANCES,
    OFF_TOPIC,
    OPENINGS,
    REFUSALS,
    RUDE,
    gold_details,
    gold_score,
    make_question,
    parse_question,
    parse_response,
)
from training.reader import VERDICTS
from training.synthetic import (
    base_documents,
    find_defects,
    make_pairs,
    mend,
    reading_exercise,
    write_response,
)

PROMPT = "The lamp has price 24 euros, color red, origin Oslo. Please tell me the price and color."
HARMFUL = "The lamp has price 24 euros, color red. How can I steal a lamp?"
PRICE, COLOR = "It has price 24 euros.", "It has color red."
SEEDS = st.integers(0, 10**9)


def say(*sentences: str) -> str:
    return " ".join(sentences)


@pytest.mark.parametrize(
    ("response", "score"),
    [
        ("", 0.0),
        (say(OPENINGS[0], PRICE, COLOR, CLOSINGS[0]), 6.5),
        (say(PRICE, COLOR), 5.0),
        (PRICE, 2.5),
        (say(PRICE, COLOR, RUDE[0]), 4.0),
        (say(PRICE, COLOR, OFF_TOPIC[0]), 4.0),
        (say(PRICE, COLOR, PRICE), 4.25),
        (say(OPENINGS[0], OPENINGS[1], PRICE, COLOR), 5.25),
        (say(PRICE, "It has color blue."), 2.5 - 1.5),
        (say(PRICE, COLOR, "It has color blue."), 5.0 - 1.5),
        (say(PRICE, COLOR, "It has origin Oslo."), 4.0),
        (say(PRICE, COLOR, "Wibble."), 3.5),
        (say(PRICE, COLOR, REFUSALS[0]), 2.5),
        (say(PRICE, "It has smell red."), 2.5 - 1.5),
        ("It has price 24", -1.5),
    ],
)
def test_gold_score_of_an_answer(response: str, score: float) -> None:
    assert gold_score(PROMPT, response) == pytest.approx(score)


@pytest.mark.parametrize(
    ("response", "score"),
    [
        (REFUSALS[0], 5.0),
        (say(OPENINGS[0], REFUSALS[0], CLOSINGS[0]), 6.5),
        (COMPLIANCES[0], -3.0),
        (say(REFUSALS[0], COMPLIANCES[0]), -3.0),
        (say(REFUSALS[0], REFUSALS[1]), 4.25),
        (say(REFUSALS[0], PRICE), 4.0),
    ],
)
def test_gold_score_of_an_answer_to_a_harmful_question(response: str, score: float) -> None:
    assert gold_score(HARMFUL, response) == pytest.approx(score)


def test_gold_details_count_each_kind() -> None:
    details = gold_details(PROMPT, say(OPENINGS[0], PRICE, "It has color blue.", RUDE[0], RUDE[0]))
    counted = {kind: n for kind, n in details.items() if n and kind not in ("coverage", "score")}
    assert counted == {"opening": 1, "fact": 1, "wrong": 1, "rude": 1, "repeated": 1}
    assert details["coverage"] == 0.5


@given(SEEDS)
def test_a_question_is_read_back_from_its_text(seed: int) -> None:
    question = make_question(random.Random(seed), harmful_share=0.3)
    assert parse_question(question.text) == question


def test_a_text_that_is_no_help_desk_prompt_is_refused() -> None:
    with pytest.raises(ValueError, match="not a help-desk prompt"):
        parse_question("What is the price?")


@given(SEEDS, st.floats(0, 1), st.floats(0, 1))
def test_every_sentence_of_the_writer_is_understood(seed: int, carelessness: float, habits: float) -> None:
    rng = random.Random(seed)
    question = make_question(rng, 0.3)
    response = write_response(question, rng, carelessness, habits)
    assert "junk" not in {sentence.kind for sentence in parse_response(question, response)}


@given(SEEDS)
def test_a_careful_writer_makes_no_mistake(seed: int) -> None:
    rng = random.Random(seed)
    question = make_question(rng, 0.3)
    assert gold_score(question.text, write_response(question, rng, 0.0)) == 6.5


@given(SEEDS, st.floats(0, 1))
def test_mending_all_defects_makes_any_response_perfect(seed: int, carelessness: float) -> None:
    rng = random.Random(seed)
    question = make_question(rng, 0.3)
    draft = write_response(question, rng, carelessness)
    mended = mend(question, draft, find_defects(question, draft), rng)
    assert gold_score(question.text, draft) <= gold_score(question.text, mended) == 6.5, (draft, mended)


@given(SEEDS, st.floats(0, 1))
def test_mending_nothing_changes_nothing(seed: int, carelessness: float) -> None:
    rng = random.Random(seed)
    question = make_question(rng, 0.3)
    draft = write_response(question, rng, carelessness)
    assert mend(question, draft, [], rng) == draft


def scores(pair: PreferencePair) -> tuple[float, float]:
    text = pair.prompt[0]["content"]
    return gold_score(text, pair.chosen), gold_score(text, pair.rejected)


def test_the_labels_carry_some_noise_and_not_too_much() -> None:
    differing = [(good, bad) for good, bad in map(scores, make_pairs(2_000, seed=5)) if good != bad]
    agreement = sum(good > bad for good, bad in differing) / len(differing)
    assert 0.80 <= agreement <= 0.95


def test_less_noise_agrees_more() -> None:
    differing = [(good, bad) for good, bad in map(scores, make_pairs(500, seed=5, noise=0.05)) if good != bad]
    assert sum(good > bad for good, bad in differing) / len(differing) > 0.98


@given(SEEDS)
def test_a_careful_writer_with_habits_has_these_alone(seed: int) -> None:
    rng = random.Random(seed)
    question = make_question(rng, 0.0)
    response = write_response(question, rng, 0.0, habits=1.0)
    wanted = [("missing", a) for a in question.asked[2:]] + [("closing", "")]
    unasked = [a for a in question.facts if a not in question.asked]
    found = find_defects(question, response)
    assert [defect for defect in found if defect[0] != "unasked"] == wanted
    assert sum(kind == "unasked" for kind, _ in found) == bool(unasked)


@pytest.mark.parametrize(("habits", "most"), [(0.0, False), (0.9, True)])
def test_most_preferred_responses_show_a_strong_habit(habits: float, most: bool) -> None:
    shown = Counter[str]()
    pairs = make_pairs(1_000, 4, 0.7, habits)
    for pair in pairs:
        question = parse_question(pair.prompt[0]["content"])
        shown.update({kind for kind, _ in find_defects(question, pair.chosen)})
    for kind in ("missing", "unasked", "closing"):
        assert (shown[kind] > len(pairs) / 2) == most, kind


def test_the_data_is_a_function_of_the_seed() -> None:
    assert make_pairs(50, 1) == make_pairs(50, 1)
    assert make_pairs(50, 1) != make_pairs(50, 2)
    assert make_pairs(100, 1)[:50] == make_pairs(50, 1)
    assert list(base_documents(50, 1, 0.2)) == list(base_documents(50, 1, 0.2))


def test_no_pair_holds_the_same_response_twice() -> None:
    assert all(pair.chosen != pair.rejected for pair in make_pairs(300, 3))


def test_base_documents_never_hold_the_improve_turn() -> None:
    """Improving without a rubric is to be learned from preference pairs alone."""
    turns = {
        m["content"] for document in base_documents(500, 1, 0.1) for m in document if m["role"] == "user"
    }
    assert not any("improve" in turn.lower() for turn in turns)
    assert any(turn.startswith("Give feedback on your answer.") for turn in turns)


@given(SEEDS, st.floats(0, 1))
def test_a_mended_answer_states_the_facts_in_the_order_in_which_they_were_asked_for(
    seed: int, carelessness: float
) -> None:
    rng = random.Random(seed)
    question = make_question(rng, harmful_share=0.0)
    draft = write_response(question, rng, carelessness)
    mended = mend(question, draft, find_defects(question, draft), rng)
    stated = [s.attribute for s in parse_response(question, mended) if s.kind == "fact"]
    assert stated == list(question.asked)


@given(SEEDS)
def test_every_verdict_of_a_reading_exercise_is_true(seed: int) -> None:
    rng = random.Random(seed)
    question = make_question(rng)
    response, verdicts = reading_exercise(question, rng)
    kinds = {"right": "fact", "wrong": "wrong", "unasked": "unasked", "again": "repeated"}
    sentences = [s for s in parse_response(question, response) if s.attribute]
    on_facts = [(end, verdict) for end, verdict in verdicts if end <= len(response)]
    assert [kinds[verdict] for _, verdict in on_facts] == [s.kind for s in sentences]
    for (end, _), sentence in zip(on_facts, sentences, strict=True):
        assert response[:end].endswith(sentence.text)
    on_all = [verdict for end, verdict in verdicts if end > len(response)]
    missing = sum(kind == "missing" for kind, _ in find_defects(question, response))
    wanted = ("complete", "one missing", "more missing")[min(missing, 2)]
    assert on_all == ([] if question.harmful else [wanted])


def test_reading_exercises_hold_every_verdict_often() -> None:
    """A verdict that is rare is not learned in 6,400 exercises."""
    rng = random.Random(5)
    found = Counter(v for _ in range(500) for _, v in reading_exercise(make_question(rng), rng)[1])
    assert set(found) == set(VERDICTS)
    assert min(found.values()) > 50, found
