"""Runs a built image as an orchestrator would: its user, no capabilities, a read-only root, volumes."""

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from tests.app.upstream import FakeUpstream, free_address
from tests.deploy import dockerfile
from tests.deploy.dockerfile import Stage
from tests.tiny import make_tiny_checkpoint

INSTALLERS = ("gcc", "g++", "cc", "c++", "clang", "tcc", "cc1", "ld", "as", "make", "pip", "pip3", "uv")
START_S = 300.0
MODELS = "/mnt"
"""Where the image sees checkpoints: an empty directory of Debian's."""
Mounts = Sequence[tuple[Path, str]]


@dataclass(frozen=True)
class Image:
    """`root` is the file system that was built."""

    target: str
    root: Path
    stages: dict[str, Stage]

    def word(self, word: str) -> list[str]:
        found = dockerfile.last(self.stages, self.target, word)
        assert found, f"{self.target} has no {word}"
        return found.words()

    @property
    def user(self) -> tuple[int, int]:
        user, _, group = self.word("USER")[0].partition(":")
        return int(user), int(group)

    @property
    def environment(self) -> dict[str, str]:
        return dockerfile.environment(self.stages, self.target)

    def command(self, *words: str, mounts: Mounts = ()) -> list[str]:
        """For `words` in the image, on a read-only root. Its volumes are empty, `mounts` (from, to) beside
        them."""
        where, (user, group) = self.root, self.user
        lines = [
            f"mount --bind {where} {where}",
            f"mount -t proc proc {where}/proc",
            f"mount -t sysfs -o ro sysfs {where}/sys",
            f"mount --rbind /dev {where}/dev",
        ]
        for volume in self.word("VOLUME"):
            owner = "mode=1777" if volume == "/tmp" else f"uid={user},gid={group},mode=750"
            lines.append(f"mount -t tmpfs -o {owner} tmpfs {where}{volume}")
        lines += [f"mount --bind {source} {where}{target}" for source, target in mounts]
        lines.append(f"mount -o remount,bind,ro {where}")
        rights = "--clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all"
        lines.append(f'exec chroot {where} setpriv --reuid={user} --regid={group} {rights} "$@"')
        return ["unshare", "--mount", "sh", "-ec", "\n".join(lines), "sh", *words]

    def run(self, *words: str) -> str:
        """What it says; it has to succeed."""
        done = subprocess.run(self.command(*words), env=self.environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout


def try_image(image: Image) -> None:
    """Raises `AssertionError` with what is wrong, says what is right."""
    found = image.run("sh", "-c", 'for name; do command -v "$name" || true; done', "sh", *INSTALLERS).split()
    assert not found, f"the image holds {found}"
    say("no compiler, no installer")
    cannot_write(image)
    say(image.run("pit", "version").strip())
    if image.target == "gpu":  # nothing to serve with: there is no GPU
        finds_its_driver_module(image)
    else:
        asyncio.run(serves(image))


def cannot_write(image: Image) -> None:
    """As who it runs, and that neither root nor capabilities are left to it."""
    script = "touch /probe 2>&1 || true; id -u; grep ^Cap /proc/self/status; touch /tmp/a ~/a"
    first, user, *capabilities = image.run("sh", "-c", script).splitlines()
    assert "Read-only file system" in first and int(user) == image.user[0] > 0
    assert not any(int(line.split()[1], 16) for line in capabilities), capabilities
    say(f"user {user}, no capabilities; the root cannot be written, the volumes can")


def finds_its_driver_module(image: Image) -> None:
    """Triton's own way to its module, but for the driver's library, ends with what the image holds."""
    script = """
from pathlib import Path
from triton.runtime.build import compile_so_from_file
import triton.backends.nvidia as nvidia
source = Path(nvidia.__file__).parent / "driver.c"
made = compile_so_from_file(str(source), "cuda_utils", ["/tmp"], [], ["libcuda.so.1"])
assert Path(made).read_bytes() == Path("/venv/lib/triton-driver.so").read_bytes()
"""
    image.run("python3", "-c", script)
    say("Triton gets its driver module without a compiler")


@asynccontextmanager
async def models(image: Image) -> AsyncGenerator[tuple[dict[str, str], Mounts], None]:
    """Settings that name models, and what is mounted for them: an upstream, or tiny checkpoints."""
    if image.target == "gateway":
        async with FakeUpstream().running() as upstream:
            roles = ("POLICY", "IMPROVER", "GAP_REWARD")
            yield {f"PIT_{role}_URL": upstream.url for role in roles}, ()
        return
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        roles = ("policy", "improver", "gap_reward")
        for role in roles:
            make_tiny_checkpoint(Path(directory) / role, role)
        subprocess.run(["chmod", "-R", "a+rX", directory], check=True)
        yield {f"PIT_{role.upper()}": f"{MODELS}/{role}" for role in roles}, ((Path(directory), MODELS),)


async def serves(image: Image) -> None:
    """It starts, its health check says yes, it improves, it drains, its health check says no."""
    address, key = free_address(), os.urandom(24).hex()
    async with models(image) as (given, mounts):
        environment = image.environment | given
        environment |= {"PIT_PORT": address.rpartition(":")[2], "PIT_API_KEYS": key}
        command = image.command(*image.word("ENTRYPOINT"), *image.word("CMD"), mounts=mounts)
        probe = image.command(*health_check(image))
        with tempfile.TemporaryFile() as log:
            server = subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT)
            try:
                said = await improves(address, key, server)
                assert await status_of(probe, environment) == 0, "the health check says no"
                server.send_signal(signal.SIGTERM)
                status = await asyncio.to_thread(server.wait, 60)
                assert status == 0, f"SIGTERM ends it with status {status}"
                assert await status_of(probe, environment) != 0, "the health check says yes of nothing"
            except BaseException:
                log.seek(0)
                print(log.read().decode(errors="replace")[-3000:], file=sys.stderr)
                raise
            finally:
                if server.poll() is None:
                    server.kill()
                    server.wait()
    say(f"pit serve: {said}; the health check is right; SIGTERM with status 0")


