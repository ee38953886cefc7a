"""A vCPU whose guest makes hypercalls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from attrs import define, field

from pytest_xenkvm.abi.layout import LAYOUT_32, LAYOUT_64, U32, GuestLayout
from pytest_xenkvm.abi.numbers import (
    KVM_EXIT_XEN_HCALL,
    U32_MAX,
    U64_MAX,
    EvtchnOp,
    Hypercall,
    SchedOp,
    VcpuOp,
)
from pytest_xenkvm.trace import events
from pytest_xenkvm.trace.decode import event_words
from pytest_xenkvm.trace.decode_values import register_result
from pytest_xenkvm.trace.events import HypercallExit, NowPlus

from .demands import FORWARDED, Answer, answer_words
from .setting import ARGUMENT, Mode

if TYPE_CHECKING:
    from .vm import ProbeVm

VMM_ANSWER: Final = 0x5EED_0000_A5A5_0001
"""What the VMM answers forwarded hypercalls: no errno, and different in 32 bits."""

Time = int | NowPlus
"""Absolute guest time (ns), or the guest's clock at that moment plus so many ns."""


@define(eq=False)
class CallingVcpu:
    """A vCPU. `index`: the order of creation; `id`: the KVM vCPU id."""

    vm: ProbeVm = field(repr=False)
    index: int
    id: int
    _vectors: list[int] = field(factory=list, init=False)

    # ---- interrupts

    def take_interrupts(self) -> None:
        """The guest takes what is pending; `took` tells."""
        self._vectors += self.vm.do_take_interrupts(self.index)

    def took(self, *vectors: int) -> None:
        """Since the last time, the guest must have taken exactly these interrupts."""
        __tracebackhide__ = True
        taken, self._vectors = self._vectors, []
        if taken != list(vectors):
            self.vm.fail(_vectors(vectors), f"{_vectors(taken)} (vCPU {self.index})", self.index)

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


def guest_layout(mode: Mode) -> GuestLayout:
    """The layout of a hypercall's arguments."""
    return LAYOUT_64 if mode.longmode else LAYOUT_32


def _vectors(vectors: Sequence[int]) -> str:
    return f"interrupts {', '.join(map(hex, vectors))}" if vectors else "no interrupt"
