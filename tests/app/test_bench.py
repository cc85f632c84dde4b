"""`pit bench` counts what was answered, and calls everything else an error."""

import json
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from app import cli
from app.bench import KINDS, Figures, Kind, Load, measure, percentiles
from app.errors import EngineFailed
from app.main import create_app
from app.settings import Settings
from tests.app.conftest import running
from tests.app.fakes import FakeEngine, factory_of, fake_models


async def figures(kind: Kind, load: Load, **engine: Any) -> Figures:
    models = fake_models(policy=FakeEngine(**engine), improver=FakeEngine(**engine))
    async with running(create_app(Settings(), factory_of(models))) as http:
        return await measure(http, load, kind)


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_request_is_counted(kind: Kind) -> None:
    """Requests, tokens and times of a server whose every answer is four tokens."""
    load = Load(concurrency=3, requests=10, options={} if "chat" in kind else {"max_iterations": 1})
    found = await figures(kind, load, script=lambda _: "good day the lamp", delay_s=0.002)
    assert (found.requests, found.errors) == (10, {})
    assert found.tokens_per_s * found.seconds == pytest.approx(40)
    assert 8 <= found.latency_ms["p50"] <= found.latency_ms["max"] < 5_000
    assert bool(found.first_text_ms) == bool(found.first_event_ms) == kind.endswith("-stream")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_failing_server_gives_errors_and_no_figures(kind: Kind) -> None:
    found = await figures(kind, Load(concurrency=2, requests=5), failure=EngineFailed("The fake failed."))
    assert found.requests == 0
    assert sum(found.errors.values()) == 5 + 2  # the warm-up of each user too
    assert found.latency_ms == {}


async def test_a_stream_that_ends_early_is_an_error() -> None:
    def cut(_: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text='data: {"choices":[{"delta":{"content":"good"}}]}\n\n')

    async with httpx.AsyncClient(transport=httpx.MockTransport(cut), base_url="http://s") as http:
        found = await measure(http, Load(concurrency=1, requests=2), "chat-stream")
    assert found.errors == {"the stream ended early": 3}


async def test_the_time_is_bounded() -> None:
    load = Load(concurrency=2, requests=100_000, seconds=0.3)
    found = await figures("chat", load, script=lambda _: "good", delay_s=0.01)
    assert 0.3 <= found.seconds < 2
    assert 1 <= found.requests < 200


def test_percentiles_are_nearest_ranks() -> None:
    assert percentiles([float(n) for n in range(1, 101)]) == {"p50": 50, "p90": 90, "p99": 99, "max": 100}
    assert percentiles([3.0]) == {"p50": 3, "p90": 3, "p99": 3, "max": 3}
    assert percentiles([]) == {}


def test_questions_differ_by_their_number() -> None:
    load = Load(questions=("a {n}", "b"))
    asked = [load.request("chat", n)[1]["messages"][0]["content"] for n in range(4)]
    assert asked == ["a 0", "b", "a 2", "b"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--url", "http://127.0.0.1:1", "--requests", "1"], "No server answers"),
        (["--kind", "embeddings"], "choose among"),
        (["--questions", "/nowhere"], "holds no question"),
        (["--requests", "0"], "greater than or equal to 1"),
    ],
)
def test_wrong_use_is_said(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(cli.app, ["bench", *arguments])
    assert result.exit_code in (1, 2)
    assert said in result.output
    assert "Traceback" not in result.output


def test_json_goes_out_as_json(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from rich.console import Console

    from app import bench

    async def found(*_: Any) -> list[Figures]:
        return [Figures("chat", 1, {"HTTP 500": 1}, 1.0, 1.0, 4.0, {"p50": 1.0}, {}, {})]

    monkeypatch.setattr(bench, "_measure_all", found)
    assert not bench.bench("http://s/", None, Load(), ["chat"], Console(), True)
    assert json.loads(capsys.readouterr().out)["figures"][0]["errors"] == {"HTTP 500": 1}
    assert not bench.bench("http://s/", None, Load(), ["chat"], Console(width=200), False)
    assert "1 × HTTP 500" in capsys.readouterr().out
