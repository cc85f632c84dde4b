"""Read and validate a checkpoint directory: the manifest `pit.json` and the hashes it names.

The format is specified in docs/checkpoint.md. Everything here is a plain read: no torch, no engine.
"""

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from app.errors import CheckpointError

MANIFEST = "pit.json"
FORMAT = 1
Role = Literal["policy", "improver", "policy+improver", "gap_reward", "reward", "reader"]
Flag = Literal["policy", "improver", "gap_reward"]
FLAGS: tuple[Flag, ...] = ("policy", "improver", "gap_reward")
ROLES_FOR: dict[Flag, tuple[Role, ...]] = {
    "policy": ("policy", "policy+improver"),
    "improver": ("improver", "policy+improver"),
    "gap_reward": ("gap_reward",),
}


class ManifestPart(BaseModel):
    """Parts of the manifest may gain fields within a format: unknown ones are ignored."""

    model_config = ConfigDict(extra="ignore", frozen=True)


class ChatMessage(ManifestPart):
    role: str
    content: str


class GoldenGeneration(ManifestPart):
    """A sample of a generating role: what the tokenizer and the weights must give again."""

    messages: list[ChatMessage]
    prompt_ids: list[int] = Field(min_length=1)
    completion_ids: list[int] = Field(min_length=1)
    logprobs: list[float]

    @model_validator(mode="after")
    def _same_length(self) -> Self:
        if len(self.logprobs) != len(self.completion_ids):
            raise ValueError("logprobs and completion_ids differ in length")
        return self


class GoldenScore(ManifestPart):
    """A sample of the gap reward; `score` is the raw logit."""

    messages: list[ChatMessage]
    candidate: str
    baseline: str
    input_ids: list[int] = Field(min_length=1)
    score: float


class LengthBudget(ManifestPart):
    """Tokens for the prompt, the reference and the response."""

    prompt: int = Field(gt=0)
    reference: int = Field(gt=0)
    response: int = Field(gt=0)


class Calibration(ManifestPart):
    """P(new beats old) = sigmoid(a * gap + b), fitted on `n` held-out pairs with expected calibration error
    `ece`."""

    a: float
    b: float
    ece: float
    n: int


class Gap(ManifestPart):
    """`reads: candidate` is a reward that reads the candidate alone, its gap a difference of two scores."""

    reads: Literal["pair", "candidate"] = "pair"
    centering: Literal["self", "antisymmetric"]
    calibration: Calibration


class Manifest(ManifestPart):
    """`pit.json`, format 1. The provenance fields are informative and are kept as they are."""

    format: int
    role: Role
    improve_turn: str | None = None
    context_length: int = Field(gt=0)
    length_budget: LengthBudget
    gap: Gap | None = None
    base: str | None = None
    anchor: str | None = None
    generation: int = 0
    parent: str | None = None
    files: dict[str, str] = Field(min_length=1)
    golden: list[dict[str, Any]]
    version: str | None = None
    created: str | None = None

    @model_validator(mode="after")
    def _fields_of_the_role(self) -> Self:
        if not self.golden and self.role != "reader":
            raise ValueError("golden is empty; a server needs samples to check its computation with")
        if self.role not in ("reward", "reader") and not self.improve_turn:
            raise ValueError(f"improve_turn is missing; the role {self.role} needs it")
        if self.role == "gap_reward" and self.gap is None:
            raise ValueError("gap is missing; a gap_reward needs its centering and calibration")
        for sample in self.golden:
            (GoldenScore if self.role == "gap_reward" else GoldenGeneration).model_validate(sample)
        return self

    @property
    def content_hash(self) -> str:
        """`sha256:` + the hash of the sorted lines `NAME SHA256HEX`, one for each entry of `files`."""
        lines = "".join(
            f"{name} {digest.removeprefix('sha256:')}\n" for name, digest in sorted(self.files.items())
        )
        return "sha256:" + hashlib.sha256(lines.encode()).hexdigest()

    def golden_generations(self) -> list[GoldenGeneration]:
        return [GoldenGeneration.model_validate(sample) for sample in self.golden]

    def golden_scores(self) -> list[GoldenScore]:
        return [GoldenScore.model_validate(sample) for sample in self.golden]


@dataclass(frozen=True)
class SamplingDefaults:
    """The sampling that a checkpoint's generation_config.json recommends, and where it has no length the
    manifest's budget; None: neither says."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A directory that can be served. `manifest` is None for a plain model directory."""

    path: Path
    manifest: Manifest | None
    sampling: SamplingDefaults
    dtype: str
    model_context: int | None

    def context_length(self, limit: int) -> int:
        """The context in tokens: the manifest's, or else the model's own up to `limit`."""
        if self.manifest:
            return self.manifest.context_length
        return min(limit, self.model_context or limit)

    @property
    def identity(self) -> str:
        """Equal for two directories with the same files: they can share one engine."""
        return self.manifest.content_hash if self.manifest else str(self.path.resolve())


