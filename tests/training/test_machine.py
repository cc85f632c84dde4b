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
