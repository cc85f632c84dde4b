"""Contrast pairs: a person's response and the same response damaged, for the gap reward (beyond the paper).

Where people mended texts, every preferred text is fluent and every rejected one is not, so a gap reward
learns fluency alone: it takes any fluent text for an improvement, one that lost half of the content too, and
RL follows it there. Against damaged copies it must learn to keep what was said. The damage is blind: it knows
neither language nor task.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from training.data import PreferencePair


def contrast_pairs(pairs: Sequence[PreferencePair], count: int, seed: int) -> list[PreferencePair]:
    """`count` new pairs of the given ones' prompts.

    Two in three prefer y_w to a damaged y_w. The others prefer y_l itself to a response that has lost most of
    what there was to say: less than half of y_w, or another pair's y_w.
    """
    rng = random.Random(f"contrast-{seed}")
    found: list[PreferencePair] = []
    for _ in range(count if len(pairs) > 1 else 0):
        pair, other = rng.sample(pairs, 2)
        if rng.random() < 2 / 3:
            chosen, damaged = pair.chosen, damage(pair.chosen, other.chosen, rng)
        else:
            words = pair.chosen.split()
            kept = " ".join(words[: rng.randint(0, len(words) // 2)])
            chosen, damaged = pair.rejected, kept if kept and rng.random() < 0.5 else other.chosen
        if damaged not in (chosen, ""):
            found.append(replace(pair, id=f"{pair.id}-contrast", chosen=chosen, rejected=damaged))
    return found


def damage(text: str, other: str, rng: random.Random) -> str:
    """`text` with a stretch of words lost, repeated, or exchanged for one of `other`, or cut off.

    It keeps at least a word of a text that has two or more.
    """
    words, others = text.split(), other.split()
    start = rng.randrange(max(1, len(words)))
    stretch = words[start : start + rng.randint(1, 4)]
    end = start + len(stretch)
    kind = rng.choice(("lost", "repeated", "exchanged", "cut"))
    if kind == "lost":
        found = words[:start] + words[end:]
    elif kind == "repeated":
        found = words[:end] + stretch * rng.randint(1, 3) + words[end:]
    elif kind == "exchanged":
        at = rng.randrange(max(1, len(others)))
        found = words[:start] + others[at : at + rng.randint(1, 4)] + words[end:]
    else:
        found = words[:start] or words[:1]
    return " ".join(found or words[:1])
