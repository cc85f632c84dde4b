"""docs/openai.md says of every parameter what it does here: held against vLLM's request models, the `openai`
package's parameters and our schemas."""

import re
import typing
from pathlib import Path

import pytest
from openai.types import completion_create_params as openai_completion
from openai.types.chat import completion_create_params as openai_chat
from pydantic import BaseModel

from app.schemas_openai import ChatCompletionRequest, CompletionRequest
from tests.app.conftest import Serve
from tests.app.conftest import serve as serve  # the server of fakes
from tests.app.test_api import MESSAGES, assert_error

DOCS = Path(__file__).resolve().parents[2] / "docs/openai.md"
ROW = re.compile(r"^\| `(\w+)` \| (same|ours|refused|–) \| (same|ours|refused|–) \|", re.MULTILINE)
OURS: dict[str, type[BaseModel]] = {"chat": ChatCompletionRequest, "completions": CompletionRequest}
OPENAI = {
    "chat": openai_chat.CompletionCreateParamsStreaming,
    "completions": openai_completion.CompletionCreateParamsStreaming,
}


def table(endpoint: str) -> dict[str, str]:
    """What the documentation says of every parameter of an endpoint."""
    rows = ROW.findall(DOCS.read_text(encoding="utf-8"))
    assert len({row[0] for row in rows}) == len(rows), "a parameter stands twice"
    said = {name: chat if endpoint == "chat" else completions for name, chat, completions in rows}
    return {name: what for name, what in said.items() if what != "–"}


@pytest.mark.parametrize("endpoint", OURS)
def test_the_table_holds_every_parameter_of_openai_and_of_ours(endpoint: str) -> None:
    said, ours = table(endpoint), set(OURS[endpoint].model_fields)
    assert {name for name, what in said.items() if what != "refused"} == ours
    assert set(typing.get_type_hints(OPENAI[endpoint])) - said.keys() == set()


@pytest.mark.engine
@pytest.mark.parametrize("endpoint", OURS)
def test_the_table_holds_every_parameter_of_vllm(endpoint: str) -> None:
    """A new release of vLLM with a new parameter fails here: decide, and write it down."""
    from vllm.entrypoints.openai.chat_completion import protocol as chat
    from vllm.entrypoints.openai.completion import protocol as completion

    theirs = {"chat": chat.ChatCompletionRequest, "completions": completion.CompletionRequest}[endpoint]
    said = table(endpoint)
    assert set(theirs.model_fields) - said.keys() == set()
    assert {name for name, what in said.items() if what == "same"} <= set(theirs.model_fields)


@pytest.mark.parametrize("endpoint", OURS)
async def test_what_the_table_refuses_is_refused_by_name(serve: Serve, endpoint: str) -> None:
    client = await serve()
    path = "/v1/chat/completions" if endpoint == "chat" else "/v1/completions"
    body = {"messages": MESSAGES} if endpoint == "chat" else {"prompt": "Hi"}
    for name in (name for name, what in table(endpoint).items() if what == "refused"):
        refused = await client.post(path, json={"model": "policy", **body, name: None})
        assert_error(refused, 400, "unknown_field", name)
