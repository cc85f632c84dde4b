"""The table of docs/reliability.md: what was not measured, or missed its bar, is said and not left out."""

import json
from pathlib import Path
from typing import Any

import pytest

from scripts import reliability


def figure(row: int, what: str, measured: str, met: bool = True, full: bool = True) -> dict[str, Any]:
    return {"row": row, "what": what, "measured": measured, "bar": "a bar", "met": met, "full": full}


def write(folder: Path, *figures: dict[str, Any]) -> None:
    folder.mkdir(exist_ok=True)
    for one in figures:
        with (folder / f"row-{one['row']:02d}.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(one) + "\n")


def test_the_table_of_some_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(
        tmp_path / "figures",
        figure(2, "clients", "old"),
        figure(2, "clients", "new"),
        figure(10, "input", "it fell", met=False),
        figure(10, "input", "well again"),
        figure(3, "a | b", "5 MiB", full=False),
    )
    page = tmp_path / "reliability.md"
    page.write_text(f"before\n{reliability.BEGIN}\nold table\n{reliability.END}\nafter\n")
    monkeypatch.setattr(reliability, "FOLDER", tmp_path / "figures")
    monkeypatch.setattr(reliability, "PAGE", page)
    assert reliability.main() == 0
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nafter\n") and "old table" not in text
    assert "| | clients | new | a bar | met |" in text and "old |" not in text
    assert "| | input | it fell | a bar | **missed** |" in text and "well again" not in text
    assert "| | a \\| b (short form) | 5 MiB | a bar | met |" in text
    assert text.count("not measured in this run") == 13
    assert all(f"**{row}**" in text for row in range(1, 17))
    assert reliability.main() == 0
    assert page.read_text() == text, "again it is the same"


def test_a_page_without_its_place_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = tmp_path / "reliability.md"
    page.write_text(f"{reliability.BEGIN}\nno end")
    monkeypatch.setattr(reliability, "PAGE", page)
    assert reliability.main() == 1
    assert page.read_text().endswith("no end")
