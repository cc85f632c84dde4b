"""The demo: train if there is no checkpoint yet, serve it, improve one response, and go on serving.

Run by `make demo`. Without a terminal, or with --exit, the server is stopped after the improvement.
"""

import argparse
import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
BIN = Path(sys.executable).parent
CONFIG = "training/configs/demo.yaml"
RUN = ROOT / "runs" / "demo"
ROLES = ("policy", "improver", "gap_reward")
READY_WITHIN = 180.0  # seconds; a first start on a busy machine compiles and loads for a minute
STOP_WITHIN = 30.0  # seconds between SIGTERM and SIGKILL

console = Console()


class DemoError(Exception):
    """Something the person at the terminal can act on."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--exit", action="store_true", help="stop the server after the improvement")
    options = parser.parse_args()
    stay = not options.exit and sys.stdin.isatty() and sys.stdout.isatty()
    # So that `finally` stops the server then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        demo(options.port, stay)
    except DemoError as error:
        sys.exit(f"[demo] error: {error}")
    except KeyboardInterrupt:
        console.print("[demo] interrupted", markup=False)
        sys.exit(130)


def demo(port: int, stay: bool) -> None:
    check_port(port)
    train()
    question, reference = sample()
    url = f"http://127.0.0.1:{port}"
    log = RUN / "serve.log"
    with log.open("wb") as output:
        # A session of its own: Ctrl-C reaches this script, which then stops the server in order.
        server = subprocess.Popen(
            serve_command(port), cwd=ROOT, stdout=output, stderr=output, start_new_session=True
        )
    try:
        wait_until_ready(server, url, log)
        run([BIN / "pit", "improve", question, "--reference", reference, "--url", url])
        show_next(url, question, reference)
        if stay:
            say(f"serving on {url} (log: {log.relative_to(ROOT)}); Ctrl-C stops it")
            wait_for_interrupt(server, log)
    finally:
        stop(server)
    say("server stopped")


def check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except (OSError, OverflowError) as error:
            raise DemoError(
                f"cannot listen on 127.0.0.1:{port} ({error}). Choose another port: make demo PORT={port + 1}"
            ) from None


def train() -> None:
    """Run the pipeline unless all three checkpoints stand; the command itself resumes what was cut short."""
    missing = [role for role in ROLES if not (RUN / role / "pit.json").exists()]
    if not missing:
        say("checkpoints found in runs/demo: not training again (remove the directory to do so)")
        return
    say(f"training ({', '.join(missing)} missing in runs/demo); it resumes where it was if you interrupt it")
    run([BIN / "pit-train", "run", CONFIG])


def sample() -> tuple[str, str]:
    """A question and a draft answer that training never saw."""
    command = [str(BIN / "pit-train"), "data", "sample", "--index", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DemoError(f"{shlex.join(command)} failed:\n{done.stderr.strip()}")
    record = json.loads(done.stdout)
    prompt = record["prompt"]
    question = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return str(question), str(record["rejected"])


def serve_command(port: int) -> list[str]:
    # A database of its own: keys in the user's would be asked for.
    database = f"sqlite:///{(RUN / 'pit.db').relative_to(ROOT)}"
    command = [str(BIN / "pit"), "serve", "--host", "127.0.0.1", "--port", str(port)]
    command += ["--database", database]
    for role in ROLES:
        command += ["--" + role.replace("_", "-"), str((RUN / role).relative_to(ROOT))]
    return command


def wait_until_ready(server: "subprocess.Popen[bytes]", url: str, log: Path) -> None:
    started = time.monotonic()
    said = 0.0
    with console.status("starting the server") as status:
        while (waited := time.monotonic() - started) < READY_WITHIN:
            if server.poll() is not None:
                raise DemoError(f"the server stopped with exit code {server.returncode}:\n{tail(log)}")
            try:
                if httpx.get(f"{url}/health/ready", timeout=2).status_code == 200:
                    say(f"server ready after {waited:.0f} s")
                    return
            except httpx.TransportError:
                pass
            status.update(f"starting the server: {waited:.0f} s (it takes about half a minute)")
            if not console.is_terminal and waited - said >= 10:
                said = waited
                say(f"starting the server: {waited:.0f} s")
            time.sleep(0.5)
    raise DemoError(f"the server was not ready within {READY_WITHIN:.0f} s:\n{tail(log)}")


def show_next(url: str, question: str, reference: str) -> None:
    body = {"messages": [{"role": "user", "content": question}], "reference": reference}
    say("the same over HTTP:")
    data = shlex.quote(json.dumps(body))
    print(f"\ncurl -s {url}/v1/improve -H 'content-type: application/json' -d {data}\n", flush=True)


def wait_for_interrupt(server: "subprocess.Popen[bytes]", log: Path) -> None:
    try:
        code = server.wait()
    except KeyboardInterrupt:
        return
    raise DemoError(f"the server stopped by itself with exit code {code}:\n{tail(log)}")


def stop(process: "subprocess.Popen[bytes]", ask: bool = True) -> None:
    """End a process that this script started, by force when it takes too long."""
    if process.poll() is not None:
        return
    if ask:
        process.terminate()
    try:
        process.wait(STOP_WITHIN)
    except subprocess.TimeoutExpired:
        say(f"process {process.pid} did not stop within {STOP_WITHIN:.0f} s: killing it")
        if os.getpgid(process.pid) == process.pid:
            # The server leads a group of its own: its engine processes go with it, and nothing else.
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()
        process.wait()


def run(command: list[str | Path]) -> None:
    process = subprocess.Popen([str(part) for part in command], cwd=ROOT)
    try:
        code = process.wait()
    except KeyboardInterrupt:
        # Ctrl-C reached the command too: it gets the time to save what it has.
        stop(process, ask=False)
        raise
    except SystemExit:
        stop(process)
        raise
    if code != 0:
        raise DemoError(f"`{Path(str(command[0])).name} {command[1]}` failed with exit code {code}")


def tail(log: Path, lines: int = 25) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:])


def say(text: str) -> None:
    console.print(f"[demo] {text}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
