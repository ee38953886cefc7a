"""Doing a scenario again and recording it: on the emulated host; tests/hosts does it on a real /dev/kvm."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from attrs import evolve
from same_outcomes import comparable

from pytest_xenkvm.core.profile import LINUX_7_3, PROFILES, HostLimits
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.rerecord import rerecord
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.trace.events import (
    Event,
    Header,
    Hypercall,
    Ioctl,
    Irq,
    Mem,
    MemorySlot,
    VcpuRun,
    VcpuShape,
    VmShape,
)

GOLDEN = Path(__file__).parents[2] / "traces" / "golden"
INFO, VECTOR = 0x1000, 0x55
PRIORITY = 0xFFFF_FFFF
SHAPE = VmShape(irqchip="split", memory=(MemorySlot(gpa=0, size=1 << 16),), vcpus=(VcpuShape(index=0, id=0),))
EVENT_SENT = Ioctl(
    name="KVM_XEN_HVM_EVTCHN_SEND", arg={"port": 3, "vcpu": 0, "priority": PRIORITY}, ret=0, ts=4000
)


def again(profile: str, header: Header, events: Iterable[Event]) -> tuple[Header, list[Event]]:
    """What is recorded when the scenario is done again on the kernel that `profile` names."""
    limits = HostLimits() if header.max_vcpus is None else HostLimits(max_vcpus=header.max_vcpus)
    host = EmulatedHost(profile=PROFILES[profile], limits=limits)
    recorded, happened = rerecord(host, header, events, kernel=f"{profile}-again", recorder="test")
    return recorded, list(happened)


def outcomes(events: Iterable[Event]) -> list[Event]:
    """What two recordings must have in common."""
    return [comparable(event) for event in events]


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize(
    "name",
    ["directed/upcall-vector", "directed/runstate", "directed/sched-op", "random/seed-5", "random/seed-39"],
)
def test_a_golden_done_again_on_its_kernel_is_the_golden(profile: str, name: str) -> None:
    """Events, outcomes and interrupts of a re-recording are those of the recording, one by one."""
    trace = open_trace(GOLDEN / profile / f"{name}.jsonl.gz")
    header, events = again(profile, trace.header, trace.events())
    assert outcomes(events) == outcomes(trace.events())
    times = [event.ts for event in events]
    assert times[0] == 0
    assert times == sorted(times, key=lambda ts: ts or 0)
    assert header == evolve(trace.header, kernel=f"{profile}-again", recorder="test")


def test_another_kernel_is_recorded_as_it_answers() -> None:
    """The re-recording holds the new kernel's outcomes, not the scenario's: an unset ID on Linux 7.3."""
    trace = open_trace(GOLDEN / "linux-6.12" / "directed" / "vcpu-id-default.jsonl.gz")
    _header, events = again("linux-7.3", trace.header, trace.events())
    newer = open_trace(GOLDEN / "linux-7.3" / "directed" / "vcpu-id-default.jsonl.gz")
    assert next(outcomes(events)[i] for i in (1, 2)) == next(outcomes(newer.events())[i] for i in (1, 2))
    calls = [event.handled for event in events if isinstance(event, Hypercall)]
    assert calls != [event.handled for event in trace.events() if isinstance(event, Hypercall)]


def configured() -> list[Event]:
    """A VM that takes a VM-wide vector for each event."""
    config = {"flags": 0x22, "msr": 0x4000_0000, "blob_addr_32": 0, "blob_addr_64": 0}
    return [
        Ioctl(name="KVM_XEN_HVM_CONFIG", arg={**config, "blob_size_32": 0, "blob_size_64": 0}, ret=0),
        Ioctl(name="KVM_XEN_HVM_SET_ATTR", arg={"type": 0, "long_mode": 1}, ret=0),
        Ioctl(name="KVM_XEN_HVM_SET_ATTR", arg={"type": 1, "shared_info": {"gfn": 2}}, ret=0),
        Ioctl(name="KVM_XEN_VCPU_SET_ATTR", vcpu=0, arg={"type": 0, "gpa": INFO}, ret=0),
        Ioctl(name="KVM_XEN_HVM_SET_ATTR", arg={"type": 2, "vector": VECTOR}, ret=0),
    ]


def tail(scenario: Sequence[Event]) -> list[Event]:
    """What is recorded of the events behind the configuration, without times."""
    _header, events = again("linux-7.3", Header(vm=SHAPE), [*configured(), *scenario])
    return [evolve(event, ts=None) for event in events[len(configured()) :]]


def test_interrupts_that_the_scenario_lacks_are_recorded_and_handled() -> None:
    """A vector that the scenario's guest didn't take is taken, and evtchn_upcall_pending cleared, once."""
    assert tail([EVENT_SENT, VcpuRun(vcpu=0), VcpuRun(vcpu=0)]) == [
        evolve(EVENT_SENT, ts=None),
        VcpuRun(vcpu=0),
        Irq(vcpu=0, vector=VECTOR),
        Mem(op="write", gpa=INFO, data=b"\0"),
        VcpuRun(vcpu=0),
    ]


@pytest.mark.parametrize("gpa", [INFO, 0x3000])
def test_interrupts_that_dont_come_are_left_out_with_their_handlers(gpa: int) -> None:
    """Of an interrupt that isn't taken here nothing stays; a store elsewhere was no handler's."""
    store = Mem(op="write", gpa=gpa, data=b"\0")
    kept = [] if gpa == INFO else [store]
    assert tail([VcpuRun(vcpu=0), Irq(vcpu=0, vector=VECTOR), store]) == [VcpuRun(vcpu=0), *kept]


def test_interrupts_without_end_are_a_host_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A vector that nothing clears ends the recording in words instead of never."""
    monkeypatch.setattr("pytest_xenkvm.hosts.emulated.EmulatedVm.take_interrupt", lambda _vm, _vcpu: 0x77)
    with pytest.raises(HostError, match="takes interrupts without end: the last had vector 119"):
        tail([VcpuRun(vcpu=0)])


def test_a_scenario_without_configuration_is_refused() -> None:
    """Scope "hypercalls" doesn't say what to do."""
    with pytest.raises(ReplayError, match="the scenario holds hypercalls only"):
        rerecord(EmulatedHost(profile=LINUX_7_3), Header(scope="hypercalls"), [], kernel="x", recorder="y")
