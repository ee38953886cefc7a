"""What changed between two reports."""

from __future__ import annotations

from typing import Any

import pytest
from report_kit import RULES, diverged, failed, replay, report, verdict

from pytest_xenkvm.report.compare import Change, compare

UNIQUE, FORWARDS, ADVISED = RULES


def named(changes: list[Change]) -> list[tuple[str, str]]:
    """Trace and what, of each."""
    return [(change.trace, change.what) for change in changes]


@pytest.mark.parametrize(
    ("before", "after", "kind"),
    [
        ("held", "violated", "broke"),
        ("not-exercised", "violated", "broke"),
        (None, "violated", "broke"),
        ("violated", "held", "fixed"),
        ("held", "not-exercised", "lost"),
        ("held", None, "lost"),
        ("violated", "not-exercised", "lost"),
        ("held", "held", ""),
        (None, "held", ""),
        ("not-exercised", "held", ""),
        ("violated", "violated", ""),
    ],
)
def test_a_rule_that_changes(before: str | None, after: str | None, kind: str) -> None:
    """A rule broke if it is violated and wasn't, is fixed if it holds again, lost if nothing judges it."""
    old, new = (report(replay(verdicts={UNIQUE: state} if state else {})) for state in (before, after))
    found = compare(new, old)
    changes = {"broke": found.broke, "fixed": found.fixed, "lost": found.lost}
    expected = [("a.xkt", f"{UNIQUE} (MUST)")]
    assert {name: named(changed) for name, changed in changes.items() if changed} == (
        {kind: expected} if kind else {}
    )
    assert found.still_wrong == (before == after == "violated")


@pytest.mark.parametrize(("before", "after", "broke"), [(1, 2, 1), (2, 1, 0), (2, 2, 0)])
def test_worse_is_broken(before: int, after: int, broke: int) -> None:
    """More violations than before are a regression, fewer are still wrong; so are divergences."""
    old, new = (
        report(replay(**diverged(count)) | {"verdicts": [verdict(UNIQUE, "violated", 9, count)]})
        for count in (before, after)
    )
    found = compare(new, old)
    assert (len(found.broke), found.still_wrong, found.fixed) == (2 * broke, 2 - 2 * broke, [])


@pytest.mark.parametrize(("other", "what"), [(diverged(), "replay"), ({"errors": ["no"]}, "errors")])
def test_replays_change_too(other: dict[str, Any], what: str) -> None:
    """A replay that diverges or can't be judged has broken; when that is over, it is fixed."""
    wrong, right = report(replay(**other)), report(replay())
    assert named(compare(wrong, right).broke) == named(compare(right, wrong).fixed) == [("a.xkt", what)]


def test_a_trace_that_is_gone_is_told_once() -> None:
    """A trace that isn't replayed any more is one change, and none for each of its rules."""
    old = report(replay(verdicts=dict.fromkeys(RULES, "held")), replay("b.xkt"))
    assert named(compare(report(replay("b.xkt")), old).lost) == [("a.xkt", "replay")]
    gone = compare(report(replay(**failed()), replay("b.xkt")), old)
    assert (named(gone.broke), named(gone.lost)) == ([("a.xkt", "errors")], [("a.xkt", "replay")])


def test_what_differs_in_one_thing_is_compared() -> None:
    """A trace's replay on another kernel is compared with the only one that there is."""
    old = report(replay(verdicts={UNIQUE: "violated"}, profile="linux-7.2"))
    assert named(compare(report(replay(verdicts={UNIQUE: "held"})), old).fixed) == [
        ("a.xkt", f"{UNIQUE} (MUST)")
    ]


def test_like_is_compared_with_like() -> None:
    """With several replays of a trace, each is compared with that on the same kernel."""
    old = report(
        replay(verdicts={UNIQUE: "violated"}, profile="linux-7.2"), replay(verdicts={UNIQUE: "held"})
    )
    new = report(
        replay(verdicts={UNIQUE: "violated"}, profile="linux-7.2"), replay(verdicts={UNIQUE: "violated"})
    )
    found = compare(new, old)
    assert (len(found.broke), found.still_wrong) == (1, 1)


def test_the_lines() -> None:
    """Each change is a line with both sides, and the first thing that shows it; the last line counts."""
    old, new = (report(replay(verdicts={UNIQUE: state}, parameters="[x]")) for state in ("held", "violated"))
    assert list(compare(new, old).lines()) == [
        f"broke: a.xkt[x]: {UNIQUE} (MUST): violated 1 of 4 times (before: held 4 times)",
        "  event 3 (line 5), vCPU 1: was refused",
        "1 broke, 0 fixed, 0 not judged any more, 0 still wrong",
    ]
