"""Kernel replay: what it keeps of events."""

from __future__ import annotations

from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.replay.kernel import kernel_replay
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
