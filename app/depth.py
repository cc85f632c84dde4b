"""How deeply a JSON text is nested, before anything parses it."""

import re

MAX_DEPTH = 100
"""More than any request needs; a parser, a validator and a serializer may each end at another depth."""
TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"?|[][{}]', re.DOTALL)
OPENING = (b"[", b"{")
CLOSING = (b"]", b"}")


def too_deep(text: bytes | bytearray) -> bool:
    """Whether it is nested more than `MAX_DEPTH` deep. A text without so many brackets costs next to
    nothing."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return False
    depth = 0
    for token in TOKENS.findall(text):
        if token in OPENING:
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif token in CLOSING:
            depth -= 1
    return False
