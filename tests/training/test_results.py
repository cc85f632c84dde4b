"""The report: complete, self-contained, true to its results, and harmless whatever texts they hold."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from io import StringIO
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from training.errors import ConfigError, DataError
from training.results.diff import as_html, as_markdown, pieces
from training.results.report import write_report
from training.studies.figures import (
    Chart,
    Example,
    Figures,
    Result,
    Series,
    Table,
    Value,
    read_result,
    write_result,
)
from training.verdicts import Bar

HOSTILE = "<script>alert(1)</script> & | * `x`"


def result(name: str = "main") -> Result:
    line = Series("PIT", [0, 1, 2], [1.0, 2.0, 2.5], [0.5, 1.5, 2.0], [1.5, 2.5, 3.0])
    bars = Series("Δ", [0, 1], [-20.0, 40.0], [-30.0, 30.0], [-10.0, 50.0], ["y_w", HOSTILE])
    cost = Series("PIT", [55.0, 300.0], [1.0, 2.0], None, None, ["1", "2"])
    return Result(
        kind="main",
        name=name,
        question="Does it?",
        figures=Figures(
            tables=[
                Table("Systems", ["system", "Δ"], [["PIT", Value(12.34, 10, 14.5, sign=True)], [HOSTILE, ""]])
            ],
            charts=[
                Chart("loop", "By iteration", "line", "iteration", "points", [line, line]),
                Chart("systems", "Systems", "bars", "", "Δ", [bars], zero=True),
                Chart("cost", "Cost", "scatter", "tokens", "points", [cost], log_x=True),
                Chart("gap", "Gap", "distribution", "r_gap", "", [Series("wl", [], [0.1, 0.2, 3.0] * 9)]),
            ],
            examples=[Example("gain", HOSTILE, "It is red.", f"It is blue. {HOSTILE}", -1.0, 2.0)],
            bars=[Bar("a", "> 1", "2", True), Bar("b", "> 1", "−0.5", False)],
        ),
        settings={
            "study": {"examples": 9, "example_seed": 1, "seeds": [7], "run": "demo.yaml"},
            "run": {"name": "helpdesk", "seed": 7},
            "judge": "gold",
        },
        models={"7": {"policy": "sha256:0123456789abcdef"}},
        cost={"seconds": 61.0, "answers": 9, "tokens_written": 1234, "tokens_read": 5678},
        command="pit-train study x.yaml",
        versions={"python": "3"},
        created="2026-11-26T00:00:00Z",
    )


def write(directory: Path, *results: Result) -> Path:
    pytest.importorskip("matplotlib", reason="pip install 'pit-serve[report]'")
    paths = [directory / f"{one.name}.json" for one in results]
    for path, one in zip(paths, results, strict=True):
        write_result(path, one)
    write_report(paths, directory / "out", "Report", Console(file=StringIO()))
    return directory / "out"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of two results with all kinds of charts; drawn once, because drawing takes its time."""
    return write(tmp_path_factory.mktemp("report"), result("main"), result("other"))


def test_a_result_comes_back_as_it_was_published(tmp_path: Path) -> None:
    path = tmp_path / "main.json"
    write_result(path, result())
    found = read_result(path)
    assert found.figures == result().figures
    assert found == result()
    assert [p.name for p in tmp_path.iterdir()] == ["main.json"]


@pytest.mark.parametrize("content", ["", "[1]", '{"format": 99}', '{"format": 1, "new": 2}'])
def test_what_is_no_result_is_refused_by_its_name(tmp_path: Path, content: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(content)
    with pytest.raises(DataError, match=r"x\.json"):
        read_result(path)


class _Page(HTMLParser):
    """Which tags are open, what is referred to, what ids there are."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("href", "src", "xlink:href"):
                self.links.append(str(value))
            if name == "id":
                self.ids.append(str(value))


def test_the_page_stands_alone(report: Path) -> None:
    """No script, nothing from elsewhere, every reference inside it goes somewhere, and no id stands twice."""
    page = (report / "index.html").read_text()
    parser = _Page()
    parser.feed(page)
    assert parser.tags.count("svg") == 8
    assert "script" not in parser.tags and "alert(1)" in page
    assert parser.links and all(link.startswith("#") for link in parser.links)
    assert {link[1:] for link in parser.links} <= set(parser.ids)
    assert not re.findall(r"url\((?!#)", page)
    assert set(re.findall(r"url\(#([^)]+)\)", page)) <= set(parser.ids)
    assert len(parser.ids) == len(set(parser.ids))
    assert "currentColor" in page and "#123456" not in page and "prefers-color-scheme: dark" in page


def test_page_and_markdown_say_what_was_met_and_what_was_missed(report: Path) -> None:
    out = report
    page, text = (out / "index.html").read_text(), (out / "README.md").read_text()
    assert "2 of 4 met." in page and "2 of 4 met." in text
    assert page.count('class="missed">missed') == 2 and text.count("**missed**") == 2
    for said in (
        "+12.3",
        "pit-train study x.yaml",
        "61 s",
        "0123456789ab",
        "training seeds 7",
        "judge: gold",
    ):
        assert said in page and said in text, said
    assert "+12.3 [+10.0, +14.5]" in text
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(pictures) == 8 and all((out / name).read_bytes().startswith(b"\x89PNG") for name in pictures)
    assert "<script>" not in text.replace("\\<script\\>", "")


def test_pictures_of_another_report_do_not_stay(tmp_path: Path) -> None:
    plain = replace(result(), figures=Figures())
    out = write(tmp_path, plain)
    (out / "old-chart.png").write_bytes(b"")
    write(tmp_path, plain)
    assert not (out / "old-chart.png").exists()


def test_two_results_of_one_name_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "main.json"
    write_result(path, result())
    with pytest.raises(ConfigError, match="main"):
        write_report([path, path], tmp_path / "out", "Report", Console(file=StringIO()))


words = st.lists(st.sampled_from(["red", "blue", "It", "is", "<b>", "*"]), max_size=8).map(" ".join)


@given(words, words)
def test_a_diff_holds_both_texts(before: str, after: str) -> None:
    found = list(pieces(before, after))
    for kind, text in (("gone", before), ("new", after)):
        parts = " ".join(part.strip() for what, part in found if what in ("same", kind))
        assert parts.split() == text.split()
    assert "<b>" not in as_html(before, after)


def test_a_diff_marks_words() -> None:
    assert as_html("It is red.", "It is blue.") == "It is <del>red.</del> <ins>blue.</ins>"
    assert as_markdown("It is red.", "It is blue.") == "It is ~~red.~~ **blue.**"


@pytest.mark.parametrize(
    ("value", "text"),
    [(Value(-1.25, digits=2), "−1.25"), (Value(3, 1, 5, 0, True), "+3 [+1, +5]"), (Value(2.0), "2.0")],
)
def test_a_value_says_its_interval(value: Value, text: str) -> None:
    assert str(value) == text