def read_checkpoint(path: Path, flag: Flag, *, verify: bool = True, weights: bool = True) -> Checkpoint:
    """Read the directory given for `--{flag}`; `verify` also hashes its files.

    `weights` False: an upstream has the model, and of the directory only the manifest is read. Raises
    `CheckpointError`: the directory is missing, is not a model, its manifest is corrupt, of another format or
    role, or a file is missing or differs from its hash.
    """
    option = f"--{flag.replace('_', '-')}"
    if not path.is_dir():
        state = "is a file, not a directory" if path.exists() else "does not exist"
        raise CheckpointError(f"{option} {path} {state}. Give the directory that training published.")
    config: dict[str, Any] = {}
    if weights:
        config = _read_json(
            path / "config.json", f"{option} {path} is not a model directory: it has no config.json."
        )
    manifest = _read_manifest(path)
    if manifest is None and not weights:
        raise CheckpointError(
            f"{option} {path} has no {MANIFEST}, which is all that is read of it beside {option}-url."
            f" Copy it there, or leave {option} out."
        )
    if manifest is None and flag != "policy":
        raise CheckpointError(
            f"{option} {path} has no {MANIFEST}. Only a policy serves without a manifest; publish the"
            " checkpoint again."
        )
    if manifest is not None:
        if manifest.role not in ROLES_FOR[flag]:
            wanted = " or ".join(repr(role) for role in ROLES_FOR[flag])
            raise CheckpointError(
                f"{option} {path} holds a checkpoint of role {manifest.role!r}, and this option needs"
                f" {wanted}."
                " Check that the directories are not swapped."
            )
        if verify and weights:
            _verify_files(path, manifest)
    sampling = _read_sampling(path)
    if sampling.max_tokens is None and manifest:
        sampling = replace(sampling, max_tokens=manifest.length_budget.response)
    dtype = config.get("dtype") or config.get("torch_dtype") or "float32"
    return Checkpoint(path, manifest, sampling, str(dtype), config.get("max_position_embeddings"))


def _read_json(path: Path, missing: str) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(missing) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror}.") from None
    except json.JSONDecodeError as error:
        raise CheckpointError(
            f"{path} is not valid JSON (line {error.lineno}, column {error.colno}: {error.msg}). Publish"
            " the checkpoint again."
        ) from None
    except UnicodeDecodeError:
        raise CheckpointError(f"{path} is not UTF-8 text. Publish the checkpoint again.") from None
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} must hold a JSON object, and holds a {type(content).__name__}.")
    return content


def _read_manifest(path: Path) -> Manifest | None:
    file = path / MANIFEST
    if not file.exists():
        return None
    content = _read_json(file, "")
    if content.get("format") != FORMAT:
        raise CheckpointError(
            f"{file} has format {content.get('format')!r}, and this version reads format {FORMAT}."
            " Install the version that wrote it, or publish the checkpoint again."
        )
    try:
        return Manifest.model_validate(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"]) or "the manifest"
        raise CheckpointError(f"{file}: {place}: {first['msg']}. Publish the checkpoint again.") from None


def _verify_files(path: Path, manifest: Manifest) -> None:
    for name, expected in manifest.files.items():
        file = path / name
        if not file.resolve().is_relative_to(path.resolve()):
            raise CheckpointError(f"{path / MANIFEST} names {name!r}, which lies outside of the checkpoint.")
        if not file.is_file():
            raise CheckpointError(
                f"{path} lacks {name}, which its manifest names. Copy the whole directory again."
            )
        try:
            with file.open("rb") as stream:
                digest = "sha256:" + hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as error:
            advice = f" Let the server's user read it: chmod -R a+rX {path}"
            mend = advice if isinstance(error, PermissionError) else ""
            raise CheckpointError(f"{file} cannot be read: {error.strerror}.{mend}") from None
        if digest != expected:
            raise CheckpointError(
                f"{file} differs from its manifest: its hash is {digest[:19]}…, the manifest says"
                f" {expected[:19]}…."
                " Copy the checkpoint again, or publish it again if the file was changed on purpose."
            )


def _read_sampling(path: Path) -> SamplingDefaults:
    file = path / "generation_config.json"
    if not file.exists():
        return SamplingDefaults()
    content = _read_json(file, "")
    greedy = content.get("do_sample") is False
    temperature, top_p = content.get("temperature"), content.get("top_p")
    return SamplingDefaults(
        temperature=0.0 if greedy else 1.0 if temperature is None else float(temperature),
        top_p=1.0 if top_p is None else float(top_p),
        top_k=content.get("top_k"),
        repetition_penalty=content.get("repetition_penalty"),
        max_tokens=content.get("max_new_tokens"),
    )
