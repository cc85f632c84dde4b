"""`pit improve`: a run shown on the terminal while it happens, each iteration as a word-level diff."""

from collections.abc import Iterator

from rich.console import Console
from rich.live import Live
from rich.text import Text

from app import client
from app.client import Event
from app.errors import AppError
from app.improve.edits import hunks
from app.schemas import Improvement, IterationOut

STOPS = {
    "gap": "the gap reward found no further improvement",
    "patience": "several candidates in a row were no better",
    "max_iterations": "all iterations were used",
    "token_budget": "the next iteration would not fit the token budget or the context",
    "deadline": "the deadline passed",
    "cancelled": "the run was cancelled",
    "error": "scoring failed",
}


def said(error: AppError) -> str:
    """The error as one line for the person at the terminal."""
    return f"{error.message} (HTTP {error.status})" if error.status else error.message


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


def show_run(events: Iterator[Event]) -> None:
    """Show a run while it happens. Raises the error that ends it."""
    show = Show(Console())
    with Live(console=show.console, transient=True, refresh_per_second=12) as live:
        for event in events:
            show.event(event, live)


class Show:
    """Renders the events of one run."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.baseline = ""
        self.growing = ""

    def event(self, event: Event, live: Live) -> None:
        match event:
            case client.RunCreated(reference=str(reference)):
                self._heading("reference", "yours")
                self.console.print(reference, markup=False, highlight=False)
            case client.OutputDelta():
                self.growing += event.text
                live.update(Text(self.growing, style="dim"))
            case client.IterationStarted():
                if event.index == 1 and self.growing:
                    self._heading("reference", "drafted by the policy")
                    self.console.print(event.baseline, markup=False, highlight=False)
                self.baseline, self.growing = event.baseline, ""
                live.update("")
            case client.IterationAccepted() | client.IterationRejected():
                live.update("")
                self.growing = ""
                self._iteration(event.iteration)
            case client.RunCompleted():
                live.update("")
                self._summary(event.improvement)

    def _heading(self, title: str, note: str, style: str = "bold") -> None:
        self.console.print()
        self.console.print(Text.assemble((title, style), ("  " + note, "dim")))

    def _iteration(self, iteration: IterationOut) -> None:
        probability, usage = iteration.win_probability, iteration.usage
        note = "" if probability is None else f"better with probability {probability:.2f}, "
        note += f"{usage.prompt_tokens + usage.completion_tokens} tokens, {iteration.ms:.0f} ms"
        mark = "✓ accepted" if iteration.accepted else "✗ rejected"
        title = f"iteration {iteration.index}  {mark}"
        self._heading(title, note, "bold green" if iteration.accepted else "bold yellow")
        if iteration.text.strip() == self.baseline.strip():
            self.console.print(Text("(the same response)", style="dim"))
        else:
            marked = self.console.no_color or not self.console.color_system
            self.console.print(word_diff(self.baseline, iteration.text, marked=marked))

    def _summary(self, run: Improvement) -> None:
        title = "improved" if run.improved else "kept the reference"
        reason = STOPS.get(run.stop_reason, run.stop_reason)
        self._heading(title, f"stopped: {reason}", "bold green" if run.improved else "bold")
        self.console.print(run.response, markup=False, highlight=False)
        scoring = {"gap": "scored by the gap reward", "skipped": "not scored", "off": "scoring off"}
        ending = f"{run.usage.total_tokens} tokens, {run.ms:.0f} ms, {scoring[run.scoring]}"
        self.console.print(Text(ending, style="dim"))
