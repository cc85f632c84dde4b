"""Row 6 and the lifecycle: what a server that is told to stop still does, and for whom."""

import asyncio
import contextlib
import json
import shutil
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from subprocess import Popen
from typing import Any

import aiohttp
import pytest

from tests.faults.figures import Figure, count, say
from tests.faults.server import fake_server
from tests.load.processes import Server
from tests.ports import free_port

pytestmark = pytest.mark.slow
ASKED: dict[str, Any] = {"messages": [{"role": "user", "content": "say hello"}], "reference": "no"}
CHAT: dict[str, Any] = {"model": "policy", "messages": ASKED["messages"]}
KINDS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/improve", ASKED | {"max_iterations": 1, "stream": True}),
    ("/v1/improve", ASKED | {"max_iterations": 1}),
    ("/v1/chat/completions", CHAT | {"stream": True}),
    ("/v1/chat/completions", CHAT),
]
DRAFTED = [*ASKED["messages"], {"role": "assistant", "content": "no"}]
PIT = [{"model": "pit", "messages": DRAFTED, "stream": stream} for stream in (True, False)]
ENDS = {"/v1/improve": "event: run.completed", "/v1/chat/completions": "data: [DONE]"}


async def ask(http: aiohttp.ClientSession, url: str, path: str, body: dict[str, Any]) -> str:
    """The text of an answer that is whole. Raises for any other."""
    async with http.post(url + path, json=body) as response:
        text = await response.text()
    assert response.status == 200, text
    if body.get("stream"):
        assert ENDS[path] in text and '"error"' not in text, text[-300:]
    else:
        json.loads(text)
    return text


async def refused(http: aiohttp.ClientSession, url: str) -> None:
    """New work is told to go elsewhere, on a connection that ends."""
    async with http.post(f"{url}/v1/improve", json=ASKED) as response:
        assert response.status == 503, await response.text()
        assert (await response.json())["error"]["code"] == "not_ready"
        assert int(response.headers["retry-after"]) > 0
        assert response.headers["connection"] == "close"


async def test_sigterm_with_a_hundred_in_flight(tmp_path: Path) -> None:
    with fake_server(tmp_path, token_ms=100, tokens=40, shutdown_grace_s=20) as server:
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as http:
            asked = [asyncio.create_task(ask(http, server.url, *KINDS[n % 4])) for n in range(100)]
            await in_flight(http, server, 100)
            told = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            async with http.get(f"{server.url}/health/ready") as ready:
                unready_s = time.monotonic() - told
                assert ready.status == 503
            async with http.get(f"{server.url}/health/live") as live:
                assert live.status == 200
            for _ in range(5):
                await refused(http, server.url)
                await asyncio.sleep(0.3)
            answers = await asyncio.gather(*asked, return_exceptions=True)
            finished = sum(isinstance(answer, str) for answer in answers)
            status = await asyncio.to_thread(server.process.wait, 20)
    say(
        Figure(
            6,
            "SIGTERM with 100 requests in flight, half of them streams",
            f"{finished} of 100 finish, not ready after {1000 * unready_s:.0f} ms, new work 503 with"
            f" Retry-After, exit status {status} after {time.monotonic() - told:.1f} s",
            "all finish, new work 503 with Retry-After, exit status 0",
            finished == 100 and status == 0 and unready_s < 1,
        )
    )


async def in_flight(http: aiohttp.ClientSession, server: Server, number: int) -> None:
    """Until so many requests are in the server."""
    async with asyncio.timeout(20):
        while True:
            async with http.get(f"{server.url}/metrics") as response:
                if f"pit_requests_in_flight {number + 1}.0" in await response.text():
                    return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("forced", [False, True])
async def test_what_takes_longer_than_the_grace_is_cancelled_with_its_best(
    tmp_path: Path, forced: bool
) -> None:
    """A second signal is the end of the grace. Runs answer with their best so far and are stored, chats of
    model pit too; what has no best says why it ends."""
    grace = 60.0 if forced else 1.0
    with fake_server(tmp_path, token_ms=50, tokens=400, shutdown_grace_s=grace) as server:
        async with aiohttp.ClientSession() as http:
            improve = [asyncio.create_task(ask(http, server.url, *kind)) for kind in KINDS[:2]]
            pit = [asyncio.create_task(ask(http, server.url, KINDS[2][0], body)) for body in PIT]
            chats = [http.post(server.url + path, json=body) for path, body in KINDS[2:]]
            begun = [asyncio.create_task(request.__aenter__()) for request in chats]
            await in_flight(http, server, 6)
            stream = await begun[0]
            told = time.monotonic()
            server.process.send_signal(signal.SIGTERM)
            if forced:
                await asyncio.sleep(0.3)
                server.process.send_signal(signal.SIGINT)
            streamed, answered = await asyncio.gather(*improve)
            last = json.loads(streamed.strip().rpartition("data: ")[2])["improvement"]
            for result in (last, json.loads(answered)):
                assert (result["stop_reason"], result["response"], result["stored"]) == (
                    "cancelled", "no", True,
                )  # fmt: skip
            streamed, answered = await asyncio.gather(*pit)
            chunks = [json.loads(line[6:]) for line in streamed.splitlines() if line.startswith("data: {")]
            assert "".join(one["choices"][0]["delta"].get("content", "") for one in chunks) == "no"
            last = json.loads(answered)["choices"][0]
            assert last["message"]["content"] == "no"
            assert chunks[-1]["choices"][0]["finish_reason"] == last["finish_reason"] == "stop"
            ended = (await stream.text()).strip().split("\n\n")
            assert ended[-1] == "data: [DONE]"
            assert json.loads(ended[-2].removeprefix("data: "))["error"]["code"] == "not_ready"
            unary = await begun[1]
            assert (unary.status, unary.headers["connection"]) == (503, "close")
            status = await asyncio.to_thread(server.process.wait, 20)
        assert time.monotonic() - told < (8 if forced else 10)
        assert status == (128 + signal.SIGINT if forced else 0)
    log = next(tmp_path.glob("*.log")).read_text()
    assert "requests cancelled" in log and "Traceback" not in log


