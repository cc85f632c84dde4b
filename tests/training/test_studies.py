"""Studies against the real server over fakes: what is asked, what is kept, what the figures say."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from tests.app.fakes import FakeEngine, FakeScorer
from tests.training import test_evaluate as base
from training.checkpoint import hash_files, read_manifest
from training.config import RunConfig
from training.errors import ConfigError, DataError, TrainingError
from training.evaluate import examples
from training.helpdesk import gold_score
from training.pipeline import stages
from training.studies import asking
from training.studies.config import StudyConfig, load_study
from training.studies.context import Context
from training.studies.elo import START, elo
from training.studies.figures import read_result
from training.studies.main_table import equal_tokens
from training.studies.overoptimisation import rl_steps
from training.studies.run import STUDIES, run_study
from training.studies.systems import Asked, System
from training.studies.variants import train_variant, variant_config

ROOT = Path(__file__).resolve().parents[2]
YAMLS = sorted((ROOT / "training/configs/studies").rglob("*.yaml"))


def checkpoint(directory: Path, digest: str = "", content: str = "weights") -> None:
    """A directory that passes for a checkpoint where nobody loads it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(content)
    manifest = {"format": 1, "role": "x", "gap": {"calibration": {}}, "files": hash_files(directory)}
    (directory / "pit.json").write_text(json.dumps(manifest | {"config_hash": digest}))


def trained(config: RunConfig) -> RunConfig:
    """A run whose stages all seem trained with its settings."""
    for stage in stages(config):
        checkpoint(config.output / stage.name, config.digest(stage.name), stage.name)
    (config.output / "data").mkdir()
    return config


def study_of(tmp_path: Path, kind: str, **settings: Any) -> StudyConfig:
    values: dict[str, Any] = {
        "kind": kind, "name": kind, "run": ROOT / "training/configs/demo.yaml", "seeds": [7],
        "overrides": ["data.pairs=60", "data.heldout=30", f"output={tmp_path / 'run'}"],
        "output": tmp_path / "studies", "examples": 6, "iterations": 4, "concurrency": 4, "deadline_s": 10.0,
    }  # fmt: skip
    return StudyConfig.model_validate(values | settings)


@contextmanager
def served(monkeypatch: pytest.MonkeyPatch, study: StudyConfig, **fakes: Any) -> Iterator[Any]:
    """Fake models behind the real server, in place of those that studies start; gives the models, and notes
    the commands that would have started servers."""
    run = study.run_config(7)
    if not run.output.exists():
        trained(run)
    pairs = examples(run, study.examples, study.example_seed)
    base.PROMPTS[:] = [pair.prompt[0]["content"] for pair in pairs]
    script: dict[str, Any] = {
        "context_length": 2048,
        "defaults": replace(FakeEngine().defaults, max_tokens=80),
    }
    values: dict[str, Any] = {
        "policy": FakeEngine(script=base.rude, model_id="p", **script),
        "improver": FakeEngine(script=base.perfect, model_id="i", **script),
        "scorer": FakeScorer(value=base.gold_value, context_length=4096),
    }
    with base.serving(**values | fakes) as (url, models):
        started = SimpleNamespace(policy=models.policy, improver=models.improver, commands=[])

        @contextmanager
        def no_server(command: Any, *_: Any) -> Iterator[str]:
            started.commands.append(list(command))
            yield url

        monkeypatch.setattr(asking, "server", no_server)
        yield started


def run(study: StudyConfig, **options: Any) -> tuple[Path, str]:
    console = Console(file=StringIO(), width=240)
    path = run_study(study, console, command="pit-train study x.yaml", **options)
    return path, console.file.getvalue()  # type: ignore[attr-defined]


def table(path: Path, title: str) -> dict[str, list[Any]]:
    found = next(one for one in read_result(path).figures.tables if one.title == title)
    return {str(row[0]): list(row[1:]) for row in found.rows}


