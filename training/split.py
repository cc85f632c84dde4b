"""Splits preference pairs between the stages, so that no prompt stands in two parts.

In the pipeline this decides, right after reading, which stage may see a pair. Beyond the paper, which says
only that the data is split in three.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from typing import Literal, get_args

from training.data import PreferencePair
from training.errors import ConfigError, DataError

SplitKey = Literal["prompt", "prompt+rejected", "opening"]
# What to do where all pairs have one key.
_FINER_KEY = {
    "prompt": "Set split_key to prompt+rejected, the prompt is constant",
    "opening": "Set split_key to prompt, all conversations have the same opening",
}


def split_by_prompt(
    pairs: Sequence[PreferencePair],
    fractions: Sequence[float] = (1 / 3, 1 / 3, 1 / 3),
    seed: int = 0,
    split_key: SplitKey = "prompt",
) -> tuple[list[PreferencePair], ...]:
    """Divide pairs between the stages so that no prompt stands in two parts; each part keeps their order.

    A prompt's part follows from a hash of seed and prompt alone: it depends neither on the order of the
    pairs nor on what other pairs there are, so a data set that grows moves none of them. The sizes are
    therefore near the fractions, not equal to them.

    `split_key="prompt"` is the rule. Data whose prompt is one constant sentence (edits of a given draft:
    ParaDetox, Disfl-QA) would fall into a single part; there the draft is the question in truth, and
    `"prompt+rejected"` keeps all rewrites of one draft together. Where conversations branch from a common
    beginning (HH-RLHF), different prompts are about one matter; `"opening"` keeps those that begin with
    the same user message together.

    Raises `ConfigError` for impossible fractions, `DataError` when a part would be empty.
    """
    splitter = Splitter(fractions, seed, split_key)
    parts: tuple[list[PreferencePair], ...] = tuple([] for _ in fractions)
    for pair in pairs:
        parts[splitter.part(pair)].append(pair)
    splitter.check()
    return parts


class Splitter:
    """`split_by_prompt` for pairs that come one by one. Raises `ConfigError` for impossible fractions."""

    def __init__(self, fractions: Sequence[float], seed: int = 0, split_key: SplitKey = "prompt") -> None:
        check_fractions(fractions)
        if split_key not in get_args(SplitKey):
            raise ConfigError(
                f"split_key {split_key!r} is unknown; choose one of {', '.join(get_args(SplitKey))}"
            )
        self.fractions, self.seed, self.split_key = fractions, seed, split_key
        self.sizes = [0] * len(fractions)
        self._only_key: str | None = None
        self._several = False

    def part(self, pair: PreferencePair) -> int:
        """The number of the part that this pair belongs to."""
        key = _split_key(pair, self.split_key)
        self._several = self._several or self._only_key not in (None, key)
        self._only_key = key
        part = _part(key, self.fractions, self.seed)
        self.sizes[part] += 1
        return part

    def check(self) -> None:
        """Raises `DataError` when a part got no pair."""
        if all(self.sizes):
            return
        sizes = ", ".join(map(str, self.sizes))
        advice = "Use more data" if self._several else _FINER_KEY.get(self.split_key, "Use more data")
        keys = "several keys" if self._several else "one and the same key"
        raise DataError(
            f"{sum(self.sizes)} pairs with {keys} fall into parts of {sizes}: one is empty", advice=advice
        )


def check_fractions(fractions: Sequence[float]) -> None:
    """Raises `ConfigError` when they cannot be the shares of a split."""
    in_range = all(0 < fraction <= 1 for fraction in fractions)
    if not in_range or not math.isclose(sum(fractions), 1, abs_tol=1e-6):
        raise ConfigError(f"split fractions must be above 0 and sum to 1, not {list(fractions)}")


def without_keys_of(
    pairs: Sequence[PreferencePair], others: Sequence[PreferencePair], split_key: SplitKey = "prompt"
) -> list[PreferencePair]:
    """The pairs that `split_by_prompt` would never put into one part with any of `others`' because of a
    shared key."""
    keys = {_split_key(pair, split_key) for pair in others}
    return [pair for pair in pairs if _split_key(pair, split_key) not in keys]


def one_a_key(pairs: Sequence[PreferencePair], split_key: SplitKey = "prompt") -> list[PreferencePair]:
    """The first pair of each key: examples that do not depend on each other."""
    return list({_split_key(pair, split_key): pair for pair in reversed(pairs)}.values())[::-1]


def opening(pair: PreferencePair) -> str:
    """The first user message of the conversation."""
    return next(message["content"] for message in pair.prompt if message["role"] == "user")


def _split_key(pair: PreferencePair, split_key: SplitKey) -> str:
    if split_key == "opening":
        return json.dumps(opening(pair))
    key: list[object] = [list(pair.prompt)]
    if split_key == "prompt+rejected":
        key.append(pair.rejected)
    return json.dumps(key, sort_keys=True)


def _part(key: str, fractions: Sequence[float], seed: int) -> int:
    """The part whose stretch of [0, 1) holds the key's hash."""
    digest = hashlib.sha256(f"{seed}\n{key}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    upper = 0.0
    for part, fraction in enumerate(fractions):
        upper += fraction
        if position < upper:
            return part
    return len(fractions) - 1
