"""A mock upstream: what vLLM's OpenAI server answers, without a model. Raw ASGI, so that it costs little.

    python -m tests.load.upstream --port 9000 --delay-ms 200

Every generation takes `--delay-ms`, plus `--token-ms` before each token of a stream, whatever it holds; so
do scores. Texts are help-desk answers of mixed quality, drawn by a count of the calls. Where the last message
asks for a rating, the text is the gold score of the rated answer on a scale from 0 to 10, and `/classify`
gives a logit by the same gold score: every client has the same, perfect judge.
`/stats` tells what was asked since the last `POST /stats`, with calls that their client left.
"""

import argparse
import asyncio
import json
import random
import re
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

from training.helpdesk import gold_score, make_question, parse_question
from training.synthetic import write_response

Message = dict[str, Any]
Send = Callable[[dict[str, Any]], Awaitable[None]]
Body = dict[str, Any]
CONTEXT = 8192
RATING = "Rate the above response"
ROLES = ("system", "user", "assistant")
FALLBACK = make_question(random.Random(0)).text
QUESTION = re.compile(r"The \w+ has [^.\n]*\. [^.?!\n]*[.?!]?")


def tokens_of(text: str) -> int:
    return len(text.split())


def question_of(messages: list[Message]) -> str:
    """The help desk's question in a conversation, also within another text; else one of our own."""
    for message in messages:
        if message["role"] == "user" and (found := QUESTION.search(str(message["content"]))):
            try:
                parse_question(found[0])
            except ValueError:
                continue
            return found[0]
    return FALLBACK


def rating(prompt: str, answer: str) -> float:
    """The gold score of an answer, which lies between -5 and 6.5, on a scale from 0 to 10."""
    return max(0.0, min(10.0, (gold_score(prompt, answer) + 5) / 1.15))


