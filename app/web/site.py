"""The page's files: all of them in memory, named by one digest, and rendered once.

A static file's address holds the digest of all files, so browsers keep it for good, and the modules, which
import each other by relative names, are always of one version.
"""

import gzip
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from app import __version__
from app.web import reference

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
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"), autoescape=True, undefined=StrictUndefined
        )
        self._templates.filters["html"] = reference.html
        self.pages = {
            (page, keeps): self._render(page, keeps=keeps) for page in PAGES for keeps in (True, False)
        }
        self._reference: File | None = None

    def reference(self, document: Callable[[], dict[str, Any]]) -> File:
        """The page of the API. `document` gives its OpenAPI document, the same every time; it is asked for
        once."""
        if self._reference is None:
            found = document()
            self._reference = self._render(
                "reference",
                keeps=True,
                operations=reference.operations(found),
                models=reference.models(found),
            )
        return self._reference

    def _render(self, page: str, **values: Any) -> File:
        html = self._templates.get_template(f"{page}.html").render(
            page=page,
            modules=self._imported(f"{page}.js"),
            static=f"/static/{self.digest}",
            version=__version__,
            **values,
        )
        return File.of("text/html", html.encode())

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
