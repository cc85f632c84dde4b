"""The systems that studies compare, behind one protocol: a request to `pit serve`, and responses from its
answer.

Every system goes through the server's own loop. Those that improve begin with the answer of the run's policy
at their own temperature; which improver and gap reward serve them is `models` (asking.py).

Self-Refine's prompts and rubrics are ours, the paper prints none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from training.answers import Record, responses, tokens_after, until_first_rejection
from training.data import PreferencePair
from training.synthetic import RUBRICS
from training.systems import Body

NAMES = ("completion", "prompt", "cached", "score")
RUN = "run"
"""The run's own three checkpoints."""


@dataclass(frozen=True)
class System:
    """One system. `draft` is the policy alone; without `gated` every candidate is the next reference.

    `temperature` is that of everything written, the draft included; None: as each checkpoint recommends.
    `start`: what is improved, the policy's answer or the data's own draft (`rejected`).
    """

    strategy: Literal["draft", "pit", "self_refine", "best_of_n"]
    models: str = RUN
    iterations: int = 1
    gated: bool = False
    candidates: int = 1
    rubric: str | None = None
    temperature: float | None = None
    start: Literal["policy", "data"] = "policy"

    @property
    def draft(self) -> System | None:
        """The system whose answer this one begins with; None where the data has the draft."""
        return None if self.start == "data" else System("draft", temperature=self.temperature)

    @property
    def checkpoints(self) -> tuple[str, ...]:
        """Those that write or score its answers, the draft's too."""
        improver = ("improver",) if self.strategy == "pit" else ()
        return ("policy", *improver, *(("gap_reward",) if self.gated else ()))

    @property
    def label(self) -> str:
        """A short name for files and messages."""
        parts = [
            self.strategy,
            *([self.rubric] if self.rubric else []),
            *([self.models] * (self.models != RUN)),
        ]
        parts += ["gated"] * self.gated + [f"x{self.candidates}"] * (self.candidates > 1)
        parts += [] if self.temperature is None else [f"t{self.temperature:g}"]
        parts += ["data"] * (self.start == "data")
        return "-".join(parts)

    def settings(self) -> Record:
        """What its answers depend on; the usual start is not named, so that older answers stay its own."""
        return {name: value for name, value in asdict(self).items() if (name, value) != ("start", "policy")}

    def request(self, pair: PreferencePair, reference: str, seed: int) -> tuple[str, Body]:
        """Route and body. The gate, and how many candidates are drawn, leave the seed as it is: a system with
        and without the gate writes the same first candidate."""
        body: Body = {"messages": list(pair.prompt), "seed": self._seed(pair.id, seed)}
        if self.temperature is not None:
            body["temperature"] = self.temperature
        if self.strategy == "draft":
            return "/v1/chat/completions", body | {"model": "policy"}
        body |= {"reference": reference, "strategy": self.strategy}
        if self.strategy == "best_of_n":
            # Against the response given, 0.5 chooses the best of all: no candidate must beat it by a margin.
            options: Body = {"scoring": "required", "candidates": self.candidates, "min_win_probability": 0.5}
            return "/v1/improve", body | options
        body |= {"scoring": "off", "max_iterations": self.iterations}
        if self.gated:
            # With this patience no rejection ends the run: the record shows every iteration, and also, up to
            # the first rejection, the run of the server's own default.
            body |= {"scoring": "required", "patience": self.iterations, "candidates": self.candidates}
        if self.rubric is not None:
            body["rubric"] = RUBRICS[self.rubric]
        return "/v1/improve", body

    def _seed(self, example: str, seed: int) -> int:
        name = f"{seed}/{example}/{self.strategy}/{self.models}/{self.rubric}/{self.temperature}"
        return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def self_refines(
    iterations: int, temperature: float | None = None, rubrics: Sequence[str] = tuple(RUBRICS)
) -> dict[str, System]:
    """Self-Refine with each rubric, by its name in tables."""
    return {
        f"Self-Refine ({rubric})": System(
            "self_refine", iterations=iterations, rubric=rubric, temperature=temperature
        )
        for rubric in rubrics
    }


@dataclass(frozen=True)
class Asked:
    """What systems answered to the same examples: `records` by the system's name in tables, each (n,)."""

    pairs: Sequence[PreferencePair]
    records: Mapping[str, Sequence[Record]]

    def texts(self, name: str, iterations: int | None = None) -> list[str]:
        """Responses after so many iterations; without it, after all. Entry 0 of a loop is its draft."""
        found = []
        for record in self.records[name]:
            if "iterations" not in record:
                found.append(str(record["text"]))
            else:
                found.append(responses(record, len(record["iterations"]))[-1] if iterations is None
                             else responses(record, iterations)[-1])  # fmt: skip
        return found

    def tokens(self, name: str, iterations: int | None = None) -> dict[str, float]:
        """Mean tokens of one prompt, without the draft: `completion` written, `prompt` read, `cached` of
        these, `total` of both; `score`: what the gap reward read beside it."""
        each: list[Record] = []
        for record in self.records[name]:
            if "iterations" not in record:
                each.append(record["tokens"] | {"score": 0})
                continue
            done = record["iterations"][:iterations]
            score = sum(one["tokens"].get("score", 0) for one in done)
            each.append(tokens_after(record, len(done)) | {"score": score})
        mean = {key: sum(one[key] for one in each) / len(each) for key in NAMES}
        return mean | {"total": mean["completion"] + mean["prompt"]}

    def seconds(self, name: str, iterations: int | None = None) -> float:
        """Mean seconds of one prompt, without the draft; all together shared the machine."""
        each = [
            record["seconds"]
            if "iterations" not in record or iterations is None
            else sum(one["ms"] for one in record["iterations"][:iterations]) / 1000
            for record in self.records[name]
        ]
        return float(sum(each) / len(each))

    def first_rejection(self, name: str) -> Asked:
        """The same runs as with the server's default patience of 1."""
        records = [until_first_rejection(record) for record in self.records[name]]
        return replace(self, records={name: records})


def pool(asked: Sequence[Asked]) -> Asked:
    """The examples of several runs as one set, of the systems that all have."""
    names = [name for name in asked[0].records if all(name in one.records for one in asked)]
    return Asked(
        [pair for one in asked for pair in one.pairs],
        {name: [record for one in asked for record in one.records[name]] for name in names},
    )


def with_data(asked: Asked) -> Asked:
    """`y_w` and `y_l` beside the systems: the data's own responses, which cost no tokens."""
    nothing: dict[str, Any] = {"prompt": 0, "completion": 0, "cached": 0}
    data = {
        "y_w": [{"text": pair.chosen, "tokens": nothing, "seconds": 0.0} for pair in asked.pairs],
        "y_l": [{"text": pair.rejected, "tokens": nothing, "seconds": 0.0} for pair in asked.pairs],
    }
    return replace(asked, records={**asked.records, **data})