# ---------------------------------------------------------------------------------------- whole studies


def test_the_main_table_through_the_real_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A policy that is always rude, an improver that is always perfect: the figures are known beforehand."""
    study = study_of(tmp_path, "main")
    with served(monkeypatch, study) as models:
        path, text = run(study)
    systems = table(path, "Systems")
    assert (systems["PIT"][0].value, systems["PIT"][3].value) == (6.5, 100)
    assert systems["SFT improver"][0].value == 6.5
    assert systems["best-of-4"][3].value == 0  # the policy says the same every time
    assert systems["Self-Refine"][3].value == 0
    assert [row[0].value for row in table(path, "PIT by iteration").values()][1:] == [6.5] * 4
    # The improver after SFT has a server of its own, with the run's policy and gap reward.
    directories = {command[command.index("--improver") + 1] for command in models.commands}
    assert {Path(each).name for each in directories} == {"improver", "improver_sft"}
    result = read_result(path)
    bars = {bar.name: bar.passed for bar in result.figures.bars}
    assert bars["PIT vs Original"] and not bars["prompts in all"]
    assert bars["PIT vs the best Self-Refine, 3 iterations each"]
    assert bars["PIT vs the best Self-Refine, the least of equal counts"]
    assert "MISS  prompts in all: 6" in text
    assert result.cost["answers"] > 0 and result.models["7"]["improver"].startswith("sha256:")


def test_a_second_study_asks_only_for_what_the_first_did_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path, "main")
    with served(monkeypatch, study) as models:
        path, _ = run(study)
        published = path.read_bytes()
        asked, starts = models.policy.started + models.improver.started, len(models.commands)
        assert "finished before" in run(study)[1]
        run(study, again=True)
        run(study_of(tmp_path, "elo"))
        assert (models.policy.started + models.improver.started, len(models.commands)) == (asked, starts)
        assert json.loads(published)["figures"] == json.loads(path.read_bytes())["figures"]
        # More examples: only the new one, drafted once, and improved with and without the gate.
        base.PROMPTS[:] = [pair.prompt[0]["content"] for pair in examples(study.run_config(7), 7, 1)]
        improved = models.improver.started
        run(study_of(tmp_path, "elo", examples=7))
        assert models.improver.started - improved == 4 + 4


def test_a_study_that_breaks_off_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from app.errors import EngineFailed

    study = study_of(tmp_path, "elo")
    broken = FakeEngine(context_length=2048, failure=EngineFailed("The engine died."))
    with served(monkeypatch, study, improver=broken) as models:
        with pytest.raises(TrainingError, match="no example was answered by every system"):
            run(study)
        assert not study.result.exists()
        models.improver.failure = None
        drafted = models.policy.started
        run(study)
        assert study.result.exists()
        # Three rubrics, four iterations, two turns: no draft is asked for again.
        assert models.policy.started - drafted == 6 * 3 * 4 * 2


def test_a_draft_that_failed_is_asked_for_again_not_taken_for_an_empty_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from app.errors import EngineFailed

    study = study_of(tmp_path, "main")
    systems = {"Original": System("draft"), "SFT improver": System("pit", "sft")}
    broken = FakeEngine(context_length=2048, failure=EngineFailed("The engine died."))
    with served(monkeypatch, study, policy=broken) as models:
        context = Context(study, study.run_config(7), Console(file=StringIO()))
        desk = context.desk({"sft": {"improver": context.run.output / "improver_sft"}})
        with pytest.raises(TrainingError, match="no example was answered"):
            desk.ask(systems)
        models.policy.failure = None
        assert len(desk.ask(systems).pairs) == 6


def test_a_new_improver_is_asked_anew_and_systems_without_it_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path, "elo")
    with served(monkeypatch, study) as models:
        run(study)
        asked, policy = models.improver.started, models.policy.started
        improver = tmp_path / "run" / "improver"
        (improver / "config.json").write_text("others")
        manifest = json.loads((improver / "pit.json").read_text())
        (improver / "pit.json").write_text(json.dumps(manifest | {"files": hash_files(improver)}))
        run(study)
        assert models.improver.started == 2 * asked
        assert models.policy.started == policy  # drafts and Self-Refine


def test_the_curriculum_serves_each_improver_with_the_runs_other_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {"phase_0": ["rl_improver.steps=[14, 0]"], "phase_1": ["rl_improver.steps=[0, 14]"]}
    study = study_of(tmp_path, "curriculum", variants=variants)
    with served(monkeypatch, study) as models:
        for name in variants:
            trained(variant_config(study, study.run_config(7), name))
        path, _ = run(study)
        served_by = [Path(command[command.index("--improver") + 1]) for command in models.commands]
    assert {path.parent.name for path in served_by} == {"run", "phase_0", "phase_1"}
    assert set(table(path, "With the gate")) == {"phase 0 alone", "phase 1 alone", "both phases", "no RL"}
    bars = read_result(path).figures.bars
    # All improvers are the same fake: nobody wins, and the bars say so.
    assert len(bars) == 4 and not any(bar.passed for bar in bars)


def test_after_rejection_sampling_its_last_improver_is_what_rl_began_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rft = "rft_improver={optimizer: {learning_rate: 0.1, batch: 8, epochs: 1}, prompts: 8}"
    variants = {"phase_0": ["rl_improver.steps=[14, 0]"], "phase_1": ["rl_improver.steps=[0, 14]"]}
    study = study_of(tmp_path, "curriculum", variants=variants)
    study = study.model_copy(update={"overrides": (*study.overrides, rft)})
    with served(monkeypatch, study) as models:
        for name in variants:
            trained(variant_config(study, study.run_config(7), name))
        path, _ = run(study)
        improvers = [Path(command[command.index("--improver") + 1]).name for command in models.commands]
    assert sorted(improvers) == ["improver", "improver", "improver", "improver_rft", "improver_sft"]
    assert "fine-tuning on the data alone" in table(path, "Without a gate")


def test_the_curriculum_shows_each_seed_where_there_are_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {"phase_0": ["rl_improver.steps=[14, 0]"], "phase_1": ["rl_improver.steps=[0, 14]"]}
    study = study_of(tmp_path, "curriculum", variants=variants, seeds=[7, 8])
    for seed in study.seeds:
        config = trained(study.run_config(seed))
        for name in variants:
            trained(variant_config(study, config, name))
    monkeypatch.setattr(base, "perfect", lambda chat: "It has color mud.")
    with served(monkeypatch, study):
        path, _ = run(study)
    rows = table(path, "Both phases, each training seed")
    assert set(rows) == {"7", "8"} and len(rows["7"]) == 4  # its mean, phase 0, phase 1, no RL


def test_every_seed_counts_and_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path, "main", seeds=[7, 8])
    trained(study.run_config(7))
    other = trained(study.run_config(8))
    assert other.output.name == "run-seed8"
    monkeypatch.setattr(base, "perfect", lambda chat: "It has color mud.")
    with served(monkeypatch, study):
        path, _ = run(study)
    assert set(table(path, "Each training seed")) == {"7", "8"}
    assert "n = 12 prompts" in next(t.text for t in read_result(path).figures.tables if t.title == "Systems")


# ---------------------------------------------------------------------------------------- parts


def test_only_the_stages_that_differ_are_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study = study_of(tmp_path, "gap_loss", variants={"single": ["gap_reward.loss=single"]})
    config = trained(study.run_config(7))
    single = config.output / "variants" / "single"
    missing: list[str] = []

    def train(variant: RunConfig, _: Any) -> None:
        missing.extend(s.name for s in stages(variant) if not (variant.output / s.name).exists())

    monkeypatch.setattr("training.studies.variants.run", train)
    train_variant(study, config, "single", Console(file=StringIO()))
    assert missing == ["gap_reward", "improver"]
    # Left by an earlier study: what can be shared is shared again, the rest is trained.
    missing.clear()
    shutil.rmtree(single / "policy")
    (single / "metrics.jsonl").write_text("figures of steps that are no more")
    for name in ("policy", "gap_reward"):
        checkpoint(single / name, "other settings", "others")
    train_variant(study, config, "single", Console(file=StringIO()))
    assert missing == ["gap_reward", "improver"]
    assert (single / "policy/config.json").read_text() == "policy"
    assert not (single / "metrics.jsonl").exists()


@pytest.mark.parametrize("path", YAMLS, ids=lambda path: path.stem)
def test_every_shipped_study_can_be_run(path: Path) -> None:
    study = load_study(path)
    assert study.name == path.stem and study.kind in STUDIES
    config = study.run_config(study.seeds[0])
    for name in study.variants:
        variant = variant_config(study, config, name)
        assert variant.output == config.output / "variants" / name
        assert variant.digest("base") == config.digest("base")  # it shares at least its data and its base
        assert variant.digest("improver") != config.digest("improver")


def test_wrong_settings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_text("kind: main\nrun: a.yaml\nseeds: [1]\nexamplez: 3\n")
    with pytest.raises(ConfigError, match="examplez"):
        load_study(path)
    with pytest.raises(ConfigError, match="cannot be read"):
        load_study(tmp_path / "no.yaml")
    with pytest.raises(ConfigError, match=r"variants\.phase_0 is needed"):
        variant_config(
            study_of(tmp_path, "curriculum"), study_of(tmp_path, "curriculum").run_config(7), "phase_0"
        )


def test_the_gate_and_the_candidates_leave_the_first_text_as_it_is() -> None:
    from training.synthetic import make_pairs

    pair = make_pairs(1, 5)[0]
    ungated, gated = System("pit", iterations=3), System("pit", iterations=5, gated=True, candidates=4)
    seeds = {system.request(pair, "x", 1)[1]["seed"] for system in (ungated, gated)}
    assert len(seeds) == 1
    assert ungated.request(pair, "x", 2)[1]["seed"] not in seeds
    assert System("pit", "sft").request(pair, "x", 1)[1]["seed"] not in seeds
    body = gated.request(pair, "x", 1)[1]
    assert (body["scoring"], body["patience"], body["candidates"]) == ("required", 5, 4)
    assert "temperature" not in body
    assert replace(gated, temperature=0.2).draft == System("draft", temperature=0.2)


def record(*totals: int) -> dict[str, Any]:
    return {
        "reference": "a",
        "iterations": [
            {"text": "b", "accepted": True, "tokens": {"prompt": total, "completion": 0, "cached": 0}}
            for total in totals
        ],
    }


def test_best_of_n_gets_as_many_candidates_as_pits_tokens_pay() -> None:
    asked = Asked([], {"PIT": [record(30, 30, 30, 500)], "best-of-4": [record(40)]})
    assert equal_tokens(asked, 3) == 9
    assert equal_tokens(asked, 4) == 16  # what the server allows
    assert equal_tokens(Asked([], {"PIT": [record(1)], "best-of-4": [record(400)]}), 1) == 1


def test_elo_ranks_by_who_wins_and_keeps_the_sum() -> None:
    found = elo({"best": [2.0] * 9, "middle": [1.0] * 9, "worst": [0.0] * 9}, orders=20, matches=600)
    assert found["best"].value > found["middle"].value > found["worst"].value
    assert sum(value.value for value in found.values()) == pytest.approx(3 * START)
    drawn = elo({"one": [1.0] * 9, "other": [1.0] * 9}, orders=5, matches=200)
    assert [value.value for value in drawn.values()] == [START, START]


def test_rl_curves_take_the_last_of_a_step_that_was_resumed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    steps = [
        {"stage": "policy", "step": 1, "reward": 9, "gold": 9},
        {"stage": "improver", "step": 1, "reward": 1, "gold": 1, "kl": 0},
        {"stage": "improver", "step": 2, "reward": 5, "gold": 5, "kl": 0},
        {"stage": "improver", "step": 2, "reward": 2, "gold": 3, "kl": 0},
    ]
    path.write_text("".join(json.dumps(step) + "\n" for step in steps) + '{"stage": "impr')
    assert [(step["reward"], step["gold"]) for step in rl_steps(path)] == [(1, 1), (2, 3)]
    path.write_text("")
    with pytest.raises(DataError, match="no figures"):
        rl_steps(path)


def test_a_desk_needs_every_system_of_an_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The policy is silent on one prompt: it is left out for every system, and said."""
    study = study_of(tmp_path, "elo")
    silent: list[str] = []

    def script(chat: Any) -> str:
        return "" if chat[0]["content"] in silent else "It has color mud."

    policy = FakeEngine(context_length=2048, script=script)
    with served(monkeypatch, study, policy=policy):
        silent.append(base.PROMPTS[2])
        console = Console(file=StringIO(), width=240)
        desk = Context(study, study.run_config(7), console).desk()
        asked = desk.ask({"Original": System("draft"), "PIT": System("pit")})
    assert len(asked.pairs) == len(asked.records["Original"]) == len(asked.texts("PIT")) == 5
    assert "1 of 6 examples left out: the policy's answer is empty" in console.file.getvalue()  # type: ignore[attr-defined]


