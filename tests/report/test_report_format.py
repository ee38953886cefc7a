"""The page about the report format says what the schema says."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from pytest_xenkvm.report.reading import SCHEMA

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "report-format.md"


def table(schema: Mapping[str, Any]) -> str:
    """The members of an object as the page has them."""
    rows = [
        f"| `{name}` | {_kind(member)} | {_said(member)} |" for name, member in schema["properties"].items()
    ]
    return "\n".join(["| member | is | meaning |", "| --- | --- | --- |", *rows])


def _kind(member: Mapping[str, Any]) -> str:
    if "anyOf" in member:
        return " or ".join(_kind(one) for one in member["anyOf"])
    if "$ref" in member:
        return str(member["$ref"].rpartition("/")[2])
    if "enum" in member or "const" in member:
        return ", ".join(f"`{value}`" for value in member.get("enum", [member.get("const")]))
    if member.get("type") == "array":
        return f"array of {_kind(member['items'])}"
    types = member.get("type", "anything")
    return types if isinstance(types, str) else " or ".join(types)


def _said(member: Mapping[str, Any]) -> str:
    description: str = member.get("description", "")
    if "properties" in member:
        names = ", ".join(f"`{name}`" for name in member["properties"])
        return f"{description} Members: {names}."
    return description


def test_the_page_follows_the_schema() -> None:
    """Each object of the schema has its description and its table of members in the page."""
    page = PAGE.read_text()
    schema = json.loads(SCHEMA.read_bytes())
    for found in (schema, *schema["$defs"].values()):
        assert table(found) in page
    assert all(found["description"] in page for found in schema["$defs"].values())
