"""Kernel replay: what it keeps of events."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from attrs import define

from pytest_xenkvm.abi.numbers import HvmAttr, VcpuAttr
from pytest_xenkvm.core.profile import LINUX_6_12, LINUX_7_3
from pytest_xenkvm.hosts.emulated import EmulatedHost, EmulatedVm
from pytest_xenkvm.replay.kernel import kernel_replay
from pytest_xenkvm.replay.observation import EVERYONE, Audience, Repeats, Tally
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.trace.events import (
    BRIEF_BYTES,
    Behind,
    Event,
    Header,
    Hypercall,
    Ioctl,
    Mem,
    MemorySlot,
    TimedEvent,
    VcpuRun,
    VcpuShape,
    VmShape,
    brief,
    timed,
)
from pytest_xenkvm.trace.xkt import XktTrace

SHAPE = VmShape(
    irqchip="split",
    memory=(MemorySlot(gpa=0, size=1 << 20),),
    vcpus=(VcpuShape(index=0, id=0),),
)


def call(**more: object) -> Hypercall:
    """A hypercall of the KVM ABI, which answers -1000."""
    return Hypercall(vcpu=0, longmode=True, cpl=0, nr=0, args=(0,) * 6, **more)  # type: ignore[arg-type]


def test_what_came_before_is_kept_briefly() -> None:
    """A divergence carries the three events before it, of this vCPU, without what may be large."""
    noted = VcpuRun(vcpu=0, extra={"note": "x" * 100_000})
    events: list[Event] = [noted, noted, noted, noted, call(handled="kernel", rax=0)]
    observations = list(kernel_replay(EmulatedHost(profile=LINUX_7_3), Header(vm=SHAPE), timed(events)))
    (divergence,) = observations[-1].divergences
    assert (divergence.kind, divergence.expected, divergence.observed) == ("rax", 0, 2**64 - 1000)
    assert [place.index for place, _event in divergence.preceding] == [1, 2, 3]
    assert all(event == VcpuRun(vcpu=0) for _place, event in divergence.preceding)


def test_brief_events_hold_little_data() -> None:
    """Data, its mask and bytes behind pointers are cut; other events stay the object they are."""
    large = bytes(100_000)
    mem = brief(Mem(op="read", gpa=0, data=large, mask=large))
    assert isinstance(mem, Mem)
    assert (len(mem.data), len(mem.mask or b"")) == (BRIEF_BYTES, BRIEF_BYTES)
    hypercall = brief(call(behind=(Behind(arg=1, data=large, extra={"note": 1}),) * 60))
    assert isinstance(hypercall, Hypercall)
    assert hypercall.behind == (Behind(arg=1, data=bytes(BRIEF_BYTES)),) * 6
    run = VcpuRun(vcpu=0)
    assert brief(run) is run


class _Nobody:
    """An audience that looks at nothing."""

    def __init__(self) -> None:
        self.counted = Repeats()

    def wants(self, event: Event) -> bool:  # noqa: ARG002
        return False

    def wants_call(self, event: Hypercall) -> bool:  # noqa: ARG002
        return False

    def recall(self, event: Hypercall) -> None:
        """Nothing was counted."""

    def repeats(self, event: Hypercall) -> Repeats:  # noqa: ARG002
        return self.counted


@define
class _Remembering:
    """A host that keeps its VM at hand."""

    host: EmulatedHost
    vm: EmulatedVm | None = None

    @property
    def name(self) -> str:
        """The host's."""
        return self.host.name

    def create_vm(self, shape: VmShape, *, cpu_vendor: str) -> EmulatedVm:
        """The VM."""
        self.vm = self.host.create_vm(shape, cpu_vendor=cpu_vendor)
        return self.vm


def replayed(header: Header, events: Iterable[TimedEvent], audience: Audience) -> tuple[EmulatedVm, Tally]:
    """The VM to which the events have happened, and what was counted."""
    host, tally = _Remembering(EmulatedHost(profile=LINUX_6_12)), Tally()
    for observation in kernel_replay(host, header, events, audience, tally):
        assert not observation.divergences
    assert host.vm is not None
    return host.vm, tally


def vcpu_attr(type_: int, **value: object) -> Ioctl:
    """A SET of an attribute of vCPU 0."""
    return Ioctl(name="KVM_XEN_VCPU_SET_ATTR", vcpu=0, arg={"type": int(type_), **value}, ret=0)


@pytest.mark.parametrize("audience", [EVERYONE, _Nobody()], ids=["everyone", "nobody"])
def test_a_timer_fires_before_the_store_behind_it(audience: Audience) -> None:
    """A timer that was due when a store began has set the byte that the store then clears."""
    upcall_pending = 0x2000
    shared_info = {"type": int(HvmAttr.SHARED_INFO), "shared_info": {"gfn": 1}}
    timer = {"port": 7, "priority": 0xFFFF_FFFF, "expires_ns": 1000}
    store = Mem(op="write", gpa=0x5000, data=b"x")
    clear = Mem(op="write", gpa=upcall_pending, data=b"\0")
    events: list[TimedEvent] = [
        (0, Ioctl(name="KVM_XEN_HVM_SET_ATTR", arg=shared_info, ret=0), None),
        (10, vcpu_attr(VcpuAttr.VCPU_INFO, gpa=upcall_pending), None),
        (20, store, None),
        (30, clear, None),
        (40, vcpu_attr(VcpuAttr.TIMER, timer=timer), None),
        (900, store, None),
        (5000, store, None),
        (6000, clear, None),
        (7000, store, None),
    ]
    vm, tally = replayed(Header(vm=SHAPE), events, audience)
    assert vm.read_memory(0x1800, 1) == bytes([1 << 7])
    assert vm.read_memory(upcall_pending, 1) == b"\0"
    assert vm.machine.state.now == 6000
    assert tally.events == len(events)


def test_a_vm_is_the_same_whoever_looked() -> None:
    """With nobody looking, events are done a quicker way: time, timers, memory and counts are the same."""
    trace, audience = open_trace("@linux-boot"), _Nobody()
    assert isinstance(trace, XktTrace)
    watched, counted = replayed(trace.header, trace.timed_events(), EVERYONE)
    unwatched, counted_unwatched = replayed(trace.header, trace.timed_events(), audience)
    assert audience.counted.times > counted.hypercalls // 2
    assert counted_unwatched == counted
    first, second = watched.machine.state, unwatched.machine.state
    assert (first.now, first.deadlines) == (second.now, second.deadlines)
    for one, other in zip(first.vcpus, second.vcpus, strict=True):
        assert (one.timer, one.runstate, one.irr) == (other.timer, other.runstate, other.irr)
    size = sum(len(slot.buffer) for slot in first.memory.slots)
    assert first.memory.read(0, size) == second.memory.read(0, size)
