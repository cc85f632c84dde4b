"""The API reference: routes and objects of an OpenAPI document in words, for the page at /docs and for
docs/api.md. Texts hold `code` and [links](#place) as Markdown writes them."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup, escape

Schema = dict[str, Any]
LONGEST_DEFAULT = 60
ELSEWHERE = "see `/openapi.json`"
MARKS = re.compile(r"`([^`]+)`|\[([^\]]+)\]\((#[^)]+)\)")


@dataclass(frozen=True, slots=True)
class Field:
    """A parameter or a field. `note`: where the parameter stands, or the field's default."""

    name: str
    values: str
    note: str
    text: str


@dataclass(frozen=True, slots=True)
class Operation:
    """A route with a method. `scope` is what an API key needs, empty where none is asked for; `bodies` and
    `answers` are sentences."""

    method: str
    path: str
    scope: str
    text: str
    parameters: list[Field]
    bodies: list[str]
    answers: list[str]

    @property
    def first(self) -> str:
        """The first paragraph of its text."""
        return self.text.split("\n\n")[0]

    @property
    def place(self) -> str:
        """Its anchor on a page."""
        return re.sub(r"[^a-z0-9]+", "-", f"{self.method} {self.path}".lower()).strip("-")


@dataclass(frozen=True, slots=True)
class Model:
    """An object; one without `fields` is what `values` says."""

    name: str
    text: str
    values: str
    fields: list[Field]


def operations(document: Schema) -> list[Operation]:
    """In the document's order."""
    return [
        Operation(
            method.upper(),
            path,
            _scope(operation),
            operation.get("description", operation.get("summary", "")).strip(),
            [_parameter(one) for one in operation.get("parameters", ())],
            [
                f"Body, `{kind}`: {values(content['schema'])}"
                for kind, content in operation.get("requestBody", {}).get("content", {}).items()
            ],
            list(_answers(operation)),
        )
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def models(document: Schema) -> list[Model]:
    """By name."""
    found = []
    for name, model in sorted(document["components"]["schemas"].items()):
        text = " ".join(model.get("description", "").split())
        required = model.get("required", ())
        fields = [
            Field(
                field,
                values(schema),
                "required" if field in required else _default(schema),
                schema.get("description", ""),
            )
            for field, schema in model.get("properties", {}).items()
        ]
        found.append(Model(name, text, "" if "properties" in model else values(model), fields))
    return found


def html(text: str) -> Markup:
    """A text with its code and its links."""
    parts, end = [], 0
    for mark in MARKS.finditer(text):
        parts.append(escape(text[end : mark.start()]))
        code, label, place = mark.groups()
        known = Markup("<code>{}</code>").format(code) if code else None
        parts.append(known or Markup('<a href="{}">{}</a>').format(place, label))
        end = mark.end()
    return Markup("").join([*parts, escape(text[end:])])


def _scope(operation: Schema) -> str:
    needed = [scope for one in operation.get("security", []) for scope in one.get("key", [])]
    return needed[0] if needed else "any key" if operation.get("security") else ""


def _parameter(one: Schema) -> Field:
    schema = one["schema"]
    said, usual = values(schema), _default(schema)
    text = one.get("description") or schema.get("description", "")
    return Field(one["name"], f"{said}; default {usual}" if usual else said, one["in"], text)


def _answers(operation: Schema) -> Iterator[str]:
    """Those that are no errors."""
    for status, response in operation["responses"].items():
        if status[0] != "2":
            continue
        kinds = [
            f"`{kind}`" + (f" {values(content['schema'])}" if content.get("schema") else "")
            for kind, content in response.get("content", {}).items()
        ]
        said = response.get("description", "")
        about = [", or ".join(kinds), "" if said == "Successful Response" else said]
        yield f"Answer {status}: {'. '.join(filter(None, about))}"


def _default(schema: Schema) -> str:
    if "default" not in schema:
        return ""
    said = json.dumps(schema["default"], ensure_ascii=False)
    return ELSEWHERE if len(said) > LONGEST_DEFAULT else f"`{said}`"


def values(schema: Schema) -> str:
    """What a schema takes, in a few words, with links to objects."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[1]
        return f"[{name}](#{name.lower()})"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(values(one) for one in schema[several]))
    if "const" in schema:
        return f"`{schema['const']}`"
    if "enum" in schema:
        return ", ".join(f"`{one}`" for one in schema["enum"])
    kind = schema.get("type", "anything")
    if kind == "array":
        return f"list of {values(schema.get('items', {}))}{_range(schema, 'minItems', 'maxItems')}"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"map to {values(schema['additionalProperties'])}"
    low, high = ("minLength", "maxLength") if kind == "string" else ("minimum", "maximum")
    return str(kind).replace("string", "text") + _range(schema, low, high)


def _range(schema: Schema, low: str, high: str) -> str:
    least = schema.get(low, schema.get("exclusiveMinimum"))
    most = schema.get(high, schema.get("exclusiveMaximum"))
    known = [(sign, end) for sign, end in (("≥", least), ("≤", most)) if end is not None]
    if not known:
        return ""
    unit = {"minLength": " characters", "minItems": " items"}.get(low, "")
    # Of integers too the document has the ends as 1.0.
    ends = [f"{sign} {int(end) if end == int(end) else end:,}" for sign, end in known]
    return f" ({', '.join(ends)}{unit})"
