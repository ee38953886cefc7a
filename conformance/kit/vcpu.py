"""A vCPU that a probe drives: its attributes, its guest's hypercalls, what its guest sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field

from pytest_xenkvm.abi.layout import LAYOUT_32, LAYOUT_64, U32, GuestLayout
from pytest_xenkvm.abi.numbers import (
    INVALID_GPA,
    KVM_EXIT_XEN_HCALL,
    KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
    U32_MAX,
    U64_MAX,
    EvtchnOp,
    Hypercall,
    SchedOp,
    VcpuAttr,
    VcpuOp,
)
from pytest_xenkvm.trace import events
from pytest_xenkvm.trace.decode import event_words
from pytest_xenkvm.trace.decode_values import data as hex_words
from pytest_xenkvm.trace.decode_values import register_result
from pytest_xenkvm.trace.events import HypercallExit, NowPlus
from pytest_xenkvm.vmm.ioctl_bytes import RUNSTATE_MEMBERS

from .demands import FORWARDED, Answer, answer_words
from .setting import ARGUMENT, MSR, VCPU_INFO, Mode

if TYPE_CHECKING:
    from .vm import ProbeVm

VMM_ANSWER: Final = 0x5EED_0000_A5A5_0001
"""What the VMM answers forwarded hypercalls: no errno, and different in 32 bits."""

ARMED: Final = object()
"""An expiry that isn't 0."""

