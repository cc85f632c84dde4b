"""Evaluation through the server that answers users: ask every system, judge the answers, print and keep the
tables.

In the pipeline this stands after training. It talks HTTP to `pit serve` (its own, or one that runs) and
therefore measures the real loop, gate and sampling. A run that was killed goes on where it stopped.

Deviation from the paper: judges are a gold scorer and edit distances instead of GPT-4, DeBERTa and people.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from training.answers import AnswerFile, set_aside
from training.bars import edit_bars, gold_bars
from training.collect import collect
from training.config import RunConfig
from training.data import PreferencePair, load_pairs
from training.errors import ConfigError, DataError, TrainingError
from training.report import as_json, edit_sections, gold_sections, markdown, show
from training.serving import CHECKPOINTS, server, server_command
from training.synthetic import make_pairs
from training.systems import Client, Plan, ask_all

JudgeName = Literal["gold", "edit", "edit+toxicity"]
JUDGES: dict[str, JudgeName] = {"gold": "gold", "edit": "edit", "edit+toxicity": "edit+toxicity"}


@dataclass(frozen=True)
class Options:
    """What `pit-train evaluate` takes beside the configuration. None: as the configuration or the format
    says."""

    examples: int = 1_000
    iterations: int = 5
    concurrency: int = 24
    url: str | None = None
    temperature: float | None = None
    seed: int = 1
    output: Path | None = None
    judge: JudgeName | None = None
    again: bool = False
    deadline_s: float = 120.0
    start_deadline_s: float = 600.0


def evaluate(config: RunConfig, options: Options, console: Console) -> Path:
    """Run an evaluation; return the directory with responses.jsonl, report.md and report.json.

    Raises:
        ConfigError: no judge fits the data, or earlier answers have other settings.
        TrainingError: the server cannot be reached, does not start, or fails; what was answered is kept.
    """
    judge = options.judge or config.evaluation.judge or _default_judge(config)
    if judge == "gold" and config.data.format != "helpdesk":
        raise ConfigError(
            f"judge gold reads the helpdesk's responses only, and data.format is {config.data.format!r}"
        )
    plan = Plan(
        iterations=options.iterations,
        self_refine_iterations=min(3, options.iterations),
        temperature=options.temperature,
        seed=options.seed,
        from_draft=judge != "gold",
    )
    pairs = examples(config, options.examples, options.seed)
    output = options.output or config.output / "evaluation"
    settings = asdict(plan) | {"judge": judge, "data": config.data.format, "models": _models(config, options)}
    path = output / "responses.jsonl"
    if options.again:
        set_aside(path)
    started = time.monotonic()
    with AnswerFile(path, settings) as answers:
        todo = [pair for pair in pairs if set(plan.systems()) - set(answers.of(pair.id))]
        console.print(
            f"{len(pairs)} held-out examples, {len(pairs) - len(todo)} answered before; judge {judge}"
        )
        if todo:
            with _url(config, options, output, console) as url:
                asyncio.run(_collect(url, plan, todo, answers, options, console))
        console.print(f"answers: {time.monotonic() - started:.0f} s")
        _report(config, plan, judge, pairs, answers, settings, output, console)
    return output


def _default_judge(config: RunConfig) -> JudgeName:
    if config.data.format == "helpdesk":
        return "gold"
    if config.data.format in ("chat_pairs", "defacto"):
        return "edit"
    raise ConfigError(
        f"data of format {config.data.format!r} has no judge. Give --judge edit where y_w is a rewrite of y_l"
    )


def _models(config: RunConfig, options: Options) -> str:
    """What answers: the address, or a hash of the three manifests, so that new checkpoints do not mix with
    old."""
    if options.url is not None:
        return options.url
    manifests = [config.output / name / "pit.json" for name in CHECKPOINTS.values()]
    content = b"".join(path.read_bytes() for path in manifests if path.exists())
    return "sha256:" + hashlib.sha256(content).hexdigest()


def examples(config: RunConfig, count: int, seed: int) -> list[PreferencePair]:
    """Held-out examples. For the helpdesk fresh ones, whose prompts neither training nor calibration has
    seen.

    From files: `data.heldout_path`, which no stage reads, or else the held-out part of the training file, on
    which the gap reward was calibrated too. Of one draft only the first pair, with all its human rewrites.
    """
    data = config.data
    if data.format == "helpdesk":
        seen = {pair.prompt[0]["content"] for pair in make_pairs(data.pairs, config.seed, data.noise)}
        others = make_pairs(data.heldout + 200, config.seed + 1_000_003, data.noise)
        seen |= {pair.prompt[0]["content"] for pair in others}
        drawn = make_pairs(count + count // 10 + 100, config.seed + 2_000_003 + seed, data.noise)
        fresh = list(
            {p.prompt[0]["content"]: p for p in drawn if p.prompt[0]["content"] not in seen}.values()
        )
        return fresh[:count]
    if data.heldout_path is not None:
        pairs = load_pairs(data.format, data.heldout_path).pairs
    else:
        path = config.output / "data" / "heldout.jsonl"
        if not path.exists():
            raise DataError("not there yet; it is written by pit-train run", path=path)
        pairs = load_pairs("chat_pairs", path).pairs
    return _one_for_each_draft(pairs)[:count]


def _one_for_each_draft(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    merged: dict[str, PreferencePair] = {}
    for pair in pairs:
        key = f"{list(pair.prompt)}\n{pair.rejected}"
        first = merged.setdefault(key, replace(pair, references=()))
        rewrites = dict.fromkeys((*first.references, *(pair.references or (pair.chosen,)), pair.chosen))
        merged[key] = replace(first, references=tuple(rewrites))
    return list(merged.values())


# ---------------------------------------------------------------------------------------------------- asking


@contextmanager
def _url(config: RunConfig, options: Options, output: Path, console: Console) -> Iterator[str]:
    """The server's address; one of our own is started where none is given."""
    with ExitStack() as stack:
        if options.url is not None:
            yield options.url.rstrip("/")
            return
        with console.status("starting pit serve"):
            url = stack.enter_context(
                server(server_command(config.output), output / "server.log", options.start_deadline_s)
            )
        yield url


