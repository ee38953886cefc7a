"""Doing one event again on a host: the event as it happens there.

The same steps serve the kernel replay, which takes the VMM's side from the trace, and the VMM replay, where
a behaviour answers. Outcomes in the events that come back are those of the host; comparing them with the
recording is `compare`'s business.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

from attrs import Factory, define, evolve

from pytest_xenkvm.abi.layout import U64
from pytest_xenkvm.abi.numbers import U64_MAX
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.hosts.protocol import CallOutcome, GuestCall, HostVm, PreparingVm
from pytest_xenkvm.replay.quick import Quick, quick
from pytest_xenkvm.trace.events import (
    Behind,
    Event,
    Eventfd,
    EventfdRead,
    EventfdWrite,
    Header,
    Hypercall,
    HypercallExit,
    Ioctl,
    Irq,
    Mem,
    NowPlus,
    Told,
    VcpuRun,
    Wait,
    Wrmsr,
    as_told,
)
from pytest_xenkvm.vmm.ioctl_bytes import Names, pack, unpack

Answer = Callable[[Hypercall, XenExit], int]
"""Answers a forwarded hypercall: the guest's new RAX as u64."""

Again = Callable[["int | None"], "Event | None"]
"""Does an event again, at the time given (ns): the event itself if it came out as recorded."""

CallAgain = Callable[["int | None", Told], "Event | None"]
"""Does a hypercall again that had returned at the time given (ns), as it is told: if it came out as recorded,
the event that stands for all of its kind."""

_CLOCK_SIZE: Final = U64.size
_clock_bytes: Final = U64.pack
_SixArgs = tuple[int, int, int, int, int, int]


