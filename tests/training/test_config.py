"""Configurations: what ships is valid, what is wrong is named, a stage's digest covers what decides its
result."""

from pathlib import Path

import pytest

from tests.training.helpers import TINY, tiny_config
from training.config import RunConfig, load_config
from training.errors import ConfigError
from training.pipeline import check_batches, stages

SHIPPED = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.yaml"))


def needed(path: Path) -> list[str]:
    """Shipped configurations that read a file leave its place to the user."""
    return [] if "path:" in path.read_text() or "helpdesk" in path.read_text() else ["data.path=pairs.jsonl"]


@pytest.mark.parametrize("path", [*SHIPPED, TINY], ids=lambda path: path.stem)
def test_every_shipped_configuration_loads(path: Path) -> None:
    config = load_config(path, needed(path))
    check_batches(config)
    assert len({config.digest(stage.name) for stage in stages(config)}) >= 6


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_shipped_configuration_says_how_to_run_it(path: Path) -> None:
    assert f"pit-train run training/configs/{path.name}" in "\n".join(path.read_text().splitlines()[:6])


def test_overrides_are_yaml_values_at_a_path() -> None:
    config = load_config(
        TINY, ["seed=9", "data.pairs=300", "rl_improver.steps=[2, 3]", "gap_reward.loss=single"]
    )
    assert config.rl_improver is not None
    assert (config.seed, config.data.pairs, config.rl_improver.steps, config.gap_reward.loss) == (
        9,
        300,
        (2, 3),
        "single",
    )


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("data.pears=3", "data.pears"),
        ("learning_rate=3", "learning_rate"),
        ("seed.x=3", "'seed' is not a section"),
        ("seed", "must look like a.b=value"),
        ("seed=[1", "'seed=[1': the value is not YAML"),
        ("sft_policy.optimizer.batch=0", "sft_policy.optimizer.batch"),
        ("sft_policy.optimizer.steps=5", "either epochs or steps"),
        ("data.format=hh_rlhf", "data.path"),
        ("processes=0", "processes"),
        ("rl_improver.steps=[1]", "two numbers"),
        ("rl_improver.steps=[0, 0]", "rl_improver"),
        ("rl_improver.steps=[-1, 2]", "rl_improver.steps"),
        ("reward=null", "reward and rl_policy belong together"),
        ("length.reference=32", "length.reference must be at least length.response"),
        ("base.documents=10", "base: Value error, base.documents must fill"),
        ("base.path=somewhere", "base.path"),
        ("data.path=pairs.jsonl", "data.path: helpdesk writes its own data"),
        ("data.split=[0.5, 0.4, 0.3]", "split fractions must be above 0 and sum to 1"),
    ],
)
def test_what_is_wrong_is_named(override: str, named: str) -> None:
    overrides = [override] if "documents" not in override else [override, "base.optimizer.batch=16"]
    with pytest.raises(ConfigError) as error:
        load_config(TINY, overrides)
    assert named in str(error.value)


def test_what_only_some_data_or_models_have() -> None:
    existing = ["reader=null", "base.optimizer=null", "base.path=somewhere"]
    with pytest.raises(ConfigError, match=r"sft_policy\.replay: only a base model from scratch"):
        load_config(TINY, existing)
    load_config(TINY, [*existing, "sft_policy.replay=0"])
    with pytest.raises(ConfigError, match=r"evaluation\.judge: gold"):
        load_config(TINY, ["reader=null", "data.format=preference", "data.path=x", "evaluation.judge=gold"])


def test_a_gap_reward_cannot_start_from_a_reward_that_is_not_trained() -> None:
    without = ["reader=null", "reward=null", "rl_policy=null"]
    assert load_config(TINY, without).gap_reward.start == "improver_sft"
    with pytest.raises(ConfigError, match="no reward section"):
        load_config(TINY, [*without, "gap_reward.start=reward"])


@pytest.mark.parametrize(
    ("text", "message"), [("[1, 2]", "mapping"), ("a: [", "not YAML"), ("\udcff", "not YAML")]
)
def test_a_file_that_is_no_configuration(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text, errors="surrogateescape")
    with pytest.raises(ConfigError, match=message):
        load_config(path)
    with pytest.raises(ConfigError, match=r"none\.yaml: cannot be read"):
        load_config(tmp_path / "none.yaml")


def changed_stages(before: RunConfig, *overrides: str) -> set[str]:
    after = load_config(TINY, overrides)
    return {stage.name for stage in stages(after) if after.digest(stage.name) != before.digest(stage.name)}


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("rl_improver.beta=0.5", {"improver"}),
        ("rl_policy.beta=0.5", {"policy", "improver"}),
        ("gap_reward.loss=single", {"gap_reward", "improver"}),
        ("reward.optimizer.batch=4", {"reward", "gap_reward", "policy", "improver"}),
        ("sft_improver.optimizer.batch=4", {"improver_sft", "gap_reward", "improver"}),
        ("sft_policy.replay=0.1", {"policy_sft", "reward", "gap_reward", "policy", "improver"}),
        ("processes=2", set()),
        ("output=elsewhere", set()),
    ],
)
def test_a_setting_changes_the_digests_of_the_stages_that_depend_on_it(
    override: str, changed: set[str]
) -> None:
    assert changed_stages(load_config(TINY), override) == changed


@pytest.mark.parametrize("override", ["seed=8", "data.noise=0.5", "length.prompt=80", "base.documents=90"])
def test_what_all_stages_read_changes_all_digests(override: str) -> None:
    config = load_config(TINY)
    assert changed_stages(config, override) == {stage.name for stage in stages(config)}


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sft_policy.optimizer.batch: a batch of 8 .* 3 processes"):
        check_batches(tiny_config(tmp_path, "processes=3", "base.optimizer.batch=9"))
    with pytest.raises(ConfigError, match=r"rl_policy.prompts × samples: a batch of 6"):
        check_batches(tiny_config(tmp_path, "processes=4", "rl_policy.samples=3"))
