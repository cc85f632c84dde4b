"""Writes the synthetic help desk's data: answers with known defects, preference pairs, base documents.

In the pipeline this stands where human preference data stands otherwise: `make_pairs` gives preference pairs
whose labels carry Bradley-Terry noise, `base_documents` gives the text the base model learns language from.
Everything is a pure function of a seed. The language itself and its gold scorer are in helpdesk.py.

Beyond the paper (which asked GPT-4 to write its synthetic pairs): a programmed writer, so that the true
quality of any response is known and free.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator

from training.data import Message, PreferencePair
from training.helpdesk import (
    ATTRIBUTES,
    CLOSINGS,
    COMPLIANCES,
    FACT,
    OFF_TOPIC,
    OPENINGS,
    PRODUCTS,
    REFUSALS,
    RUDE,
    WEIGHTS,
    Question,
    fact_sentence,
    gold_score,
    make_question,
    parse_response,
)  # fmt: skip

# Self-Refine's turns, as the server's `self_refine` strategy phrases them (app/improve/turns.py); a contract
# test holds the two copies together. The base model learns to follow them, so that the baseline gets a fair
# model.
FEEDBACK_TURN = "Give feedback on your answer. {rubric}"
REFINE_TURN = "Rewrite your answer with this feedback."
RUBRICS: dict[str, str] = {
    "all": "Make it more helpful: complete, correct, polite and short.",
    "polite": "Make it more polite.",
    "complete": "Make it complete and correct.",
}
_RUBRIC_COVERS: dict[str, tuple[str, ...]] = {
    "all": ("missing", "wrong", "opening", "closing", "rude", "off_topic", "repeated", "unasked", "unsafe"),
    "polite": ("opening", "closing", "rude"),
    "complete": ("missing", "wrong", "unsafe"),
}
# How good the feedback in the base corpus is: a true defect is noticed, and a noticed one mended, this often.
# Self-Refine then really improves (no aimless revisions), without being handed the gold scorer as a teacher.
NOTICED, MENDED = 0.8, 0.8


def _wrong_value(question: Question, attribute: str, rng: random.Random) -> str:
    return rng.choice([v for v in ATTRIBUTES[attribute] if v != question.facts[attribute]])


def write_response(question: Question, rng: random.Random, carelessness: float, habits: float = 0.0) -> str:
    """Write one response.

    Every kind of defect turns up with a probability that grows with `carelessness` (0..1), and each habit
    with the probability `habits`: of what was asked for only the first two things are answered, something
    unasked is thrown in, nobody says goodbye.
    """
    c = carelessness
    forgets, adds, curt = (rng.random() < habits if habits else False for _ in range(3))
    body: list[str] = []
    if question.harmful:
        draw = rng.random()
        body.append(rng.choice(COMPLIANCES if draw < 0.5 * c else REFUSALS))
        if 0.5 * c <= draw < 0.8 * c:
            body.clear()  # the question passed over, facts instead of a refusal
        count = rng.randint(1, 3) if not body else int(rng.random() < 0.3 * c)
        for attribute in rng.sample(list(question.facts), count):
            body.append(fact_sentence(attribute, question.facts[attribute]))
    else:
        for attribute in question.asked[: 2 if forgets else None]:
            if rng.random() < 0.55 * c:
                continue
            wrong = rng.random() < 0.1 * c
            value = _wrong_value(question, attribute, rng) if wrong else question.facts[attribute]
            body.append(fact_sentence(attribute, value))
        unasked = [a for a in question.facts if a not in question.asked]
        for attribute in unasked:
            if rng.random() < 0.3 * c:
                body.append(fact_sentence(attribute, question.facts[attribute]))
        if adds and unasked:
            attribute = rng.choice(unasked)
            body.append(fact_sentence(attribute, question.facts[attribute]))
    for kinds, probability in ((OFF_TOPIC, 0.5), (OFF_TOPIC, 0.2), (RUDE, 0.4)):
        if rng.random() < probability * c:
            body.insert(rng.randint(0, len(body)), rng.choice(kinds))
    if rng.random() >= 0.85 * c:
        body.insert(0, rng.choice(OPENINGS))
    if rng.random() >= 0.85 * c and not curt:
        body.append(rng.choice(CLOSINGS))
    for probability in (0.5, 0.25):
        if body and rng.random() < probability * c:
            again = rng.choice(body)
            if again in OPENINGS and rng.random() < 0.5:
                again = rng.choice(OPENINGS)  # a second greeting in other words, as models like to write
            body.insert(rng.randint(body.index(again) if again in body else 0, len(body)), again)
    return " ".join(body) or rng.choice(RUDE)


def find_defects(question: Question, response: str) -> list[tuple[str, str]]:
    """Defects of a response as (kind, detail): the detail is an attribute, a sentence, or empty."""
    sentences = parse_response(question, response)
    kinds = {s.kind for s in sentences}
    stated = {s.attribute for s in sentences if s.kind == "fact"}
    defects = [(s.kind, s.attribute or s.text) for s in sentences if WEIGHTS.get(s.kind, 0) < 0]
    defects += [("missing", a) for a in question.asked if a not in stated]
    defects += [(kind, "") for kind in ("opening", "closing") if kind not in kinds]
    if question.harmful and "refusal" not in kinds:
        defects.append(("unsafe", ""))
    return defects


def mend(question: Question, response: str, defects: list[tuple[str, str]], rng: random.Random) -> str:
    """Rewrite `response` with the given defects mended, and nothing else changed."""
    chosen = set(defects)
    sentences = [
        s
        for s in parse_response(question, response)
        if WEIGHTS.get(s.kind, 0) >= 0 or (s.kind, s.attribute or s.text) not in chosen
    ]
    stated = {s.attribute for s in sentences if s.attribute}
    texts = [s.text for s in sentences]
    end = len(texts) - (1 if sentences and sentences[-1].kind == "closing" else 0)
    for kind, detail in defects:
        if kind == "missing" and detail not in stated:
            texts.insert(_place(question, detail, texts, end), fact_sentence(detail, question.facts[detail]))
            stated.add(detail)
            end += 1
    if ("opening", "") in chosen:
        texts.insert(0, rng.choice(OPENINGS))
    if (
        question.harmful
        and any(kind == "unsafe" for kind, _ in chosen)
        and not any(t in REFUSALS for t in texts)
    ):
        texts.insert(1 if texts and texts[0] in OPENINGS else 0, rng.choice(REFUSALS))
    if ("closing", "") in chosen:
        texts.append(rng.choice(CLOSINGS))
    return " ".join(texts) or rng.choice(REFUSALS if question.harmful else OPENINGS)


def _place(question: Question, attribute: str, texts: list[str], end: int) -> int:
    """Where a missing fact belongs: facts are stated in the order in which they were asked for."""
    later = question.asked[question.asked.index(attribute) + 1 :]
    for i, text in enumerate(texts):
        fact = FACT.match(text)
        if fact is not None and fact[1] in later:
            return i
    return end


def revise(question: Question, response: str, rng: random.Random, share: float) -> str:
    """Mend each defect with probability `share`."""
    defects = [d for d in find_defects(question, response) if rng.random() < share]
    return mend(question, response, defects, rng)


# -------------------------------------------------------------------------------------------------- data sets


def _carelessness(rng: random.Random) -> float:
    # From nearly perfect to very careless: the reward models must know the good end, where the improver
    # works.
    return float(rng.random() ** 0.7)


def make_pairs(count: int, seed: int, noise: float = 1.0, habits: float = 0.0) -> list[PreferencePair]:
    """Draw `count` preference pairs; P(a is chosen) = σ((gold(a) − gold(b)) / noise) (Bradley-Terry).

    `habits`: see `write_response`. Where defects come by chance alone (0), each is absent more often than
    not, the commonest response is a perfect one, and a policy sampled cold writes it. From about 0.8 on most
    of the preferred responses show each habit.

    Half of the pairs are a response and a small edit of it (one or two defects mended or put in), 30% a draft
    and its partial revision, the others two independent responses. The small edits are what teaches a reward
    model the worth of each single defect: between two very different responses only the largest shows.
    """
    rng = random.Random(f"pairs-{seed}")
    pairs: list[PreferencePair] = []
    while len(pairs) < count:
        question = make_question(rng)
        first = write_response(question, rng, _carelessness(rng), habits)
        second = _counterpart(question, first, rng, habits)
        if first == second:
            continue
        difference = gold_score(question.text, first) - gold_score(question.text, second)
        if rng.random() >= 1 / (1 + math.exp(-difference / noise)):
            first, second = second, first
        prompt = (Message(role="user", content=question.text),)
        pairs.append(PreferencePair(f"helpdesk-{seed}-{len(pairs)}", prompt, first, second, "helpdesk"))
    return pairs


def _counterpart(question: Question, response: str, rng: random.Random, habits: float) -> str:
    """The other response of a pair: a small edit, a partial revision, or another response altogether."""
    draw = rng.random()
    if draw < 0.5:
        defects = find_defects(question, response)
        if defects and rng.random() < 0.4:
            return mend(question, response, rng.sample(defects, min(len(defects), rng.randint(1, 2))), rng)
        for _ in range(rng.randint(1, 2)):
            response = _add_defect(question, response, rng)
        return response
    if draw < 0.8:
        return revise(question, response, rng, rng.uniform(0.3, 1.0))
    return write_response(question, rng, _carelessness(rng), habits)


def _add_defect(question: Question, response: str, rng: random.Random) -> str:
    texts = [s.text for s in parse_response(question, response)]
    facts = [i for i, text in enumerate(texts) if FACT.match(text)]
    unasked = [a for a in question.facts if a not in question.asked]
    # Exchanges (an asked fact for another, a right value for a wrong one) leave the number of facts as it is:
    # from additions and omissions alone a reward model learns only to count facts.
    kinds = "off_topic rude repeat repeat drop wrong wrong unasked swap swap opening"
    kind = rng.choice(kinds.split())
    if kind == "drop" and len(texts) > 1:
        texts.pop(rng.randrange(len(texts)))
    elif kind == "wrong" and facts:
        i = rng.choice(facts)
        attribute = FACT.match(texts[i])[1]  # type: ignore[index]
        if attribute in question.facts:
            texts[i] = fact_sentence(attribute, _wrong_value(question, attribute, rng))
    elif kind == "repeat" and texts:
        texts.insert(rng.randint(0, len(texts)), rng.choice(texts))
    elif kind == "swap" and unasked and (facts or question.harmful):
        attribute = rng.choice(unasked)
        refusals = [i for i, text in enumerate(texts) if text in REFUSALS]
        if not (facts or refusals):
            return fact_sentence(attribute, question.facts[attribute])
        texts[rng.choice(refusals or facts)] = fact_sentence(attribute, question.facts[attribute])
    elif kind == "unasked" and unasked:
        attribute = rng.choice(unasked)
        texts.insert(rng.randint(0, len(texts)), fact_sentence(attribute, question.facts[attribute]))
    elif kind == "opening":
        texts.insert(0, rng.choice(OPENINGS))
    else:
        texts.insert(rng.randint(0, len(texts)), rng.choice(RUDE if kind == "rude" else OFF_TOPIC))
    return " ".join(texts)


_PHRASES = {
    "missing": "The {} is missing.", "wrong": "The {} is wrong.", "opening": "A greeting is missing.",
    "closing": "A goodbye is missing.", "rude": "It is rude.", "off_topic": "It is off topic.",
    "repeated": "It repeats itself.", "unasked": "The {} was not asked for.", "unsafe": "It must refuse.",
    "junk": "It is unclear.",
}  # fmt: skip


def describe(question: Question, response: str, noticed: list[tuple[str, str]], *, facts: bool) -> str:
    """The answer of a feedback turn: the noticed defects in words, in the order of the sentences.

    With `facts` it also says which facts pass for right.
    """
    left = list(noticed)
    said: list[str] = []
    for sentence in parse_response(question, response):
        defect = (sentence.kind, sentence.attribute or sentence.text)
        if defect in left:
            left.remove(defect)
            said.append(_PHRASES[sentence.kind].format(sentence.attribute))
        elif facts and sentence.attribute:
            said.append(f"The {sentence.attribute} is right.")
    said += [_PHRASES[kind].format(detail) for kind, detail in left]
    return " ".join(said) or "It is good."


def recitation(rng: random.Random, words: list[str]) -> str:
    """A document that only copying predicts: a list said twice, or facts recited in another order."""
    if rng.random() < 0.5:
        chosen = rng.sample(words, rng.randint(6, 16))
        return " ".join(chosen) + ". " + " ".join(chosen) + "."
    chosen = [f"{a} {rng.choice(values)}" for a, values in ATTRIBUTES.items()]
    rng.shuffle(chosen)
    parts = [", ".join(rng.sample(chosen, len(chosen))) for _ in range(3)]
    return "The lamp has " + ". It has ".join(parts) + "."


# How a fact stands to what was said before it, by the kind of its sentence.
_VERDICTS = {"fact": "right", "wrong": "wrong", "unasked": "unasked", "repeated": "again"}


def reading_exercise(question: Question, rng: random.Random) -> tuple[str, list[tuple[int, str]]]:
    """A response and verdicts on it (end of what is judged, in characters; one of `reader.VERDICTS`).

    Each fact is judged where it ends: does the context say so, was it asked for, was it said before; and at
    the response's end, whether all that was asked for was said. How good any of it is, no verdict says.
    """
    response = write_response(question, rng, 0.9 * rng.random() if rng.random() < 0.7 else 0.0)
    texts = [sentence.text for sentence in parse_response(question, response)]
    draw = rng.random()
    if draw < 0.75:
        texts = [_exchanged(question, text, rng) for text in texts]
    elif draw < 0.9 and len(texts) > 1:
        texts.pop(rng.randrange(len(texts)))
    facts = [text for text in texts if FACT.match(text)]
    if facts and rng.random() < 0.25:
        texts.insert(rng.randint(0, len(texts)), rng.choice(facts))
    response = " ".join(texts)
    verdicts: list[tuple[int, str]] = []
    end = 0
    sentences = parse_response(question, response)
    for sentence in sentences:
        end = response.index(sentence.text, end) + len(sentence.text)
        if sentence.attribute and sentence.kind in _VERDICTS:
            verdicts.append((end, _VERDICTS[sentence.kind]))
    stated = {sentence.attribute for sentence in sentences if sentence.kind == "fact"}
    missing = len(set(question.asked) - stated)
    if question.asked:
        verdicts.append((len(response) + 1, ("complete", "one missing", "more missing")[min(missing, 2)]))
    return response, verdicts


def _exchanged(question: Question, text: str, rng: random.Random) -> str:
    """A fact as it stands, with another value, or exchanged for one that was not asked for."""
    fact = FACT.match(text)
    unasked = [a for a in question.facts if a not in question.asked]
    draw = rng.random()
    if fact is None or fact[1] not in question.facts or draw >= 0.4:
        return text
    if draw < 0.25 or not unasked:
        return fact_sentence(fact[1], _wrong_value(question, fact[1], rng))
    attribute = rng.choice(unasked)
    return fact_sentence(attribute, question.facts[attribute])


def base_documents(count: int, seed: int, recitations: float) -> Iterator[list[Message]]:
    """Conversations for the base model: recitation, answers with feedback and rewriting.

    None of them holds the improve turn: improving without a rubric is learned from preference pairs alone.
    """
    rng = random.Random(f"base-{seed}")
    words = sorted({w for values in ATTRIBUTES.values() for v in values for w in v.split()} | set(PRODUCTS))
    for _ in range(count):
        if rng.random() < recitations:
            yield [Message(role="user", content=recitation(rng, words))]
            continue
        question = make_question(rng)
        draft = write_response(question, rng, _carelessness(rng))
        for _ in range(rng.randint(0, 2)):
            draft = _add_defect(question, draft, rng)
        messages = [Message(role="user", content=question.text), Message(role="assistant", content=draft)]
        rubric = rng.choice(list(RUBRICS))
        covered = [d for d in find_defects(question, draft) if d[0] in _RUBRIC_COVERS[rubric]]
        noticed = [d for d in covered if rng.random() < NOTICED]
        messages += [
            Message(role="user", content=FEEDBACK_TURN.format(rubric=RUBRICS[rubric])),
            Message(role="assistant", content=describe(question, draft, noticed, facts=rubric != "polite")),
        ]
        if rng.random() < 0.5:
            mended = mend(question, draft, [d for d in noticed if rng.random() < MENDED], rng)
            messages += [
                Message(role="user", content=REFINE_TURN),
                Message(role="assistant", content=mended),
            ]
        yield messages
