"""JUnit files hold what was judged, and fit the schema that CI systems check."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import pytest
from attrs import frozen
from small_traces import DIVERGING, REFUSED, write

Run = Callable[..., pytest.RunResult]

PROPERTIES: Final = {
    "xenkvm_trace": "traces/good.xkt",
    "xenkvm_engine": "model",
    "xenkvm_rule": "demo.answered",
    "xenkvm_level": "MUST",
    "xenkvm_citation": "Paper, section 1",
    "xenkvm_profile": "linux-7.3",
    "xenkvm_events": "4",
    "xenkvm_hypercalls": "2",
    "xenkvm_unjudged": "0",
    "xenkvm_verdict": "violated",
}


@frozen
class Shape:
    """What an element may have: children, attributes that it must have, others."""

    children: frozenset[str] = frozenset()
    required: frozenset[str] = frozenset()
    optional: frozenset[str] = frozenset()


def shape(children: str = "", required: str = "", optional: str = "") -> Shape:
    """The same of words."""
    return Shape(frozenset(children.split()), frozenset(required.split()), frozenset(optional.split()))


JUNIT_10: Final[Mapping[str, Shape]] = {
    "testsuites": shape("testsuite", "", "name time tests failures errors"),
    "testsuite": shape(
        "testsuite properties testcase system-out system-err",
        "name tests failures errors",
        "group time skipped timestamp hostname id package file log url",
    ),
    "testcase": shape(
        "skipped error failure rerunFailure rerunError flakyFailure flakyError system-out system-err",
        "name",
        "time classname group",
    ),
    "properties": shape("property"),
    "property": shape("", "name value"),
    **dict.fromkeys(("skipped", "error", "failure"), shape("", "", "type message")),
    **dict.fromkeys(("system-out", "system-err"), shape()),
}
"""What junit-10.xsd of Jenkins' xUnit plugin admits, which refuses other files."""


def misfits(element: ET.Element) -> list[str]:
    """What of an element and those in it the schema doesn't admit."""
    admitted = JUNIT_10[element.tag]
    there = set(element.keys())
    wrong = [f"<{element.tag}> has {name}" for name in there - admitted.required - admitted.optional]
    wrong += [f"<{element.tag}> lacks {name}" for name in admitted.required - there]
    for child in element:
        if child.tag not in admitted.children:
            wrong.append(f"<{element.tag}> holds <{child.tag}>")
        wrong += misfits(child)
    return wrong


def test_the_file_fits_the_schema(traces: Path, run_anyhow: Run) -> None:
    """By default the file fits the schema, with items that passed, failed, were skipped and xfailed."""
    write(traces / "good.xkt", *REFUSED)
    write(traces / "diverging.xkt", *DIVERGING)
    run_anyhow("--junitxml=junit.xml")
    root = ET.parse("junit.xml").getroot()  # noqa: S314 - our own file
    assert {child.tag for case in root.iter("testcase") for child in case} == {"failure", "skipped"}
    assert misfits(root) == []


def test_the_suite_has_the_properties(traces: Path, run_anyhow: Run) -> None:
    """By default the suite has each item's trace, rule, level, source and verdict, named after the item."""
    write(traces / "good.xkt", *REFUSED)
    run_anyhow("--junitxml=junit.xml", "-k", "answered or replay")
    (found,) = ET.parse("junit.xml").iter("properties")  # noqa: S314
    properties = {item.get("name"): item.get("value") for item in found}
    item = "traces/good.xkt::demo.answered"
    expected = {f"{name}:{item}": value for name, value in PROPERTIES.items()}
    assert {name: value for name, value in properties.items() if name and name.endswith(item)} == expected
    assert properties["xenkvm_trace:traces/good.xkt::replay"] == "traces/good.xkt"


def test_the_older_family_has_them_in_test_cases(traces: Path, run_anyhow: Run) -> None:
    """With `junit_family=xunit1`, which fits no schema, each test case has its properties."""
    write(traces / "good.xkt", *REFUSED)
    run_anyhow("--junitxml=junit.xml", "-k", "answered", "-o", "junit_family=xunit1")
    root = ET.parse("junit.xml").getroot()  # noqa: S314
    (case,) = root.iter("testcase")
    assert (case.get("classname"), case.get("name")) == ("traces.good.xkt", "demo.answered")
    assert {item.get("name"): item.get("value") for item in case.iter("property")} == PROPERTIES
    assert "<testcase> holds <properties>" in misfits(root)


def test_the_properties_of_others_stay(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """What other plugins record stays where they recorded it."""
    conftest = project.path / "conftest.py"
    fixture = "@pytest.fixture(autouse=True)\ndef a(record_property):\n    record_property('a', 1)\n"
    conftest.write_text(f"{conftest.read_text()}\n{fixture}")
    del traces
    run("--junitxml=junit.xml", "-k", "replay", "-W", "ignore::pytest.PytestWarning")
    (case,) = ET.parse("junit.xml").iter("testcase")  # noqa: S314
    assert [(item.get("name"), item.get("value")) for item in case.iter("property")] == [("a", "1")]
