"""Evaluation through the server that answers users: ask every system, judge the answers, print and keep the
tables.

In the pipeline this stands after training. It talks HTTP to `pit serve` (its own, or one that runs) and
therefore measures the real loop, gate and sampling. A run that was killed goes on where it stopped.

Several judges may judge the same answers; judging again asks no system again.

Deviation from the paper: beside its kinds of judges (a language model, a reward model, people) there are a
gold scorer and edit distances.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console

from training.analysis import Analysis, complete
from training.answers import AnswerFile, set_aside
from training.bars import edit_bars, gold_bars
from training.collect import collect
from training.config import RunConfig
from training.contests import comparisons, make_contests, system_texts, write_texts
from training.data import PreferencePair, load_pairs
from training.errors import ConfigError, DataError, TrainingError
from training.judges import ToxicityJudge
from training.judges.choice import check_judges
from training.judges.joint import JointMetric
from training.judges.settings import JudgeName
from training.judging import OWN, Confirm, judge_comparisons
from training.report import as_json, edit_sections, gold_sections, markdown, show
from training.serving import CHECKPOINTS, server, server_command
from training.synthetic import make_pairs
from training.systems import Client, Plan, ask_all

HUMAN_TEXTS = ("chat_pairs", "defacto")
"""Formats of drafts that people rewrote."""


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
    judges: tuple[JudgeName, ...] = ()
    again: bool = False
    confirm: Confirm = lambda question: False
    deadline_s: float = 120.0
    start_deadline_s: float = 600.0


def evaluate(config: RunConfig, options: Options, console: Console) -> Path:
    """Run an evaluation; return the directory with responses.jsonl, report.md and report.json.

    Raises:
        ConfigError: no judge fits the data, or earlier answers have other settings, or a judge that costs
            was not confirmed.
        TrainingError: the server cannot be reached, does not start, or fails; what was answered is kept.
    """
    judges = options.judges or config.evaluation.judges or (default_judge(config),)
    check_judges(judges, config.evaluation)
    plan = Plan(
        iterations=options.iterations,
        self_refine_iterations=min(3, options.iterations),
        temperature=options.temperature,
        seed=options.seed,
        from_draft=_from_draft(config, judges),
    )
    compared = comparisons(plan, config.evaluation.compare)
    pairs = examples(config, options.examples, options.seed)
    output = options.output or config.output / "evaluation"
    settings = asdict(plan) | {"data": config.data.format, "models": _models(config, options)}
    path = output / "responses.jsonl"
    if options.again:
        set_aside(path)
    started = time.monotonic()
    with AnswerFile(path, settings) as answers:
        todo = [pair for pair in pairs if set(plan.systems()) - set(answers.of(pair.id))]
        known, named = len(pairs) - len(todo), ", ".join(judges)
        console.print(f"{len(pairs)} held-out examples, {known} answered before; judge {named}")
        if todo:
            with _url(config, options, output, console) as url:
                asyncio.run(_collect(url, plan, todo, answers, options, console))
        console.print(f"answers: {time.monotonic() - started:.0f} s")
        pairs, left_out = complete(pairs, answers.known, plan)
        if not pairs:
            raise TrainingError(f"no example was answered by every system: {left_out}")
        texts = system_texts(pairs, answers.known, plan)
        write_texts(output / "texts.jsonl", pairs, texts)
        for judge in judges:
            if judge in OWN:
                _report(config, plan, judge, pairs, answers, settings, left_out, output, console)
        if set(judges) - set(OWN) or len(judges) > 1:
            contests = make_contests(pairs, texts, compared)
            judge_comparisons(config, judges, contests, output, options.confirm, console)
    return output


def default_judge(config: RunConfig) -> JudgeName:
    """The data's own.

    Raises:
        ConfigError: it has none.
    """
    if config.data.format == "helpdesk":
        return "gold"
    if config.data.format in HUMAN_TEXTS:
        return "edit"
    raise ConfigError(
        f"data of format {config.data.format!r} has no judge of its own. Give --judge reward_model, llm or "
        "people, or --judge edit where y_w is a rewrite of y_l"
    )


def _from_draft(config: RunConfig, judges: Sequence[JudgeName]) -> bool:
    """Whether the systems improve the data's draft.

    Raises:
        ConfigError: the judges do not fit the data, or each other.
    """
    gold, edit = "gold" in judges, any(judge.startswith("edit") for judge in judges)
    if gold and config.data.format != "helpdesk":
        raise ConfigError(
            f"judge gold reads the helpdesk's responses only, and data.format is {config.data.format!r}"
        )
    start = config.evaluation.start
    if (gold and (edit or start == "draft")) or (edit and start == "policy"):
        raise ConfigError(
            "judge gold judges improvements of the policy's answers, judge edit those of the data's drafts: "
            "one of them, and evaluation.start as it needs it or not at all"
        )
    return edit or start == "draft" or (start is None and config.data.format in HUMAN_TEXTS)


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
        draw = partial(make_pairs, noise=data.noise, habits=data.habits)
        seen = {pair.prompt[0]["content"] for pair in draw(data.pairs, config.seed)}
        others = draw(data.heldout + 200, config.seed + 1_000_003)
        seen |= {pair.prompt[0]["content"] for pair in others}
        drawn = draw(count + count // 10 + 100, config.seed + 2_000_003 + seed)
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
    settings: dict[str, Any], left_out: dict[str, int], output: Path, console: Console,
) -> None:  # fmt: skip
    """The full report of a judge of the data itself: report.md and report.json."""
    settings = settings | {"judge": judge}
    if judge == "gold":
        found = replace(Analysis(pairs, answers.known, plan).figures(), left_out=left_out)
        bars, sections = gold_bars(found), gold_sections(found)
        text = as_json(settings, found, bars)
    else:
        from training.edit_analysis import edit_figures

        metric = joint_metric(config, pairs, console) if judge == "edit+toxicity" else None
        edited = edit_figures(pairs, answers.known, plan, metric.toxicity if metric else None)
        edited = replace(edited, left_out=left_out)
        if metric:
            texts = system_texts(pairs, answers.known, plan)
            named = {{"y_w": "human"}.get(name, name): each for name, each in texts.items() if name != "y_l"}
            edited = replace(edited, joint=metric.figures(pairs, named))
        bars = edit_bars(edited.edits[edited.headline], config.evaluation.bars)
        sections = edit_sections(edited)
        text = as_json(settings, edited, bars)
    show(sections, bars, console)
    title = f"Evaluation of {config.name}"
    (output / "report.md").write_text(markdown(title, sections, bars), encoding="utf-8")
    (output / "report.json").write_text(text, encoding="utf-8")
    console.print(f"\n{output}: report.md, report.json, responses.jsonl")


def joint_metric(config: RunConfig, pairs: Sequence[PreferencePair], console: Console) -> JointMetric:
    """ParaDetox's, fitted on the training file without any text of `pairs`, which it shall judge."""
    assert config.data.path is not None and config.data.format != "helpdesk"
    heldout = {text for pair in pairs for text in (pair.rejected, pair.chosen, *pair.references)}
    training = load_pairs(config.data.format, config.data.path).pairs
    training = [p for p in training if p.rejected not in heldout and p.chosen not in heldout]
    with console.status("fitting the judges of toxicity and fluency"):
        return JointMetric(ToxicityJudge(training), training)
