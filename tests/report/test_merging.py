"""Parts of a report, and reports of several runs, become one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_kit import RULES, diverged, failed, replay, report, rule, verdict

from pytest_xenkvm.report.results import merge, report_bytes

UNIQUE, FORWARDS, ADVISED = RULES

STATES: Final = st.sampled_from(["held", "violated", "not-exercised"])
REPLAYS: Final = st.builds(
    lambda trace, verdicts, other: replay(trace, verdicts, **other),
    st.sampled_from(["a.xkt", "b.xkt"]),
    st.dictionaries(st.sampled_from(sorted(RULES)), STATES),
    st.sampled_from(
        [{}, diverged(), diverged(2), failed(), failed("x"), {"profile": "linux-7.2"}, {"timeline": {"t": 1}}]
    ),
)
REPORTS: Final = st.lists(REPLAYS, max_size=4).map(lambda replays: report(*replays))


@given(REPORTS, REPORTS, REPORTS)
def test_the_order_makes_no_difference(one: Any, two: Any, three: Any) -> None:
    """Reports merge in any order and grouping to the same bytes, and with themselves to themselves."""
    together = report_bytes(merge([one, two, three]))
    assert report_bytes(merge([three, one, two])) == together
    assert report_bytes(merge([merge([two, three]), one])) == together
    assert report_bytes(merge([one, one])) == report_bytes(one)


def test_halves_become_whole() -> None:
    """Two halves of the rules of a replay, and two halves of the traces, are the whole run."""
    whole = report(replay(verdicts={UNIQUE: "held", ADVISED: "violated"}, **diverged()), replay("b.xkt"))
    halves = [
        report(replay(verdicts={ADVISED: "violated"}, divergences_total=None)),
        report(replay(verdicts={UNIQUE: "held"}, **diverged())),
        report(replay("b.xkt")),
    ]
    assert report_bytes(merge(halves)) == report_bytes(whole)


@pytest.mark.parametrize(
    ("states", "kept"),
    [
        (("held", "violated"), "violated"),
        (("held", "not-exercised"), "held"),
        (("not-exercised", "violated"), "violated"),
    ],
)
def test_merging_hides_nothing(states: tuple[str, str], kept: str) -> None:
    """Of two verdicts of a rule for the same replay the worse one stays."""
    merged = merge([report(replay(verdicts={UNIQUE: state})) for state in states])
    assert [found["state"] for found in merged["replays"][0]["verdicts"]] == [kept]


def test_more_violations_are_worse() -> None:
    """Of two violations the more frequent one stays, and so it is with divergences."""
    few, many = (
        report(replay(**diverged(count)) | {"verdicts": [verdict(UNIQUE, "violated", 9, count)]})
        for count in (2, 3)
    )
    (merged,) = merge([many, few])["replays"]
    assert (merged["verdicts"][0]["violations"], merged["divergences_total"]) == (3, 3)


@pytest.mark.parametrize(
    "other", [{"profile": "linux-7.2"}, {"engine": "unicorn"}, {"vmm": "My"}, {"events": 6}]
)
def test_different_replays_stay_apart(other: Mapping[str, Any]) -> None:
    """Replays on another kernel, engine or VMM, or of another recording, are two."""
    assert len(report(replay(), replay(**other))["replays"]) == 2


def test_the_order_is_fixed() -> None:
    """Replays come by trace, rules in the order of the bundled ones and then by id."""
    merged = report(replay("b.xkt", dict.fromkeys(reversed(RULES), "held")), replay("a.xkt"))
    assert [found["trace"] for found in merged["replays"]] == ["a.xkt", "b.xkt"]
    ordered = [FORWARDS, UNIQUE, ADVISED]
    assert [found["rule"] for found in merged["rules"]] == ordered
    assert [found["rule"] for found in merged["replays"][1]["verdicts"]] == ordered


@pytest.mark.parametrize(
    ("replays", "said"),
    [
        ([], "nothing"),
        ([replay()], "nothing"),
        ([replay(verdicts={UNIQUE: "not-exercised"})], "nothing"),
        ([replay(verdicts={UNIQUE: "held"}), replay("b.xkt", {UNIQUE: "not-exercised"})], "held"),
        ([replay(verdicts={UNIQUE: "held", ADVISED: "violated"})], "advised"),
        ([replay(verdicts={UNIQUE: "violated", ADVISED: "violated"})], "failed"),
        ([replay(verdicts={UNIQUE: "held"}, **diverged())], "failed"),
        ([replay(verdicts={UNIQUE: "held"}), replay("b.xkt", **failed())], "error"),
    ],
)
def test_the_verdict(replays: list[Any], said: str) -> None:
    """The verdict over all is the worst that happened; it isn't `held` unless a rule was exercised."""
    assert report(*replays)["summary"]["verdict"] == said


def test_a_rule_counts_once() -> None:
    """Rules are counted over all traces: violated in any, held in any, or exercised in none."""
    summary = report(
        replay("a.xkt", {UNIQUE: "held", FORWARDS: "held", ADVISED: "not-exercised"}),
        replay("b.xkt", {UNIQUE: "held", FORWARDS: "violated", ADVISED: "not-exercised"}),
        replay("c.xkt", {UNIQUE: "not-exercised"}),
        replay("d.xkt", **failed()),
    )["summary"]
    assert summary["rules"] == {"held": 1, "violated": 1, "not-exercised": 1}
    assert (summary["replays"], summary["events"], summary["errors"]) == (3, 15, 1)


def test_a_rule_of_two_definitions_is_listed_once() -> None:
    """If two conftest.py files define a rule differently, one of the two is listed, always the same."""
    other = rule(UNIQUE) | {"title": "Another."}
    parts = [{"rules": [one], "replays": []} for one in (rule(UNIQUE), other)]
    assert len(merge(parts)["rules"]) == 1
    assert json.dumps(merge(parts)) == json.dumps(merge(reversed(parts)))
