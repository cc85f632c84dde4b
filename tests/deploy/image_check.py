"""Builds an image as the Dockerfile says, without a container engine, and runs it:

    python -m tests.deploy.image_check gateway cpu    # root, debootstrap, network, some minutes

The base is what debootstrap makes of the same Debian. Each stage is a layer over the one before (overlayfs),
its RUN lines run in a chroot. The result starts as the image's user on a read-only root and has to answer.
Everything happens in mount and process namespaces of its own and in a temporary directory.
"""

import argparse
import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlparse

from scripts import setup
from tests.deploy import dockerfile
from tests.deploy.dockerfile import DOCKERFILE, ROOT, Stage
from tests.deploy.image_run import Image, try_image

INSIDE = "PIT_IMAGE_CHECK"
"""Set where the program runs in namespaces of its own: to the directory to work in."""
UV = {
    "--find-links": ("UV_FIND_LINKS", ","),
    "--default-index": ("UV_DEFAULT_INDEX", " "),
    "--index": ("UV_INDEX", " "),
    "--index-strategy": ("UV_INDEX_STRATEGY", ""),
}
"""uv's options as variables, and what stands between their values."""
PIP = {"find-links": "PIP_FIND_LINKS", "index-url": "PIP_INDEX_URL", "extra-index-url": "PIP_EXTRA_INDEX_URL"}
CERTIFICATES = "/run/certificates.pem"
"""Where the chroot has this machine's certificates; Debian's own place is written to by its package."""
RELEASES = {"bookworm", "trixie"}


@dataclass(frozen=True)
class Layer:
    """A stage: `root` is its whole file system, `upper` what it added, `lower` those below."""

    root: Path
    upper: Path
    lower: tuple[Path, ...]


class Builder:
    """Builds stages under a directory; needs root and a mount namespace."""

    def __init__(
        self, work: Path, stages: dict[str, Stage], base: Path | None, arguments: dict[str, str]
    ) -> None:
        self.work, self.stages, self.base, self.arguments = work, stages, base, arguments
        self.layers: dict[str, Layer] = {}
        self.sources = PackageSources()

    def build(self, target: str) -> Layer:
        for stage in dockerfile.needed(self.stages, target):
            if stage.name in self.layers:
                continue
            started = time.monotonic()
            self.layers[stage.name] = self._stage(stage)
            say(f"stage {stage.name}: {time.monotonic() - started:.0f} s, "
                f"adds {megabytes(self.layers[stage.name].upper):.0f} MB")  # fmt: skip
        return self.layers[target]

    def _stage(self, stage: Stage) -> Layer:
        layer = self._layer(stage)
        place = self._place(stage, before=True)
        for one in stage.instructions:
            if one.word == "WORKDIR":
                place = one.rest
                (layer.root / place.lstrip("/")).mkdir(parents=True, exist_ok=True)
            elif one.word == "COPY":
                self._copy(layer, place, one.words())
            elif one.word == "RUN":
                say(f"RUN {one.rest}")
                self._run(layer, place, stage, one.rest)
        return layer

    def _place(self, stage: Stage, before: bool) -> str:
        found = dockerfile.lineage(self.stages, stage.name)
        places = [one.rest for each in (found[:-1] if before else found) for one in each.all("WORKDIR")]
        return places[-1] if places else "/"

    def _layer(self, stage: Stage) -> Layer:
        if stage.parent in self.layers:
            below = self.layers[stage.parent]
            lower = (below.upper, *below.lower)
        else:
            lower = (self._debian(stage.parent),)
        home = self.work / stage.name
        upper, scratch, root = (home / part for part in ("upper", "scratch", "root"))
        for directory in (upper, scratch, root):
            directory.mkdir(parents=True)
        options = f"lowerdir={':'.join(map(str, lower))},upperdir={upper},workdir={scratch}"
        command("mount", "-t", "overlay", "overlay", "-o", options, str(root))
        return Layer(root, upper, lower)

    def _debian(self, image: str) -> Path:
        """What debootstrap makes of the release that the base image's tag names."""
        release = image.partition(":")[2].split("-")[0]
        if release not in RELEASES:
            raise SystemExit(f"the base image {image} is of no Debian release that is known here")
        if self.base:
            return self.base
        root = self.work / release
        say(f"FROM {image}: debootstrap {release} in its place")
        command("debootstrap", "--variant=minbase", release, str(root), quiet=True)
        return root

    def _copy(self, layer: Layer, place: str, words: Sequence[str]) -> None:
        source = ROOT
        if words[0].startswith("--from="):
            source, words = self.layers[words[0].partition("=")[2]].root, words[1:]
        *what, where = words
        target = layer.root / os.path.join(place, where).lstrip("/")
        for one in what:
            origin = source / one.lstrip("/")
            if origin.is_dir():
                left_out = ("__pycache__",) if source == ROOT else ()
                ignore = shutil.ignore_patterns(*left_out)
                shutil.copytree(origin, target, symlinks=True, dirs_exist_ok=True, ignore=ignore)
            else:
                into = where.endswith("/") or target.is_dir()
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(origin, target / origin.name if into else target)

    def _run(self, layer: Layer, place: str, stage: Stage, line: str) -> None:
        given = {"PATH": dockerfile.BASE_PATH, "HOME": "/root", "DEBIAN_FRONTEND": "noninteractive"}
        given |= dockerfile.environment(self.stages, stage.name) | self.sources.environment
        arguments = dict(one.rest.split("=", 1) for one in stage.all("ARG"))
        given |= {name: value for name, value in (arguments | self.arguments).items() if value}
        with self.sources.mounted(layer.root):
            command("chroot", str(layer.root), "/bin/sh", "-ec", f"cd {place}; {line}", env=given, quiet=True)


