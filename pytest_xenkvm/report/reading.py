"""Reads reports, which are untrusted input: the published JSON Schema says what is one.

The few keywords that the schema uses need no library; tests compare this reader with one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final, NoReturn

from attrs import frozen

from pytest_xenkvm.report.results import FORMAT, VERSION, JsonObject

SCHEMA: Final = Path(__file__).with_name("schema") / f"report-{VERSION}.json"

_MAX_QUOTED: Final = 60
_TYPES: Final[Mapping[str, tuple[type, ...]]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "boolean": (bool,),
    "null": (type(None),),
}


class ReportError(Exception):
    """A report that can't be used; `str()` is one sentence for the user."""


def read_report(path: Path) -> JsonObject:
    """Read a report from a file; raises ReportError and OSError."""
    try:
        document = json.loads(
            path.read_bytes(), parse_constant=_refuse_constant, parse_float=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{path}: is no JSON, expected a report ({error})") from error
    try:
        return check_report(document)
    except ReportError as error:
        raise ReportError(f"{path}: {error}") from error


def check_report(document: object) -> JsonObject:
    """Return `document` if it is a report; raises ReportError, without a file name."""
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise ReportError('is no report, expected an object whose "format" is "xenkvm-report"')
    if document.get("version") != VERSION:
        raise ReportError(f"is a report of version {_quoted(document.get('version'))}, expected {VERSION}")
    schema = _schema()
    _Check(schema["$defs"]).value(document, schema, "")
    known = {rule["rule"] for rule in document["rules"]}
    for replay in document["replays"]:
        for verdict in replay["verdicts"]:
            if verdict["rule"] not in known:
                raise ReportError(f"has a verdict of {_quoted(verdict['rule'])}, which `rules` doesn't have")
    return document


@cache
def _schema() -> JsonObject:
    schema: JsonObject = json.loads(SCHEMA.read_bytes())
    return schema


@frozen
class _Check:
    """Holds values against schemas; raises ReportError that says where."""

    definitions: Mapping[str, Any]

    def value(self, value: Any, schema: Mapping[str, Any], place: str) -> None:
        if "$ref" in schema:
            schema = self.definitions[schema["$ref"].rpartition("/")[2]]
        if "anyOf" in schema:
            schema = self._one_of(value, schema["anyOf"])
        self._plain(value, schema, place)
        if isinstance(value, dict):
            for name in schema.get("required", ()):
                if name not in value:
                    _wrong(place, f"lacks {name!r}")
            for name, member in schema.get("properties", {}).items():
                if name in value:
                    self.value(value[name], member, f"{place}.{name}")
        if isinstance(value, list) and "items" in schema:
            for number, item in enumerate(value):
                self.value(item, schema["items"], f"{place}[{number}]")

    def _one_of(self, value: Any, schemas: list[Mapping[str, Any]]) -> Mapping[str, Any]:
        """Null, or what the other schema says."""
        null, other = schemas
        found: Mapping[str, Any] = self.definitions[other["$ref"].rpartition("/")[2]]
        return null if value is None else found

    @staticmethod
    def _plain(value: Any, schema: Mapping[str, Any], place: str) -> None:
        """All that is said of a value itself."""
        types = schema.get("type", ())
        types = (types,) if isinstance(types, str) else types
        if types and not any(_is(value, name) for name in types):
            _wrong(place, f"is {_quoted(value)}, expected {' or '.join(types)}")
        allowed = schema.get("enum", [schema["const"]] if "const" in schema else [value])
        if not any(value == one and type(value) is type(one) for one in allowed):
            _wrong(place, f"is {_quoted(value)}, expected {' or '.join(map(repr, allowed))}")
        if isinstance(value, int) and value < schema.get("minimum", value):
            _wrong(place, f"is {_quoted(value)}, expected at least {schema['minimum']}")
        if isinstance(value, str) and len(value) < schema.get("minLength", 0):
            _wrong(place, "is empty")


def _is(value: object, name: str) -> bool:
    return isinstance(value, _TYPES[name]) and not (name == "integer" and isinstance(value, bool))


def _wrong(place: str, what: str) -> NoReturn:
    raise ReportError(f"{place.removeprefix('.') or 'the report'} {what}")


def _quoted(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= _MAX_QUOTED else f"{shown[:_MAX_QUOTED]}..."


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
