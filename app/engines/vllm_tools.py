"""Tool calls by vLLM's own parsers, the ones of `vllm serve --tool-call-parser NAME`.

vLLM's parsers read a `ChatCompletionRequest`: one is made that holds what they look at. For a call that
must come they give a grammar too, so that the model can write nothing else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from app.engines.base import Constraint, FinishReason, ToolCallDelta, Tools
from app.errors import BadRequest, CheckpointError


@dataclass(frozen=True, slots=True)
class ToolPrompt:
    """What `prepare` makes of a conversation with tools that may be called."""

    ids: list[int]
    tools: Tools


class ToolParsers:
    """The parser of a name for the tokenizer of one model."""

    def __init__(self, name: str | None, tokenizer: Any, model_config: Any) -> None:
        """Raises `CheckpointError` for a name that vLLM does not know, or a tokenizer that does not fit."""
        self._tokenizer, self._model_config, self._parser = tokenizer, model_config, None
        if name is None:
            return
        from vllm.parser.parser_manager import ParserManager
        from vllm.tool_parsers import ToolParserManager

        known = ToolParserManager.list_registered()
        if name not in known:
            raise CheckpointError(
                f"--tool-call-parser {name}: vLLM has no such parser. It has: {', '.join(known)}."
            )
        try:
            self._parser = ParserManager.get_parser(
                tool_parser_name=name,
                enable_auto_tools=True,
                model_name=model_config.model,
                tokenizer=tokenizer,
            )
        except TypeError as error:
            raise CheckpointError(f"--tool-call-parser {name} does not fit this model: {error}") from None

    def check(self, tools: Tools) -> None:
        """Raises `BadRequest` when the model may call a tool and nothing could read the call."""
        if self._parser is None and tools.choice != "none":
            choice = tools.choice if isinstance(tools.choice, str) else "a function"
            raise BadRequest(
                f"A tool_choice of {choice} needs a parser of tool calls: start the server with"
                " --tool-call-parser NAME, or send tool_choice: none.",
                param="tool_choice",
                code="unsupported_value",
            )

    def start(self, prompt: ToolPrompt, constraint: Constraint | None) -> "ToolCalls":
        """The parser of one completion. Raises `BadRequest` for tools that vLLM refuses."""
        from pydantic import ValidationError
        from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
        from vllm.exceptions import VLLMClientError

        assert self._parser is not None
        body: dict[str, Any] = {
            "messages": [],
            "tools": list(prompt.tools.functions),
            "tool_choice": prompt.tools.choice,
            "parallel_tool_calls": prompt.tools.parallel,
        }
        if constraint is not None and constraint.schema is None:
            body["response_format"] = {"type": "json_object"}
        elif constraint is not None:
            schema = {"name": "response", "schema": constraint.schema}
            body["response_format"] = {"type": "json_schema", "json_schema": schema}
        try:
            request = ChatCompletionRequest.model_validate(body)
            parser = self._parser(self._tokenizer, request.tools, model_config=self._model_config)
            return ToolCalls(parser, parser.adjust_request(request), prompt)
        except (ValidationError, VLLMClientError, ValueError):
            raise BadRequest(
                "The engine cannot use these tools. Check that the parameters of each are a JSON schema.",
                param="tools",
            ) from None


class ToolCalls:
    """Reads the calls out of one completion, piece by piece."""

    def __init__(self, parser: Any, request: Any, prompt: ToolPrompt) -> None:
        self._parser, self._request, self._ids = parser, request, prompt.ids
        self._named = not isinstance(prompt.tools.choice, str)
        self._called = False
        self.structured_outputs = request.extract_structured_outputs()
        self.skip_special_tokens: bool = request.skip_special_tokens

    def read(
        self, text: str, token_ids: Sequence[int], reason: FinishReason | None
    ) -> tuple[str, tuple[ToolCallDelta, ...], FinishReason | None]:
        """The text of a piece that is no call, the pieces of calls, and the reason why it ended: as for
        OpenAI, tool_calls, but stop where the request named the function."""
        message = self._parser.parse_delta(
            text, list(token_ids), self._request, self._ids, finished=reason is not None
        )
        calls = () if message is None else tuple(map(_call, message.tool_calls or ()))
        self._called = self._called or bool(calls)
        if self._called and reason == "stop" and not self._named:
            reason = "tool_calls"
        return "" if message is None else message.content or "", calls, reason


def _call(call: Any) -> ToolCallDelta:
    function = call.function
    return ToolCallDelta(
        index=call.index,
        arguments=(function.arguments if function else None) or "",
        id=call.id,
        name=function.name if function else None,
    )


def tool_dicts(tools: Tools) -> list[dict[str, Any]]:
    """The tools as vLLM shows them to a chat template."""
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam

    return [ChatCompletionToolsParam.model_validate(tool).model_dump() for tool in tools.functions]