# ---------------------------------------------------------------------------------------- each kind


class KnownGap:
    """A gap reward that says what gold says, in place of a trained one."""

    def raw(self, rows: Any) -> list[float]:
        score = gold_score
        return [score(x[-1]["content"], new) - score(x[-1]["content"], old) for x, new, old in rows]

    def probabilities(self, rows: Any) -> list[float]:
        return [float(gap > 0) if gap else 0.5 for gap in self.raw(rows)]


def test_the_sweep_asks_everything_at_every_temperature(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path, "temperature", grid=[0.2, 0.8], examples=4)
    with served(monkeypatch, study) as models:
        path, _ = run(study)
        heats = {sampling.temperature for sampling in models.policy.samplings}
        assert heats == {s.temperature for s in models.improver.samplings} == {0.2, 0.8}
    rows = table(path, "Each temperature")
    assert list(rows) == ["0.2", "0.8"] and all(
        row[1].value == 6.5 and row[2].value == 100 for row in rows.values()
    )
    assert all(bar.passed for bar in read_result(path).figures.bars)


def test_costs_add_up_and_nothing_dearer_and_worse_is_called_efficient(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(tmp_path, "cost", examples=4, iterations=2)
    with served(monkeypatch, study):
        path, _ = run(study)
    rows = table(path, "Quality and cost")
    draft = rows["Original"][2].value
    # Every word is a token: a draft of 8 words, then as many for each of n candidates.
    assert rows["best-of-2"][1].value == 8 + 2 * 8 and rows["best-of-16"][1].value == 8 + 16 * 8
    assert rows["PIT, 2"][2].value > rows["PIT, 1"][2].value > draft
    assert rows["PIT, 1"][3].value > 0 and rows["PIT, ungated, 1"][3].value == 0  # read by the gap reward
    assert rows["PIT, ungated, 1"][5] == "yes" and rows["best-of-16"][5] == ""


def test_own_samples_of_a_gap_reward_that_knows_gold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.studies.gap_scores.GapReward.of", lambda _: KnownGap())
    study = study_of(tmp_path, "own_samples", examples=4, iterations=2)
    with served(monkeypatch, study):
        path, _ = run(study)
    first, second = table(path, "PIT, ungated").values()
    assert (first[0].value, first[2].value, first[4]) == (100, 100, "4")
    assert second[4] == "0"  # the improver says the same again
    assert next(iter(table(path, "PIT, gated").values()))[0].value == 100


def test_pair_types_of_a_gap_reward_that_knows_gold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.studies.gap_scores.GapReward.of", lambda _: KnownGap())
    study = study_of(tmp_path, "pair_types", examples=40)
    trained(study.run_config(7))
    path, _ = run(study)
    means = [row[0].value for row in table(path, "Gap reward (five terms)").values()]
    assert means[0] > 0 and means[1] == means[2] == 0 and means[3] == -means[0]
    assert read_result(path).figures.bars[0].passed


def test_the_gap_loss_judges_every_gap_reward_on_the_same_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variants = {"single": ["gap_reward.loss=single"], "pointwise": ["gap_reward.loss=pointwise"]}
    study = study_of(tmp_path, "gap_loss", variants=variants, iterations=3)
    rows: list[Any] = []

    class Noting(KnownGap):
        def probabilities(self, given: Any) -> list[float]:
            rows.append([(new, old) for _, new, old in given])
            return super().probabilities(given)

    monkeypatch.setattr("training.studies.gap_scores.GapReward.of", lambda _: Noting())
    with served(monkeypatch, study) as models:
        for name in variants:
            trained(variant_config(study, study.run_config(7), name))
        path, _ = run(study)
        given = {tuple(Path(c[c.index(o) + 1]).parent.name for o in ("--improver", "--gap-reward"))
                 for c in models.commands}  # fmt: skip
    assert given == {("run", "run"), ("single", "single"), ("pointwise", "pointwise")}
    assert len(rows) == 12 and rows[:4] == rows[4:8] == rows[8:]
    judged = table(path, "As a judge")
    assert set(judged) == {"five terms", "wl > lw alone", "pointwise difference"}
    assert all(row[1].value == 100 for row in judged.values())


def test_the_curve_and_the_last_improver_of_a_long_rl(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The long one has no KL penalty, and then RL says no KL."""
    study = study_of(tmp_path, "overoptimisation", variants={"long": ["rl_improver.steps=[5, 25]"]})
    with served(monkeypatch, study):
        config = study.run_config(7)
        long = trained(variant_config(study, config, "long"))
        for run_of, golds in ((config, [1.0, 2.0]), (long, [1, 2, 3, 3, 3, 3, 1, 1, 1, 1, 1, 0.0])):
            lines = [
                {"stage": "improver", "step": i, "reward": i, "gold": gold, "repeated": 0}
                | ({"kl": 0.5} if run_of is config else {})
                for i, gold in enumerate(golds, 1)
            ]
            (run_of.output / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        path, _ = run(study)
    row = table(path, "Where gap reward and judge part")["long"]
    assert (row[0], row[1]) == ("12", "6") and row[7].value < row[5].value and row[8] == ""
    assert set(table(path, "The last improvers, served")) == {
        "the run", "the run, gated", "long", "long, gated",
    }  # fmt: skip


@pytest.mark.slow
def test_gap_scores_are_those_of_the_checkpoint(tmp_path: Path) -> None:
    from tests.training.helpers import publish_tiny, tiny_config
    from training.checkpoint import update_manifest
    from training.studies.gap_scores import GapReward

    config = tiny_config(tmp_path)
    directory = publish_tiny(config, "gap_reward")
    calibration = {"a": 2.0, "b": 0.0, "ece": 0.0, "n": 1}
    update_manifest(
        directory, {"gap": {"reads": "pair", "centering": "antisymmetric", "calibration": calibration}}
    )
    golden = read_manifest(directory)["golden"]
    rows = [(sample["messages"], sample["candidate"], sample["baseline"]) for sample in golden]
    gap = GapReward.of(config)
    assert gap.raw(rows) == pytest.approx([sample["score"] for sample in golden], abs=1e-4)
    turned = [(x, old, new) for x, new, old in rows]
    both = zip(gap.probabilities(rows), gap.probabilities(turned), strict=True)
    assert [one + other for one, other in both] == pytest.approx([1.0] * len(rows))
