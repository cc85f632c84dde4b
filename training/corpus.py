"""The text that a base model trained from scratch learns language from.

For the help desk the documents come from synthetic.py. For preference data they come from the training pairs:
people's responses, word lists said twice, and responses with slips put in at random and then said again
without them (the denoising that BART and T5 pre-train on). None of them holds the improve turn.
"""

from __future__ import annotations

import random
from collections.abc import Iterable, Iterator

from training.chat import Conversation, assistant
from training.config import RunConfig
from training.data import Message, PreferencePair
from training.prepare import read_part
from training.synthetic import base_documents

AGAIN_TURN = "Say that again without the slips."
_FILLERS = ("uh", "um", "no sorry", "I mean", "or rather", "well", "no wait", "or", "make that")


def base_corpus(config: RunConfig) -> list[Conversation]:
    """`recitation_first` documents of pure recitation, then `documents` of all kinds."""
    base, seed = config.base, config.seed
    if config.data.format == "helpdesk":
        first = base_documents(base.recitation_first, seed + 1, 1.0)
        return [*first, *base_documents(base.documents, seed, base.recitation_share)]
    pairs = [pair for part in ("sft", "reward", "rl") for pair in read_part(config, part)]
    rng = random.Random(f"corpus-{seed}")
    documents = [_recitation(pairs, rng) for _ in range(base.recitation_first)]
    documents += [_document(pairs, rng, base.recitation_share) for _ in range(base.documents)]
    return documents


def tokenizer_texts(config: RunConfig, documents: Iterable[Conversation]) -> Iterator[str]:
    """What the tokenizer is trained on: the corpus and the one sentence that it lacks."""
    # Often enough to be merged into whole words: every input of the improver and the gap reward holds it.
    yield from [config.improve_turn] * 100
    for document in documents:
        for message in document:
            yield message["content"]


def _recitation(pairs: list[PreferencePair], rng: random.Random) -> Conversation:
    words = [w for pair in rng.sample(pairs, 3) for w in pair.chosen.split()]
    chosen = rng.sample(words, min(len(words), rng.randint(5, 24)))
    text = " ".join(chosen)
    return [Message(role="user", content=text), assistant(text)]


def _document(pairs: list[PreferencePair], rng: random.Random, recitation_share: float) -> Conversation:
    draw = rng.random()
    if draw < recitation_share:
        return _recitation(pairs, rng)
    pair, other = rng.choice(pairs), rng.choice(pairs)
    if draw < recitation_share + 0.15:
        return [*pair.prompt, assistant(rng.choice((pair.chosen, pair.rejected)))]
    noisy = add_slips(pair.chosen, other.chosen, rng)
    return [*pair.prompt, assistant(noisy), Message(role="user", content=AGAIN_TURN), assistant(pair.chosen)]


def add_slips(text: str, other: str, rng: random.Random) -> str:
    """Put one or two slips into `text`: a false start, a stretch of `other`, a repeated or a lost word."""
    words, others = text.split(), other.split()
    for _ in range(rng.choice((1, 1, 2))):
        if not words:
            break
        place = rng.randrange(len(words))
        kind = rng.random()
        if kind < 0.45 and others:
            start = rng.randrange(len(others))
            stretch = others[start : start + rng.randint(1, 5)]
            words[place:place] = [*stretch, *rng.choice(_FILLERS).split()]
        elif kind < 0.7:
            words[place:place] = [
                *words[place : place + rng.randint(1, 4)],
                *rng.choice(("", *_FILLERS)).split(),
            ]
        elif kind < 0.85 and others:
            words.insert(place, rng.choice(others))
        else:
            words.insert(place, words[rng.randrange(len(words))])
    return " ".join(words)