async def improves(address: str, key: str, server: "subprocess.Popen[bytes]") -> str:
    """Wait for it, and send an improvement that has to be stored."""
    started = time.monotonic()
    body = {"messages": [{"role": "user", "content": "What color?"}], "reference": "Blue."}
    async with httpx.AsyncClient(base_url=address, headers={"authorization": f"Bearer {key}"}) as client:
        await answers(client, "/health/live", server)
        alive = time.monotonic() - started
        await answers(client, "/health/ready", server)
        ready = time.monotonic() - started
        answer = await client.post("/v1/improve", json=body, timeout=60)
        assert answer.status_code == 200 and answer.json()["stored"], answer.text
    memory = resident(server.pid)
    return f"live after {alive:.1f} s, ready after {ready:.1f} s, {memory:.0f} MB, an improvement is stored"


def health_check(image: Image) -> list[str]:
    """What HEALTHCHECK runs, after its options."""
    found = dockerfile.last(image.stages, image.target, "HEALTHCHECK")
    assert found and " CMD " in found.rest
    return dockerfile.Instruction("CMD", found.rest.partition(" CMD ")[2]).words()


async def answers(client: httpx.AsyncClient, path: str, server: "subprocess.Popen[bytes]") -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            if (await client.get(path)).status_code == 200:
                return
        except httpx.TransportError:
            pass
        await asyncio.sleep(0.1)
    raise AssertionError(f"{path} does not answer 200")


async def status_of(command: list[str], environment: dict[str, str]) -> int:
    process = await asyncio.create_subprocess_exec(*command, env=environment, stderr=subprocess.DEVNULL)
    return await process.wait()


def resident(pid: int) -> float:
    """Megabytes of the process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1e3


def say(text: str) -> None:
    print(f"[image] {text}", flush=True)
