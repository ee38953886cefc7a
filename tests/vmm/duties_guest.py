"""The guest of the bundled trace @vmm-duties, call by call; run as a program, this writes the trace.

`python tests/vmm/duties_guest.py traces/vmm-duties.xkt`

It was never recorded: it is a guest program that makes the calls by which a VMM's duties show, and whose
memory is all there. What comes of them is up to the VMM, so no outcome is in the trace.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from struct import pack
from typing import Any, Final

from attrs import define, field

from pytest_xenkvm.abi.numbers import EvtchnOp, HvmOp, MemoryOp, VcpuOp, XenVer
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.abi.xen_numbers import DOMID_SELF, VCPU_SSHOTTMR_FUTURE, HvmParam, Virq
from pytest_xenkvm.trace import write_trace
from pytest_xenkvm.trace.events import (
    Behind,
    Event,
    Header,
    Hypercall,
    Mem,
    MemorySlot,
    VcpuRun,
    VcpuShape,
    VmShape,
    Wait,
    Wrmsr,
)

MS: Final = 1_000_000
ARGUMENT: Final = 0x2000
"""Where the guest puts the structures that its calls point at; virtual is physical."""
SHARED_INFO_GFN: Final = 0x100
AREAS_GFN: Final = 0x101
VECTOR: Final = 0xF3
NO_SUCH_VCPU: Final = 7
NO_SUCH_HYPERCALL: Final = 1000

HEADER: Final = Header(
    kernel="7.3",
    max_vcpus=1024,
    recorder="replay",
    scope="hypercalls",
    vm=VmShape(
        irqchip="split",
        memory=(MemorySlot(gpa=0, size=2 << 20),),
        vcpus=(VcpuShape(index=0, id=0), VcpuShape(index=1, id=2)),
    ),
    notes=(
        "Not a recording but a guest program's calls, made by tests/vmm/duties_guest.py: those by which a "
        "VMM's duties show. KVM's id of vCPU 1 is 2."
    ),
)


@define
class Script:
    """Events in the making; each is 1 ms after the one before."""

    made: list[Event] = field(factory=list)
    now: int = 0

    def add(self, event: Event) -> None:
        """Append it."""
        self.made.append(event)

    def tick(self, ms: int = 1) -> int:
        """When the next event happens."""
        self.now += ms * MS
        return self.now

    def call(self, nr: int, *args: int, behind: bytes | None = None, **more: Any) -> None:
        """A hypercall; what its last argument points at is in memory and with the call."""
        now_plus = more.pop("now_plus", ())
        if behind is not None:
            if not now_plus:
                self.add(Mem(ts=self.tick(), op="write", gpa=ARGUMENT, data=behind))
            more["behind"] = (Behind(arg=len(args), data=behind, now_plus_at=now_plus),)
            args = (*args, ARGUMENT)
        fields = {"vcpu": 0, "longmode": True, "cpl": 0, **more}
        numbers = tuple(int(arg) for arg in (*args, *(0,) * (6 - len(args))))
        self.add(Hypercall(ts=self.tick(), nr=int(nr), args=numbers, **fields))

    def singleshot(self, delta: int, flags: int = 0, *, named: int = 0, **more: Any) -> None:
        """Set a singleshot timer `delta` ns from the guest's now."""
        narrow = more.get("longmode") is False
        structure = pack("<QI", 0, flags) if narrow else pack("<QIxxxx", 0, flags)
        timer = VcpuOp.set_singleshot_timer
        self.call(Nr.vcpu_op, timer, named, behind=structure, now_plus=((0, delta),), **more)

    def wait(self, ms: int) -> None:
        """Let time pass."""
        self.add(Wait(ts=self.tick(ms), ns=ms * MS))


