"""Configuration: one frozen model a stage, read from YAML with `a.b=c` overrides.

A configuration is never changed behind the user's back: what does not fit raises `ConfigError`.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from training.errors import ConfigError
from training.formats import Format
from training.judges.settings import EvaluationConfig
from training.machine import accelerators, place
from training.split import check_fractions

Checked = TypeVar("Checked", bound=BaseModel)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class DataConfig(_Frozen):
    """Where the preference pairs come from. `helpdesk` is written by synthetic.py and needs no file: `pairs`,
    `noise` and `habits` are its alone."""

    format: Literal["helpdesk"] | Format
    path: Path | None = None
    heldout_path: Path | None = None
    limit: int | None = Field(default=None, ge=10)
    pairs: int = Field(default=20_000, ge=30)
    noise: float = Field(default=1.0, gt=0)
    habits: float = Field(default=0.0, ge=0, le=1)
    heldout: int = Field(default=1_000, ge=10)
    split: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    split_key: Literal["prompt", "prompt+rejected", "opening"] = "prompt"

    @model_validator(mode="after")
    def _path_fits_format(self) -> DataConfig:
        if self.format != "helpdesk" and self.path is None:
            raise ValueError(f"data.path is needed for format {self.format!r}: add data.path=FILE")
        if self.format == "helpdesk" and (self.path or self.heldout_path):
            raise ValueError("data.path: helpdesk writes its own data; say what the file is (data.format)")
        check_fractions(self.split)
        return self


class LengthBudget(_Frozen):
    """Tokens for the prompt, the reference and the response (each with its end of turn).

    Pairs that do not keep to it are left out and counted (lengths.py).
    """

    prompt: int = Field(ge=8)
    reference: int = Field(ge=8)
    response: int = Field(ge=8)

    @model_validator(mode="after")
    def _response_becomes_reference(self) -> LengthBudget:
        if self.reference < self.response:
            raise ValueError(
                "length.reference must be at least length.response: a response is the next reference"
            )
        return self


class OptimizerConfig(_Frozen):
    """Steps, batch and learning rate. `batch` counts examples over all processes.

    `micro_batch` is how many of them a process takes into memory at once (all of its share without it); the
    gradients of the others are added up. `wsd` warms up, stays, and falls to zero over the last 40% of the
    steps.
    """

    kind: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = Field(gt=0)
    batch: int = Field(ge=1)
    micro_batch: int | None = Field(default=None, ge=1)
    epochs: float | None = Field(default=None, gt=0)
    steps: int | None = Field(default=None, ge=1)
    warmup: float = Field(default=0.05, ge=0, lt=1)
    weight_decay: float = Field(default=0.01, ge=0)
    schedule: Literal["linear", "constant", "cosine", "wsd"] = "linear"

    @model_validator(mode="after")
    def _one_length(self) -> OptimizerConfig:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give either epochs or steps, not both and not neither")
        return self


class ScratchModel(_Frozen):
    """A transformer trained from nothing, with a byte-level BPE tokenizer of its own."""

    architecture: Literal["llama", "qwen3"] = "qwen3"
    vocabulary: int = Field(default=768, ge=300)
    hidden: int = Field(default=128, ge=64, multiple_of=64)
    # Attention heads of 64; their number need not fit `hidden`, and four learn to copy sooner than two.
    heads: int = Field(default=4, ge=1)
    layers: int = Field(default=4, ge=1)
    mlp: int = Field(default=256, ge=32)
    # `induction` learns to copy any word; `copying` suffices where a value is known by its kind.
    start: Literal["copying", "induction"] = "copying"


class AdapterConfig(_Frozen):
    """LoRA (arXiv 2106.09685) on the base model in place of full fine-tuning.

    Policy, improver and rewards are then adapters over one base. `quantize: nf4` holds the frozen base in
    four bits while it trains (QLoRA, arXiv 2305.14314; needs bitsandbytes).
    """

    rank: int = Field(default=16, ge=1)
    alpha: float = Field(default=32, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    targets: Literal["all-linear"] | tuple[str, ...] = "all-linear"
    quantize: Literal["nf4"] | None = None


class ModelConfig(_Frozen):
    """How models are held while they train.

    `dtype` is that of the weights and of the computation. `auto`: float32 on a CPU; on a GPU bfloat16 for the
    computation and for frozen weights, float32 for weights that train (bfloat16 loses small updates).
    """

    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    gradient_checkpointing: bool = False
    adapter: AdapterConfig | None = None


class BaseConfig(_Frozen):
    """The base model: a directory or hub name (`path`), or one trained here from scratch."""

    path: str | None = None
    model: ScratchModel = ScratchModel()
    documents: int = Field(default=8_000, ge=10)
    recitation_first: int = Field(default=2_000, ge=0)
    recitation_share: float = Field(default=0.15, ge=0, le=1)
    optimizer: OptimizerConfig | None = None

    @model_validator(mode="after")
    def _scratch_needs_optimizer(self) -> BaseConfig:
        if (self.path is None) == (self.optimizer is None):
            raise ValueError("give base.path (an existing model) or base.optimizer (train one from scratch)")
        if self.optimizer is not None and self.documents < self.optimizer.batch:
            raise ValueError("base.documents must fill at least one batch of base.optimizer.batch")
        return self


class SftConfig(_Frozen):
    """Supervised fine-tuning; `replay` adds that share of base documents (scratch models only).

    `packing` fills rows up to the model's positions with whole examples that do not see each other, and
    `optimizer.batch` then counts rows.
    """

    optimizer: OptimizerConfig
    replay: float = Field(default=0.0, ge=0, le=1)
    packing: bool = False


class RewardConfig(_Frozen):
    optimizer: OptimizerConfig


class ReaderConfig(_Frozen):
    """A model that learns to read before the reward models start from it (reader.py; help desk only).

    It has the shape of `base.model`, and `base`'s tokenizer. It finds counting late and suddenly, with some
    seeds not at all: up to `attempts` times it starts anew, each time with twice as many exercises.
    """

    exercises: int = Field(ge=10)
    attempts: int = Field(default=1, ge=1)
    optimizer: OptimizerConfig


class GapRewardConfig(_Frozen):
    """The gap reward, and its two ablations.

    `loss: single` keeps only the wl > lw term; `pointwise` reads the candidate alone, so that the centred gap
    is a difference of pointwise rewards. `start` is the stage whose checkpoint its weights start from; or
    `path` names another model for it (directory or hub name), a causal LM or an encoder. `contrast` adds that
    share of pairs of a response and a damaged one (contrast.py), for data of mended texts. Without
    `require_fit`, RL follows a gap reward that failed the check before it (diagnostics.py).
    """

    optimizer: OptimizerConfig
    start: Literal["improver_sft", "reward"] = "improver_sft"
    path: str | None = None
    loss: Literal["five_terms", "single", "pointwise"] = "five_terms"
    centering: Literal["self", "antisymmetric"] = "antisymmetric"
    contrast: float = Field(default=0.0, ge=0, le=2)
    require_fit: bool = True
    ensemble: int = Field(default=1, ge=1, le=8)


class GuardConfig(_Frozen):
    """Stops an RL run that goes wrong and keeps the best weights it has seen (guard.py).

    All figures are means over the last `window` steps, on prompts that RL has not seen before. `judge` says
    what "best" is: `reward` is the reward that RL maximizes, `gold` the help desk's scorer, `pointwise` the
    share of responses that the pointwise reward finds better than their reference, a judge that the
    improver's RL does not follow. Without an improvement for `patience` windows the run ends. It ends at once
    when a bound is crossed: `kl` in nats a token, `copied` and `truncated` as shares, `edit` the least mean
    edit distance to the reference (share of characters), `words` how many times longer responses may become
    than in the first window.
    """

    judge: Literal["reward", "gold", "pointwise"]
    window: int = Field(default=5, ge=1)
    patience: int = Field(default=10, ge=1)
    kl: float | None = Field(default=None, gt=0)
    copied: float | None = Field(default=None, gt=0, le=1)
    truncated: float | None = Field(default=None, gt=0, le=1)
    edit: float | None = Field(default=None, gt=0, lt=1)
    words: float | None = Field(default=None, gt=1)


class RlConfig(_Frozen):
    """RLOO. For the improver, `steps` are the steps of phase 0 and of phase 1, in one ordered run.

    `micro_batch` is how many samples a process has in memory at once while it learns from them. With
    `kl_target` (nats a token) β starts at `beta` and follows the KL (arXiv 1909.08593 §2.2).
    """

    steps: tuple[Annotated[int, Field(ge=0)], ...]
    prompts: int = Field(ge=2)
    samples: int = Field(ge=2)
    micro_batch: int | None = Field(default=None, ge=1)
    learning_rate: float = Field(gt=0)
    beta: float = Field(ge=0)
    temperature: float = Field(default=1.0, gt=0)
    truncation_penalty: float = Field(default=-5.0, le=0)
    # Taken off the reward for each 4-gram of a response that stood in it before. Reward models see few loops
    # in their data and like longer answers; this is what keeps RL from repeating itself to please them.
    repetition_penalty: float = Field(default=0.5, ge=0)
    rollouts: Literal["transformers", "vllm_colocate", "vllm_server"] = "transformers"
    server: str | None = None
    # The same for each word above the length of the reference: for rewards that people's taste for long
    # answers has got into.
    length_penalty: float = Field(default=0.0, ge=0)
    kl_target: float | None = Field(default=None, gt=0)
    guard: GuardConfig | None = None

    @model_validator(mode="after")
    def _something_to_adapt(self) -> RlConfig:
        if self.kl_target is not None and not self.beta:
            raise ValueError("kl_target adapts beta, which must be above 0 to start from")
        return self

    @model_validator(mode="after")
    def _some_steps(self) -> RlConfig:
        if not sum(self.steps):
            raise ValueError("steps must not be zero altogether")
        if (self.rollouts == "vllm_server") != (self.server is not None):
            raise ValueError("server (a URL) belongs to rollouts: vllm_server, and is needed there")
        return self


class DpoConfig(_Frozen):
    """DPO of the improver on its own refinements, judged by the gap reward (dpo.py): in place of RL.

    For each of `prompts` references (half from the data, half from the policy) the fine-tuned improver writes
    `samples` refinements; the best and the worst make a pair when the best is better with a probability of at
    least `confidence`.
    """

    optimizer: OptimizerConfig
    prompts: int = Field(ge=2)
    samples: int = Field(default=8, ge=2)
    beta: float = Field(default=0.1, gt=0)
    temperature: float = Field(default=1.0, gt=0)
    confidence: float = Field(default=0.7, ge=0.5, lt=1)

    @model_validator(mode="after")
    def _fills_a_batch(self) -> DpoConfig:
        if self.prompts < self.optimizer.batch:
            raise ValueError("prompts must fill at least one batch: each gives one pair at most")
        return self


class RftConfig(_Frozen):
    """Rejection-sampling fine-tuning of the improver before its RL or DPO (rft.py).

    In each of `rounds`, for each of `prompts` references (half from the data, half from the policy), the
    improver of the round before writes `samples` refinements, and learns the one with the highest gap.
    """

    optimizer: OptimizerConfig
    rounds: int = Field(default=1, ge=1)
    prompts: int = Field(ge=2)
    samples: int = Field(default=16, ge=2)
    temperature: float = Field(default=0.7, gt=0)

    @model_validator(mode="after")
    def _fills_a_batch(self) -> RftConfig:
        if self.prompts < self.optimizer.batch:
            raise ValueError("prompts must fill at least one batch: each gives one example")
        return self


class SamplingConfig(_Frozen):
    """The sampling that the checkpoints recommend (generation_config.json)."""

    policy_temperature: float = Field(default=0.8, ge=0)
    improver_temperature: float = Field(default=0.4, ge=0)


class FeedbackConfig(_Frozen):
    """The next generation from users' feedback (`pit-train run CONFIG --from-feedback FILE`).

    `replay`: earlier pairs beside each pair of feedback, against forgetting. `heldout`: share of the prompts
    kept for calibration and comparison; `minimum`: fewest usable pairs. `prompts`: held-out prompts of each
    kind that the comparison takes at most. `tolerance`: how much worse than the live improver, as a
    difference of win rates, the next one may be on the original prompts (95% bound).
    A section given here stands in the place of the run's own.
    """

    replay: float = Field(default=1.0, ge=0)
    heldout: float = Field(default=0.25, gt=0, lt=1)
    minimum: int = Field(default=200, ge=10)
    prompts: int = Field(default=500, ge=10)
    tolerance: float = Field(default=0.02, ge=0, le=1)
    sft_improver: SftConfig | None = None
    gap_reward: GapRewardConfig | None = None
    rft_improver: RftConfig | None = None
    rl_improver: RlConfig | None = None
    dpo_improver: DpoConfig | None = None


class GenerationConfig(_Frozen):
    """Where a later generation goes on from. Written by `--from-feedback` (generations.py), not by hand.

    `parent` is the run directory of the generation before, `checkpoints` the content hash of each model in
    it; `file` holds the feedback, `feedback` is its hash.
    """

    number: int = Field(ge=1)
    parent: Path
    checkpoints: dict[str, str]
    file: Path
    feedback: str


class RunConfig(_Frozen):
    """A whole run, preference pairs in, policy, improver and gap reward out."""

    name: str
    output: Path
    seed: int = 7
    processes: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    improve_turn: str = "Please improve your answer."
    model: ModelConfig = ModelConfig()
    saves: int = Field(default=4, ge=1)
    # Names that transformers' report_to knows (trackers.py); metrics.jsonl is written in any case.
    trackers: tuple[str, ...] = ()
    # What writes the samples that are made before training on them: the policy's references of phase 1, and
    # for rft_improver and dpo_improver the refinements (references.py).
    references: Literal["transformers", "vllm"] = "transformers"
    data: DataConfig
    length: LengthBudget
    base: BaseConfig
    sft_policy: SftConfig
    sft_improver: SftConfig
    reader: ReaderConfig | None = None
    reward: RewardConfig | None = None
    gap_reward: GapRewardConfig
    rl_policy: RlConfig | None = None
    rft_improver: RftConfig | None = None
    rl_improver: RlConfig | None = None
    dpo_improver: DpoConfig | None = None
    sampling: SamplingConfig = SamplingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    feedback: FeedbackConfig = FeedbackConfig()
    generation: GenerationConfig | None = None

    @model_validator(mode="after")
    def _stages_fit(self) -> RunConfig:
        if (self.reward is None) != (self.rl_policy is None):
            raise ValueError(
                "reward and rl_policy belong together: the policy is trained on the pointwise reward"
            )
        if self.reader is not None and (self.reward is None or self.data.format != "helpdesk"):
            raise ValueError("reader is for data.format 'helpdesk' alone, and a reward must start from it")
        if self.reader is not None and self.base.path is not None:
            raise ValueError("reader is for a base model from scratch; an existing model can read already")
        for name in ("sft_policy", "sft_improver"):
            if self.base.path is not None and getattr(self, name).replay:
                raise ValueError(f"{name}.replay: only a base model from scratch has documents to replay")
        if "gold" in self.evaluation.judges and self.data.format != "helpdesk":
            raise ValueError("evaluation.judge: gold reads the helpdesk's responses only")
        if self.gap_reward.start == "reward" and self.reward is None:
            raise ValueError("gap_reward.start is 'reward', but there is no reward section")
        if self.model.adapter is not None:
            self._adapters_fit()
        if self.rl_policy is not None and len(self.rl_policy.steps) != 1:
            raise ValueError("rl_policy.steps takes one number")
        if (self.rl_improver is None) == (self.dpo_improver is None):
            raise ValueError("give rl_improver (RLOO) or dpo_improver (DPO), not both and not neither")
        if self.rl_improver is not None and len(self.rl_improver.steps) != 2:
            raise ValueError("rl_improver.steps takes two numbers: the steps of phase 0 and of phase 1")
        self._guards_fit()
        return self

    def _guards_fit(self) -> None:
        for name in ("rl_policy", "rl_improver"):
            rl: RlConfig | None = getattr(self, name)
            if rl is None or rl.guard is None:
                continue
            if rl.guard.judge == "gold" and self.data.format != "helpdesk":
                raise ValueError(f"{name}.guard.judge: there is a gold scorer for data.format helpdesk alone")
            if rl.guard.judge == "pointwise" and (self.reward is None or name == "rl_policy"):
                raise ValueError(
                    f"{name}.guard.judge: pointwise needs a reward section, and judges improvers"
                )
            if name == "rl_policy" and (rl.guard.copied or rl.guard.edit):
                raise ValueError(f"{name}.guard: a policy has no reference to copy or to edit")

    def _adapters_fit(self) -> None:
        if self.reader is not None:
            raise ValueError("model.adapter: adapters share one base, and the reader would be another one")
        for name in ("sft_policy", "sft_improver", "reward", "gap_reward", "rft_improver"):
            section = getattr(self, name)
            if section is not None and section.optimizer.kind == "muon":
                raise ValueError(
                    f"model.adapter: {name}.optimizer.kind must be adamw; muon is for whole matrices"
                )

    @property
    def gap_turn(self) -> str | None:
        """The improve turn of the gap reward's input; None where it reads the candidate alone."""
        return None if self.gap_reward.loss == "pointwise" else self.improve_turn

    @property
    def process_count(self) -> int:
        """Training processes: those that a launcher started, else `processes`.

        `auto` is one for each GPU; without one, one for each core (at most four, one thread each: two small
        processes beat one with two threads).
        """
        launched = place()
        if launched is not None:
            return launched.size
        if self.processes != "auto":
            return self.processes
        return accelerators() or min(os.cpu_count() or 1, 4)

    def digest(self, stage: str) -> str:
        """Content hash of every setting that decides a stage's result, those of earlier stages too."""
        record = self.model_dump(mode="json", include={*_COMMON, *_sections(stage)})
        for parent, name, value in _LATER:
            section = record.get(parent) if parent else record
            if section and name in section and section[name] == value:
                del section[name]
        if stage.startswith("improver") and stage != "improver_sft" and self.references != "transformers":
            record["references"] = self.references
        if self.generation is not None:
            # What is read, by content, wherever it stands.
            record["generation"] = self.generation.model_dump(mode="json", exclude={"parent", "file"})
            record["feedback"] = [self.feedback.replay, self.feedback.heldout]
        return "sha256:" + hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def micro_batches(batch: int, processes: int, micro_batch: int | None) -> tuple[int, int]:
    """Examples in a micro-batch, and how many micro-batches make up each process's share of a batch.

    Raises:
        ConfigError: the batch does not divide.
    """
    share, rest = divmod(batch, processes)
    size = min(micro_batch or share, share) or 1
    if rest or share % size:
        micro = f" in micro-batches of {micro_batch}" if micro_batch else ""
        raise ConfigError(
            f"a batch of {batch} does not divide between {processes} processes{micro}; "
            f"choose a multiple of {processes * (micro_batch or 1)}, or set processes=1"
        )
    return size, share // size