NGINX = """
error_log stderr warn;
pid {directory}/nginx.pid;
daemon off;
worker_processes 1;
events {{ worker_connections 1024; }}
http {{
  access_log off;
  client_body_temp_path {directory}/body;
  proxy_temp_path {directory}/proxy;
  fastcgi_temp_path {directory}/fastcgi;
  uwsgi_temp_path {directory}/uwsgi;
  scgi_temp_path {directory}/scgi;
{documented}
}}
"""


def documented(text: str, ports: list[int], listen: int) -> str:
    """The configuration that docs/reliability.md shows, for servers of ours."""
    block = text.split("```nginx\n")[1].split("```")[0]
    for number, port in enumerate(ports, 1):
        block = block.replace(f"10.0.0.{number}:8000", f"127.0.0.1:{port}")
    return block.replace("listen 80;", f"listen 127.0.0.1:{listen};")


@contextmanager
def nginx(directory: Path, ports: list[int]) -> Iterator[str]:
    listen = free_port()
    page = Path(__file__).resolve().parents[2] / "docs/reliability.md"
    block = documented(page.read_text(encoding="utf-8"), ports, listen)
    (directory / "nginx.conf").write_text(NGINX.format(directory=directory, documented=block))
    with (directory / "nginx.log").open("wb") as log:
        command = ["nginx", "-c", str(directory / "nginx.conf"), "-p", str(directory)]
        process = Popen(command, stdout=log, stderr=log)
    try:
        for _ in range(100):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", listen)):
                break
            time.sleep(0.05)
        yield f"http://127.0.0.1:{listen}"
    finally:
        process.terminate()
        process.wait(10)


async def test_replicas_behind_a_proxy_restarted_in_turn(tmp_path: Path) -> None:
    """Under load, unary and streamed: nobody sees a failure."""
    if shutil.which("nginx") is None:
        pytest.skip("nginx is not installed: apt-get install nginx-light")
    restarts, ports, done, failures = count(10, 2), [free_port(), free_port()], 0, list[str]()
    settings: dict[str, Any] = {"shutdown_grace_s": 20, "database": f"sqlite:///{tmp_path}/pit.db"}

    with ExitStack() as stack:
        replicas = [ExitStack(), ExitStack()]

        def start(number: int) -> Server:
            replica = fake_server(tmp_path, port=ports[number], **settings)
            return replicas[number].enter_context(replica)

        servers = [start(0), start(1)]
        for replica in replicas:
            stack.callback(replica.close)
        url = stack.enter_context(nginx(tmp_path, ports))
        running = True

        async def user(http: aiohttp.ClientSession, number: int) -> None:
            nonlocal done
            while running:
                try:
                    await ask(http, url, *KINDS[number % 4])
                    done += 1
                except (AssertionError, aiohttp.ClientError, ValueError) as error:
                    failures.append(f"{type(error).__name__}: {str(error)[:300]}")
                number += 1

        async with aiohttp.ClientSession() as http:
            users = [asyncio.create_task(user(http, number)) for number in range(16)]
            await asyncio.sleep(1)
            for turn in range(restarts):
                number = turn % 2
                servers[number].process.send_signal(signal.SIGTERM)
                assert await asyncio.to_thread(servers[number].process.wait, 30) == 0
                await asyncio.to_thread(replicas[number].close)
                servers[number] = await asyncio.to_thread(start, number)
                await asyncio.sleep(0.5)
            running = False
            await asyncio.gather(*users)
    print(*failures[:3], sep="\n")
    say(
        Figure(
            6,
            f"two replicas behind nginx, restarted in turn {restarts} times under 16 users",
            f"{len(failures)} of {done + len(failures)} requests failed",
            "0 failed requests",
            not failures and done > 16 * restarts,
        )
    )
