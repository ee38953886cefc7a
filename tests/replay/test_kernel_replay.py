"""Kernel replay: what it keeps of events."""

from __future__ import annotations

from attrs import define

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
    Mem,
    MemorySlot,
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


def replayed(audience: Audience) -> tuple[EmulatedVm, Tally]:
    """The VM behind a boot, and what was counted."""
    trace, tally = open_trace("@linux-boot"), Tally()
    assert isinstance(trace, XktTrace)
    host = _Remembering(EmulatedHost(profile=LINUX_6_12))
    for _observation in kernel_replay(host, trace.header, trace.timed_events(), audience, tally):
        pass
    assert host.vm is not None
    return host.vm, tally


def test_a_vm_is_the_same_whoever_looked() -> None:
    """With nobody looking, events are done a quicker way: time, timers, memory and counts are the same."""
    watched, counted = replayed(EVERYONE)
    audience = _Nobody()
    unwatched, counted_unwatched = replayed(audience)
    assert audience.counted.times > counted.hypercalls // 2
    assert counted_unwatched == counted
    first, second = watched.machine.state, unwatched.machine.state
    assert (first.now, first.deadlines) == (second.now, second.deadlines)
    for one, other in zip(first.vcpus, second.vcpus, strict=True):
        assert (one.timer, one.runstate, one.irr) == (other.timer, other.runstate, other.irr)
    size = sum(len(slot.buffer) for slot in first.memory.slots)
    assert first.memory.read(0, size) == second.memory.read(0, size)
