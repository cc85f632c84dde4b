"""The page's files: all of them in memory, named by one digest, and rendered once.

A static file's address holds the digest of all files, so browsers keep it for good, and the modules, which
import each other by relative names, are always of one version.
"""

import gzip
import hashlib
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app import __version__

HERE = Path(__file__).parent
MEDIA_TYPES = {".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
IMPORT = re.compile(r'^(?:import|export)\b[^"]*"\./([a-z_]+\.js)";?$', re.MULTILINE)
PAGES = ("improve", "runs", "batches")
"""Each is a template, and a module that it starts with."""


@dataclass(frozen=True, slots=True)
class File:
    """What is sent: as it is, or compressed for who takes that."""

    media_type: str
    body: bytes
    gzipped: bytes

    @classmethod
    def of(cls, media_type: str, body: bytes) -> "File":
        return cls(f"{media_type}; charset=utf-8", body, gzip.compress(body, mtime=0))


class Site:
    """The static files by name, and the pages by name and by whether the server keeps runs."""

    def __init__(self) -> None:
        read = {path.name: path.read_bytes() for path in sorted((HERE / "static").iterdir())}
        digest = hashlib.sha256()
        for name, body in read.items():
            digest.update(f"{name} {len(body)}\n".encode() + body)
        self.digest = digest.hexdigest()[:12]
        self.static = {name: File.of(MEDIA_TYPES[Path(name).suffix], body) for name, body in read.items()}
        templates = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined
        )
        self.pages: dict[tuple[str, bool], File] = {}
        for page in PAGES:
            modules = self._imported(f"{page}.js")
            for keeps in (True, False):
                html = templates.get_template(f"{page}.html").render(
                    page=page,
                    keeps=keeps,
                    modules=modules,
                    static=f"/static/{self.digest}",
                    version=__version__,
                )
                self.pages[page, keeps] = File.of("text/html", html.encode())

    def _imported(self, entry: str) -> list[str]:
        """A module and all that it imports: the page names them, so they are fetched at once."""
        found = [entry]
        for name in found:  # it grows meanwhile
            text = self.static[name].body.decode()
            found += [other for other in IMPORT.findall(text) if other not in found]
        return found


@cache
def site() -> Site:
    """The one that every application of this process serves."""
    return Site()