@define
class Stepper:
    """Does events again on one VM."""

    vm: HostVm
    header: Header
    names: Names = Factory(lambda self: Names(self.vm), takes_self=True)

    prepared: PreparingVm | None = Factory(
        lambda self: self.vm if isinstance(self.vm, PreparingVm) else None, takes_self=True
    )

    memory_unseen: bool = Factory(lambda self: "mem" in self.header.unseen, takes_self=True)
    """The recorder didn't see guest memory: absent bytes are unknown, not missing."""

    def ioctl(self, event: Ioctl) -> Ioctl:
        """Make the ioctl."""
        request, argument = pack(event, self.names)
        ret = self.vm.ioctl(request, argument, vcpu=event.vcpu)
        reads = event.name.endswith("_GET_ATTR")
        out = unpack(event.name, argument, self.names) if reads and ret >= 0 else None
        if ret == event.ret and out == event.out:
            return event
        return evolve(event, ret=ret, out=out)

    def again(self, event: Event, vcpus: int) -> Again:
        """What does an event other than a hypercall, as often as it comes, on a VM of that many vCPUs."""
        simple = self.quick(event)
        if simple is not None:
            return simple.again
        if isinstance(event, Wait):
            return lambda ts: self.wait(event, vcpus, ts)
        step: Callable[[Any], Event | None] = _STEPS[type(event)].__get__(self)
        return lambda _ts: step(event)

    def quick(self, event: Event) -> Quick | None:
        """The same for events that neither look at the VM's clock nor set a timer; None for all others."""
        return quick(event, self.vm, self.prepared, self.names)

    def clock(self) -> Callable[[int], int]:
        """What lets the VM's clock reach a time (ns) and tells until when `quick` events need no other."""
        return self._reach if self.prepared is None else self.prepared.prepared_clock()

    def _reach(self, until: int) -> int:
        self.vm.pass_time(until=until)
        return 0

    def call_again(self, event: Hypercall) -> CallAgain:
        """What makes the hypercalls again that `event` stands for; the VMM of the recording answers."""
        complete, guest_clock = self.vm.complete, self.vm.guest_clock
        vcpu, rax, answer = event.vcpu, event.rax, event.rax or 0
        in_kernel, forwarded = event.handled == "kernel" and rax is not None, _but_params(event.exit)
        call = self._guest_call(event, None)
        make: Callable[[], CallOutcome]
        if self.prepared is None:
            make = partial(self.vm.hypercall, vcpu, call)
        else:
            make = self.prepared.prepared_hypercall(vcpu, call)

        def again(ts: int | None, told: Told) -> Event | None:
            args, seen = told
            call.args, call.over_by = args, ts
            if seen is None:
                call.behind = ()
            else:
                arg, data, offset, delta, _key, _number = seen
                if offset is not None:
                    clock = _clock_bytes(guest_clock(vcpu) + delta & U64_MAX)
                    after = data[offset + _CLOCK_SIZE :]
                    data = data[:offset] + clock + after if offset else clock + after
                call.behind = ((arg, data),)
            outcome = make()
            if in_kernel and outcome.rax == rax:
                return event
            left = outcome.exit
            if left is not None and left.params == args and _but_params(left) == forwarded:
                returned = complete(vcpu, answer)
                if returned == rax:
                    return event
                recorded = as_told(event, told)
                return _evolve_call(recorded, "userspace", recorded.exit, returned)
            recorded = as_told(event, told)
            happened = self._happened(recorded, call, outcome, recorded_answer)
            return event if happened is recorded else happened

        return again

    def eventfd(self, event: Eventfd) -> Eventfd:
        """Create an eventfd under the trace's number."""
        self.names.fds[event.fd] = self.vm.open_eventfd()
        return event

    def eventfd_read(self, event: EventfdRead) -> EventfdRead:
        """Drain an eventfd."""
        value = self.vm.read_eventfd(self.names.fd(event.fd))
        return event if value == event.value else evolve(event, value=value)

    def eventfd_write(self, event: EventfdWrite) -> EventfdWrite:
        """Add to an eventfd. What doesn't fit changes nothing, as for a non-blocking writer."""
        self.vm.write_eventfd(self.names.fd(event.fd), event.value)
        return event

    def mem(self, event: Mem) -> Mem:
        """Store to, or look at, guest memory; bytes where there is no memory read as none at all."""
        if event.op == "write":
            self.vm.write_memory(event.gpa, self._data(event, 0))
            return event
        found = self.vm.read_memory(event.gpa, len(event.data))
        return event if found == event.data else evolve(event, data=found or b"")

    def hypercall(
        self, event: Hypercall, ts: int | None, answer: Answer, *, moved: bool = False
    ) -> Hypercall | None:
        """Let the guest make the hypercall; None if it depends on memory that nobody saw.

        `ts`: when the recorded one had returned (ns). `moved`: the VMM moves RIP before it answers.
        """
        call = self._guest_call(event, ts)
        outcome = self.vm.hypercall(event.vcpu, call)
        return self._happened(event, call, outcome, answer, moved=moved)

    def _happened(
        self, event: Hypercall, call: GuestCall, outcome: CallOutcome, answer: Answer, *, moved: bool = False
    ) -> Hypercall | None:
        """The hypercall as it came out, answered if it was forwarded."""
        if outcome.exit is None:
            if outcome.rax is None:
                return None
            return _evolve_call(event, "kernel", None, outcome.rax)
        exit_ = HypercallExit(
            type=outcome.exit.type,
            longmode=outcome.exit.longmode,
            cpl=outcome.exit.cpl,
            input=outcome.exit.input,
            params=_recorded_spelling(event.args, call.args, outcome.exit.params),
        )
        rax = self.vm.complete(event.vcpu, answer(event, outcome.exit), moved=moved)
        return _evolve_call(event, "userspace", exit_, rax)

    def wrmsr(self, event: Wrmsr) -> Wrmsr:
        """Let the guest write the MSR."""
        outcome = self.vm.wrmsr(
            event.vcpu, event.msr, event.value, longmode=event.longmode, compat=event.compat
        )
        if (outcome.ok, outcome.run_ret) == (event.ok, event.run_ret):
            return event
        return evolve(event, ok=outcome.ok, run_ret=outcome.run_ret)

    def wait(self, event: Wait, vcpus: int, ts: int | None) -> Wait:
        """Let time pass, to `ts` (ns) at least, then let each of `vcpus` vCPUs enter the guest."""
        self.vm.pass_time(ns=event.ns, until=ts or 0)
        for vcpu in range(vcpus):
            self.vm.run(vcpu)
        return event

    def vcpu_run(self, event: VcpuRun) -> VcpuRun:
        """Let the vCPU enter the guest."""
        self.vm.run(event.vcpu)
        return event

    def irq(self, event: Irq) -> Irq | None:
        """Let the guest take an interrupt; None if none is pending."""
        vector = self.vm.take_interrupt(event.vcpu)
        if vector is None:
            return None
        return event if vector == event.vector else evolve(event, vector=vector)

    def _guest_call(self, event: Hypercall, ts: int | None) -> GuestCall:
        nr, args, behind = event.nr, event.args, event.behind
        if event.raw is not None:
            nr, args = event.raw["nr"], tuple(event.raw["args"])
        elif NowPlus in {*map(type, args)}:
            args = tuple(self._number(arg, event.vcpu) for arg in args)
        return GuestCall(
            nr=nr,
            args=cast("_SixArgs", args),
            longmode=event.longmode,
            cpl=event.cpl,
            compat=event.compat,
            via_page=event.via is not None,
            behind=() if behind is None else [(item.arg, self._data(item, event.vcpu)) for item in behind],
            unseen_memory=self.memory_unseen,
            over_by=ts,
        )

    def _number(self, value: int | NowPlus, vcpu: int) -> int:
        return self.names.now_plus(value.delta, vcpu) if isinstance(value, NowPlus) else value

    def _data(self, item: Behind | Mem, vcpu: int) -> bytes:
        """The bytes, with clocks where they hold some."""
        data = item.data
        for offset, delta in item.now_plus_at:
            clock = _clock_bytes(self.names.now_plus(delta, vcpu))
            data = data[:offset] + clock + data[offset + _CLOCK_SIZE :]
        return data


def _recorded_spelling(
    recorded: tuple[int | NowPlus, ...], made: _SixArgs, params: _SixArgs
) -> tuple[int | NowPlus, ...]:
    """Parameters as the trace spells them: relative to the clock where the argument was."""
    return tuple(
        arg if isinstance(arg, NowPlus) and number == value else value
        for arg, number, value in zip(recorded, made, params, strict=True)
    )


def _but_params(exit_: HypercallExit | XenExit | None) -> tuple[int, int, int, int] | None:
    return None if exit_ is None else (exit_.type, exit_.longmode, exit_.cpl, exit_.input)


def recorded_answer(event: Hypercall, _exit: XenExit) -> int:
    """The VMM of the recording answers; an answer that nobody saw is 0."""
    return event.rax or 0


def _evolve_call(event: Hypercall, handled: str, exit_: HypercallExit | None, rax: int) -> Hypercall:
    if event.rax == rax and event.handled == handled and event.run_ret is None and event.exit == exit_:
        return event
    return evolve(event, handled=handled, exit=exit_, rax=rax, run_ret=None)


_STEPS: Final[dict[type[Event], Any]] = {
    Mem: Stepper.mem,
    Ioctl: Stepper.ioctl,
    VcpuRun: Stepper.vcpu_run,
    Irq: Stepper.irq,
    Wrmsr: Stepper.wrmsr,
    Eventfd: Stepper.eventfd,
    EventfdRead: Stepper.eventfd_read,
    EventfdWrite: Stepper.eventfd_write,
}
