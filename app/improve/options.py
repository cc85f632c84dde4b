"""What one run is asked to do, and what it has to do it with."""

import hashlib
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from app.engines.base import Engine, Message, Scorer
from app.errors import BadRequest
from app.improve.gate import GapCalibration
from app.improve.keep import Keep
from app.improve.turns import DEFAULT_RUBRIC, ModelName, StrategyName

ScoringMode = Literal["off", "best_effort", "required"]


@dataclass(frozen=True, slots=True)
class Models:
    """The models of a server. What is None was not given at start-up."""

    policy: Engine | None = None
    improver: Engine | None = None
    scorer: Scorer | None = None
    calibration: GapCalibration = field(default_factory=GapCalibration)
    improve_turn: str = ""
    identities: Mapping[str, str] = field(default_factory=dict)
    """Content hashes of the checkpoints that have one, by policy, improver, gap_reward."""

    def engine(self, name: ModelName) -> Engine:
        """Raises `BadRequest` for a model that the server does not have."""
        engine = self.policy if name == "policy" else self.improver
        if engine is None:
            advice = "Send a reference" if name == "policy" else "Choose another strategy"
            raise BadRequest(
                f"This server has no {name}. {advice}, or start it with --{name}.",
                param="reference" if name == "policy" else "strategy",
                code="model_not_available",
            )
        return engine


@dataclass(frozen=True, slots=True)
class Options:
    """The options of one run. None means: the checkpoint's own recommendation, or no limit.

    `deadline_s` counts from the start of the run; `max_total_tokens` covers drafting, improving and scoring.
    `edits`: the result says how it differs from the reference, and each iteration from its baseline.
    """

    messages: tuple[Message, ...]
    reference: str | None = None
    strategy: StrategyName = "pit"
    max_iterations: int = 3
    candidates: int = 1
    scoring: ScoringMode = "best_effort"
    min_win_probability: float = 0.5
    patience: int = 1
    max_total_tokens: int | None = None
    deadline_s: float | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()
    rubric: str = DEFAULT_RUBRIC
    keep: Keep | None = None
    edits: bool = False


def draw_seed() -> int:
    """A seed of 32 bits for a run that was given none: so every run can be run again."""
    return secrets.randbits(32)


def derive_seed(seed: int | None, *place: object) -> int | None:
    """A seed of 32 bits for one generation of a run: the same for the same place, different for different
    places."""
    if seed is None:
        return None
    digest = hashlib.sha256("/".join(str(part) for part in (seed, *place)).encode()).digest()
    return int.from_bytes(digest[:4], "big")