# Settings that came later: at the value that says what was done before, they are no reason to train again.
_LATER = (("data", "habits", 0.0), ("reader", "attempts", 1), ("", "rft_improver", None))

_COMMON = ("name", "seed", "improve_turn", "data", "length", "model", "base", "sampling")
_BEFORE_RFT = ("sft_policy", "sft_improver", "reader", "reward", "gap_reward", "rl_policy")
# A stage's own settings and those of the stages whose result it reads.
_SECTIONS: dict[str, tuple[str, ...]] = {
    "base": (),
    "policy_sft": ("sft_policy",),
    "improver_sft": ("sft_improver",),
    "reader": ("reader",),
    "reward": ("sft_policy", "reader", "reward"),
    "gap_reward": ("sft_policy", "sft_improver", "reader", "reward", "gap_reward"),
    "policy": ("sft_policy", "reader", "reward", "rl_policy"),
    "improver_rft": (*_BEFORE_RFT, "rft_improver"),
    "improver": (*_BEFORE_RFT, "rft_improver", "rl_improver", "dpo_improver"),
}


def _sections(stage: str) -> tuple[str, ...]:
    several = ("gap_reward", "improver_rft")
    return _SECTIONS[next((name for name in several if stage.startswith(name)), stage)]


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read YAML and apply overrides of the form `a.b=value` (the value is YAML too).

    Raises:
        ConfigError: the file, a key or a value is wrong; the message names it.
    """
    record = read_settings(path, "the path of a YAML file", "training/configs/demo.yaml")
    return checked(RunConfig, record, overrides, path, "run")


def read_settings(path: Path, wanted: str, example: str) -> dict[str, Any]:
    """The mapping in a YAML file; `wanted` and `example` are for the messages. Raises `ConfigError`."""
    try:
        record = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give {wanted}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not YAML: {error}") from error
    if not isinstance(record, dict):
        raise ConfigError(f"{path}: must hold a mapping of keys, see {example}")
    return record


def checked(
    model: type[Checked], record: dict[str, Any], overrides: Sequence[str], path: Path, whole: str
) -> Checked:
    """The settings of a record with its overrides; `whole` is what a fault of no single key is about.
    Raises `ConfigError`, which names each fault."""
    for override in overrides:
        apply_override(record, override)
    try:
        return model.model_validate(record)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc'])) or whole}: {e['msg']}" for e in error.errors()]
        raise ConfigError(f"{path}:\n" + "\n".join(lines)) from error


def apply_override(record: dict[str, Any], override: str) -> None:
    """Set `a.b` of a record from `a.b=value`. Raises `ConfigError`: it does not look like that."""
    key, separator, value = override.partition("=")
    if not separator or not key:
        raise ConfigError(f"override {override!r}: must look like a.b=value")
    *parents, leaf = key.split(".")
    node = record
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"override {override!r}: {parent!r} is not a section")
    try:
        node[leaf] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"override {override!r}: the value is not YAML") from error
