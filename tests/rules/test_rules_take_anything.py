"""Whatever a trace holds, rules judge it without raising."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Final

from hypothesis import given
from hypothesis import strategies as st
from rule_traces import (
    RULES,
    arm,
    check,
    config,
    get_id,
    happened,
    header,
    set_id,
    set_port,
    stop,
    verdict,
    verdicts,
)

sys.path.append(str(Path(__file__).parents[1] / "trace"))
import strategies as traces

from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.rules.judge import Judge
from pytest_xenkvm.rules.model import Context, State
from pytest_xenkvm.trace.events import Event, Header, Ioctl

SETUP: Final = (config(), set_port(0, 9), set_port(1, 9), set_id(0, 0))
"""Makes more hypercalls count."""


def observations(event: st.SearchStrategy[Event]) -> st.SearchStrategy[Observation]:
    """Events as if they had happened, whatever was seen and answered."""
    return st.builds(
        happened,
        event,
        answer=st.none() | traces.U64,
        unjudged=st.sampled_from([(), ("rax",), ("handled", "rax"), ("unseen memory",)]),
    )


@st.composite
def histories(draw: st.DrawFn) -> tuple[Header, list[Observation]]:
    """A header and what happened to its VM."""
    shown = draw(traces.headers())
    vcpus = 4 if shown.vm is None else len(shown.vm.vcpus)
    vcpu = st.integers(0, vcpus - 1)
    outcome = st.sampled_from(["kernel", "userspace", None])
    xen_id = st.integers(0, 5) | traces.U32
    likely = st.one_of(
        st.builds(arm, vcpu, traces.U64, outcome, longmode=st.just(value=True), cpl=st.integers(0, 3)),
        st.builds(stop, vcpu, st.integers(0, 3), outcome),
        st.builds(set_id, vcpu, xen_id, traces.ERRNO),
        st.builds(get_id, vcpu, xen_id),
        st.builds(set_port, vcpu, traces.U32, traces.ERRNO),
        traces.events(vcpus, shown.scope),
    )
    return shown, draw(st.lists(observations(likely), max_size=20))


@given(histories())
def test_rules_never_raise(history: tuple[Header, list[Observation]]) -> None:
    """Any events in any order, with any outcomes, give a verdict of each rule that adds up."""
    of, items = history
    context = Context(header=of, max_vcpus=of.max_vcpus or 4096, vmm_under_test=True)
    judge = Judge(BUNDLED, context)
    for item in [*map(happened, SETUP), *items]:
        judge.observe(item)
    for found in judge.verdicts():
        assert 0 <= len(found.findings) <= found.violations <= found.exercised
        assert (found.state is State.NOT_EXERCISED) == (found.exercised == 0)
        assert (found.state is State.VIOLATED) == (found.violations > 0)


@given(st.lists(st.builds(set_id, st.integers(0, 3), st.integers(0, 3), st.sampled_from([0, -22]))))
def test_clashes_are_those_of_the_ids_in_force(sets: list[Ioctl]) -> None:
    """After any sequence of SETs the tracker knows who has which ID and which IDs clash."""
    context = Context(header=header(), max_vcpus=4096, vmm_under_test=True)
    judge = Judge((), context)
    expected: dict[int, int] = {}
    for event in sets:
        judge.observe(happened(event))
        if event.ret == 0:
            assert event.vcpu is not None
            expected[event.vcpu] = event.arg["vcpu_id"]
    setup = context.setup
    holders = {
        xen_id: {vcpu for vcpu, own in expected.items() if own == xen_id} for xen_id in expected.values()
    }
    assert {xen_id: set(vcpus) for xen_id, vcpus in setup.holders.items()} == holders
    assert setup.clashes == {xen_id: vcpus for xen_id, vcpus in setup.holders.items() if len(vcpus) > 1}
    assert {index: vcpu.xen_id for index, vcpu in setup.vcpus.items() if vcpu.xen_id is not None} == expected


def test_findings_are_kept_in_bounds() -> None:
    """A million violations keep a hundred findings and count the rest."""
    found = verdict("vcpu-id.unset-forwards", config(), set_port(1, 9), *[arm(1, 1)] * 1000)
    check(found, "violated", "vCPU 1")
    assert (found.violations, len(found.findings)) == (1000, 100)


def test_one_trace_does_not_colour_the_next() -> None:
    """What one VM set up is unknown to the judgement of the next one."""
    events = [config(), set_port(1, 9), arm(1, 1, "userspace")]
    first, second = verdicts(BUNDLED, events), verdicts(BUNDLED, events[2:])
    assert sum(found.exercised for found in first) > 0
    assert [found.rule.id for found in second if found.exercised] == ["hypercalls.are-intercepted"]
    assert second[BUNDLED.index(RULES["hypercalls.are-intercepted"])].violations == 1
