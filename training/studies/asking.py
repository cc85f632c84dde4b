"""Answers of systems to the held-out examples of one run: kept in files, asked for where they are missing.

A file holds one system's answers (RUN/answers/), so that studies share them, a killed study goes on, and more
examples only add to what is there. Systems of other models than the run's get a server of their own, one
after the other.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from training.answers import AnswerFile, Record
from training.checkpoint import content_hash
from training.collect import collect
from training.config import RunConfig
from training.data import PreferencePair
from training.errors import TrainingError
from training.evaluate import examples
from training.pipeline import alone
from training.serving import server, server_command
from training.studies.config import StudyConfig
from training.studies.systems import Asked, System
from training.systems import Client, ask_one

START_DEADLINE_S = 600.0


@dataclass
class Desk:
    """Asks on behalf of a study. `models` names directories that stand in the run's place:
    `{"sft": {"improver": DIR}}`."""

    study: StudyConfig
    run: RunConfig
    console: Console
    models: dict[str, dict[str, Path]] = field(default_factory=dict)

    def ask(self, systems: dict[str, System], count: int | None = None, seed: int | None = None) -> Asked:
        """The answers of all systems to the first `count` examples (the study's without it) that every one of
        them answered; `seed` draws other examples.

        Raises:
            TrainingError: a server failed; what was answered is kept.
        """
        seed = self.study.example_seed if seed is None else seed
        pairs = examples(self.run, count or self.study.examples, seed)
        # Drafts first, of the run's policy: the others begin with them.
        drafts = {system.draft for system in systems.values() if system.draft is not None}
        wanted = [*sorted(drafts, key=repr), *(s for s in dict.fromkeys(systems.values()) if s not in drafts)]
        directory = self.run.output / "answers"
        directory.mkdir(exist_ok=True)
        with alone(directory), ExitStack() as stack:
            files = {
                system: stack.enter_context(AnswerFile(*self._file(directory, system, seed)))
                for system in wanted
            }
            for name in dict.fromkeys(system.models for system in wanted):
                mine = {system: file for system, file in files.items() if system.models == name}
                self._fill(name, mine, files, pairs, seed)
        return self._complete(pairs, {name: files[system] for name, system in systems.items()})

    def _file(self, directory: Path, system: System, seed: int) -> tuple[Path, Record]:
        """A system's file and what its answers depend on, so that new checkpoints do not mix with old."""
        here = {name: self._checkpoint(system.models, name) for name in system.checkpoints}
        settings = {
            "system": system.settings(),
            "models": {name: content_hash(path) for name, path in here.items()},
            "seed": seed,
        }
        if system.gated:
            manifest = (here["gap_reward"] / "pit.json").read_text(encoding="utf-8")
            settings["gap"] = json.loads(manifest)["gap"]
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:10]
        return directory / f"{system.label}-{digest}.jsonl", settings

    def _checkpoint(self, models: str, name: str) -> Path:
        return self.models.get(models, {}).get(name, self.run.output / name)

    def _fill(
        self, models: str, mine: dict[System, AnswerFile], every: dict[System, AnswerFile],
        pairs: Sequence[PreferencePair], seed: int,
    ) -> None:  # fmt: skip
        lacking = {
            system: [pair for pair in pairs if system.label not in file.of(pair.id)]
            for system, file in mine.items()
        }
        calls = sum(map(len, lacking.values()))
        if not calls:
            return
        wanted = {pair.id for each in lacking.values() for pair in each}
        missing = [pair for pair in pairs if pair.id in wanted]
        names = ", ".join(system.label for system, each in lacking.items() if each)
        self.console.print(f"[dim]{models}: {calls} calls for {len(missing)} examples ({names})[/dim]")

        async def ask(client: Client, pair: PreferencePair, advance: Callable[[int], None]) -> None:
            for system, file in mine.items():
                if system.label not in file.of(pair.id):
                    draft = _draft(system, every, pair)
                    if draft is None and system.strategy != "draft":
                        return  # its call failed; the next run of the command asks again
                    file.add(pair.id, system.label, await _answer(client, system, pair, draft, seed))
                    advance(1)

        command = server_command(self.run.output, **self.models.get(models, {}))
        log = self.run.output / "logs" / f"serve-{models}.log"
        with ExitStack() as stack:
            with self.console.status(f"starting pit serve ({models})"):
                url = stack.enter_context(server(command, log, START_DEADLINE_S))
            asyncio.run(
                collect(
                    url, missing, ask, pairs[0], calls=calls, concurrency=self.study.concurrency,
                    deadline_s=self.study.deadline_s, console=self.console,
                )
            )  # fmt: skip

    def _complete(self, pairs: Sequence[PreferencePair], files: dict[str, AnswerFile]) -> Asked:
        """Leave out examples that a system refused or never answered, and say how many."""
        kept: list[PreferencePair] = []
        records: dict[str, list[Any]] = {name: [] for name in files}
        reasons = Counter[str]()
        for pair in pairs:
            found = {name: next(iter(file.of(pair.id).values()), None) for name, file in files.items()}
            bad = [record for record in found.values() if record is None or "refused" in record]
            if bad:
                reasons[bad[0]["refused"] if bad[0] else "no answer (run the command again)"] += 1
                continue
            kept.append(pair)
            for name, record in found.items():
                records[name].append(record)
        for reason, number in reasons.items():
            self.console.print(f"[yellow]{number} of {len(pairs)} examples left out: {reason}[/yellow]")
        if not kept:
            raise TrainingError(f"no example was answered by every system: {dict(reasons)}")
        return Asked(kept, records)


def _draft(system: System, every: dict[System, AnswerFile], pair: PreferencePair) -> Record | None:
    """What a system begins with, as an answer; None where there is none yet."""
    if system.draft is None:
        return {"text": pair.rejected}
    return every[system.draft].of(pair.id).get(system.draft.label)


async def _answer(
    client: Client, system: System, pair: PreferencePair, draft: Record | None, seed: int
) -> Record:
    if draft is None:
        return await ask_one(client, "original", *system.request(pair, "", seed))
    reference = str(draft.get("text", ""))
    if not reference.strip():
        return {"refused": "the policy's answer is empty"}
    return await ask_one(client, system.strategy, *system.request(pair, reference, seed))
