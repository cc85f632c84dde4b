"""`pit improve` over a real socket: a run of fakes as a person sees it."""

import json
from collections.abc import Iterator

import pytest
from rich.console import Console
from typer.testing import CliRunner

from app.cli import app
from app.terminal import word_diff
from tests.app.fakes import FakeEngine, FakeScorer, fake_models
from tests.app.live import server_in_a_thread


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    """A server of fakes in a thread: its improver adds a word, until the answer is six words long."""
    improver = FakeEngine(script=lambda m: m[-2]["content"] + " [bold]more[/bold]")
    scorer = FakeScorer(value=lambda t: float(len(t)) if t.count("more") < 3 else -1.0)
    with server_in_a_thread(fake_models(improver=improver, scorer=scorer)) as url:
        yield url


def test_a_run_is_shown_with_its_iterations_and_its_end(url: str) -> None:
    shown = CliRunner().invoke(app, ["improve", "Price?", "--reference", "no", "--url", url])
    assert shown.exit_code == 0, shown.output
    for part in (
        "reference  yours",
        "iteration 1  ✓ accepted",
        "iteration 3  ✗ rejected",
        "improved",
        "tokens",
    ):
        assert part in shown.stdout
    assert "the gap reward found no further improvement" in shown.stdout
    # What a model writes is shown as it is, and never read as markup.
    assert "no [bold]more[/bold] [bold]more[/bold]" in shown.stdout


def test_json_is_the_server_s_answer(url: str) -> None:
    shown = CliRunner().invoke(app, ["improve", "Price?", "--reference", "no", "--url", url, "--json"])
    assert json.loads(shown.stdout)["object"] == "improvement"


def test_a_refusal_of_the_server_is_one_line(url: str) -> None:
    shown = CliRunner().invoke(app, ["improve", "Price?", "--reference", " ", "--url", url])
    assert shown.exit_code == 1
    assert "reference" in shown.stderr


def test_the_diff_marks_what_went_and_what_came() -> None:
    diff = word_diff("the lamp is red", "the lamp is blue now")
    styles = {diff.plain[span.start : span.end]: str(span.style) for span in diff.spans}
    assert styles["red"] == "red strike"
    assert styles["blue now"] == "green"
    console = Console(record=True, width=80, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(diff)
    assert "the lamp is red blue now" in console.export_text()


def test_without_colours_the_diff_has_signs() -> None:
    diff = word_diff("It has color red. Bye.", "Hello! It has price 24 euros. Bye.", marked=True)
    assert diff.plain == "{+Hello!+} It has [-color red.-] {+price 24 euros.+} Bye."
    assert not word_diff("the same\nas before", "the same\nas before", marked=True).spans
