"""vLLM rollouts: how the options reach the trainer, and what is refused. Nothing is generated here."""

from pathlib import Path

import pytest

from tests.training.helpers import tiny_config
from training import rollouts
from training.errors import ConfigError


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ((), {}),
        (("rl_improver.rollouts=vllm_colocate",), {"use_vllm": True, "vllm_mode": "colocate"}),
        (
            ("rl_improver.rollouts=vllm_server", "rl_improver.server=http://h:1"),
            {"use_vllm": True, "vllm_mode": "server", "vllm_server_base_url": "http://h:1"},
        ),
    ],
)
def test_options_are_those_that_the_trainer_knows(
    tmp_path: Path, overrides: tuple[str, ...], expected: dict[str, object]
) -> None:
    from dataclasses import fields

    from trl import RLOOConfig

    found = rollouts.rollout_arguments(tiny_config(tmp_path, *overrides).rl_improver)
    assert found == expected
    assert set(found) <= {field.name for field in fields(RLOOConfig)}


def test_a_server_needs_its_url_and_only_a_server_has_one(tmp_path: Path) -> None:
    for override in ("rl_improver.rollouts=vllm_server", "rl_improver.server=http://h:1"):
        with pytest.raises(ConfigError, match="server"):
            tiny_config(tmp_path, override)


def test_vllm_is_refused_where_it_cannot_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = tiny_config(tmp_path, "rl_policy.rollouts=vllm_colocate")
    monkeypatch.setattr(rollouts, "find_spec", lambda _: object())
    monkeypatch.setattr(rollouts, "_gpu", lambda: False)
    with pytest.raises(ConfigError, match=r"rl_policy\.rollouts=vllm_colocate needs a GPU"):
        rollouts.check_rollouts(config)
    monkeypatch.setattr(rollouts, "_gpu", lambda: True)
    rollouts.check_rollouts(config)
    bad = tiny_config(tmp_path, "rl_policy.rollouts=vllm_server", "rl_policy.server=h")
    with pytest.raises(ConfigError, match="give a URL"):
        rollouts.check_rollouts(bad)
    monkeypatch.setattr(rollouts, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match="needs vLLM: pip install"):
        rollouts.check_rollouts(config)
