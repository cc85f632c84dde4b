"""docs/data.md shows a row of each format as the reader takes it."""

import re
from pathlib import Path
from typing import get_args

import pytest

from tests.docs.pages import ROOT
from training.data import PairStream
from training.formats import Format, recognise

PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8")
ROWS = dict(re.findall(r"^### `(\w+)`\n.*?```json\n(.*?)\n```", PAGE, re.MULTILINE | re.DOTALL))


def test_it_shows_every_format() -> None:
    assert set(ROWS) == set(get_args(Format))


@pytest.mark.parametrize("name", get_args(Format))
def test_a_row_is_read(name: Format, tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(ROWS[name] + "\n")
    assert recognise(file) == name
    pairs = list(PairStream(name, file))
    assert pairs and pairs[0].chosen != pairs[0].rejected
    assert all("lamp" in pair.prompt[0]["content"] for pair in pairs)
