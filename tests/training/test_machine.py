"""How many processes train: what a launcher has started, one a GPU, or one a core."""

from pathlib import Path

import pytest

from tests.training.helpers import tiny_config
from training import config as config_module
from training.errors import ConfigError
from training.machine import Place, place
from training.pipeline import check_settings


@pytest.fixture(autouse=True)
def not_launched(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize(
    ("processes", "gpus", "cores", "expected"),
    [("auto", 0, 2, 2), ("auto", 0, 64, 4), ("auto", 8, 64, 8), ("auto", 1, 64, 1), ("3", 8, 64, 3)],
)
def test_one_process_for_each_gpu_and_without_one_for_each_core(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, processes: str, gpus: int, cores: int, expected: int
) -> None:
    """Cores say nothing about how many GPUs there are: 64 workers on 8 of them would not fit."""
    monkeypatch.setattr(config_module, "accelerators", lambda: gpus)
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert tiny_config(tmp_path, f"processes={processes}").process_count == expected


def test_a_launcher_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert place() is None
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(config_module, "accelerators", lambda: 8)
    assert place() == Place(1, 2)
    assert tiny_config(tmp_path, "processes=auto").process_count == 2
    check_settings(tiny_config(tmp_path, "processes=2"))
    with pytest.raises(ConfigError, match="processes: the configuration says 4, the launcher started 2"):
        check_settings(tiny_config(tmp_path, "processes=4"))


ADAMW = tuple(
    f"{stage}.optimizer.kind=adamw"
    for stage in ("base", "sft_policy", "sft_improver", "reader", "reward", "gap_reward")
)
FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.mark.parametrize(
    ("environment", "overrides", "message"),
    [
        ({**FSDP, "FSDP_VERSION": "1"}, ADAMW, "fsdp_version must be 2"),
        ({**FSDP, "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, ADAMW, "fsdp_cpu_ram_efficient_loading must be"),
        (FSDP, (), "base.optimizer.kind must be adamw"),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_DEEPSPEED_ZERO_STAGE": "3"},
            ADAMW,
            "zero3_save_16bit_model must be true",
        ),
        (
            {"ACCELERATE_USE_DEEPSPEED": "true"},
            (*(o for o in ADAMW if "reader" not in o), "reader=null", "model.adapter.rank=4"),
            "model.adapter does not go with DeepSpeed",
        ),
        ({"ACCELERATE_USE_DEEPSPEED": "true"}, (), "base.optimizer.kind must be adamw"),
    ],
)
def test_what_would_go_wrong_when_divided_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    environment: dict[str, str],
    overrides: tuple[str, ...],
    message: str,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=message):
        check_settings(tiny_config(tmp_path, *overrides))
    if message.startswith("base"):
        check_settings(tiny_config(tmp_path, *ADAMW))
