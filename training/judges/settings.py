"""The settings of judges, the section `evaluation` of a run's YAML file. They decide no checkpoint."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


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
