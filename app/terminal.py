"""`pit improve`: a run shown on the terminal while it happens, each iteration as a word-level diff."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx
from rich.console import Console
from rich.live import Live
from rich.text import Text

from app.improve.edits import hunks

STOPS = {
    "gap": "the gap reward found no further improvement",
    "patience": "several candidates in a row were no better",
    "max_iterations": "all iterations were used",
    "token_budget": "the next iteration would not fit the token budget or the context",
    "deadline": "the deadline passed",
    "cancelled": "the run was cancelled",
    "error": "scoring failed",
}


class ServerError(Exception):
    """The server cannot be reached, or refused the request."""


def word_diff(old: str, new: str, *, marked: bool = False) -> Text:
    """`new` against `old`: what went is red and struck, what came is green.

    With `marked`, for a terminal without colours, also in signs as wdiff has them: [-went-]{+came+}.
    """
    text, position = Text(), 0
    for hunk in hunks(old, new):
        text.append(old[position : hunk.start])
        position = hunk.end
        for part, style, signs in ((hunk.before, "red strike", "[--]"), (hunk.after, "green", "{++}")):
            words = part.strip()
            if words:
                space, after = part.split(words)
                text.append(space)
                text.append(signs[:2] + words + signs[2:] if marked else words, style=style)
                text.append(after or " " if style != "green" else after)
    text.append(old[position:])
    text.rstrip()
    return text


def improve_in_terminal(url: str, key: str | None, body: dict[str, Any], as_json: bool) -> None:
    """Send the request and show the run. Raises `ServerError` with a message for the person at the
    terminal."""
    with server(url, key) as client:
        if as_json:
            answer = client.post("/v1/improve", json=body)
            raise_for(answer)
            print(json.dumps(answer.json(), indent=2, ensure_ascii=False))
            return
        with client.stream("POST", "/v1/improve", json={**body, "stream": True}) as response:
            if response.status_code != 200:
                response.read()
            raise_for(response)
            Show(Console()).run(_events(response))


@contextmanager
def server(url: str, key: str | None = None) -> Iterator[httpx.Client]:
    """A client of the server at `url`. Raises `ServerError` where it cannot be reached in the body."""
    url = url.rstrip("/")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        with httpx.Client(base_url=url, headers=headers, timeout=httpx.Timeout(10.0, read=120.0)) as client:
            yield client
    except httpx.ConnectError:
        raise ServerError(
            f"no server answers at {url}. Start one: pit serve --policy DIR --improver DIR --gap-reward DIR"
        ) from None
    except httpx.TimeoutException:
        raise ServerError(
            f"the server at {url} did not answer in time. /health/ready says how it is."
        ) from None
    except (httpx.InvalidURL, httpx.UnsupportedProtocol):
        raise ServerError(f"{url} is not an address: write it as http://host:port") from None
    except httpx.TransportError:
        raise ServerError(f"the connection to {url} broke before the answer was whole.") from None


def raise_for(response: httpx.Response) -> None:
    """Raises `ServerError` with the server's message when it refused."""
    if response.is_success:
        return
    try:
        message = response.json()["error"]["message"]
    except (ValueError, KeyError, TypeError):
        message = "the answer is not from pit serve"
    raise ServerError(f"{message} (HTTP {response.status_code})")


def _events(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))


class Show:
    """Renders the events of one run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.baseline = ""
        self.growing = ""

    def run(self, events: Iterator[dict[str, Any]]) -> None:
        """Show every event. Raises `ServerError` when the run fails, or ends without a result."""
        with Live(console=self.console, transient=True, refresh_per_second=12) as live:
            for event in events:
                finished = self.event(event, live)
                if finished:
                    return
        raise ServerError("the stream ended before the run was finished.")

    def event(self, event: dict[str, Any], live: Live) -> bool:
        """Show one event; True for the last."""
        kind = event["type"]
        if kind == "run.created" and event["reference"] is not None:
            self._heading("reference", "yours")
            self.console.print(event["reference"], markup=False, highlight=False)
        elif kind == "output.delta":
            self.growing += event["text"]
            live.update(Text(self.growing, style="dim"))
        elif kind == "iteration.started":
            if event["index"] == 1 and self.growing:
                self._heading("reference", "drafted by the policy")
                self.console.print(event["baseline"], markup=False, highlight=False)
            self.baseline, self.growing = event["baseline"], ""
            live.update("")
        elif kind in ("iteration.accepted", "iteration.rejected"):
            live.update("")
            self.growing = ""
            self._iteration(event["iteration"])
        elif kind == "run.failed":
            raise ServerError(event["error"]["message"])
        elif kind == "run.completed":
            live.update("")
            self._summary(event["improvement"])
            return True
        return False

    def _heading(self, title: str, note: str, style: str = "bold") -> None:
        self.console.print()
        self.console.print(Text.assemble((title, style), ("  " + note, "dim")))

    def _iteration(self, iteration: dict[str, Any]) -> None:
        accepted, probability = iteration["accepted"], iteration["win_probability"]
        note = "" if probability is None else f"better with probability {probability:.2f}, "
        tokens = iteration["usage"]["prompt_tokens"] + iteration["usage"]["completion_tokens"]
        note += f"{tokens} tokens, {iteration['ms']:.0f} ms"
        mark = "✓ accepted" if accepted else "✗ rejected"
        title = f"iteration {iteration['index']}  {mark}"
        self._heading(title, note, "bold green" if accepted else "bold yellow")
        if iteration["text"].strip() == self.baseline.strip():
            self.console.print(Text("(the same response)", style="dim"))
        else:
            marked = self.console.no_color or not self.console.color_system
            self.console.print(word_diff(self.baseline, iteration["text"], marked=marked))

    def _summary(self, run: dict[str, Any]) -> None:
        title = "improved" if run["improved"] else "kept the reference"
        reason = STOPS.get(run["stop_reason"], run["stop_reason"])
        self._heading(title, f"stopped: {reason}", "bold green" if run["improved"] else "bold")
        self.console.print(run["response"], markup=False, highlight=False)
        scoring = {"gap": "scored by the gap reward", "skipped": "not scored", "off": "scoring off"}[
            run["scoring"]
        ]
        self.console.print(
            Text(f"{run['usage']['total_tokens']} tokens, {run['ms']:.0f} ms, {scoring}", style="dim")
        )
