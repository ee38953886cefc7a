"""A vCPU that a probe drives: its attributes, its guest's hypercalls, what its guest sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from attrs import define, field

from pytest_xenkvm.abi.numbers import (
    INVALID_GPA,
    KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
    VcpuAttr,
)
from pytest_xenkvm.trace import events
from pytest_xenkvm.trace.decode import event_words
from pytest_xenkvm.trace.decode_values import data as hex_words
from pytest_xenkvm.trace.events import NowPlus
from pytest_xenkvm.vmm.ioctl_bytes import RUNSTATE_MEMBERS

from .calls import CallingVcpu, Time
from .setting import MSR, VCPU_INFO, Mode

ARMED: Final = object()
"""An expiry that isn't 0."""

_RUNSTATES: Final = (VcpuAttr.RUNSTATE_CURRENT, VcpuAttr.RUNSTATE_DATA, VcpuAttr.RUNSTATE_ADJUST)
_MEMBERS: Final = {
    VcpuAttr.VCPU_INFO: "gpa",
    VcpuAttr.VCPU_TIME_INFO: "gpa",
    VcpuAttr.RUNSTATE_ADDR: "gpa",
    VcpuAttr.VCPU_ID: "vcpu_id",
    VcpuAttr.UPCALL_VECTOR: "vector",
    VcpuAttr.VCPU_INFO_HVA: "hva",
}


