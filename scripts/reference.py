"""Write docs/api.md from the server's OpenAPI document, and docs/cli.md from the help of `pit` and
`pit-train`.

    make docs            write them
    python scripts/reference.py --check    fail where one is not up to date
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parent.parent / "docs"
API_HEAD = """# API reference

Every route of the server, from its OpenAPI document, which a running one gives at `/openapi.json` (and as a
page at `/docs`). What the fields mean, with examples: [improve.md](improve.md), [openai.md](openai.md),
[batches.md](batches.md), [feedback.md](feedback.md), [stored-runs.md](stored-runs.md). The events of a
stream: [improve.md](improve.md#the-stream).

Every error, on every route, is `{"error": {"message", "type", "param", "code"}}`, with an `x-request-id`
header; 429 and 503 have `Retry-After`. Routes with a scope ask for an [API key](keys.md) where the server has
keys. Unknown fields are refused.

This page is made by `make docs`.
"""
CLI_HEAD = """# Command line reference

What `--help` says of each command. Settings that have no option: [configuration.md](configuration.md).

This page is made by `make docs`.
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/api.md and docs/cli.md.")
    parser.add_argument("--check", action="store_true", help="only say whether they are up to date")
    given = parser.parse_args()
    status = 0
    for name, page in PAGES.items():
        path, wanted = DOCS / name, page()
        if path.exists() and path.read_text(encoding="utf-8") == wanted:
            continue
        if given.check:
            print(f"docs/{name} is not up to date: run make docs", file=sys.stderr)
            status = 1
        else:
            path.write_text(wanted, encoding="utf-8")
            print(f"wrote {name}")
    return status


def api() -> str:
    """docs/api.md."""
    from app.main import create_app
    from app.settings import Settings

    schema = create_app(Settings(database="none")).openapi()
    parts = [API_HEAD, "## Routes\n\n| route | scope | |\n| --- | --- | --- |"]
    operations = [
        (method.upper(), path, operation)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    ]
    for method, path, operation in operations:
        parts.append(f"| `{method} {path}` | {_scope(operation)} | {_first_line(operation)} |")
    for method, path, operation in operations:
        parts.append("\n".join(_operation(method, path, operation)))
    parts.append("\n## Objects\n\nThose that the routes take and give, by name.")
    for name, model in sorted(schema["components"]["schemas"].items()):
        parts.append("\n".join(_model(name, model)))
    return "\n".join(parts) + "\n"


def _scope(operation: dict[str, Any]) -> str:
    needed = [scope for one in operation.get("security", []) for scope in one.get("key", [])]
    return needed[0] if needed else "any key" if operation.get("security") else ""


def _first_line(operation: dict[str, Any]) -> str:
    return _cell(operation.get("description", operation.get("summary", "")).split("\n\n")[0])


def _operation(method: str, path: str, operation: dict[str, Any]) -> Iterator[str]:
    yield f"\n### `{method} {path}`\n"
    yield operation.get("description", operation.get("summary", "")).strip()
    if parameters := operation.get("parameters"):
        yield "\n| parameter | in | values | |\n| --- | --- | --- | --- |"
        for one in parameters:
            said = one.get("description") or one["schema"].get("description", "")
            yield f"| `{one['name']}` | {one['in']} | {_type(one['schema'])} | {_cell(said)} |"
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"\nBody, `{kind}`: {_type(content['schema'])}"
    for status, response in operation["responses"].items():
        if status[0] != "2":
            continue
        kinds = [
            f"`{kind}`" + (f" {_type(content['schema'])}" if content.get("schema") else "")
            for kind, content in response.get("content", {}).items()
        ]
        said = response.get("description", "")
        about = [", or ".join(kinds), "" if said == "Successful Response" else said]
        yield f"\nAnswer {status}: {'. '.join(filter(None, about))}"


def _model(name: str, model: dict[str, Any]) -> Iterator[str]:
    yield f"\n### {name}\n"
    if said := model.get("description", "").strip():
        yield " ".join(said.split()) + "\n"
    if "properties" not in model:
        yield _type(model)
        return
    yield "| field | values | default | |\n| --- | --- | --- | --- |"
    for field, schema in model["properties"].items():
        needed = "required" if field in model.get("required", ()) else _default(schema)
        yield f"| `{field}` | {_type(schema)} | {needed} | {_cell(schema.get('description', ''))} |"


def _default(schema: dict[str, Any]) -> str:
    if "default" not in schema:
        return ""
    said = json.dumps(schema["default"], ensure_ascii=False)
    return "see `/openapi.json`" if len(said) > 60 else f"`{_cell(said)}`"


def _type(schema: dict[str, Any]) -> str:
    """A schema in a few words, with links to the objects of this page."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_type(one) for one in schema[several]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}{_range(schema, 'minItems', 'maxItems')}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map to {_type(schema['additionalProperties'])}"
    low, high = ("minLength", "maxLength") if kind == "string" else ("minimum", "maximum")
    return str(kind).replace("string", "text") + _range(schema, low, high)


def _range(schema: dict[str, Any], low: str, high: str) -> str:
    least = schema.get(low, schema.get("exclusiveMinimum"))
    most = schema.get(high, schema.get("exclusiveMaximum"))
    if least is None and most is None:
        return ""
    unit = {"minLength": " characters", "minItems": " items"}.get(low, "")
    ends = [f"{sign} {value:,}" for sign, value in (("≥", least), ("≤", most)) if value is not None]
    return f" ({', '.join(ends)}{unit})"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def cli() -> str:
    """docs/cli.md."""
    import typer

    from app.cli import app as pit
    from training.cli import app as pit_train

    parts = [CLI_HEAD]
    for name, program in (("pit", pit), ("pit-train", pit_train)):
        command = typer.main.get_command(program)
        for path, text in _help(name, command, None):
            parts.append(f"{'##' if path == name else '###'} `{path}`\n\n```\n{text}\n```\n")
    return "\n".join(parts)


def _help(path: str, command: Any, parent: Any) -> Iterator[tuple[str, str]]:
    """The help of a command and of those below it, without rich's frames."""
    command.rich_markup_mode = None
    context = command.make_context(path.split()[-1], [], parent=parent, resilient_parsing=True)
    context.terminal_width = context.max_content_width = 100
    lines = [line.rstrip() for line in command.get_help(context).strip().splitlines()]
    yield path, "\n".join(lines)
    for name, below in getattr(command, "commands", {}).items():
        yield from _help(f"{path} {name}", below, context)


PAGES: dict[str, Callable[[], str]] = {"api.md": api, "cli.md": cli}

if __name__ == "__main__":
    sys.exit(main())
