"""`pit doctor`: what would keep `pit serve` from working here, and what to do about it.

Nothing is started and nothing slow is imported, unless `deep` asks for it.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from app.doctor import checkpoints, configuration, deep, machine, packages, upstreams
from app.doctor.report import Finding
from app.doctor.roles import engines
from app.settings import Settings
from app.start import upstreams as upstream_servers


def examine(config: Path | None, given: dict[str, Any], *, run_engines: bool = False) -> Iterator[Finding]:
    """Every finding, as it is made. `given` are the options of the command line."""
    settings, found = configuration.load(config, given)
    yield from found
    yield from machine.check(settings or Settings.model_construct())
    remote = settings is not None and bool(upstream_servers(settings)) and not engines(settings)
    yield from packages.check(needed=not remote)
    if settings is None:
        return
    yield from upstreams.check(settings)
    read = checkpoints.read(settings, hash_everything=run_engines)
    yield from read.findings
    yield from checkpoints.compare(settings, read)
    yield from checkpoints.memory(settings, read)
    broken = any(finding.status == "fail" for finding in [*found, *read.findings])
    if run_engines:
        yield from deep.check(settings, broken=broken)
