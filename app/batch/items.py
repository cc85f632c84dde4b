"""One item of a batch: the same code as its route runs, in this process."""

import json
from collections.abc import Awaitable, Callable
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from app.api.chat import start_chat
from app.api.completions import start_completion
from app.api.improve import Checkpoint, begin, finish
from app.api.render import dumps, improvement
from app.api.validation import refusal
from app.errors import BadRequest
from app.improve.progress import Progress
from app.runtime import Runtime
from app.schemas import ImproveRequest, RequestModel
from app.schemas_openai import ChatCompletionRequest, CompletionRequest
from app.store.batch_queue import Item
from app.telemetry import Telemetry

Request = TypeVar("Request", bound=RequestModel)
PROGRESS = TypeAdapter(Progress)


async def answer(
    item: Item, runtime: Runtime, telemetry: Telemetry, save: Callable[[str], Awaitable[None]]
) -> str:
    """The response to an item's request, as JSON text. `save` gets how far its run has come, in the form of
    `Item.progress`.

    Raises what the route answers with: `AppError`.
    """

    async def keep(progress: Progress) -> None:
        await save(PROGRESS.dump_json(progress).decode())

    checkpoint = Checkpoint(_progress(item), keep)
    if item.endpoint == "/v1/improve":
        return await _improve(_parse(ImproveRequest, item), runtime, telemetry, checkpoint)
    if item.endpoint == "/v1/chat/completions":
        chat = await start_chat(_parse(ChatCompletionRequest, item), runtime, telemetry, checkpoint)
        return bytes((await chat.answer()).body).decode()
    completion = await start_completion(_parse(CompletionRequest, item), runtime, telemetry)
    return bytes((await completion.answer()).body).decode()


def _progress(item: Item) -> Progress | None:
    """How far the item's run has come. One that another version has written is begun anew."""
    try:
        return None if item.progress is None else PROGRESS.validate_json(item.progress)
    except ValidationError:
        return None


async def _improve(
    body: ImproveRequest, runtime: Runtime, telemetry: Telemetry, checkpoint: Checkpoint
) -> str:
    if body.store:
        raise BadRequest(
            "A batch's results are its output file, and no stored runs: leave store out.", param="store"
        )
    run = await begin(runtime.models, body.options(), checkpoint)
    result = await finish(run, telemetry, checkpoint)
    return dumps(improvement(result, body.metadata, stored=False).model_dump())


def _parse(model: type[Request], item: Item) -> Request:
    """The item's body as its route reads it. Raises `BadRequest`."""
    content = json.loads(item.body)
    if content.get("stream"):
        raise BadRequest("A batch gives whole answers, and no streams: leave stream out.", param="stream")
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise refusal(error.errors(include_url=False)[0], place=0) from None
