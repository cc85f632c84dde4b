"""Must-keep constraints: what a response has to hold before its score counts.

A candidate that breaks one is rejected and says why. It is never scored, so it costs no tokens of the gap
reward, and no score can make up for it.
"""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from app.errors import BadRequest

QUOTED = re.compile(r'"([^"\n]*)"|“([^”]*)”|„([^“”]*)[“”]|«([^»]*)»')
LengthUnit = Literal["characters", "words"]


@dataclass(frozen=True, slots=True)
class LengthRatio:
    """Length of the candidate / length of the reference, both ends allowed. None: no bound."""

    min: float | None = None
    max: float | None = None
    unit: LengthUnit = "characters"

    def length(self, text: str) -> int:
        return len(text) if self.unit == "characters" else len(text.split())


@dataclass(frozen=True, slots=True)
class Keep:
    """What every accepted response must hold.

    `json_schema`: it is JSON of this schema, and is generated as such. `quotes`: these texts stand in it as
    they are; `quoted`: so does whatever stands in quotation marks in the reference. `length_ratio`: its
    length over the reference's, which is the user's or the draft, not the response so far.
    """

    json_schema: Mapping[str, Any] | None = None
    quotes: tuple[str, ...] = ()
    quoted: bool = False
    length_ratio: LengthRatio | None = None


@dataclass(frozen=True, slots=True)
class Violation:
    """A constraint that a candidate breaks, and how."""

    constraint: Literal["json_schema", "quotes", "length_ratio"]
    message: str


class Checks:
    """The constraints of one run, ready to be checked."""

    def __init__(self, keep: Keep, reference: str | None) -> None:
        """Raises `BadRequest` for constraints that no response can meet."""
        self.keep = keep
        self._validator = None if keep.json_schema is None else _compile(keep.json_schema)
        self._check_ratio(reference)
        for number, quote in enumerate(keep.quotes, 1):
            if reference is not None and quote not in reference:
                raise BadRequest(
                    f"keep.quotes: the reference itself does not hold quote {number} as it is."
                    " Take the quote out, or copy it from the reference letter by letter.",
                    param="keep.quotes",
                )

    def violations(self, text: str, reference: str) -> tuple[Violation, ...]:
        """The constraints that `text` breaks; an empty tuple when it keeps all of them."""
        return tuple(self._violations(text, reference))

    def _violations(self, text: str, reference: str) -> Iterator[Violation]:
        if self._validator is not None and (problem := _problem(self._validator, text)):
            yield Violation("json_schema", problem)
        missing = next((quote for quote in self._quotes(reference) if quote not in text), None)
        if missing is not None:
            yield Violation("quotes", f"{_short(missing)} does not stand in it as it is")
        ratio = self.keep.length_ratio
        if ratio and (whole := ratio.length(reference)):
            found = ratio.length(text) / whole
            low, high = ratio.min or 0.0, math.inf if ratio.max is None else ratio.max
            if not low <= found <= high:
                message = f"{found:.3g} times the reference's {ratio.unit}, not in [{low:g}, {high:g}]"
                yield Violation("length_ratio", message)

    def _quotes(self, reference: str) -> list[str]:
        return [*self.keep.quotes, *(quoted(reference) if self.keep.quoted else ())]

    def _check_ratio(self, reference: str | None) -> None:
        ratio = self.keep.length_ratio
        if ratio is None:
            return
        if ratio.min is not None and ratio.max is not None and ratio.min > ratio.max:
            raise BadRequest(
                f"keep.length_ratio: min is {ratio.min:g} and max is {ratio.max:g}, which no length meets."
                " Send a min of at most max.",
                param="keep.length_ratio",
            )
        if reference is None or ratio.max is None:
            return
        allowed = ratio.max * ratio.length(reference)
        longest = max(map(ratio.length, self._quotes(reference)), default=0)
        if longest > allowed:
            raise BadRequest(
                f"keep: a text to be kept has {longest} {ratio.unit}, and length_ratio.max allows"
                f" {allowed:g} in all. Raise max, or take the quote out.",
                param="keep.length_ratio",
            )


def quoted(text: str) -> list[str]:
    """What stands in quotation marks ("…", “…”, „…“, «…»), without them."""
    found = ["".join(match.groups(default="")) for match in QUOTED.finditer(text)]
    return [quote for quote in found if quote.strip()]


def _compile(schema: Mapping[str, Any]) -> Any:
    import jsonschema_rs  # not needed by a server that is never asked for a schema

    try:
        # Nothing is fetched, and a pattern costs linear time: the schema comes from a client.
        return jsonschema_rs.validator_for(
            dict(schema), offline=True, pattern_options=jsonschema_rs.RegexOptions(), mask="the value"
        )
    except jsonschema_rs.ValidationError as error:
        place = "/".join(map(str, error.instance_path)) or "its top"
    except ValueError:
        place = "its top"
    raise BadRequest(
        f"keep.json_schema is no JSON schema that can be used here: see {_short(place)}. A $ref points into"
        " the schema itself, and a pattern has no look-around and no back-reference.",
        param="keep.json_schema",
    )


def _problem(validator: Any, text: str) -> str | None:
    """Why `text` is not JSON of the schema; None when it is."""
    try:
        value = json.loads(text, parse_constant=_no_constant)
        error = next(validator.iter_errors(value), None)
    except json.JSONDecodeError as wrong:
        return f"not JSON: {wrong.msg} at character {wrong.pos}"
    except (ValueError, RecursionError):  # NaN, half a surrogate pair, thousands of digits or of brackets
        return "not JSON that can be checked"
    if error is None:
        return None
    place = "/".join(map(str, error.instance_path))
    return f"{error.message[:200]}, at {place}" if place else str(error.message[:200])


def _no_constant(name: str) -> None:
    raise ValueError(name)


def _short(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")