async def _collect(
    url: str,
    plan: Plan,
    pairs: Sequence[PreferencePair],
    answers: AnswerFile,
    options: Options,
    console: Console,
) -> None:
    """Ask for everything that is missing; `concurrency` examples at a time, one call each."""

    async def ask(client: Client, pair: PreferencePair, advance: Callable[[int], None]) -> None:
        def keep(system: str, record: dict[str, Any]) -> None:
            answers.add(pair.id, system, record)
            advance(1)

        known = answers.of(pair.id)
        advance(len(known))
        await ask_all(client, plan, pair, known, keep)

    await collect(
        url, pairs, ask, pairs[0],
        calls=len(pairs) * len(plan.systems()), concurrency=options.concurrency,
        deadline_s=options.deadline_s, console=console,
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------- judging


def _report(
    config: RunConfig, plan: Plan, judge: JudgeName, pairs: Sequence[PreferencePair], answers: AnswerFile,
    settings: dict[str, Any], output: Path, console: Console,
) -> None:  # fmt: skip
    from training.analysis import Analysis, complete

    kept, left_out = complete(pairs, answers.known, plan)
    if not kept:
        raise TrainingError(f"no example was answered by every system: {left_out}")
    if judge == "gold":
        found = replace(Analysis(kept, answers.known, plan).figures(), left_out=left_out)
        bars, sections = gold_bars(found), gold_sections(found)
        text = as_json(settings, found, bars)
    else:
        from training.edit_analysis import edit_figures

        toxicity = _toxicity_judge(config, kept, console) if judge == "edit+toxicity" else None
        edited = replace(edit_figures(kept, answers.known, plan, toxicity), left_out=left_out)
        bars, sections = edit_bars(edited.edits[edited.headline]), edit_sections(edited)
        text = as_json(settings, edited, bars)
    show(sections, bars, console)
    title = f"Evaluation of {config.name}"
    (output / "report.md").write_text(markdown(title, sections, bars), encoding="utf-8")
    (output / "report.json").write_text(text, encoding="utf-8")
    console.print(f"\n{output}: report.md, report.json, responses.jsonl")


def _toxicity_judge(config: RunConfig, pairs: Sequence[PreferencePair], console: Console) -> Any:
    """Fit on the training file, without any text that is judged here."""
    from training.judges import ToxicityJudge

    assert config.data.path is not None and config.data.format != "helpdesk"
    heldout = {text for pair in pairs for text in (pair.rejected, pair.chosen, *pair.references)}
    training = load_pairs(config.data.format, config.data.path).pairs
    with console.status("fitting the toxicity judge"):
        return ToxicityJudge([p for p in training if p.rejected not in heldout and p.chosen not in heldout])