class Upstream:
    """The ASGI application. `delay_s` a call, `token_s` a streamed token, `length` tokens an answer (None: as
    long as the help desk's answer is)."""

    def __init__(self, delay_s: float, token_s: float, length: int | None, seed: int = 0) -> None:
        self.delay_s, self.token_s, self.length, self.seed = delay_s, token_s, length, seed
        self.reset()
        self.prompts: list[str] = []
        """Texts that `/tokenize` was asked for; the first id of the answer is the place in this list."""

    def reset(self) -> None:
        self.stats: Counter[str] = Counter()
        self.left: list[float] = []

    async def __call__(self, scope: Any, receive: Any, send: Send) -> None:
        if scope["type"] == "lifespan":
            while (message := await receive())["type"] != "lifespan.shutdown":
                await send({"type": message["type"] + ".complete"})
            await send({"type": "lifespan.shutdown.complete"})
            return
        body = b""
        while True:
            message = await receive()
            body += message.get("body", b"")
            if not message.get("more_body"):
                break
        work = asyncio.ensure_future(self._answer(scope["path"], scope["method"], body, send))
        gone = asyncio.ensure_future(receive())
        await asyncio.wait({work, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            self.stats["left"] += 1
            self.left.append(time.time())
            work.cancel()
        gone.cancel()
        await asyncio.gather(work, gone, return_exceptions=True)
        if work.done() and not work.cancelled() and work.exception():
            raise work.exception()  # type: ignore[misc]

    async def _answer(self, path: str, method: str, raw: bytes, send: Send) -> None:
        body: Body = json.loads(raw) if raw else {}
        if path in ("/v1/chat/completions", "/v1/completions"):
            await self._complete(path, body, send)
        elif path in ("/classify", "/score"):
            await self._score(path, body, send)
        elif path == "/tokenize":
            self.stats["tokenize"] += 1
            await _json(send, self._tokenize(body))
        elif path == "/stats":
            found = {**self.stats, "left_at": self.left}
            if method == "POST":
                self.reset()
            await _json(send, found)
        elif path == "/v1/models":
            card = {"id": "mock", "object": "model", "owned_by": "vllm", "max_model_len": CONTEXT}
            await _json(send, {"object": "list", "data": [card]})
        elif path in ("/health", "/version"):
            await _json(send, {"version": "0.0"})
        else:
            error = {"message": f"no {path}", "type": "NotFoundError", "param": None, "code": 404}
            await _json(send, {"error": error}, 404)

    # ---------------------------------------------------------------------------------------- generation

    async def _complete(self, path: str, body: Body, send: Send) -> None:
        chat = path.startswith("/v1/chat")
        messages = body["messages"] if chat else self._messages(body["prompt"])
        self.stats["generations"] += 1
        width = body.get("n") or 1
        texts, finish = [], []
        limit = body.get("max_completion_tokens") or body.get("max_tokens") or CONTEXT
        for _ in range(width):
            words = self._text(messages, body).split(" ")
            texts.append(" ".join(words[:limit]))
            finish.append("length" if len(words) > limit else "stop")
        prompt_tokens = sum(2 + tokens_of(str(m["content"])) for m in messages)
        written = sum(map(tokens_of, texts))
        usage: Body = {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": written,
            "total_tokens": prompt_tokens + written,
            "prompt_tokens_details": {"cached_tokens": 0},
        }
        self.stats["prompt_tokens"] += prompt_tokens
        self.stats["completion_tokens"] += written
        head: Body = {
            "id": f"{'chatcmpl' if chat else 'cmpl'}-{self.stats['generations']}",
            "object": "chat.completion" if chat else "text_completion",
            "created": int(time.time()),
            "model": body.get("model", "mock"),
        }
        await asyncio.sleep(self.delay_s)
        if body.get("stream"):
            head["object"] = "chat.completion.chunk" if chat else "text_completion"
            await self._stream(chat, head, list(zip(texts, finish, strict=True)), usage, body, send)
            return
        choices = [
            _choice(i, {"message": {"role": "assistant", "content": text}} if chat else {"text": text}, end)
            for i, (text, end) in enumerate(zip(texts, finish, strict=True))
        ]
        await _json(send, head | {"choices": choices, "usage": usage})

    async def _stream(
        self, chat: bool, head: Body, texts: list[tuple[str, str]], usage: Body, body: Body, send: Send
    ) -> None:
        headers = [(b"content-type", b"text/event-stream; charset=utf-8")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})

        async def chunk(choices: list[Body], **extra: Any) -> None:
            data = json.dumps(head | {"choices": choices} | extra)
            line = f"data: {data}\n\n".encode()
            await send({"type": "http.response.body", "body": line, "more_body": True})

        wants_usage = (body.get("stream_options") or {}).get("include_usage")
        if chat:
            for i in range(len(texts)):
                await chunk([_choice(i, {"delta": {"role": "assistant", "content": ""}}, None)])
        for i, (text, end) in enumerate(texts):
            words = text.split(" ")
            for place, word in enumerate(words):
                if self.token_s:
                    await asyncio.sleep(self.token_s)
                piece = word if place == 0 else " " + word
                last = end if place == len(words) - 1 else None
                await chunk([_choice(i, {"delta": {"content": piece}} if chat else {"text": piece}, last)])
        if wants_usage:
            await chunk([], usage=usage)
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n", "more_body": False})

    def _text(self, messages: list[Message], body: Body) -> str:
        self.stats["texts"] += 1
        if RATING in str(messages[-1]["content"]):
            return f"{rating(question_of(messages), str(messages[-2]['content'])):.2f}"
        rng = random.Random(f"{self.seed}/{self.stats['texts']}")
        question = parse_question(question_of(messages))
        text = write_response(question, rng, rng.random())
        if self.length is not None:
            words = (text + " " + "word " * self.length).split()
            text = " ".join(words[: self.length])
        return text

    def _messages(self, prompt: Any) -> list[Message]:
        """A conversation from the prompt of a completion: rendered text, or ids that `/tokenize` gave."""
        if isinstance(prompt, list) and prompt and isinstance(prompt[0], list):
            prompt = prompt[0]
        if isinstance(prompt, list):
            prompt = self.prompts[prompt[0]] if prompt and prompt[0] < len(self.prompts) else FALLBACK
        return parse_chat(str(prompt))

    # ------------------------------------------------------------------------------------ scores, tokens

    async def _score(self, path: str, body: Body, send: Send) -> None:
        """Logits by the gold score. Inputs: conversations (as messages, as rendered text, or as ids)."""
        self.stats["scorings"] += 1
        given: Any = body.get("messages") or body.get("input") or body.get("prompt")
        inputs: list[Any] = [given] if _is_one(given) else given
        values, tokens = [], 0
        for one in inputs:
            messages: list[Message] = one if _is_chat(one) else self._messages(one)
            values.append(gold_score(question_of(messages), str(messages[-1]["content"])))
            tokens += sum(2 + tokens_of(str(m["content"])) for m in messages)
        self.stats["scored_tokens"] += tokens
        await asyncio.sleep(self.delay_s)
        usage = {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0}
        kind = {"object": "score"} if path == "/score" else {"label": "LABEL_0", "num_classes": 1}
        data = [
            {"index": i, **kind, **({"score": v} if path == "/score" else {"probs": [v]})}
            for i, v in enumerate(values)
        ]
        await _json(send, {"id": "mock", "object": "list", "model": "mock", "data": data, "usage": usage})

    def _tokenize(self, body: Body) -> Body:
        """Ids of a conversation or a text: its place in `prompts`, then one id a word."""
        text = body["prompt"] if "prompt" in body else render_chat(body["messages"])
        self.prompts.append(text)
        if len(self.prompts) > 20_000:
            self.prompts = self.prompts[-1:]
        ids = [len(self.prompts) - 1, *range(1, tokens_of(text))]
        return {"count": len(ids), "max_model_len": CONTEXT, "tokens": ids}


def _is_chat(given: Any) -> bool:
    return isinstance(given, list) and bool(given) and isinstance(given[0], dict)


def _is_one(given: Any) -> bool:
    """Whether this is one input, not a list of them."""
    return isinstance(given, str) or _is_chat(given) or (bool(given) and isinstance(given[0], int))


def _choice(index: int, content: Body, finish_reason: str | None) -> Body:
    return {"index": index, **content, "logprobs": None, "finish_reason": finish_reason}


def render_chat(messages: list[Message]) -> str:
    """The demo checkpoints' chat template."""
    return "".join(f"<|{m['role']}|>{m['content']}<|end|>" for m in messages)


def parse_chat(text: str) -> list[Message]:
    """The conversation in a rendered text."""
    return list(_turns(text)) or [{"role": "user", "content": text}]


def _turns(text: str) -> Iterator[Message]:
    for part in text.split("<|end|>"):
        role, mark, content = part.removeprefix("<|").partition("|>")
        if mark and role in ROLES and (content or role != "assistant"):
            yield {"role": role, "content": content}


async def _json(send: Send, body: Body, status: int = 200) -> None:
    content = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(content)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def main() -> None:
    """Serve on loopback."""
    import uvicorn

    parser = argparse.ArgumentParser(description="A mock of vLLM's OpenAI server.")
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay-ms", type=float, default=0.0)
    parser.add_argument("--token-ms", type=float, default=0.0)
    parser.add_argument("--length", type=int, default=None, help="tokens of every answer")
    given = parser.parse_args()
    app: Any = Upstream(given.delay_ms / 1000, given.token_ms / 1000, given.length)
    # Longer than any client keeps an idle connection, or a request meets a connection that is being closed.
    uvicorn.run(app, port=given.port, log_level="warning", access_log=False, timeout_keep_alive=120)


if __name__ == "__main__":
    main()