def brings_itself_up(guest: Script) -> None:
    """What a PVHVM guest does first: version, shared page, areas, vectors, event channels."""
    guest.add(Wrmsr(ts=0, vcpu=0, longmode=True, msr=0x4000_0000, value=0x3000, ok=True))
    guest.call(Nr.xen_version, XenVer.version)
    guest.call(Nr.xen_version, XenVer.get_features, behind=pack("<II", 0, 0))
    shared_info = pack("<HxxIQQ", DOMID_SELF, 0, 0, SHARED_INFO_GFN)
    guest.call(Nr.memory_op, MemoryOp.add_to_physmap, behind=shared_info)
    for vcpu in (0, 1):
        info = pack("<QII", AREAS_GFN, 64 * vcpu, 0)
        guest.call(Nr.vcpu_op, VcpuOp.register_vcpu_info, vcpu, behind=info)
        vector = pack("<IBxxx", vcpu, VECTOR)
        guest.call(Nr.hvm_op, HvmOp.set_evtchn_upcall_vector, behind=vector)
        guest.call(Nr.vcpu_op, VcpuOp.stop_periodic_timer, vcpu)
        for offset, area in (
            (0x800, VcpuOp.register_runstate_memory_area),
            (0xC00, VcpuOp.register_vcpu_time_memory_area),
        ):
            guest.call(Nr.vcpu_op, area, vcpu, behind=pack("<Q", (AREAS_GFN << 12) + offset + 64 * vcpu))
    param = pack("<HxxIQ", DOMID_SELF, HvmParam.CALLBACK_IRQ, 1)
    guest.call(Nr.hvm_op, HvmOp.set_param, behind=param)
    for vcpu in (0, 1):
        virq = pack("<III", Virq.TIMER, vcpu, 0)
        guest.call(Nr.event_channel_op, EvtchnOp.bind_virq, behind=virq)
        guest.call(Nr.event_channel_op, EvtchnOp.bind_ipi, behind=pack("<II", vcpu, 0))


def uses_timers(guest: Script) -> None:
    """Singleshot timers that are stopped, past, due and cancelled; and one of another vCPU."""
    for vcpu in (0, 1):
        guest.call(Nr.vcpu_op, VcpuOp.stop_singleshot_timer, vcpu, vcpu=vcpu)
        guest.singleshot(-MS, named=vcpu, vcpu=vcpu)
        guest.add(VcpuRun(ts=guest.tick(), vcpu=vcpu))
        guest.singleshot(-MS, VCPU_SSHOTTMR_FUTURE, named=vcpu, vcpu=vcpu)
        guest.add(VcpuRun(ts=guest.tick(), vcpu=vcpu))
        guest.singleshot(5 * MS, named=vcpu, vcpu=vcpu)
        guest.wait(200)
        guest.singleshot(5 * MS, named=vcpu, vcpu=vcpu)
        guest.call(Nr.vcpu_op, VcpuOp.stop_singleshot_timer, vcpu, vcpu=vcpu)
        guest.wait(20)
        guest.singleshot(5 * MS, named=1 - vcpu, vcpu=vcpu)
        guest.call(Nr.vcpu_op, VcpuOp.stop_singleshot_timer, 1 - vcpu, vcpu=vcpu)
    guest.singleshot(-MS, longmode=False, compat=True)
    guest.add(VcpuRun(ts=guest.tick(), vcpu=0))


def tries_things_out(guest: Script) -> None:
    """Calls that a VMM must refuse: from user mode, on a vCPU that isn't there, of no known number."""
    for cpl in (1, 3):
        guest.call(Nr.vcpu_op, VcpuOp.stop_periodic_timer, 0, cpl=cpl)
        guest.call(Nr.sched_op, 0, cpl=cpl, longmode=False, compat=True)
    guest.call(Nr.vcpu_op, VcpuOp.stop_periodic_timer, NO_SUCH_VCPU)
    guest.call(Nr.vcpu_op, VcpuOp.register_vcpu_info, NO_SUCH_VCPU, behind=pack("<QII", AREAS_GFN, 0, 0))
    guest.call(NO_SUCH_HYPERCALL)
    guest.call(1 << 32 | Nr.vcpu_op, VcpuOp.stop_periodic_timer, 0)
    guest.call(NO_SUCH_HYPERCALL, longmode=False, compat=True)


def events() -> Iterator[Event]:
    """All of it; at the end, the timer of each vCPU runs."""
    guest = Script()
    brings_itself_up(guest)
    uses_timers(guest)
    tries_things_out(guest)
    for vcpu in (0, 1):
        guest.singleshot(1000 * MS, named=vcpu, vcpu=vcpu)
    return iter(guest.made)


if __name__ == "__main__":
    write_trace(Path(sys.argv[1]), HEADER, events())
