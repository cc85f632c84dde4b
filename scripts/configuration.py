"""Write docs/configuration.md: every setting of the server, from app/settings.py.

    make docs            write it
    python scripts/configuration.py --check    fail where it is not up to date
"""

import argparse
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic.fields import FieldInfo

from app.settings import Settings

PAGE = Path(__file__).resolve().parent.parent / "docs/configuration.md"
HEAD = """# Configuration

Every setting of `pit serve`. Each is a variable (`PIT_MAX_BODY_BYTES=4000000`), a line of a YAML file that
`--config` names (`max_body_bytes: 4000000`), and the usual ones are options too (`pit serve --help`). Options
win over variables, variables over the file. A name that is not known, or a value out of its range, ends the
start with a line that says so; `pit doctor` checks the same without a start. Times are in seconds.

This page is made from app/settings.py by `make docs`.

| setting | values | default | meaning |
| --- | --- | --- | --- |
"""
SIGNS = ((Ge, "ge", "≥"), (Gt, "gt", ">"), (Le, "le", "≤"), (Lt, "lt", "<"))
NAMES = {
    "str": "text", "Path": "path", "bool": "true, false", "int": "integer", "float": "number", "dict": "map",
    "SecretStr": "secret",
}  # fmt: skip
MADE = {"database": "`sqlite:///~/.local/state/pit-serve/pit.db`, or where `XDG_STATE_HOME` says"}
"""Defaults that depend on the machine, in words."""


def main() -> int:
    parser = argparse.ArgumentParser(description="Write docs/configuration.md.")
    parser.add_argument("--check", action="store_true", help="only say whether it is up to date")
    given = parser.parse_args()
    wanted = page()
    if PAGE.exists() and PAGE.read_text(encoding="utf-8") == wanted:
        return 0
    if given.check:
        print("docs/configuration.md is not up to date: run make docs", file=sys.stderr)
        return 1
    PAGE.write_text(wanted, encoding="utf-8")
    print(f"wrote {PAGE.name}: {len(Settings.model_fields)} settings")
    return 0


def page() -> str:
    """The whole page. Raises `ValueError` for a setting that says nothing of itself."""
    rows = []
    for name, field in Settings.model_fields.items():
        if not field.description:
            raise ValueError(f"the setting {name} has no description in app/settings.py")
        cells = (f"`{name}`", values(field), MADE.get(name) or default(field), field.description)
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return HEAD + "\n".join(rows) + "\n"


def values(field: FieldInfo) -> str:
    """What a setting takes, in a few words."""
    limits = [
        f"{sign} {getattr(limit, attribute):g}"
        for kind, attribute, sign in SIGNS
        for limit in field.metadata
        if isinstance(limit, kind)
    ]
    return " ".join([kind_of(field.annotation), ", ".join(limits)]).strip()


def kind_of(annotation: Any) -> str:
    """A type in words."""
    origin = get_origin(annotation)
    arguments = [one for one in get_args(annotation) if one is not type(None)]
    if origin is Literal:
        return ", ".join(map(str, arguments))
    if origin is Annotated:
        return kind_of(arguments[0])
    if origin in (tuple, list, set, frozenset):
        return "list"
    if origin in (None, dict):
        name = str((origin or annotation).__name__)
        return NAMES.get(name, name)
    return ", ".join(kind_of(one) for one in arguments)


def default(field: FieldInfo) -> str:
    found = field.get_default(call_default_factory=True, validated_data={})
    if found is None or found in ((), {}):
        return "none"
    if isinstance(found, bool):
        return f"`{str(found).lower()}`"
    return f"`{found:g}`" if isinstance(found, float) else f"`{found}`"


if __name__ == "__main__":
    sys.exit(main())
