"""The published JSON Schemas and what the harness takes and sends are the same protocol."""

from __future__ import annotations

import json
from functools import cache
from typing import Any, Final

import pytest
from adapter_kit import ROOT
from hypothesis import given, settings
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from messages_kit import FROM_ADAPTER, TO_ADAPTER, Message, changed

from pytest_xenkvm.trace.values import Unfit
from pytest_xenkvm.vmm.adapter import messages
from pytest_xenkvm.vmm.adapter.messages import Row, build_message, check_message

SCHEMAS: Final = ROOT / "pytest_xenkvm" / "vmm" / "adapter" / "schema"
TABLES: Final = {**messages.TO_ADAPTER, **messages.FROM_ADAPTER}


@cache
def validator(type_: str) -> Any:
    """Judges a message by its schema."""
    schema = json.loads((SCHEMAS / f"{type_}.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def fits(table: dict[str, Row], message: Message) -> bool:
    """Whether the harness's own check lets a message pass."""
    try:
        check_message(table, message)
    except Unfit:
        return False
    return True


def test_a_schema_for_each_message() -> None:
    """There is a schema for each message, named after it, and no other."""
    assert sorted(path.name for path in SCHEMAS.iterdir()) == sorted(f"{type_}.json" for type_ in TABLES)
    for type_ in TABLES:
        schema = validator(type_).schema
        assert schema["title"] == type_
        assert schema["properties"]["type"] == {"const": type_}


@pytest.mark.parametrize("type_", TABLES)
def test_members_are_those_of_the_code(type_: str) -> None:
    """A schema has the members of its row in the same order, and requires the same."""
    row, schema = TABLES[type_], validator(type_).schema
    assert list(schema["properties"]) == ["type", *row.required, *row.optional]
    assert schema["required"] == ["type", *row.required]
    assert schema["additionalProperties"] is False


def test_the_examples_are_whole() -> None:
    """The messages that these tests begin with are fine, and of all kinds."""
    assert {message["type"] for message in FROM_ADAPTER} == messages.FROM_ADAPTER.keys()
    assert {message["type"] for message in TO_ADAPTER} == messages.TO_ADAPTER.keys()
    assert all(validator(message["type"]).is_valid(message) for message in (*FROM_ADAPTER, *TO_ADAPTER))


@settings(max_examples=1500)
@given(changed(FROM_ADAPTER))
def test_what_is_taken_is_what_the_schemas_allow(message: Message) -> None:
    """The harness refuses a message of an adapter exactly if its schema does."""
    assert fits(dict(messages.FROM_ADAPTER), message) == validator(message["type"]).is_valid(message)


@settings(max_examples=300)
@given(changed(TO_ADAPTER))
def test_what_may_be_sent_is_what_the_schemas_allow(message: Message) -> None:
    """The table of the harness's own messages says the same as their schemas."""
    assert fits(dict(messages.TO_ADAPTER), message) == validator(message["type"]).is_valid(message)


@pytest.mark.parametrize("message", TO_ADAPTER, ids=lambda message: message["type"])
def test_a_message_is_built_as_documented(message: Message) -> None:
    """Members travel in the order of their row, bytes as hex, and what isn't there is left out."""
    type_, members = check_message(messages.TO_ADAPTER, message)
    shuffled = dict(reversed([*members.items(), ("data", members.get("data"))]))
    assert list(build_message(type_, shuffled, text=True).items()) == list(message.items())
