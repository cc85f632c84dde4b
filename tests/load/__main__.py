"""The load bench: `make bench`, or one measurement by its name.

    python -m tests.load throughput quality --runs runs/demo

Figures go to the terminal and to runs/bench/NAME.json. A bar that is missed is said and is no failure; an
error in a measurement is one.
"""

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from rich.console import Console

from tests.load.figures import Result
from tests.load.processes import ROOT, LoadError
from training.errors import TrainingError

Measurement = Callable[[Path, Path], Result]


def gateway(runs: Path, output: Path) -> Result:
    from tests.load import gateway

    return gateway.measure(output)


def race(runs: Path, output: Path) -> Result:
    from tests.load import race

    return race.measure(output)


def throughput(runs: Path, output: Path) -> Result:
    from tests.load import throughput

    return asyncio.run(throughput.measure(runs, output))


def throughput_larger(runs: Path, output: Path) -> Result:
    from tests.load import throughput

    return asyncio.run(throughput.larger(output))


def latency(runs: Path, output: Path) -> Result:
    from tests.load import latency

    return latency.measure(output)


def quality(runs: Path, output: Path) -> Result:
    from tests.load import quality

    return quality.measure(runs, output)


def prefix(runs: Path, output: Path) -> Result:
    from tests.load import prefix

    return prefix.measure(runs, output)


def disconnects(runs: Path, output: Path) -> Result:
    from tests.load import disconnects

    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(disconnects.measure(Path(directory)))


def limits(runs: Path, output: Path) -> Result:
    from tests.load import limits

    return limits.measure(output)


MEASUREMENTS: dict[str, Measurement] = {
    one.__name__: one
    for one in (gateway, race, latency, limits, throughput, throughput_larger, quality, prefix, disconnects)
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.load", description="The load bench of the server.")
    parser.add_argument("names", nargs="*", choices=[*MEASUREMENTS, []], help="what to measure  [all]")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "demo", help="a run of make demo")
    parser.add_argument("--output", type=Path, default=ROOT / "runs" / "bench", help="where figures go")
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # servers are ended then too
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    given.output.mkdir(parents=True, exist_ok=True)
    console = Console(width=None if sys.stdout.isatty() else 160)
    failed = False
    for name in given.names or MEASUREMENTS:
        console.rule(name)
        # The server keeps runs, as users have it, but not among the user's own.
        for leftover in given.output.glob("pit.db*"):
            leftover.unlink()
        os.environ["PIT_DATABASE"] = f"sqlite:///{given.output.resolve() / 'pit.db'}"
        try:
            result = MEASUREMENTS[name](given.runs, given.output)
        except (LoadError, TrainingError) as error:
            console.print(f"[bold red]error:[/] {error}", highlight=False)
            failed = True
            continue
        result.show(console)
        console.print(f"{result.write(given.output)}", highlight=False)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
