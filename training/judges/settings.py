"""The settings of judges, the section `evaluation` of a run's YAML file. They decide no checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

JudgeName = Literal["gold", "edit", "edit+toxicity", "reward_model", "llm", "people"]
JUDGES: tuple[JudgeName, ...] = get_args(JudgeName)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class RewardModelSettings(_Frozen):
    """A sequence classifier as a judge; `path` is a directory or a hub name.

    `kind`: `pointwise` reads a prompt and one response, `pairwise` a prompt and two responses, in both
    orders. `auto`: pairwise for a gap reward of this project, pointwise for anything else.
    `input`: `chat` renders the conversation with the tokenizer's chat template; `text` gives prompt and
    response(s) as separate texts, as encoders such as DeBERTa were trained. `auto`: chat where there is a
    template.
    `label` is the label that means "better" (pairwise: "the response read last is better") where the model
    has several; the number is then that label's log-odds.
    What has more than `max_tokens` tokens, or more than the model can read, gets no verdict and is counted;
    nothing is cut. Within `tolerance` two scores tie.
    """

    path: str
    kind: Literal["auto", "pointwise", "pairwise"] = "auto"
    input: Literal["auto", "chat", "text"] = "auto"
    label: int | str | None = None
    max_tokens: int | None = Field(default=None, ge=8)
    tolerance: float = Field(default=0.0, ge=0)
    device: str = "auto"
    dtype: Literal["float32", "bfloat16"] = "float32"


class Prices(_Frozen):
    """Per million tokens, in any unit of money."""

    prompt: float = Field(ge=0)
    completion: float = Field(ge=0)


class LlmSettings(_Frozen):
    """A language model behind an OpenAI-compatible API as a judge (`url` ends with /v1 for most servers).

    `api_key_env` names the environment variable with the key, if there is one. `prompt` is a file in the
    place of llm_prompt.txt, with the same three names in braces. `extra` goes into every request
    (`{seed: 1}`), `temperature` null leaves the model's own. `tokens_name` is how the server calls the limit
    on what it writes. Of an evaluation's examples it judges the first `examples` (the paper: 128).
    `deadline_s` covers one call with all its `retries`, `timeout_s` one try. `prices` turn tokens into money.
    `cache` is the file of kept answers; without it, judge_cache.sqlite in the evaluation's directory.
    """

    url: str
    model: str
    api_key_env: str = "OPENAI_API_KEY"
    prompt: Path | None = None
    temperature: float | None = Field(default=0.0, ge=0)
    max_tokens: int = Field(default=512, ge=1)
    tokens_name: Literal["max_completion_tokens", "max_tokens"] = "max_completion_tokens"
    extra: dict[str, Any] = {}
    concurrency: int = Field(default=8, ge=1)
    retries: int = Field(default=6, ge=0)
    timeout_s: float = Field(default=60.0, gt=0)
    deadline_s: float = Field(default=300.0, gt=0)
    prices: Prices | None = None
    cache: Path | None = None
    examples: int | None = Field(default=128, ge=1)

    @field_validator("url")
    @classmethod
    def _is_http(cls, url: str) -> str:
        if not url.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return url.rstrip("/")


class EditBars(_Frozen):
    """What drafts that people rewrote should come to, in percent of the drafts; None: no bar.

    `exact`: at least so many become a human text letter by letter. `closer`, `farther`: at least and at most
    so many than the draft is. `both`, with edit+toxicity: more than so many are less toxic and closer.
    """

    exact: float | None = Field(default=None, ge=0, le=100)
    closer: float | None = Field(default=None, ge=0, le=100)
    farther: float | None = Field(default=None, ge=0, le=100)
    both: float | None = Field(default=None, ge=0, le=100)


class EvaluationConfig(_Frozen):
    """`pit-train evaluate`; decides no checkpoint.

    `judge`: one of `JUDGES` or several; None: gold for helpdesk, edit for data with human texts.
    `start`: what the systems improve, the policy's answer or the data's own draft; None: the draft where
    people rewrote drafts. `compare` narrows what reward_model, llm and people judge down to comparisons by
    their names, as the report prints them. `people`: the directory of `pit-train judge serve`; None: people
    in the evaluation's own. `bars` are of data with human texts.
    """

    judge: JudgeName | tuple[JudgeName, ...] | None = None
    start: Literal["policy", "draft"] | None = None
    compare: tuple[str, ...] | None = Field(default=None, min_length=1)
    reward_model: RewardModelSettings | None = None
    llm: LlmSettings | None = None
    people: Path | None = None
    bars: EditBars = EditBars()

    @model_validator(mode="after")
    def _bars_fit(self) -> EvaluationConfig:
        if self.bars.both is not None and "edit+toxicity" not in self.judges:
            raise ValueError("bars.both needs judge: edit+toxicity, which says what is toxic")
        return self

    @property
    def judges(self) -> tuple[JudgeName, ...]:
        """Those that are named; empty: as the data's format says."""
        if self.judge is None:
            return ()
        return (self.judge,) if isinstance(self.judge, str) else self.judge
