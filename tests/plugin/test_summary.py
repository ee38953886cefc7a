"""What the whole run came to: header, block at the end, JUnit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
from small_traces import REFUSED, UNSEEN, write

Run = Callable[..., pytest.RunResult]


def test_the_end_sums_up(traces: Path, run_anyhow: Run) -> None:
    """Events count once a trace, rules once a trace and rule, whoever replays them how often."""
    write(traces / "refused.xkt", *REFUSED)
    write(traces / "unseen.xkt", *UNSEEN)
    result = run_anyhow()
    result.stdout.fnmatch_lines(
        [
            "*= xenkvm =*",
            "replayed 3 traces: 11 events, 5 hypercalls, 1 outcome not judged (not seen by the recording)",
            "rules: 4 held, 2 violated, 3 not exercised",
        ]
    )


def test_nothing_is_said_where_nothing_was_replayed(project: pytest.Pytester, run: Run) -> None:
    """Without traces the plugin writes neither header nor block."""
    project.makeini("[pytest]\n")
    project.makepyfile("def test_own(): pass")
    result = run()
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*xenkvm*")


def test_the_header_names_profile_and_traces(traces: Path, run: Run) -> None:
    """The header says on what is replayed, by which rules, and which traces options name."""
    for name in "abcd":
        write(traces / f"{name}.xkt", *REFUSED)
    result = run("--xenkvm-trace=traces", "--xenkvm-profile=linux-7.2")
    result.stdout.fnmatch_lines(
        ["xenkvm: profile linux-7.2, engine model, rules demo, traces traces/a.xkt, * and 2 more"]
    )


def test_junit_holds_what_was_judged(traces: Path, project: pytest.Pytester, run_anyhow: Run) -> None:
    """Each item's test case has the trace, and that of a rule its id, level, source and verdict."""
    write(traces / "good.xkt", *REFUSED)
    run_anyhow("--junitxml=junit.xml", "-k", "answered")
    (case,) = ET.parse(project.path / "junit.xml").iter("testcase")  # noqa: S314 - our own file
    assert (case.get("classname"), case.get("name")) == ("traces.good.xkt", "demo.answered")
    properties = {item.get("name"): item.get("value") for item in case.iter("property")}
    assert properties == {
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
