"""`pit doctor`: what would keep `pit serve` from working here, and what to do about it.

Nothing is started and nothing slow is imported, unless `deep` asks for it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.doctor import checkpoints, configuration, deep, machine, packages
from app.doctor.report import Finding
from app.settings import Settings


def examine(config: Path | None, given: dict[str, Any], *, run_engines: bool = False) -> Iterator[Finding]:
    """Every finding, as it is made. `given` are the options of the command line."""
    settings, found = configuration.load(config, given)
    yield from found
    yield from machine.check(settings or Settings.model_construct())
    yield from packages.check()
    if settings is None:
        return
    read = checkpoints.read(settings, hash_everything=run_engines)
    yield from read.findings
    yield from checkpoints.compare(read)
    yield from checkpoints.memory(settings, read)
    broken = any(finding.status == "fail" for finding in [*found, *read.findings])
    if run_engines:
        yield from deep.check(settings, broken=broken)
