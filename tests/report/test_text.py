"""Divergences and verdicts as lines of text."""

from __future__ import annotations

from typing import Any

import pytest
from attrs import evolve

from pytest_xenkvm.replay.observation import Divergence, Place
from pytest_xenkvm.report.text import divergence_lines, divergences_lines, place_words, verdict_line
from pytest_xenkvm.rules.model import Checker, Judged, Level, Rule, State, Verdict
from pytest_xenkvm.rules.run import ReplayResult
from pytest_xenkvm.trace.events import Irq, Mem, VcpuRun

RUN = VcpuRun(vcpu=1)
RULE = Rule(
    id="a.b",
    title="T.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation="C",
    explanation="E.",
    advice="A.",
    checker=Checker,
    sees=(),
)


def divergence(kind: str, expected: Any, observed: Any, recorded: Any = RUN) -> Divergence:
    """A divergence at event 3, with one event before it."""
    return Divergence(
        place=Place(3),
        kind=kind,
        expected=expected,
        observed=observed,
        recorded=recorded,
        happened=recorded,
        preceding=((Place(1), RUN),),
    )


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (
            divergence("irq", None, {"vcpu": 1, "vector": 0x61}),
            "no interrupt, observed vector 0x61 on vCPU 1",
        ),
        (divergence("irq", 0x61, None, Irq(vcpu=1, vector=0x61)), "vector 0x61, observed no interrupt"),
        (divergence("mem", "00ff", "", Mem(op="read", gpa=0, data=b"\0\xff")), "00ff, observed nothing"),
        (divergence("ok", expected=True, observed=False), "true, observed false"),
        (divergence("run_ret", -14, None), "-EFAULT (-14), observed unknown"),
        (divergence("out", {"gpa": 1}, {"gpa": 2}), "{gpa=1}, observed {gpa=2}"),
    ],
)
def test_outcomes_are_in_the_words_of_their_kind(found: Divergence, words: str) -> None:
    """The outcome that differs is said on both sides, as a result, a vector, bytes or members."""
    assert f"  {found.kind}: expected {words}" in divergence_lines(found)


def test_roles_are_dressed_up() -> None:
    """A style gets each piece with its role, and nothing else adds colour."""
    lines = divergence_lines(
        divergence("ok", expected=True, observed=False), lambda piece, role: f"<{role}>{piece}"
    )
    assert lines[0] == "<bad>event 3 (line 5), vCPU 1: ok differs"
    assert lines[-1] == "<dim>    event 1: vcpu_run"


def test_the_rest_is_counted() -> None:
    """Beyond the limit divergences are counted, also those that the result itself left out."""
    found = divergence("ok", expected=True, observed=False)
    result = ReplayResult(
        trace="t",
        profile="linux-7.3",
        vmm=None,
        events=9,
        hypercalls=0,
        unjudged=0,
        inferred=0,
        divergence_count=2000,
        divergences=(found,) * 3,
        verdicts=(),
    )
    lines = divergences_lines(result, limit=2)
    assert lines[0] == "t: 2000 divergences from the recording on linux-7.3"
    assert lines[-1] == "... and 1998 more"
    assert len(lines) == 2 + 2 * len(divergence_lines(found))
    assert divergences_lines(evolve(result, divergence_count=0, divergences=())) == [
        "t: no divergence on linux-7.3"
    ]


def test_what_the_vmm_did_before_the_guest_has_no_event() -> None:
    """The VMM's configuration stands before the first event."""
    assert place_words(Place(-1), RUN) == "before the first event, vCPU 1"


@pytest.mark.parametrize(
    ("verdict", "words"),
    [
        (Verdict(rule=RULE, state=State.HELD, exercised=1), "held 1 time"),
        (Verdict(rule=RULE, state=State.VIOLATED, exercised=3, violations=2), "violated 2 of 3 times"),
        (Verdict(rule=RULE, state=State.NOT_EXERCISED, reason="why"), "not exercised: why"),
    ],
)
def test_a_verdict_fits_a_line(verdict: Verdict, words: str) -> None:
    """A verdict says how often the rule was judged, or why it was not."""
    assert verdict_line(verdict) == f"a.b (MUST): {words}"
