"""An OpenAI-compatible API that judges as a test tells it, and fails as a test tells it."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = Callable[[int, dict[str, Any]], tuple[int, Any]]
"""From the number of the request and its body to a status and a body; status 0 cuts the connection."""


class Server:
    """An API on loopback that replies as told; `bodies` and `headers` hold what it was asked."""

    def __init__(self, reply: Reply) -> None:
        self.reply, self.bodies, self.headers = reply, list[dict[str, Any]](), list[dict[str, str]]()
        self.busy = self.most_busy = 0
        lock = threading.Lock()

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler) -> None:
                body = json.loads(handler.rfile.read(int(handler.headers["content-length"])))
                with lock:
                    number = len(self.bodies)
                    self.bodies.append(body)
                    self.headers.append({k.lower(): v for k, v in handler.headers.items()})
                    self.busy += 1
                    self.most_busy = max(self.busy, self.most_busy)
                try:
                    status, content = self.reply(number, body)
                finally:
                    with lock:
                        self.busy -= 1
                if status == 0:
                    handler.close_connection = True
                    return
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                handler.send_response(status)
                if status == 429:
                    handler.send_header("retry-after", "0.01")
                handler.send_header("content-length", str(len(data)))
                handler.end_headers()
                with suppress(OSError):  # a client that is gone
                    handler.wfile.write(data)

            def log_message(handler, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(20)


@contextmanager
def api_servers() -> Iterator[Callable[[Reply], Server]]:
    """Gives a function that starts servers; all are closed at the end."""
    servers: list[Server] = []

    def start(reply: Reply) -> Server:
        servers.append(Server(reply))
        return servers[-1]

    try:
        yield start
    finally:
        for server in servers:
            server.close()


def completion(text: str | None) -> tuple[int, Any]:
    message = {"role": "assistant", "content": text}
    usage = {"prompt_tokens": 100, "completion_tokens": 7}
    return 200, {"choices": [{"index": 0, "message": message}], "usage": usage}


def responses_in(body: dict[str, Any]) -> tuple[str, str]:
    """A and B of a question."""
    text = body["messages"][0]["content"]
    parts = [text.split(f"<response_{name}>\n")[1].split(f"\n</response_{name}>")[0] for name in "AB"]
    return parts[0], parts[1]


def longer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
    """A judge that prefers the longer response."""
    a, b = map(len, responses_in(body))
    return completion(f"One is longer.\nVerdict: {'A' if a > b else 'B' if b > a else 'tie'}")