class PackageSources:
    """Where this machine's pip gets its packages from, shown to pip and uv in a chroot."""

    def __init__(self) -> None:
        found = setup.pip_settings(Path(sys.executable))
        options = iter(setup.source_options(found))
        given: dict[str, list[str]] = {}
        for option in options:
            given.setdefault(option, []).append(next(options))
        self.environment = {
            name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")
        }
        self.environment |= {
            name: sign.join(given[option]) for option, (name, sign) in UV.items() if option in given
        }
        self.environment |= {name: found[setting] for setting, name in PIP.items() if setting in found}
        places = [place for option, them in given.items() if option != "--index-strategy" for place in them]
        self.places = [(path, str(path)) for path in sorted({found for found in map(local, places) if found})]
        certificates = Path(found.get("cert", "/nowhere"))
        if certificates.exists():
            self.places.append((certificates, CERTIFICATES))
            self.environment |= {name: CERTIFICATES for name in ("SSL_CERT_FILE", "PIP_CERT")}

    @contextlib.contextmanager
    def mounted(self, root: Path) -> Iterator[None]:
        here = [(Path(place), place) for place in ("/dev", "/proc", "/etc/resolv.conf")]
        done, made = [], []
        try:
            for place, where in here + self.places:
                target = root / where.lstrip("/")
                if not target.exists():
                    made.append(target)
                    if place.is_dir():
                        target.mkdir(parents=True)
                    else:
                        target.parent.mkdir(parents=True, exist_ok=True)
                        target.touch()
                command("mount", "--rbind", str(place.resolve()), str(target))
                done.append(target)
            yield
        finally:
            for target in reversed(done):
                command("umount", "--recursive", "--lazy", str(target))
            for target in made:
                target.unlink() if target.is_file() else target.rmdir()


def local(place: str) -> Path | None:
    """A directory here that a package source lies in: the files of an index lie beside its pages."""
    path = Path(urlparse(place).path).parent if place.startswith("file:") else Path(place)
    return path if path.is_absolute() and path.exists() else None


def command(*words: str, env: dict[str, str] | None = None, quiet: bool = False) -> None:
    """Run it; a failure ends the program with the end of what it said."""
    done = subprocess.run(
        words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-25:])
        raise SystemExit(f"{' '.join(words)} ended with status {done.returncode}:\n{tail}")
    if done.stdout and not quiet:
        print(done.stdout, end="", flush=True)


def megabytes(directory: Path) -> float:
    said = subprocess.run(
        ["du", "-s", "--block-size=1", str(directory)], capture_output=True, text=True, check=True
    )
    return int(said.stdout.split()[0]) / 1e6


def packed(layer: Layer) -> float:
    """Megabytes of the layers over the base as a registry keeps them: a tar of each, gzipped."""
    total = 0
    for upper in (layer.upper, *layer.lower[:-1]):
        tar = subprocess.Popen(["tar", "-C", str(upper), "-c", "."], stdout=subprocess.PIPE)
        total += int(
            subprocess.run("gzip -6 | wc -c", shell=True, stdin=tar.stdout, capture_output=True).stdout
        )
        tar.wait()
    return total / 1e6


def say(text: str) -> None:
    print(f"[image] {text}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Build images in a chroot, and run them.")
    parser.add_argument("target", nargs="*", default=["gateway"], help="gateway, cpu, gpu [default: gateway]")
    parser.add_argument("--base", type=Path, help="a minimal Debian that debootstrap made before")
    parser.add_argument("--build-arg", action="append", default=[], metavar="NAME=VALUE", help="as docker's")
    given = parser.parse_args()
    if os.geteuid() != 0 or not shutil.which("debootstrap"):
        raise SystemExit("needs root, and debootstrap: apt-get install debootstrap")
    if work := os.environ.get(INSIDE):
        build_and_try(Path(work), given)
        return 0
    # What is mounted and runs in there ends with it, however it ends; then the directory is removed.
    inside = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc", sys.executable, "-m"]
    with tempfile.TemporaryDirectory(prefix="pit-image-") as directory:
        os.chmod(directory, 0o755)  # the image's user looks in from a chroot
        environment = {**os.environ, INSIDE: directory}
        return subprocess.run(
            [*inside, "tests.deploy.image_check", *sys.argv[1:]], cwd=ROOT, env=environment
        ).returncode


def build_and_try(work: Path, given: argparse.Namespace) -> None:
    stages = dockerfile.stages(DOCKERFILE.read_text(encoding="utf-8"))
    builder = Builder(work, stages, given.base, dict(one.split("=", 1) for one in given.build_arg))
    for target in given.target:
        layer = builder.build(target)
        own = sum(megabytes(part) for part in (layer.upper, *layer.lower[:-1]))
        say(f"{target}: {own:.0f} MB over the base image, {packed(layer):.0f} MB of it packed")
        try_image(Image(target, layer.root, builder.stages))


if __name__ == "__main__":
    sys.exit(main())
