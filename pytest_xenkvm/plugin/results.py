"""What items of traces have to tell, as parts of a report, and all that they told.

A part travels in pytest's report of an item or collector, from whichever process ran it to the one that
writes the files. It travels as JSON text, since pytest-xdist takes plain values of few types only.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Final

import pytest

from pytest_xenkvm.plugin.arguments import split_nodeid
from pytest_xenkvm.plugin.collect import TraceFile
from pytest_xenkvm.plugin.items import TraceItem
from pytest_xenkvm.plugin.session import settings, spelling
from pytest_xenkvm.report.json_result import (
    counts_json,
    divergences_json,
    header_json,
    rule_json,
    verdict_json,
)
from pytest_xenkvm.report.results import JsonObject, Results

_MAX_ERROR: Final = 500
_NOTHING: Final = "null"
_OURS: Final = "xenkvm_"
"""What the names of an item's properties begin with."""

_RESULTS: Final = pytest.StashKey[Results]()


def results(config: pytest.Config) -> Results:
    """All that was told so far."""
    return config.stash.setdefault(_RESULTS, Results())


def take(config: pytest.Config, part: str) -> bool:
    """Take in what an item or collector told; whether it told anything."""
    told = json.loads(part)
    if told is not None:
        results(config).add(told)
    return told is not None


def part_of_item(item: TraceItem, call: pytest.CallInfo[None]) -> str:
    """What a phase of an item has to tell: how it judged, or why it couldn't; JSON, null for nothing."""
    errors = _errors(item, call)
    result = item.result
    if not errors and (result is None or call.when != "call"):
        return _NOTHING
    trace = item.replays.trace
    replay = _replay(item.replays.nodeid, item.parameters, errors) | {
        "path": spelling(trace.path, item.config.rootpath),
        "engine": item.replays.played_by,
        "header": header_json(trace.header),
    }
    rules = []
    if result is not None:
        replay |= {"profile": result.profile, "vmm": result.vmm, **counts_json(result)}
    if result is not None and call.when == "call":
        rules = [rule_json(rule) for rule in item.rules]
        replay["verdicts"] = [verdict_json(verdict) for verdict in item.judged(result)]
        if item.compares and result.vmm is None:
            replay |= divergences_json(result)
        timeline = item.replays.take_timeline(item.parameters)
        if timeline is not None:
            replay["timeline"] = timeline
    return _part(replay, rules)


def part_of_probe(nodeid: str, facts: JsonObject, rules: Sequence[JsonObject], errors: list[str]) -> str:
    """What a probe of the conformance suite has to tell: `facts` are members of the schema's replay."""
    trace, bracket, parameters = nodeid.partition("[")
    replay = _replay(trace, f"{bracket}{parameters}", [_sentence(error) for error in errors])
    return _part(replay | facts, rules)


def part_of_unreadable(collector: TraceFile, report: pytest.CollectReport) -> str:
    """That a trace, or the rules for it, can't be read."""
    config = collector.config
    replay = _replay(collector.nodeid, "", [_sentence(str(report.longrepr))])
    path = spelling(collector.trace_path, config.rootpath)
    return _part(replay | {"path": path, "engine": settings(config).played_by})


def part_of_crash(config: pytest.Config, report: pytest.TestReport) -> str:
    """That the process which ran an item is no more; null if it is no item of a trace."""
    trace, name = split_nodeid(report.nodeid)
    if name is None:
        return _NOTHING
    bracket = name.find("[")
    parameters = name[bracket:] if bracket >= 0 else ""
    replay = _replay(trace, parameters, [f"the process that ran {name} crashed"])
    return _part(replay | {"engine": settings(config).played_by})


def _part(replay: JsonObject, rules: Sequence[JsonObject] = ()) -> str:
    return json.dumps({"rules": rules, "replays": [replay]})


def _replay(trace: str, parameters: str, errors: list[str]) -> JsonObject:
    """A replay that has not come to its end."""
    unknown = (
        "profile",
        "vmm",
        "header",
        "events",
        "hypercalls",
        "unjudged",
        "inferred",
        "divergences_total",
    )
    return {
        "trace": trace,
        "parameters": parameters,
        "path": trace,
        "version": _version(),
        "engine": "",
        **dict.fromkeys(unknown),
        "divergences": [],
        "verdicts": [],
        "errors": errors,
    }


def _errors(item: TraceItem, call: pytest.CallInfo[None]) -> list[str]:
    """Why this phase of an item failed, unless that is its judgement."""
    raised = call.excinfo
    judged = call.when == "call" and item.result is not None
    if raised is None or judged or isinstance(raised.value, pytest.skip.Exception):
        return []
    sentence = str(raised.value)
    if not isinstance(raised.value, pytest.fail.Exception):
        sentence = f"{raised.typename}: {sentence}"
    return [_sentence(sentence if call.when == "call" else f"{call.when}: {sentence}")]


def _sentence(text: str) -> str:
    """The first line: an adapter's stderr may follow, which is never the same twice."""
    line = next((line for line in text.splitlines() if line.strip()), "").strip()
    return line if len(line) <= _MAX_ERROR else f"{line[:_MAX_ERROR]}..."


@cache
def _version() -> str:
    try:
        return version("pytest-xenkvm")
    except PackageNotFoundError:
        return "unknown"


def move_properties(config: pytest.Config, report: pytest.TestReport) -> None:
    """Make our properties the test suite's where JUnit's schema doesn't want them in a test case.

    The family "xunit2" is meant to fit the schema of Jenkins' xUnit plugin, which has properties for test
    suites only and refuses files that don't fit. pytest writes what an item recorded whatever the family.
    """
    from _pytest.junitxml import xml_key  # noqa: PLC0415 - only where it is used

    xml = config.stash.get(xml_key, None)
    if xml is None or xml.family != "xunit2" or report.when != "teardown":  # when pytest writes the test case
        return
    for name, value in report.user_properties:
        if name.startswith(_OURS):
            xml.add_global_property(f"{name}:{report.nodeid}", str(value))
    report.user_properties = [item for item in report.user_properties if not item[0].startswith(_OURS)]