@define(eq=False)
class ProbeVcpu(CallingVcpu):
    """A vCPU with its attributes, and what its guest sees."""

    vcpu_info: int | None = field(default=None, init=False)
    """Where the guest's vcpu_info is, if it is somewhere."""

    # ---- attributes

    def set(self, type_: int, value: Any = 0, *, ret: int = 0) -> None:
        """KVM_XEN_VCPU_SET_ATTR; a runstate as a sequence of six numbers, a host address as {"gpa": G}."""
        __tracebackhide__ = True
        arg = {"type": int(type_), **_member(type_, value)}
        self.vm.ioctl("KVM_XEN_VCPU_SET_ATTR", arg, vcpu=self.index, ret=ret)
        if ret == 0 and type_ == VcpuAttr.VCPU_INFO:
            self.vcpu_info = None if value == INVALID_GPA else value
        elif ret == 0 and type_ == VcpuAttr.VCPU_INFO_HVA:
            self.vcpu_info = value["gpa"] if isinstance(value, Mapping) else None

    def get(self, type_: int, value: Any = None, *, ret: int = 0) -> Any:
        """KVM_XEN_VCPU_GET_ATTR, which must read `value` (None: anything)."""
        __tracebackhide__ = True
        out = None if value is None or ret else _member(type_, value)
        made = self.vm.ioctl("KVM_XEN_VCPU_GET_ATTR", {"type": int(type_)}, vcpu=self.index, ret=ret, out=out)
        read = made.out or {}
        return next((read[member] for member in read if member != "type"), None)

    def set_timer(
        self,
        port: int,
        expires: Time = 0,
        *,
        priority: int = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
        ret: int = 0,
    ) -> None:
        """TIMER: port, expiry and priority."""
        __tracebackhide__ = True
        at = {"now_plus": expires.delta} if isinstance(expires, NowPlus) else expires
        timer = {"port": port, "priority": priority, "expires_ns": at}
        arg = {"type": int(VcpuAttr.TIMER), "timer": timer}
        self.vm.ioctl("KVM_XEN_VCPU_SET_ATTR", arg, vcpu=self.index, ret=ret)

    def timer_is(self, port: int, expires: int | object = 0) -> None:
        """TIMER must read back so; `expires` ns, or ARMED."""
        __tracebackhide__ = True
        read = self.get(VcpuAttr.TIMER)
        fine = read["expires_ns"] != 0 if expires is ARMED else read["expires_ns"] == expires
        if read["port"] != port or read["priority"] != KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL or not fine:
            when = "an expiry" if expires is ARMED else f"expires={expires}"
            demanded = f"TIMER reads port={port}, priority 2LEVEL, {when}"
            self.vm.fail(demanded, event_words(self.vm.told[-1].event), self.index)

    def expires(self) -> int:
        """The expiry that TIMER reads (ns)."""
        expires: int = self.get(VcpuAttr.TIMER)["expires_ns"]
        return expires

    def runstate(self) -> tuple[int, int, int, int, int, int]:
        """RUNSTATE_DATA: state, entry time and the four times (ns)."""
        read = self.get(VcpuAttr.RUNSTATE_DATA)
        state, entry, running, runnable, blocked, offline = (read[member] for member in RUNSTATE_MEMBERS)
        return state, entry, running, runnable, blocked, offline

    def place_vcpu_info(self) -> None:
        """VCPU_INFO where probes have it."""
        self.set(VcpuAttr.VCPU_INFO, VCPU_INFO + self.index * 0x1000)

    # ---- entering the guest

    def run(self) -> None:
        """Enter the guest once, without a hypercall."""
        self.vm.do_run(self.index)
        self.take_interrupts()

    def enable_local_apic(self, *, enabled: bool = True) -> None:
        """Let the guest enable or disable its local APIC by software."""
        self.vm.do_enable_local_apic(self.index, enabled=enabled)
        self.take_interrupts()

    def wrmsr(
        self,
        value: int,
        *,
        msr: int = MSR,
        mode: Mode = Mode.LONG,
        ok: bool = True,
        run_ret: int | None = None,
    ) -> None:
        """Let the guest write an MSR; `ok` False: it must take #GP; `run_ret`: KVM_RUN must fail so."""
        __tracebackhide__ = True
        event = events.Wrmsr(
            vcpu=self.index,
            longmode=mode.lma,
            compat=mode is Mode.COMPAT,
            msr=msr,
            value=value,
            ok=ok,
            run_ret=run_ret,
        )
        made = self.vm.do_wrmsr(event)
        if made.run_ret != run_ret:
            self.vm.fail(f"KVM_RUN to return {run_ret or 0}", event_words(made), self.index)
        if run_ret is not None:
            return
        if made.ok != ok:
            self.vm.fail(
                "no fault" if ok else "#GP", f"{event_words(made)}{'' if made.ok else ' (#GP)'}", self.index
            )
        self.take_interrupts()

    # ---- what the guest sees

    def upcall(self, *words: int, pending: int = 1) -> None:
        """In vcpu_info exactly these bits of evtchn_pending_sel must be set, and evtchn_upcall_pending."""
        __tracebackhide__ = True
        place, layout = self.vcpu_info or 0, self.vm.layout
        found = self.vm.read(place, 16)
        size = layout.word_bits // 8
        selector = int.from_bytes(found[layout.pending_sel : layout.pending_sel + size], "little")
        demanded = sum(1 << word for word in words)
        if found[0] != pending or selector != demanded:
            self.vm.fail(
                f"vCPU {self.index}'s evtchn_upcall_pending {pending} and evtchn_pending_sel {demanded:#x}",
                f"evtchn_upcall_pending {found[0]} and evtchn_pending_sel {selector:#x} ({hex_words(found)})",
                self.index,
            )

    def quiet(self) -> None:
        """No event must be announced in vcpu_info."""
        __tracebackhide__ = True
        self.upcall(pending=0)


def _member(type_: int, value: Any) -> dict[str, Any]:
    if type_ in _RUNSTATES:
        values = value if isinstance(value, Sequence) else (value, 0, 0, 0, 0, 0)
        return {"runstate": dict(zip(RUNSTATE_MEMBERS, values, strict=True))}
    if type_ == VcpuAttr.TIMER:
        return {"timer": value}
    member = _MEMBERS.get(VcpuAttr(type_)) if type_ in set(VcpuAttr) else None
    return {} if member is None else {member: value}
