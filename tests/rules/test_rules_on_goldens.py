"""The bundled host rules on the golden traces: what real kernels did, judged by the ABI of Linux 7.3."""

from __future__ import annotations

from functools import cache
from typing import Final

import pytest
from rule_traces import RULES, golden, golden_names

from pytest_xenkvm.rules.model import Judged, State
from pytest_xenkvm.rules.run import ReplayOptions, ReplayResult, run_trace
from pytest_xenkvm.trace.events import Hypercall, Ioctl

FAMILIES: Final = ("vcpu-id.", "vcpu-id-bounds.", "forwarded-timers.")
HOST_RULES: Final = {
    name: rule for name, rule in RULES.items() if name.startswith(FAMILIES) and rule.judges is Judged.HOST
}
NEW_KERNELS: Final = ("linux-7.3", "linux-7.3-max1024")
OLD_KERNELS: Final = ("linux-6.12", "linux-7.2")
TOPICS: Final = ("vcpu-id-default", "vcpu-id-bounds", "singleshot-id", "set-timer-op")
NAMES: Final = golden_names()

D, B, S, T = TOPICS
EXERCISED_IN: Final = {
    "vcpu-id.new-is-unset": (D, B, S, T),
    "vcpu-id.refused-set-leaves-unset": (B,),
    "vcpu-id.sentinel-is-refused": (B,),
    "vcpu-id.unset-forwards": (D, S),
    "vcpu-id-bounds.valid-is-accepted": (D, B, S),
    "vcpu-id-bounds.invalid-is-refused": (B,),
    "vcpu-id-bounds.set-reads-back": (D, B, S),
    "vcpu-id-bounds.refused-changes-nothing": (B,),
    "vcpu-id-bounds.sentinel-is-no-id": (D, B, S, T),
    "forwarded-timers.exit-is-intact": (D, S, T),
    "forwarded-timers.answer-reaches-guest": (D, S, T),
    "forwarded-timers.own-id-in-kernel": (D, B, S),
    "forwarded-timers.other-id-is-refused": (D, B, S),
    "forwarded-timers.numbers-are-32-bit": (S,),
    "forwarded-timers.no-port-forwards": (D, S, T),
    "forwarded-timers.set-timer-ignores-id": (T,),
    "forwarded-timers.above-cpl0-forwards": (S, T),
}
"""The directed traces about IDs and timers that exercise each rule, on every kernel."""

VIOLATED_BY_OLD_KERNELS: Final = {
    "vcpu-id.new-is-unset",
    "vcpu-id.refused-set-leaves-unset",
    "vcpu-id.unset-forwards",
}
"""The rules that demand what Linux 7.3 introduced."""


@cache
def replayed(name: str) -> ReplayResult:
    """A golden replayed on the profile of its kernel and judged by all host rules."""
    return run_trace(golden(name), HOST_RULES.values(), ReplayOptions())


def states(name: str) -> dict[str, State]:
    """How each rule came out."""
    return {verdict.rule.id: verdict.state for verdict in replayed(name).verdicts}


def test_every_rule_is_in_the_table() -> None:
    """Each host rule is exercised by at least one of the directed traces."""
    assert set(EXERCISED_IN) == set(HOST_RULES)


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("kernel", NEW_KERNELS)
def test_the_new_kernel_holds_all_rules(kernel: str, topic: str) -> None:
    """Linux 7.3 violates nothing, and every rule that the trace exercises is held."""
    name = f"{kernel}/directed/{topic}"
    assert replayed(name).divergence_count == 0
    assert states(name) == {
        rule: State.HELD if topic in topics else State.NOT_EXERCISED for rule, topics in EXERCISED_IN.items()
    }


@pytest.mark.parametrize("topic", TOPICS)
@pytest.mark.parametrize("kernel", OLD_KERNELS)
def test_old_kernels_violate_what_the_new_one_introduced(kernel: str, topic: str) -> None:
    """Linux 6.12 and 7.2 replay true to the recording, and violate just the rules about unset IDs."""
    name = f"{kernel}/directed/{topic}"
    assert replayed(name).divergence_count == 0
    violated = {rule for rule, state in states(name).items() if state is State.VIOLATED}
    assert violated == {rule for rule in VIOLATED_BY_OLD_KERNELS if topic in EXERCISED_IN[rule]}
    assert "vcpu-id.new-is-unset" in violated


@pytest.mark.parametrize("kernel", OLD_KERNELS)
def test_findings_name_the_recorded_events(kernel: str) -> None:
    """A finding stands at the event that shows it: the first GETs, and every kernel-handled call."""
    trace = golden(f"{kernel}/directed/vcpu-id-default")
    events = list(trace.events())
    found = {verdict.rule.id: verdict.findings for verdict in replayed(trace_name(kernel)).verdicts}
    assert [finding.place.line for finding in found["vcpu-id.new-is-unset"]][:3] == [3, 4, 5]
    for finding in found["vcpu-id.new-is-unset"]:
        assert isinstance(finding.event, Ioctl)
        assert finding.event == events[finding.place.index]
        assert finding.message.startswith(f"vCPU {finding.event.vcpu}: KVM_XEN_VCPU_GET_ATTR(VCPU_ID) read 0")
    assert len(found["vcpu-id.unset-forwards"]) == 57
    for finding in found["vcpu-id.unset-forwards"]:
        assert isinstance(finding.event, Hypercall)
        assert finding.event == events[finding.place.index]
        assert finding.event.handled == "kernel"
        assert finding.message.startswith(f"vCPU {finding.event.vcpu} (no Xen ID, timer port ")


def trace_name(kernel: str) -> str:
    """The golden about default IDs."""
    return f"{kernel}/directed/vcpu-id-default"


def test_the_goldens_are_there() -> None:
    """Directed and random goldens of all four kernels are there to be judged."""
    assert {name.rpartition("/")[0] for name in NAMES} >= {
        f"{kernel}/{kind}" for kernel in (*NEW_KERNELS, *OLD_KERNELS) for kind in ("directed", "random")
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_golden_is_judged_by_its_kernel(name: str) -> None:
    """No golden of Linux 7.3 violates a host rule; those of older kernels only the ones about unset IDs."""
    violated = {rule for rule, state in states(name).items() if state is State.VIOLATED}
    allowed = set() if name.startswith("linux-7.3") else VIOLATED_BY_OLD_KERNELS
    assert violated <= allowed


@pytest.mark.parametrize("seed", [1, 6, 20])
def test_a_rule_is_violated_by_the_old_kernels_where_the_new_one_holds_it(seed: int) -> None:
    """The same operations exercise the same rules on all kernels with the same KVM_MAX_VCPUS."""
    old, new = states(f"linux-7.2/random/seed-{seed}"), states(f"linux-7.3/random/seed-{seed}")
    for rule in VIOLATED_BY_OLD_KERNELS:
        assert (old[rule] is State.VIOLATED) == (new[rule] is State.HELD)
