"""Keys that whoever runs the server supplies, by PIT_API_KEYS or a file: for servers without a database, as
in Kubernetes. People write these, so weak ones are refused."""

import hmac
import math
import re
from collections import Counter
from dataclasses import dataclass, fields
from itertools import pairwise

from app.security import SCOPES, USUAL, Identity, KeyLimits, Scope, digest
from app.settings import Settings, SettingsError

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}")
LIMITS = frozenset(field.name for field in fields(KeyLimits))
MIN_LENGTH = 32
MAX_LENGTH = 256
MIN_BITS = 96.0
WORDS = re.compile(
    r"change.?me|replace.?me|secret|password|passwd|example|sample|insert|dummy|default|testing|test|"
    r"your.?(api.?)?key|api.?key|token|admin|placeholder|x{4,}",
    re.IGNORECASE,
)
SAMPLES = frozenset(
    (
        "9f2c41d07be85a36c1f04e9b7d2a6853e0b94c7f15d83a62",
        "pit_k3y1d0fd0c5x_4Jq9ZtW2mXv7Rb0LcN5hYp8GfS3aTe6UiOy1BsKdQwR",
    )
)
"""The keys that README and docs show."""
ADVICE = "Make one: openssl rand -hex 32"


@dataclass(frozen=True, slots=True)
class GivenKey:
    digest: bytes
    identity: Identity

    def fits(self, found: bytes) -> bool:
        """Whether this is the digest of the key, in a time that says nothing about where they differ."""
        return hmac.compare_digest(self.digest, found)


def given_keys(settings: Settings) -> tuple[GivenKey, ...]:
    """The keys of the settings `api_keys` and `api_keys_file`. Raises `SettingsError`, which shows none."""
    found: list[GivenKey] = []
    if settings.api_keys is not None:
        found += _parse("api_keys", settings.api_keys.get_secret_value())
    if settings.api_keys_file:
        try:
            text = settings.api_keys_file.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "is no text"
            raise SettingsError(f"setting 'api_keys_file': {settings.api_keys_file}: {why}") from None
        found += _parse("api_keys_file", text)
    if len({key.digest for key in found}) < len(found):
        raise SettingsError("setting 'api_keys': one key stands there twice. Give everybody their own.")
    return tuple(found)


def _parse(setting: str, text: str) -> list[GivenKey]:
    """Lines, or parts between semicolons: `NAME KEY [SCOPE ...] [LIMIT=NUMBER ...]`, or a key alone."""
    entries = [line.split() for line in re.split(r"[;\n]", text)]
    used = [words for words in entries if words and not words[0].startswith("#")]
    if not used:  # a secret that is mounted empty must not open a server
        raise SettingsError(f"setting '{setting}' holds no key. {ADVICE}")
    return [_entry(f"setting '{setting}': key {number}", words) for number, words in enumerate(used, 1)]


def _entry(where: str, words: list[str]) -> GivenKey:
    """The key of one entry. No error shows a word of it: where two are exchanged, any may be the secret."""
    name, key, *rest = words if len(words) > 1 else ("default", *words)
    if not NAME.fullmatch(name):
        raise SettingsError(f"{where}: write NAME KEY; a name has letters, digits and . _ - (32 at most)")
    if reason := weakness(key):
        raise SettingsError(f"{where} is refused: it {reason}. {ADVICE}")
    scopes: set[Scope] = set()
    limits: dict[str, int] = {}
    for word in rest:
        limit, equals, number = word.partition("=")
        if word in SCOPES:
            scopes.add(word)
        elif equals and limit in LIMITS and number.isascii() and number.isdecimal() and int(number) > 0:
            limits[limit] = int(number)
        else:
            raise SettingsError(
                f"{where}: after the key come scopes ({', '.join(sorted(SCOPES))}) and limits"
                f" ({', '.join(sorted(LIMITS))}, as requests_per_minute=60)"
            )
    # Two keys of one name are one owner: so a key can be exchanged without losing what was made with it.
    identity = Identity(f"env:{name}", frozenset(scopes or USUAL), KeyLimits(**limits))
    return GivenKey(digest(key.encode()), identity)


def weakness(key: str) -> str | None:
    """Why somebody might guess this key; None: it looks drawn at random."""
    if key in SAMPLES:
        return "stands in the documentation"
    if not (key.isascii() and key.isprintable()):
        return "has characters that a header cannot carry"
    if len(key) > MAX_LENGTH:
        return f"is longer than {MAX_LENGTH} characters"
    bare = WORDS.sub("", key)
    if len(bare) < MIN_LENGTH:
        words = ", words like 'secret', 'test' or 'changeme' not counted" if bare != key else ""
        return f"is too short: {len(bare)} characters{words}, and it takes {MIN_LENGTH}"
    if key in (key + key)[1:-1]:
        return "repeats itself"
    steps = [ord(b) - ord(a) for a, b in pairwise(bare)]
    if sum(abs(step) <= 1 for step in steps) > len(steps) / 2:
        return "is a sequence, as 123456 or aaaa"
    if bits(bare) < MIN_BITS:
        return f"has too few different characters: {bits(bare):.0f} bits at most, and it takes {MIN_BITS:.0f}"
    if not any(character.isdigit() for character in bare):
        return "has no digit, so it is hardly random"
    return None


def bits(text: str) -> float:
    """The entropy of a random text with this text's frequencies of characters, in bits: this one has no
    more."""
    size = len(text)
    return -sum(n * math.log2(n / size) for n in Counter(text).values())
