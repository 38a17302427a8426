"""Is a completion JSON, and of the asked schema?"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any, Literal

from posttrain.types import Verdict

LONGEST = 1_000_000
"""Characters; a longer text is refused unread."""
_FENCE = re.compile(r"^[ \t]*```[ \t]*([\w+-]*)[ \t]*$", re.MULTILINE)


class Schema:
    """1 where the completion is JSON that satisfies a JSON schema, with the parts `json` and `schema`.

    The schema is the setting `schema` or the row's column of that name, an object or its text; the column goes first.
    Its `$schema` says the draft (2020-12 by default); a reference to another document is never fetched. `where` is
    `whole`: the completion is nothing but JSON, bare or in one fenced block; or `fenced`: the JSON is in the last
    block, which is closed, with any words around it. A name that stands twice in an object, NaN and Infinity are no
    JSON. The keyword `format` is a note, as in the specification, not a rule. Where the schema's patterns take more
    than `timeout` seconds there is no score.
    """

    version = "1"

    def __init__(
        self,
        schema: Mapping[str, Any] | bool | str | None = None,
        where: Literal["whole", "fenced"] = "whole",
        timeout: float = 2.0,
    ) -> None:
        if where not in ("whole", "fenced"):
            raise ValueError(f"where is 'whole' or 'fenced', not {where!r}")
        self.where, self.timeout = where, timeout
        self.compiled: dict[str, Any] = {}
        self.schema = schema
        if schema is not None:
            self._compile(schema)

    def prepare(self) -> None:
        import jsonschema  # type: ignore[import-untyped]  # noqa: F401

    def __call__(self, completion: str, *, schema: Any = None) -> Verdict:
        """Score 0 and `unparsable` where there is no JSON; no score where the schema is wrong or there is none."""
        wanted = self.schema if schema is None else schema
        try:
            if wanted is None:
                raise ValueError("neither a setting nor a column `schema`")
            validator, clock = self._compile(wanted)
        except Exception as error:
            return Verdict(None, "unparsable", reason=f"the schema cannot be used: {error!s:.200}")
        parts: dict[str, float | None] = {"json": 0.0, "schema": 0.0}
        text = _fenced(completion) if self.where == "fenced" else unfenced(completion)
        try:
            value = read_json(text)
        except ValueError as error:
            return Verdict(0.0, "unparsable", parts, reason=f"no JSON: {error!s:.200}")
        parts["json"] = 1.0
        clock.start(self.timeout)
        try:
            first = next(validator.iter_errors(value), None)
        except TimeoutError:
            return Verdict(None, "timeout", reason=f"the schema took more than {self.timeout} s")
        except RecursionError:
            return Verdict(0.0, parts=parts, reason="nested too deeply to be checked")
        except Exception as error:
            return Verdict(None, "unparsable", reason=f"the schema cannot be used: {error!s:.200}")
        if first is not None:
            return Verdict(0.0, parts=parts, reason=f"{first.json_path:.100}: {first.message:.200}")
        return Verdict(1.0, parts={"json": 1.0, "schema": 1.0})

    def _compile(self, schema: Any) -> tuple[Any, _Clock]:
        key = schema if isinstance(schema, str) else json.dumps(schema, sort_keys=True)
        if key not in self.compiled:
            if len(self.compiled) > 1000:
                self.compiled.clear()
            self.compiled[key] = _validator(json.loads(schema) if isinstance(schema, str) else schema)
        found: tuple[Any, _Clock] = self.compiled[key]
        return found


def read_json(text: str) -> Any:
    """The value of a JSON text. Raises ValueError where it is none, is too long, nested too deeply, or ambiguous."""
    if len(text) > LONGEST:
        raise ValueError(f"{len(text)} characters")
    try:
        return json.loads(text, object_pairs_hook=_object, parse_constant=_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def unfenced(text: str) -> str:
    """The text without a fence around all of it."""
    text = text.strip()
    lines = text.split("\n")
    fenced = len(lines) >= 2 and re.fullmatch(r"```\w*\s*", lines[0]) and lines[-1].strip() == "```"
    return "\n".join(lines[1:-1]) if fenced else text


def _fenced(text: str) -> str:
    """The inside of the last block that is closed; empty where the last one is not."""
    marks = list(_FENCE.finditer(text))
    if len(marks) < 2 or len(marks) % 2:
        return ""
    return text[marks[-2].end() : marks[-1].start()]


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a name stands twice in an object")
    return found


def _constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON")


class _Clock:
    """Seconds that one check has left."""

    end = 0.0

    def start(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds

    def left(self) -> float:
        left = self.end - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def _validator(schema: Any) -> tuple[Any, _Clock]:
    """A validator whose patterns can be interrupted and that fetches nothing. Raises jsonschema.SchemaError."""
    import regex  # type: ignore[import-untyped]
    from jsonschema import Draft202012Validator, ValidationError, validators
    from jsonschema_specifications import REGISTRY  # type: ignore[import-untyped]

    clock = _Clock()

    def pattern(validator: Any, wanted: str, value: Any, _: Any) -> Iterator[Any]:
        if validator.is_type(value, "string") and not regex.search(wanted, value, timeout=clock.left()):
            yield ValidationError(f"{value!r:.100} does not match {wanted!r}")

    def pattern_properties(validator: Any, wanted: Mapping[str, Any], value: Any, _: Any) -> Iterator[Any]:
        if validator.is_type(value, "object"):
            for expression, inner in wanted.items():
                for name, member in value.items():
                    if regex.search(expression, name, timeout=clock.left()):
                        yield from validator.descend(member, inner, path=name, schema_path=expression)

    def unique_items(validator: Any, wanted: bool, value: Any, _: Any) -> Iterator[Any]:
        # The library compares every pair where members cannot be sorted.
        if wanted and validator.is_type(value, "array") and len({_canonical(v) for v in value}) < len(value):
            yield ValidationError("has members that are equal")

    base = validators.validator_for(schema, default=Draft202012Validator)
    base.check_schema(schema)
    own = {"pattern": pattern, "patternProperties": pattern_properties, "uniqueItems": unique_items}
    return validators.extend(base, own)(schema, registry=REGISTRY), clock


def _canonical(value: Any) -> Any:
    """Something hashable, the same for values that JSON schema holds equal: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return frozenset((name, _canonical(member)) for name, member in value.items())
    if isinstance(value, list):
        return tuple(_canonical(member) for member in value)
    return (type(value) is bool, value)
