"""Hypercalls as the tracepoint, the return probe and the probes in between show them."""

from __future__ import annotations

from typing import Final

from attrs import Factory, define, evolve, frozen

from pytest_xenkvm.abi.layout import U32, U64
from pytest_xenkvm.abi.numbers import U32_MAX, EvtchnOp, VcpuOp
from pytest_xenkvm.abi.numbers import Hypercall as Number
from pytest_xenkvm.trace.events import Behind, Hypercall
from pytest_xenkvm.trace.importers.clock import GuestClock
from pytest_xenkvm.trace.importers.config import Config
from pytest_xenkvm.trace.importers.deliveries import Cause, Deliveries
from pytest_xenkvm.trace.importers.hypercalls import HypercallMaker, exit_of, parse_call
from pytest_xenkvm.trace.importers.lines import TraceLine
from pytest_xenkvm.trace.importers.model import ImportReport
from pytest_xenkvm.trace.importers.threads import Threads
from pytest_xenkvm.trace.importers.timeline import Timeline

_TIMEOUT_ARG: Final = 2
_SEND_ARG: Final = 1
_FLAG_VALUES: Final = (0, 1)


@frozen
class Timeout:
    """A timer that was armed: guest time, the probe's third argument, and trace time, in ns."""

    abs_ns: int
    third: int
    ns: int
    due: bool = False
    """It fired at once, so it was not ahead."""

    def bounded(self, delta: int) -> int:
        """Return an estimate of how far the time was ahead within what is certain."""
        return min(delta, 0) if self.due else max(delta, 1)


@define(kw_only=True)
class OpenCall(Cause):
    """A hypercall whose result has not been seen yet."""

    event: Hypercall
    timeout: Timeout | None = None


@define
class ProbedCalls:
    """Turns probes into hypercall events. Each method returns why its line is skipped, or None."""

    timeline: Timeline
    config: Config
    maker: HypercallMaker
    threads: Threads
    deliveries: Deliveries
    clock: GuestClock
    report: ImportReport
    first_slot: int | None = None
    """Where the first hypercall is."""
    _open: dict[int, OpenCall] = Factory(dict)
    _timed: list[tuple[int, Timeout]] = Factory(list)
    _given_up: list[int] = Factory(list)
    """Slots of calls whose result was lost."""

    def under_way(self, line: TraceLine) -> OpenCall | None:
        """Return the hypercall that this thread is in."""
        return self._open.get(line.pid)

    def called(self, line: TraceLine) -> str | None:
        """The guest made a hypercall."""
        self._give_up(self._open.pop(line.pid, None))
        event = self.maker.make(self.threads.runner(line), parse_call(line))
        slot = self.timeline.open(line.ns, event)
        self.first_slot = slot if self.first_slot is None else self.first_slot
        self._open[line.pid] = OpenCall(slot=slot, event=event)
        return None

    def start_timer(self, line: TraceLine, *, vcpu: int | None) -> str | None:
        """A timer was armed, by a hypercall or (`vcpu`) by setting a vCPU's TIMER attribute."""
        values = line.values("abs_ns")
        third = line.values("delta_ns", signed=True)
        if values is None or third is None:
            return "probes that could not read their argument"
        (abs_ns,) = values
        call = self._open.get(line.pid)
        if call is not None:
            call.timeout = Timeout(abs_ns, third[0], line.ns)
            vcpu = call.event.vcpu
        if vcpu is not None:
            self.deliveries.armed(vcpu, abs_ns, line.ns)
            return None
        return "timers armed outside of any hypercall or ioctl that was seen"

    def returned(self, line: TraceLine) -> str | None:
        """KVM is done with the hypercall: answered (handled=1) or on its way to userspace (handled=0)."""
        handled = line.values("handled", bits=32, signed=True)
        rax = line.values("rax")
        call = self._open.pop(line.pid, None)
        if handled is None or rax is None or call is None:
            self._give_up(call)
            return "results without their call"
        if handled[0] not in (0, 1):
            raise line.malformed("handled=0 or handled=1")
        event = call.event
        if handled[0]:
            event = evolve(event, handled="kernel", rax=rax[0] if event.longmode else rax[0] & U32_MAX)
        else:
            event = evolve(event, handled="userspace", exit=exit_of(event))
        if _is_send(event):
            event = evolve(event, behind=self._port(call))
        if call.timeout is not None:
            self._timed.append((call.slot, evolve(call.timeout, due=call.fired)))
        self.timeline.slots[call.slot].event = event
        return None

    def finish(self, *, full: bool) -> None:
        """The recording is over: every timer has fired that will, so the guest's clock is known.

        A trace of scope "full" can't hold a call without result: those are left out of one.
        """
        unfinished = [*self._given_up, *(call.slot for call in self._open.values())]
        for slot in unfinished:
            if full:
                self.timeline.slots[slot].event = None
        what = "result of a hypercall (left out)" if full else "result of a hypercall"
        if unfinished:
            self.report.unknown[what] = len(unfinished)
        is_delta = any(timeout.third not in _FLAG_VALUES for _slot, timeout in self._timed)
        for slot, timeout in self._timed:
            event = self.timeline.slots[slot].event
            assert isinstance(event, Hypercall)  # noqa: S101  # put there by called()
            delta = timeout.third if is_delta else self._estimate(timeout)
            self.timeline.slots[slot].event = _with_timeout(event, timeout.abs_ns, delta)

    def _give_up(self, call: OpenCall | None) -> None:
        if call is not None:
            self._given_up.append(call.slot)

    def _estimate(self, timeout: Timeout) -> int | None:
        delta = self.clock.delta(timeout.abs_ns, timeout.ns)
        how = "kept absolute" if delta is None else "estimated from when timers fired"
        self.report.unknown[f"timeout relative to the guest's clock ({how})"] += 1
        return delta if delta is None else timeout.bounded(delta)

    def _port(self, call: OpenCall) -> tuple[Behind, ...] | None:
        """Return the port of a send, if where it was delivered leaves just one possibility."""
        targets = {delivery.target for delivery in call.deliveries}
        senders = [port for target in targets for port in self.config.senders(target)]
        if len(senders) != 1:
            self.report.unknown["port of an event channel send"] += 1
            return None
        return (Behind(arg=_SEND_ARG, data=U32.pack(senders[0])),)


def _sub_op(event: Hypercall) -> int:
    """Return the first argument as vcpu_op takes it: 32 bits."""
    first = event.args[0]
    return first & U32_MAX if isinstance(first, int) else -1


def _is_send(event: Hypercall) -> bool:
    return event.nr == Number.event_channel_op and event.args[0] == EvtchnOp.send


def _with_timeout(event: Hypercall, abs_ns: int, delta: int | None) -> Hypercall:
    """Return a call that armed a timer, with its timeout: behind the pointer, or beside the argument."""
    if event.nr == Number.vcpu_op and _sub_op(event) == VcpuOp.set_singleshot_timer:
        if delta is None:
            return evolve(event, behind=(Behind(arg=_TIMEOUT_ARG, data=U64.pack(abs_ns)),))
        behind = Behind(
            arg=_TIMEOUT_ARG, data=bytes(U64.size), now_plus_at=((0, delta),), extra={"abs_ns": abs_ns}
        )
        return evolve(event, behind=(behind,))
    known = {"abs_ns": abs_ns} if delta is None else {"abs_ns": abs_ns, "delta_ns": delta}
    return evolve(event, extra={**event.extra, **known})
