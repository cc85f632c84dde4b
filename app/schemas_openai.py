"""Requests of the OpenAI-compatible endpoints. docs/openai.md says of every parameter what it does here."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from app.checkpoint import SamplingDefaults
from app.engines.base import Constraint, Message, Sampling, Tools
from app.errors import BadRequest
from app.improve.options import Options
from app.schemas import (
    UNWATCHED,
    ChatMessage,
    KeepOptions,
    LoopOptions,
    PlainJson,
    RequestModel,
    SamplingOptions,
    Text,
    make_options,
)

MAX_CHOICES = 128
"""Completions that one request may ask for: `n` times its prompts."""
MAX_TOP_LOGPROBS = 20
COMPLETION_MAX_TOKENS = 16
"""OpenAI's and vLLM's default for /v1/completions."""


def _joined(content: Any) -> Any:
    """The text of a list of text parts, joined as vLLM joins them."""
    if not isinstance(content, list):
        return content
    texts = []
    for number, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text" or not isinstance(part.get("text"), str) or set(part) > {"type", "text"}:
            raise ValueError(
                f'holds a part ({number}) that is no text: only {{"type": "text", "text": ...}} is read here'
            )
        texts.append(part["text"])
    return "\n".join(texts)


class TextPartSchema(RequestModel):
    type: Literal["text"]
    text: Text


Content = Annotated[
    Text, BeforeValidator(_joined, json_schema_input_type=str | list[TextPartSchema])
]


class CalledFunction(RequestModel):
    name: Text
    arguments: Text


class ToolCall(RequestModel):
    id: Text
    type: Literal["function"] = "function"
    function: CalledFunction


class ChatTurn(RequestModel):
    """One turn. The last six fields are what an assistant message of OpenAI's client holds beside its text:
    they may be sent back, empty."""

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Content | None = None
    name: Text | None = None
    tool_calls: list[ToolCall] | None = Field(default=None, max_length=128)
    tool_call_id: Text | None = None
    refusal: None = None
    audio: None = None
    function_call: None = None
    annotations: Annotated[list[Any], Field(max_length=0)] | None = None
    reasoning: None = None
    reasoning_content: None = None

    @model_validator(mode="after")
    def _fits_its_role(self) -> "ChatTurn":
        if self.tool_calls and self.role != "assistant":
            raise ValueError(f"has tool_calls, and is not an assistant's message but a {self.role}'s")
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise ValueError("needs tool_call_id if its role is tool, and only then")
        if self.content is None and not self.tool_calls:
            raise ValueError("has no content")
        return self

    def message(self) -> Message:
        message = Message(role=self.role, content=self.content or "")
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        if self.tool_call_id is not None:
            message["tool_call_id"] = self.tool_call_id
        if self.name is not None:
            message["name"] = self.name
        return message


class Function(RequestModel):
    name: Annotated[Text, Field(min_length=1, max_length=128)]
    description: Text | None = None
    parameters: PlainJson | None = None
    strict: bool | None = None


class Tool(RequestModel):
    type: Literal["function"]
    function: Function


class FunctionName(RequestModel):
    name: Text


class NamedTool(RequestModel):
    type: Literal["function"]
    function: FunctionName


class JsonSchema(RequestModel):
    """`strict` changes nothing: the engine always keeps to the schema."""

    name: Text
    description: Text | None = None
    schema_: PlainJson = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(RequestModel):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _has_its_schema(self) -> "ResponseFormat":
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise ValueError("needs json_schema if its type is json_schema, and only then")
        return self

    def constraint(self) -> Constraint | None:
        if self.type == "text":
            return None
        return Constraint(self.json_schema.schema_ if self.json_schema else None)


class StreamOptions(RequestModel):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class GenerationRequest(SamplingOptions):
    """What chat completions and completions have in common. None: as the checkpoint's
    generation_config.json recommends, or OpenAI's default.

    `user`, `safety_identifier`, `prompt_cache_key`, `metadata` and a `service_tier` of auto or default say
    nothing to this server, and are let through because clients send them by themselves.
    """

    model: Annotated[Text, Field(min_length=1, max_length=256, examples=["policy", "pit"])]
    top_k: int | None = Field(default=None, ge=-1, le=1_000_000, description="-1 and 0: no limit")
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    presence_penalty: float | None = Field(default=None, ge=-2, le=2)
    frequency_penalty: float | None = Field(default=None, ge=-2, le=2)
    logit_bias: dict[Annotated[int, Field(ge=0)], Annotated[float, Field(ge=-100, le=100)]] | None = Field(
        default=None, max_length=1024
    )
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    n: int | None = Field(default=None, ge=1, le=MAX_CHOICES)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    response_format: ResponseFormat | None = None
    user: Text | None = None
    safety_identifier: Text | None = None
    prompt_cache_key: Text | None = None
    metadata: dict[str, Text] | None = Field(default=None, max_length=16)
    service_tier: Literal["auto", "default"] | None = None

    @property
    def with_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def with_continuous_usage(self) -> bool:
        return self.with_usage and self.stream_options.continuous_usage_stats  # type: ignore[union-attr]

    def sampling(self, defaults: SamplingDefaults, logprobs: int | None) -> Sampling:
        """How to sample every choice, but for its seed and its `max_tokens`."""
        top_k = defaults.top_k if self.top_k is None else self.top_k
        penalty = self.repetition_penalty
        return Sampling(
            max_tokens=1,
            temperature=defaults.temperature if self.temperature is None else self.temperature,
            top_p=defaults.top_p if self.top_p is None else self.top_p,
            top_k=top_k if top_k and top_k > 0 else None,
            repetition_penalty=defaults.repetition_penalty if penalty is None else penalty,
            seed=self.seed,
            stop=self.stops(),
            presence_penalty=self.presence_penalty or 0.0,
            frequency_penalty=self.frequency_penalty or 0.0,
            logit_bias=self.logit_bias or None,
            logprobs=logprobs,
            constraint=self.response_format.constraint() if self.response_format else None,
            stream_interval=1 if self.stream else UNWATCHED,
        )

    def check(self) -> None:
        """What two fields together say. Raises `BadRequest`."""
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options needs stream: true.", param="stream_options")


class ChatCompletionRequest(GenerationRequest):
    """`POST /v1/chat/completions`. What is not listed here is refused with its name."""

    messages: Annotated[list[ChatTurn], Field(min_length=1, max_length=1000)]
    max_completion_tokens: int | None = Field(default=None, ge=1, le=1_000_000)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    tools: Annotated[list[Tool], Field(min_length=1, max_length=128)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    modalities: list[Literal["text"]] | None = None
    store: Literal[False] | None = None
    pit: LoopOptions | None = None

    @property
    def limit(self) -> int | None:
        """The most tokens of a choice."""
        return self.max_completion_tokens or self.max_tokens

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
        choice = self.tool_choice
        if choice not in (None, "none") and not self.tools:
            raise BadRequest("tool_choice needs tools: send the functions too.", param="tool_choice")
        if isinstance(choice, NamedTool):
            names = [tool.function.name for tool in self.tools or ()]
            if choice.function.name not in names:
                raise BadRequest(
                    f"tool_choice names {choice.function.name!r}, and tools has only: {', '.join(names)}.",
                    param="tool_choice",
                )

    def conversation(self) -> tuple[Message, ...]:
        return tuple(turn.message() for turn in self.messages)

    def chosen_tools(self) -> Tools | None:
        """The tools of the request; a choice that is not given is auto, as for OpenAI and vLLM."""
        if not self.tools:
            return None
        functions = tuple(tool.model_dump(exclude_none=True) for tool in self.tools)
        parallel = self.parallel_tool_calls is not False
        if isinstance(self.tool_choice, NamedTool):
            return Tools(functions, self.tool_choice.model_dump(), parallel)
        return Tools(functions, self.tool_choice or "auto", parallel)

    def options(self) -> Options:
        """The options of a run of the loop, for model pit. An assistant's message at the end is the reference
        to improve. Raises `BadRequest` for what the loop cannot do."""
        self._check_pit()
        turns, reference = list(self.messages), None
        if turns[-1].role == "assistant":
            reference = turns.pop().content
        if not turns or turns[-1].role != "user":
            raise BadRequest(
                "model pit answers a message of the user, or improves the assistant's answer to one: end"
                " messages with either.",
                param="messages",
            )
        if reference is not None and not reference.strip():
            raise BadRequest(
                "The assistant's message at the end is the answer to improve, and it is empty. Leave it out"
                " to have one drafted.",
                param=f"messages.{len(turns)}",
            )
        roles: dict[str, Any] = {"developer": "system"}
        messages = [
            ChatMessage.model_construct(role=roles.get(turn.role, turn.role), content=turn.content or "")
            for turn in turns
        ]
        options = make_options(messages, self._loop_options(), self, self.limit, reference)
        # What `pit` streams is the finished response.
        return replace(options, stream_interval=UNWATCHED)

    def _loop_options(self) -> LoopOptions:
        """The `pit` object; a response_format is one more thing that every response must keep to."""
        options = self.pit or LoopOptions()
        form = self.response_format.constraint() if self.response_format else None
        if form is None:
            return options
        keep = options.keep or KeepOptions()
        if keep.json_schema is not None:
            raise BadRequest(
                "response_format and pit.keep.json_schema ask for two forms: send one of them.",
                param="response_format",
            )
        schema = {"type": "object"} if form.schema is None else dict(form.schema)
        return options.model_copy(update={"keep": keep.model_copy(update={"json_schema": schema})})

    def _check_pit(self) -> None:
        refused: Mapping[str, object] = {
            "n": (self.n or 1) > 1,
            "logprobs": self.logprobs,
            "tools": self.tools,
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "repetition_penalty": self.repetition_penalty,
            "top_k": self.top_k,
            "logit_bias": self.logit_bias,
            "stream_options.continuous_usage_stats": self.with_continuous_usage,
        }
        for name, given in refused.items():
            if given:
                raise BadRequest(
                    f"model pit does not take {name}: ask model policy for it, or leave it out.",
                    param=name,
                    code="unsupported_value",
                )
        for number, turn in enumerate(self.messages):
            if turn.role == "tool" or turn.tool_calls:
                raise BadRequest(
                    "model pit improves texts, not calls of tools: ask model policy.",
                    param=f"messages.{number}",
                    code="unsupported_value",
                )


PromptText = str | list[int]


def _prompts(value: Any) -> Any:
    """One text, several, the token ids of one, or of several: as a list of them."""
    if isinstance(value, str):
        return [value]
    if isinstance(value, list) and value and all(type(item) is int for item in value):
        return [value]
    return value


def _checked_prompts(prompts: list[PromptText]) -> list[PromptText]:
    for prompt in prompts:
        if not prompt:
            raise ValueError("is empty, or holds an empty one: send a text or token ids to continue")
    return prompts


_INPUT = str | list[str] | list[int] | list[list[int]]
Prompts = Annotated[
    list[Text | list[Annotated[int, Field(ge=0)]]],
    Field(min_length=1, max_length=MAX_CHOICES),
    AfterValidator(_checked_prompts),
    BeforeValidator(_prompts, json_schema_input_type=_INPUT),
]


class CompletionRequest(GenerationRequest):
    """`POST /v1/completions`: texts that the policy continues, without a chat template."""

    prompt: Prompts
    echo: bool | None = None
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP_LOGPROBS)
    best_of: Literal[1] | None = None

    def check(self) -> None:
        super().check()
        choices = len(self.prompt) * (self.n or 1)
        if choices > MAX_CHOICES:
            raise BadRequest(
                f"{len(self.prompt)} prompts times n = {self.n} are {choices} completions, and a request may"
                f" ask for {MAX_CHOICES}. Send fewer prompts, or a smaller n.",
                param="n",
            )
        if not self.echo:
            return
        if self.logprobs is not None:
            raise BadRequest(
                "echo with logprobs is not supported here: the prompt's log-probabilities are not reported."
                " Leave one of them out.",
                param="echo",
                code="unsupported_value",
            )
        if not all(isinstance(prompt, str) for prompt in self.prompt):
            raise BadRequest(
                "echo gives a text back, and the prompt is token ids. Send the text, or leave echo out.",
                param="echo",
                code="unsupported_value",
            )
