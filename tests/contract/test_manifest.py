"""A checkpoint that training writes is one that the server reads, field by field, and the other way round."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from app.checkpoint import Calibration, Manifest, read_checkpoint
from app.errors import CheckpointError as Refused
from app.improve.turns import DEFAULT_RUBRIC, FEEDBACK_TURN, REFINE_TURN
from tests.tiny import make_tiny_checkpoint
from tests.training.helpers import publish_tiny, tiny_config
from training import synthetic
from training.checkpoint import check_files, content_hash, read_manifest, update_manifest

DOCUMENT = Path(__file__).parents[2] / "docs" / "checkpoint.md"
GAP = {"centering": "antisymmetric", "calibration": {"a": 2.5, "b": -0.1, "ece": 0.03, "n": 12}}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint of each role that training publishes."""
    config = tiny_config(tmp_path_factory.mktemp("run"))
    return {role: publish_tiny(config, role) for role in ("policy", "improver", "gap_reward", "reward")}


def specified() -> dict[str, Any]:
    """The example manifest of the specification."""
    block = re.search(r"```json\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    manifest: dict[str, Any] = json.loads(block[1])
    return manifest


@pytest.mark.parametrize("role", ["policy", "improver"])
def test_the_server_reads_what_training_writes(written: dict[str, Path], role: Any) -> None:
    checkpoint = read_checkpoint(written[role], role)
    assert checkpoint.manifest is not None
    record = read_manifest(written[role])
    assert (
        checkpoint.manifest.model_dump().items()
        >= {key: record[key] for key in Manifest.model_fields if key in record}.items()
    )
    assert checkpoint.manifest.content_hash == content_hash(written[role])
    samples = checkpoint.manifest.golden_generations()
    assert [s.model_dump() for s in samples] == record["golden"]
    assert len(samples) == 3


def test_a_gap_reward_is_read_once_it_is_calibrated(written: dict[str, Path]) -> None:
    with pytest.raises(Refused, match="gap is missing"):
        read_checkpoint(written["gap_reward"], "gap_reward")
    update_manifest(written["gap_reward"], {"gap": GAP})
    manifest = read_checkpoint(written["gap_reward"], "gap_reward").manifest
    assert manifest is not None and manifest.gap is not None
    assert manifest.gap.centering == "antisymmetric"
    assert manifest.gap.calibration == Calibration(a=2.5, b=-0.1, ece=0.03, n=12)
    assert [s.model_dump() for s in manifest.golden_scores()] == read_manifest(written["gap_reward"])[
        "golden"
    ]


@pytest.mark.parametrize("role", ["policy", "improver", "gap_reward", "reward"])
def test_training_writes_the_specified_fields_and_no_others(written: dict[str, Path], role: str) -> None:
    manifest, example = read_manifest(written[role]), specified()
    assert manifest.keys() == example.keys()
    assert manifest["role"] == role
    assert manifest["length_budget"].keys() == example["length_budget"].keys()
    assert (manifest["improve_turn"] is None) == (role == "reward")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", manifest["created"])
    for digest in (manifest["config_hash"], *manifest["files"].values()):
        assert re.fullmatch(r"sha256:[0-9a-f]{64}", digest)
    fields = {
        "gap_reward": {"messages", "candidate", "baseline", "input_ids", "score"},
        "reward": {"messages", "candidate", "input_ids", "score"},
    }.get(role, set(example["golden"][0]))
    assert all(sample.keys() == fields for sample in manifest["golden"])


def test_the_length_budget_fits_the_context(written: dict[str, Path]) -> None:
    manifest = read_manifest(written["improver"])
    assert sum(manifest["length_budget"].values()) < manifest["context_length"]


def test_the_example_of_the_specification_is_valid() -> None:
    Manifest.model_validate(specified())


@pytest.mark.parametrize("role", ["policy", "improver", "gap_reward"])
def test_training_reads_what_the_servers_tests_write(tmp_path: Path, role: str) -> None:
    directory = make_tiny_checkpoint(tmp_path / role, role)
    assert check_files(directory)["role"] == role
    manifest = Manifest.model_validate(read_manifest(directory))
    # The server's tests also hash generation_config.json, so the content hashes are compared file by file.
    assert (
        manifest.files.items()
        >= {name: digest for name, digest in manifest.files.items() if name == "model.safetensors"}.items()
    )


def test_self_refine_is_phrased_in_training_as_it_is_served() -> None:
    """The base model learns to follow these very sentences, so that the baseline gets a fair model."""
    assert (synthetic.FEEDBACK_TURN, synthetic.REFINE_TURN) == (FEEDBACK_TURN, REFINE_TURN)
    assert DEFAULT_RUBRIC in synthetic.RUBRICS.values()
