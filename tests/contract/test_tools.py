"""Tool calls: vLLM's own parser on text that a model could write, and what chat templates see."""

import json
from typing import Any

import pytest

from app.checkpoint import read_checkpoint
from app.engines.base import FinishReason, Message, Tools
from app.engines.chat import ChatEncoder
from app.engines.vllm import VllmEngine
from app.engines.vllm_tools import ToolParsers, ToolPrompt
from app.errors import BadRequest, CheckpointError

FUNCTION = {
    "type": "function",
    "function": {
        "name": "light",
        "parameters": {"type": "object", "properties": {"on": {"type": "boolean"}}},
    },
}
WRITTEN = 'Sure. <tool_call>\n{"name": "light", "arguments": {"on": true}}\n</tool_call>'


def read(parsers: ToolParsers, written: str, tools: Tools, size: int, reason: FinishReason) -> Any:
    """The text, the calls and the reason of a completion that comes in pieces of `size` characters."""
    calls = parsers.start(ToolPrompt([1, 2], tools), None)
    pieces = [written[i : i + size] for i in range(0, len(written), size)]
    text, ended = "", None
    found: dict[int, list[str]] = {}
    for number, piece in enumerate(pieces, 1):
        plain, deltas, ended = calls.read(piece, [40], reason if number == len(pieces) else None)
        text += plain
        for delta in deltas:
            call = found.setdefault(delta.index, ["", "", ""])
            for place, piece_of_it in enumerate((delta.id, delta.name, delta.arguments)):
                call[place] += piece_of_it or ""
    return text, found, ended


@pytest.mark.engine
@pytest.mark.parametrize("size", [1, 3, 7, 1000])
def test_calls_are_read_by_vllm_s_parser(real_engine: VllmEngine, size: int) -> None:
    """Automatic choice: text, then a call, however it is cut into pieces."""
    text, calls, reason = read(real_engine._tools, WRITTEN, Tools((FUNCTION,)), size, "stop")
    assert text == "Sure. "
    ((call_id, name, arguments),) = calls.values()
    assert (name, json.loads(arguments), reason) == ("light", {"on": True}, "tool_calls")
    assert call_id


@pytest.mark.engine
def test_text_without_a_call_stays_text(real_engine: VllmEngine) -> None:
    found = read(real_engine._tools, "A lamp < b.", Tools((FUNCTION,)), 2, "stop")
    assert found == ("A lamp < b.", {}, "stop")
    assert read(real_engine._tools, WRITTEN, Tools((FUNCTION,)), 5, "length")[2] == "length"


@pytest.mark.engine
async def test_without_a_parser_no_tool_can_be_called(real_engine: VllmEngine) -> None:
    parsers = ToolParsers(None, real_engine._llm.get_tokenizer(), real_engine._llm.model_config)
    parsers.check(Tools((FUNCTION,), "none"))
    named: Any = {"type": "function", "function": {"name": "light"}}
    for choice in ("auto", "required", named):
        with pytest.raises(BadRequest, match="--tool-call-parser"):
            parsers.check(Tools((FUNCTION,), choice))


@pytest.mark.engine
def test_an_unknown_parser_stops_the_start(real_engine: VllmEngine) -> None:
    with pytest.raises(CheckpointError, match="hermes"):
        ToolParsers("hermess", real_engine._llm.get_tokenizer(), real_engine._llm.model_config)


@pytest.fixture
def encoder(checkpoints: dict[str, Any]) -> ChatEncoder:
    return ChatEncoder(read_checkpoint(checkpoints["both"], "policy").path)


@pytest.mark.slow
def test_templates_see_developers_arguments_and_tools(encoder: ChatEncoder) -> None:
    """A template that does not know the role developer is given system; arguments come as objects."""
    chat: list[Message] = [{"role": "developer", "content": "Be brief."}, {"role": "user", "content": "Hi"}]
    as_system: list[Message] = [{"role": "system", "content": "Be brief."}, chat[1]]
    assert encoder.encode(chat, generation_prompt=True) == encoder.encode(as_system, generation_prompt=True)
    encoder._tokenizer.chat_template = (
        "{% for t in tools %}{{ t.function.name }}{% endfor %}{% for m in messages %}"
        "{% for c in m.tool_calls or [] %}{{ c.function.arguments['on'] }}{% endfor %}{% endfor %}"
    )
    called: Message = {"role": "assistant", "content": ""}
    called["tool_calls"] = [
        {"id": "c", "type": "function", "function": {"name": "light", "arguments": '{"on": "red"}'}}
    ]
    ids = encoder.encode([called], generation_prompt=True, tools=[FUNCTION])
    assert ids == encoder.encode_text("lightred")
    called["tool_calls"][0]["function"]["arguments"] = "{"
    with pytest.raises(BadRequest, match="JSON"):
        encoder.encode([called], generation_prompt=True)
