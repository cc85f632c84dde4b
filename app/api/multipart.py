"""multipart/form-data, piece by piece as it arrives: nothing of it is kept here."""

from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from app.errors import BadRequest

MAX_HEADER = 4096
"""Bytes of the headers of one part."""
MAX_BOUNDARY = 70
"""RFC 2046, 5.1.1."""
SEND_FORM = "Send multipart/form-data with the fields purpose and file."


@dataclass(eq=False, slots=True)
class Part:
    """One part of a form. `filename` is None for a plain field."""

    name: str
    filename: str | None


class _Collector:
    """Turns the parser's calls into pieces."""

    def __init__(self) -> None:
        self.pieces: list[tuple[Part, bytes]] = []
        self.complete = False
        self._part: Part | None = None
        self._headers: dict[bytes, bytes] = {}
        self._name = self._value = b""

    def on_part_begin(self) -> None:
        self._part, self._headers, self._name, self._value = None, {}, b"", b""

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._name += data[start:end]
        self._bound()

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]
        self._bound()

    def on_header_end(self) -> None:
        self._headers[self._name.lower()] = self._value
        self._name = self._value = b""

    def on_headers_finished(self) -> None:
        kind, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if kind != b"form-data" or b"name" not in options:
            raise BadRequest(f"A part of the body has no name. {SEND_FORM}", code="invalid_form")
        filename = options.get(b"filename")
        self._part = Part(_text(options[b"name"]), None if filename is None else _text(filename))
        self.pieces.append((self._part, b""))

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        assert self._part is not None
        self.pieces.append((self._part, data[start:end]))

    def on_end(self) -> None:
        self.complete = True

    def _bound(self) -> None:
        size = len(self._name) + len(self._value) + sum(map(len, self._headers.values()))
        if size > MAX_HEADER or len(self._headers) > 16:
            raise BadRequest("The headers of a part of the body are too long.", code="invalid_form")


async def form_parts(
    content_type: str, body: AsyncIterator[bytes]
) -> AsyncGenerator[tuple[Part, bytes], None]:
    """The pieces of a form's parts, each part's first one empty. Raises `BadRequest` for what is no form."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary", b"")
    if kind != b"multipart/form-data" or not 0 < len(boundary) <= MAX_BOUNDARY:
        raise BadRequest(f"The body is no form. {SEND_FORM}", code="invalid_form")
    found = _Collector()
    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": found.on_part_begin,
            "on_header_field": found.on_header_field,
            "on_header_value": found.on_header_value,
            "on_header_end": found.on_header_end,
            "on_headers_finished": found.on_headers_finished,
            "on_part_data": found.on_part_data,
            "on_end": found.on_end,
        },
    )
    try:
        async for chunk in body:
            parser.write(chunk)
            for piece in found.pieces:
                yield piece
            found.pieces.clear()
    except FormParserError:
        raise BadRequest(f"The body is not well formed. {SEND_FORM}", code="invalid_form") from None
    if not found.complete:
        raise BadRequest(f"The body ends before its last part does. {SEND_FORM}", code="invalid_form")


def _text(value: bytes) -> str:
    """A name as text that a database takes."""
    return value.decode("utf-8", "replace").replace("\0", "\ufffd")[:255]
