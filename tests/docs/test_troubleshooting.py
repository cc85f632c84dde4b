"""docs/troubleshooting.md quotes messages as the code says them."""

import ast
import re
from functools import cache

import pytest

from app.errors import AppError
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
ROWS = [row.strip("| ").split(" | ") for row in re.findall(r"^\|.* \|.*$", PAGE, re.MULTILINE)]
MESSAGES = [text for row in ROWS for text in re.findall(r"`([^`]{12,})`", row[1 if len(row) > 2 else 0])]
"""Those of the column "it says", the last but one."""


@cache
def said() -> str:
    """All texts of the code, with … for what is filled in."""
    found = []
    for package in ("app", "training"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    pieces = [str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values]
                    found.append("".join(pieces))
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    found.append(node.value)
    return "\n".join(found)


def parts(message: str) -> list[str]:
    """What stands between the places that are filled in."""
    return [part for part in (piece.strip(" .:,;") for piece in message.split("…")) if len(part) > 3]


@pytest.mark.parametrize("message", MESSAGES, ids=lambda text: str(text)[:50])
def test_a_message_is_said_by_the_code(message: str) -> None:
    assert parts(message)
    assert [part for part in parts(message) if part not in said()] == []


def test_codes_and_statuses_are_the_code_s() -> None:
    found = re.findall(r"^\| (\d{3}) `(\w+)` \|", PAGE, re.MULTILINE)
    assert len(found) > 8
    assert [code for _, code in found if code not in said()] == []
    by_class = {kind.code: kind.status for kind in AppError.__subclasses__() if kind.code}
    assert [pair for pair in found if by_class.get(pair[1], int(pair[0])) != int(pair[0])] == []


def test_what_the_code_does_not_say_is_found() -> None:
    assert len(MESSAGES) > 35
    assert "the disk is made of cheese" not in said()