Time = int | NowPlus
"""Absolute guest time (ns), or the guest's clock at that moment plus so many ns."""

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
class ProbeVcpu:
    """A vCPU. `index`: the order of creation; `id`: the KVM vCPU id."""

    vm: ProbeVm = field(repr=False)
    index: int
    id: int
    vcpu_info: int | None = field(default=None, init=False)
    """Where the guest's vcpu_info is, if it is somewhere."""
    _vectors: list[int] = field(factory=list, init=False)

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

    # ---- hypercalls

    def call(  # noqa: PLR0913 - what a call is made of
        self,
        nr: int,
        *args: Time,
        answers: Answer = 0,
        mode: Mode = Mode.LONG,
        cpl: int = 0,
        via_page: bool = False,
        high_halves: int = 0,
        vmm: int = VMM_ANSWER,
    ) -> events.Hypercall:
        """Let the guest make a hypercall, and demand who answers it and what.

        `args` are filled up with zeroes. `high_halves`: what bits 32-63 of all registers hold in a 32-bit
        call. `vmm`: what the VMM answers if it is asked (u64). A forwarded call must show in KVM_EXIT_XEN as
        it was made, and its answer must reach the guest.
        """
        __tracebackhide__ = True
        padded = (*args, *(0,) * (6 - len(args)))
        raw = None
        if high_halves:
            high = high_halves << 32
            raw = {"nr": nr | high, "args": [arg | high for arg in padded if isinstance(arg, int)]}
        event = events.Hypercall(
            vcpu=self.index,
            longmode=mode.longmode,
            compat=mode is Mode.COMPAT,
            cpl=cpl,
            nr=int(nr),
            args=padded,
            via="page" if via_page else None,
            raw=raw,
        )
        made = self.vm.do_hypercall(event, vmm)
        self._check(made, answers, vmm)
        self.take_interrupts()
        return made

    def _check(self, made: events.Hypercall, answers: Answer, vmm: int) -> None:
        __tracebackhide__ = True
        width = U64_MAX if made.longmode else U32_MAX
        if isinstance(answers, int):
            if made.exit is not None or made.rax != answers & width:
                self.vm.fail(answer_words(answers), event_words(made), self.index)
            return
        if made.exit is None:
            self.vm.fail(answer_words(FORWARDED), event_words(made), self.index)
        shown = HypercallExit(
            type=KVM_EXIT_XEN_HCALL,
            longmode=int(made.longmode),
            cpl=made.cpl,
            input=made.nr & width,
            params=tuple(arg & width if isinstance(arg, int) else arg for arg in made.args),
        )
        if made.exit != shown:
            self.vm.fail(
                f"KVM_EXIT_XEN shows {shown}", f"{event_words(made)}, and shows {made.exit}", self.index
            )
        if made.rax != vmm & width:
            answer = register_result(vmm & width, longmode=made.longmode)
            self.vm.fail(f"the guest finds the VMM's answer, {answer}", event_words(made), self.index)

    def stop_singleshot(self, xen_id: int, *, answers: Answer = 0, **how: Any) -> None:
        """VCPUOP_stop_singleshot_timer."""
        __tracebackhide__ = True
        self.call(Hypercall.vcpu_op, VcpuOp.stop_singleshot_timer, xen_id, answers=answers, **how)

    def set_singleshot(  # noqa: PLR0913 - what the call is made of
        self,
        xen_id: int,
        timeout: Time,
        *,
        flags: int = 0,
        at: int = ARGUMENT,
        answers: Answer = 0,
        mode: Mode = Mode.LONG,
        **how: Any,
    ) -> None:
        """VCPUOP_set_singleshot_timer with its argument at guest address `at`."""
        __tracebackhide__ = True
        self.store_time(at, timeout, guest_layout(mode).singleshot.pack(0, flags))
        op = VcpuOp.set_singleshot_timer
        self.call(Hypercall.vcpu_op, op, xen_id, at, answers=answers, mode=mode, **how)

    def set_timer_op(self, timeout: Time, *, answers: Answer = 0, mode: Mode = Mode.LONG, **how: Any) -> None:
        """set_timer_op; a 32-bit guest passes the timeout (then a number) in two registers."""
        __tracebackhide__ = True
        args: Sequence[Time] = (timeout,)
        if not mode.longmode and isinstance(timeout, int):
            args = (timeout & U32_MAX, timeout >> 32 & U32_MAX)
        self.call(Hypercall.set_timer_op, *args, answers=answers, mode=mode, **how)

    def yield_(self, *, answers: Answer = 0, **how: Any) -> None:
        """SCHEDOP_yield."""
        __tracebackhide__ = True
        self.call(Hypercall.sched_op, SchedOp.yield_, answers=answers, **how)

    def evtchn_send(self, port: int, *, at: int = ARGUMENT, answers: Answer = 0, **how: Any) -> None:
        """EVTCHNOP_send with its argument at guest address `at`."""
        __tracebackhide__ = True
        self.vm.store(at, U32.pack(port))
        self.call(Hypercall.event_channel_op, EvtchnOp.send, at, answers=answers, **how)

    def poll(  # noqa: PLR0913 - what the call is made of
        self,
        ports: Sequence[int],
        timeout: Time = 1,
        *,
        count: int | None = None,
        array: int = ARGUMENT + 0x100,
        at: int = ARGUMENT,
        answers: Answer = 0,
        mode: Mode = Mode.LONG,
        **how: Any,
    ) -> None:
        """SCHEDOP_poll; `count`: the number of ports that the guest claims; `array`: where they are."""
        __tracebackhide__ = True
        if ports:
            self.vm.store(array, b"".join(map(U32.pack, ports)))
        layout = guest_layout(mode).sched_poll
        packed = layout.pack(array, len(ports) if count is None else count, 0)
        self.store_time(at, timeout, packed, place=layout.size - 8)
        self.call(Hypercall.sched_op, SchedOp.poll, at, answers=answers, mode=mode, **how)

    def store_time(self, at: int, time: Time, structure: bytes, *, place: int = 0) -> None:
        """Store a structure whose u64 at offset `place` is that time."""
        if isinstance(time, NowPlus):
            self.vm.store(at, structure, now_plus_at=((place, time.delta),))
            return
        stored = (time & U64_MAX).to_bytes(8, "little")
        self.vm.store(at, structure[:place] + stored + structure[place + 8 :])

    # ---- entering the guest

    def run(self) -> None:
        """Enter the guest once, without a hypercall."""
        self.vm.do_run(self.index)
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

    def take_interrupts(self) -> None:
        """The guest takes what is pending; `took` tells."""
        self._vectors += self.vm.do_take_interrupts(self)

    def took(self, *vectors: int) -> None:
        """Since the last time, the guest must have taken exactly these interrupts."""
        __tracebackhide__ = True
        taken, self._vectors = self._vectors, []
        if taken != list(vectors):
            self.vm.fail(_vectors(vectors), f"{_vectors(taken)} (vCPU {self.index})", self.index)

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


def guest_layout(mode: Mode) -> GuestLayout:
    """The layout of a hypercall's arguments."""
    return LAYOUT_64 if mode.longmode else LAYOUT_32


def _member(type_: int, value: Any) -> dict[str, Any]:
    if type_ in _RUNSTATES:
        values = value if isinstance(value, Sequence) else (value, 0, 0, 0, 0, 0)
        return {"runstate": dict(zip(RUNSTATE_MEMBERS, values, strict=True))}
    if type_ == VcpuAttr.TIMER:
        return {"timer": value}
    member = _MEMBERS.get(VcpuAttr(type_)) if type_ in set(VcpuAttr) else None
    return {} if member is None else {member: value}


def _vectors(vectors: Sequence[int]) -> str:
    return f"interrupts {', '.join(map(hex, vectors))}" if vectors else "no interrupt"
