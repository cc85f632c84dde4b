"""`pit runs` and `pit replay`: the stored runs of a server, and one of them run again."""

import json
import math
from datetime import datetime
from typing import Any

from rich.console import Console
from rich.text import Text

from app.client import Client
from app.commands import fail
from app.schemas import RunSummary
from app.terminal import word_diff

TOLERANCE = 1e-4
"""Gaps this close are the same: batches of another size round differently."""
STATE_STYLES = {"completed": "green", "failed": "red", "cancelled": "yellow", "running": "cyan"}


def list_runs(client: Client, limit: int, after: str | None, as_json: bool) -> None:
    """Print the latest stored runs. Raises the server's error."""
    page = client.runs(limit, after)
    if as_json:
        print(page.model_dump_json(indent=2))
        return
    console = Console(soft_wrap=True, highlight=False)  # an id is never cut
    if not page.data:
        console.print("No runs are stored.")
        return
    console.print(f"{'run':36}  {'created':19}  {'state':9}  {'stopped by':14}  iterations", style="bold")
    for run in page.data:
        console.print(_line(run))
    if page.has_more:
        console.print(f"Older ones: pit runs --after {page.data[-1].id}", style="dim")


def _line(run: RunSummary) -> Text:
    created = datetime.fromtimestamp(run.created).strftime("%Y-%m-%d %H:%M:%S")
    return Text.assemble(
        f"{run.id}  {created}  ",
        (f"{run.state:9}", STATE_STYLES.get(run.state, "")),
        f"  {run.stop_reason or '':14}  {'' if run.iterations is None else run.iterations:>10}",
    )


def replay_in_terminal(client: Client, run_id: str, as_json: bool) -> bool:
    """Run a stored run again, show the difference, and say whether there is none. Raises the server's error,
    and ends the command for a run that is not completed."""
    run = client.run(run_id)
    if run.state != "completed" or run.result is None:
        raise fail(f"run {run_id} is {run.state}: only a completed run can be replayed.")
    again = client.improve(**run.request | {"store": False})
    old, new = run.result.model_dump(), again.model_dump()
    found = difference(old, new)
    if as_json:
        print(json.dumps(found | {"run": run_id, "was": old, "is": new}, indent=2, ensure_ascii=False))
    else:
        _show(Console(), found, old, new)
    return bool(found["identical"])


def difference(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """What differs between two results of one request: `models`, `stop_reason`, `reference`, `response`,
    and the numbers of the `iterations` that differ in text, gap or outcome."""
    before, after = old["iterations"], new["iterations"]
    pairs = [
        (before[n] if n < len(before) else None, after[n] if n < len(after) else None)
        for n in range(max(len(before), len(after)))
    ]
    names = sorted(old["models"].keys() | new["models"].keys())
    found = {
        "models": [name for name in names if _model(old, name) != _model(new, name)],
        "stop_reason": old["stop_reason"] != new["stop_reason"],
        "reference": old["reference"] != new["reference"],
        "response": old["response"] != new["response"],
        "iterations": [n for n, pair in enumerate(pairs, 1) if not _same_iteration(*pair)],
    }
    return {"identical": not any(value for name, value in found.items() if name != "models")} | found


def _same_iteration(old: dict[str, Any] | None, new: dict[str, Any] | None) -> bool:
    if old is None or new is None:
        return False
    same = all(old[name] == new[name] for name in ("text", "accepted", "candidate"))
    return same and _close(old["gap"], new["gap"])


def _close(old: float | None, new: float | None) -> bool:
    if old is None or new is None:
        return old is new
    return math.isclose(old, new, rel_tol=TOLERANCE, abs_tol=TOLERANCE)


def _show(console: Console, found: dict[str, Any], old: dict[str, Any], new: dict[str, Any]) -> None:
    for name in found["models"]:
        console.print(Text(f"{name}: was {_model(old, name)}, is {_model(new, name)}", style="yellow"))
    if found["identical"]:
        what = f": {len(new['iterations'])} iterations, stopped by {new['stop_reason']}"
        console.print(Text.assemble(("identical", "bold green"), what))
        return
    marked = console.no_color or not console.color_system
    if found["reference"]:
        _heading(console, "reference")
        console.print(word_diff(old["reference"], new["reference"], marked=marked))
    for number in found["iterations"]:
        was, now = (
            result["iterations"][number - 1] if number <= len(result["iterations"]) else None
            for result in (old, new)
        )
        _heading(console, f"iteration {number}", f"{_outcome(was)} → {_outcome(now)}")
        console.print(word_diff(was["text"] if was else "", now["text"] if now else "", marked=marked))
    if found["response"]:
        _heading(console, "response")
        console.print(word_diff(old["response"], new["response"], marked=marked))
    if found["stop_reason"]:
        console.print(f"\nstopped by {old['stop_reason']} → {new['stop_reason']}", highlight=False)
    console.print(Text("different", style="bold red"))


def _model(result: dict[str, Any], name: str) -> str:
    """The model's name, with the beginning of its content hash."""
    model, identity = result["models"].get(name, "none"), result["identities"].get(name)
    return f"{model} ({identity[:19]}…)" if identity else str(model)


def _heading(console: Console, title: str, note: str = "") -> None:
    console.print()
    console.print(Text.assemble((title, "bold"), ("  " + note, "dim")))


def _outcome(iteration: dict[str, Any] | None) -> str:
    if iteration is None:
        return "not run"
    gap = "not scored" if iteration["gap"] is None else f"gap {iteration['gap']:.4f}"
    return f"{'accepted' if iteration['accepted'] else 'rejected'}, {gap}"
