"""The file formats of preference pairs: from a line to a checked record, or a `DataError` that names it.

- `chat_pairs`: JSON lines with `prompt`, `chosen` and `rejected` as lists of messages; optional `id`,
  `source` and `references` (other responses that people wrote for the same draft).
- `hh_rlhf`: the original text of Anthropic's HH-RLHF: `chosen` and `rejected` are whole conversations
  ("\\n\\nHuman: …\\n\\nAssistant: …"). The last Assistant turn is the response, the prompt what comes before.

Whether a record is of use as a preference is decided in data.py; here only whether it is of the format.
"""

import gzip
import json
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypedDict, get_args

from training.errors import ConfigError, DataError

Format = Literal["chat_pairs", "hh_rlhf"]

_ROLES = ("system", "user", "assistant")
_HH_TURN = re.compile(r"\n\n(Human|Assistant):")


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    content: str


@dataclass(frozen=True)
class Record:
    """A line of the format. `prompts` is the prompt, twice where the format states it for each response."""

    id: str | None
    prompts: tuple[tuple[Message, ...], ...]
    chosen: str
    rejected: str
    source: str | None = None
    references: tuple[str, ...] = ()


def read_records(format: Format, path: Path) -> Iterator[tuple[int, Record]]:
    """Line number (from 1) and record of every line of a plain or .gz file; blank lines are passed over.

    Raises `ConfigError` for an unknown format, `DataError` for a file or a line that cannot be read.
    """
    if format not in get_args(Format):
        raise ConfigError(f"data format {format!r} is unknown; choose one of {', '.join(get_args(Format))}")
    for number, record in _objects(path):
        yield number, _PARSERS[format](record, _Where(path, number))


@dataclass(frozen=True)
class _Where:
    """The line that is being read, for error messages."""

    path: Path
    line: int

    def error(self, problem: str, advice: str = "Mend or remove the line") -> DataError:
        return DataError(problem, path=self.path, line=self.line, advice=advice)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Line number and JSON object of every line that is not blank."""
    for number, raw in _lines(path):
        where = _Where(path, number)
        try:
            text = raw.rstrip(b"\r\n").decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise where.error(
                f"not UTF-8 (byte {error.start + 1} of the line)", "Convert the file to UTF-8"
            ) from None
        if not text.strip():
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as error:
            problem = f"not JSON: {error.msg} at column {error.colno}"
            raise where.error(problem, "Each line must be one JSON object") from None
        except (RecursionError, ValueError) as error:
            raise where.error(f"JSON that cannot be read: {error}") from None
        if not isinstance(record, dict):
            raise where.error(
                f"a JSON {type(record).__name__}, not an object", "Each line must be one JSON object"
            )
        yield number, record


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    # Bytes, because only "\n" ends a line of JSON lines; text mode would also accept "\r".
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            yield from enumerate(file, start=1)
    except FileNotFoundError:
        raise DataError(
            "no such file", path=path, advice="Set the data path to a file of preference pairs"
        ) from None
    except IsADirectoryError:
        raise DataError("a directory, not a file", path=path, advice="Name one of the files in it") from None
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"cannot be read: {error}", path=path) from None


def _chat_record(record: Mapping[str, Any], where: _Where) -> Record:
    _require(record, where)
    prompt = _messages(record["prompt"], "prompt", where)
    if prompt[-1]["role"] != "user":
        raise where.error(f"the last message of the prompt has role {prompt[-1]['role']}, it must be user")
    references = record.get("references", [])
    if not isinstance(references, list):
        raise where.error(f"references must be a list of strings, not {type(references).__name__}")
    return Record(
        id=_optional_text(record, "id", where),
        prompts=(prompt,),
        chosen=_response(record["chosen"], "chosen", where),
        rejected=_response(record["rejected"], "rejected", where),
        source=_optional_text(record, "source", where),
        references=tuple(_text(text, "references", where) for text in references),
    )


def _require(
    record: Mapping[str, Any], where: _Where, keys: Sequence[str] = ("prompt", "chosen", "rejected")
) -> None:
    missing = [key for key in keys if key not in record]
    if missing:
        present = ", ".join(sorted(map(str, record))) or "none"
        raise where.error(
            f"no key {' and no key '.join(map(repr, missing))} (keys: {present})", "Is this the right format?"
        )


def _messages(value: Any, key: str, where: _Where) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise where.error(f"{key} must be a list of messages, at least one")
    messages = []
    for index, message in enumerate(value):
        name = f"{key}[{index}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise where.error(f'{name} must be a message {{"role": ..., "content": ...}}')
        if message["role"] not in _ROLES:
            raise where.error(f"{name} has role {message['role']!r}; known are {', '.join(_ROLES)}")
        messages.append(Message(role=message["role"], content=_text(message["content"], name, where)))
    return tuple(messages)


def _response(value: Any, key: str, where: _Where) -> str:
    messages = _messages(value, key, where)
    if len(messages) != 1 or messages[0]["role"] != "assistant":
        raise where.error(f"{key} must be one assistant message; earlier turns belong into the prompt")
    return messages[0]["content"]


def _text(value: Any, name: str, where: _Where) -> str:
    if not isinstance(value, str):
        raise where.error(f"{name} must be text, not {type(value).__name__}")
    if any("\ud800" <= character <= "\udfff" for character in value):
        raise where.error(f"{name} holds half of a surrogate pair, which no tokenizer can encode")
    return value


def _optional_text(record: Mapping[str, Any], key: str, where: _Where) -> str | None:
    value = record.get(key)
    if value is None or isinstance(value, int):
        return None if value is None else str(value)
    return _text(value, key, where)


def _hh_record(record: Mapping[str, Any], where: _Where) -> Record:
    _require(record, where, ("chosen", "rejected"))
    chosen_prompt, chosen = _hh_conversation(_text(record["chosen"], "chosen", where), "chosen", where)
    rejected_prompt, rejected = _hh_conversation(
        _text(record["rejected"], "rejected", where), "rejected", where
    )
    return Record(None, (chosen_prompt, rejected_prompt), chosen, rejected)


def _hh_conversation(text: str, key: str, where: _Where) -> tuple[tuple[Message, ...], str]:
    """The prompt and the last response of a conversation."""
    before, *rest = _HH_TURN.split(text)
    if before.strip() or not rest or rest[0] != "Human":
        raise where.error(f'{key} does not begin with "\\n\\nHuman:"', "Is this the right format?")
    turns = list(zip(rest[::2], (said.strip() for said in rest[1::2]), strict=True))
    if turns[-1][0] != "Assistant":
        raise where.error(f'{key} does not end with an "Assistant:" turn, so it has no response')
    prompt: list[Message] = []
    for speaker, said in turns[:-1]:
        role = "user" if speaker == "Human" else "assistant"
        if prompt and prompt[-1]["role"] == role:
            # Chat templates want roles to alternate.
            prompt[-1]["content"] = f"{prompt[-1]['content']}\n\n{said}".strip()
        else:
            prompt.append(Message(role=role, content=said))
    return tuple(prompt), turns[-1][1]


_PARSERS: dict[str, Callable[[Mapping[str, Any], _Where], Record]] = {
    "chat_pairs": _chat_record,
    "hh_rlhf": _hh_record,
}
