"""What is a report: the published schema and the reader agree."""

from __future__ import annotations

import json
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any, Final

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator  # type: ignore[import-untyped]
from report_kit import RULES, diverged, failed, replay, report

from pytest_xenkvm.report.reading import SCHEMA, ReportError, check_report, read_report

VALIDATOR: Final = Draft202012Validator(json.loads(SCHEMA.read_bytes()))
HEADER: Final = {
    "kernel": "7.3.0",
    "recorder": "ftrace",
    "cpu_vendor": "amd",
    "scope": "full",
    "max_vcpus": None,
    "vcpus": 2,
}
SAMPLE: Final = report(
    replay(verdicts=dict.fromkeys(RULES, "violated"), header=HEADER, **diverged()),
    replay("b.xkt", dict.fromkeys(RULES, "not-exercised"), timeline={"version": 1}),
    replay("c.xkt", **failed()),
)
ODD: Final = [None, True, -1, 0, 2**70, "", "x", [], {}, [None], {"x": 1}, "MUST", "held"]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Each member of each object and list, as what holds it and its key."""
    if isinstance(value, (dict, list)):
        for key in list(value if isinstance(value, dict) else range(len(value))):
            yield value, key
            yield from places(value[key])


def test_the_schema_is_one() -> None:
    """The schema is a valid schema, describes every member, and the sample fits it."""
    Draft202012Validator.check_schema(VALIDATOR.schema)
    VALIDATOR.validate(SAMPLE)
    assert check_report(SAMPLE) is SAMPLE
    for definition in VALIDATOR.schema["$defs"].values():
        assert definition["type"] == "object"
        assert all(
            "description" in member or "$ref" in member for member in definition["properties"].values()
        )


@settings(max_examples=1500)
@given(st.data())
def test_the_reader_takes_what_the_schema_allows(data: st.DataObject) -> None:
    """A report in which anything was changed or left out is refused exactly if the schema refuses it."""
    changed = deepcopy(SAMPLE)
    holder, key = data.draw(st.sampled_from(list(places(changed))))
    if data.draw(st.booleans()) and isinstance(holder, dict):
        del holder[key]
    else:
        holder[key] = data.draw(st.sampled_from(ODD))
    refused = ""
    try:
        check_report(changed)
    except ReportError as error:
        refused = str(error)
    assert VALIDATOR.is_valid(changed) == (not refused or "which `rules` doesn't have" in refused)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is no JSON"),
        ("[" * 100_000, "is no JSON"),
        ('{"format": NaN}', "NaN is no JSON number"),
        ("[]", 'expected an object whose "format" is "xenkvm-report"'),
        ('{"format": "xenkvm-report", "version": 2}', "is a report of version 2, expected 1"),
        (json.dumps({**SAMPLE, "rules": []}), "which `rules` doesn't have"),
        (json.dumps({**SAMPLE, "replays": [{}]}), "replays[0] lacks 'trace'"),
        (json.dumps({**SAMPLE, "replays": [replay(events="x" * 999)]}), "expected integer or null"),
    ],
)
def test_what_is_no_report_is_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    """A file that is no report is refused in a short sentence that names it and what was expected."""
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(ReportError) as refused:
        read_report(path)
    assert str(refused.value).startswith(f"{path}: ")
    assert sentence in str(refused.value)
    assert len(str(refused.value)) < 400
