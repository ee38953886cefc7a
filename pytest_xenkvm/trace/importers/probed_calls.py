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
from pytest_xenkvm.trace.importers.probed_ioctls import OpenIoctl
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
    expires: int | None = None
    """The trace time (ns) to which it was seen to be set."""

    def bounded(self, delta: int) -> int:
        """Return an estimate of how far the time was ahead within what is certain."""
        return min(delta, 0) if self.due else max(delta, 1)


@define(kw_only=True)
class OpenCall(Cause):
    """A hypercall whose result has not been seen yet."""

    event: Hypercall
    timeout: Timeout | None = None
    reads: list[tuple[int, bytes]] = Factory(list)
    """What the kernel read from guest memory: address and bytes."""


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
    is_delta: bool | None = None
    """Whether the third argument of kvm_xen_start_timer is the delta; None: told by its values."""
    _open: dict[int, OpenCall] = Factory(dict)
    _forwarded: dict[int, OpenCall] = Factory(dict)
    """By thread: the call that the VMM is answering."""
    _timed: list[tuple[int, Timeout]] = Factory(list)
    _given_up: list[int] = Factory(list)
    """Slots of calls whose result was lost."""

    def under_way(self, line: TraceLine) -> OpenCall | None:
        """Return the hypercall that this thread is in."""
        return self._open.get(line.pid)

    def called(self, line: TraceLine) -> str | None:
        """The guest made a hypercall."""
        self._give_up(self._open.pop(line.pid, None))
        self._forwarded.pop(line.pid, None)
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

    def timer_set(self, line: TraceLine, ioctl: OpenIoctl | None) -> str | None:
        """The host's own timer was set to a trace time: what the hypercall or ioctl armed expires then."""
        values = line.values("expires")
        call = self._open.get(line.pid)
        if values is None or (ioctl is None and (call is None or call.timeout is None)):
            return "timers armed outside of any hypercall or ioctl that was seen"
        if call is not None and call.timeout is not None:
            call.timeout = evolve(call.timeout, expires=values[0])
            self.clock.expires(line.ns, abs_ns=call.timeout.abs_ns, at=values[0])
        elif ioctl is not None:
            ioctl.expires = values[0]
        return None

    def guest_read(self, line: TraceLine) -> str | None:
        """KVM read guest memory at a virtual address, in the course of a hypercall or not."""
        call = self._open.get(line.pid)
        values = line.values("ret", "bytes", bits=32, signed=True)
        address, data = line.values("gva"), line.values("d0", "d1", "d2")
        if call is None or values is None or address is None or data is None or values[0]:
            return "guest memory that KVM read otherwise, or could not read"
        call.reads.append((address[0], b"".join(map(U64.pack, data))[: max(values[1], 0)]))
        return None

    def answered(self, line: TraceLine) -> str | None:
        """The VMM answered: the guest goes on with this RAX."""
        values, call = line.values("rax"), self._forwarded.pop(line.pid, None)
        if values is None or call is None:
            return "results without their call"
        rax = values[0] if call.event.longmode else values[0] & U32_MAX
        self._set(call.slot, evolve(self._event(call.slot), rax=rax))
        return None

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
            event = self._as_forwarded(event, line)
            self._forwarded[line.pid] = call
            call.event = event
        if call.reads:
            event = evolve(event, behind=_behind(event, call.reads))
        elif _is_send(event):
            event = evolve(event, behind=self._port(call))
        if call.timeout is not None:
            self._timed.append((call.slot, evolve(call.timeout, due=call.fired)))
        self._set(call.slot, event)
        return None

    def forwarded(self, line: TraceLine) -> str | None:
        """The thread left KVM with KVM_EXIT_XEN, which tells the outcome where no return probe does."""
        call = self._open.pop(line.pid, None)
        if call is None:
            return "exits to userspace (hypercall_ret tells those that matter)"
        self._set(call.slot, evolve(call.event, handled="userspace", exit=exit_of(call.event)))
        return None

    def waiting(self) -> int | None:
        """Return the first slot whose call's result or answer is still to come."""
        calls = (*self._open.values(), *self._forwarded.values())
        return min((call.slot for call in calls), default=None)

    def give_up(self, slot: int, *, full: bool) -> None:
        """Wait no longer for what the call in `slot` comes to; a trace of scope "full" leaves it out."""
        for calls, lost in ((self._open, True), (self._forwarded, False)):
            for pid in [pid for pid, call in calls.items() if call.slot == slot]:
                del calls[pid]
                if lost:
                    self._leave_out([slot], full=full)

    def resolve(self, before: int, *, full: bool) -> None:
        """Say the last word on calls in slots below `before`: lost results, timeouts by the guest's clock."""
        self._leave_out([slot for slot in self._given_up if slot < before], full=full)
        self._given_up = [slot for slot in self._given_up if slot >= before]
        is_delta = self.is_delta
        if is_delta is None:
            is_delta = any(timeout.third not in _FLAG_VALUES for _slot, timeout in self._timed)
        for slot, timeout in self._timed:
            if slot < before:
                delta = timeout.third if is_delta else self._estimate(timeout, slot)
                self._set(slot, _with_timeout(self._event(slot), timeout.abs_ns, delta))
        self._timed = [(slot, timeout) for slot, timeout in self._timed if slot >= before]

    def finish(self, *, full: bool) -> None:
        """The recording is over: every timer has fired that will, so the guest's clock is known.

        A trace of scope "full" can't hold a call without result: those are left out of one.
        """
        self._given_up += (call.slot for call in self._open.values())
        self.resolve(self.timeline.end, full=full)

    def _leave_out(self, slots: list[int], *, full: bool) -> None:
        what = "result of a hypercall (left out)" if full else "result of a hypercall"
        if slots:
            self.report.unknown[what] += len(slots)
        for slot in slots if full else ():
            self.timeline.slots[slot].event = None

    def _event(self, slot: int) -> Hypercall:
        event = self.timeline.slots[slot].event
        assert isinstance(event, Hypercall)  # noqa: S101  # put there by called()
        return event

    def _set(self, slot: int, event: Hypercall) -> None:
        self.timeline.slots[slot].event = event

    def _as_forwarded(self, event: Hypercall, line: TraceLine) -> Hypercall:
        """The event with its exit, in the mode that the exit says if the probe shows it."""
        longmode = line.value("longmode")
        if longmode in (0, 1):
            self.maker.modes.told(event.vcpu, longmode=bool(longmode))
            event = evolve(event, longmode=bool(longmode))
        return evolve(event, handled="userspace", exit=exit_of(event))

    def _give_up(self, call: OpenCall | None) -> None:
        if call is not None:
            self._given_up.append(call.slot)

    def _estimate(self, timeout: Timeout, slot: int) -> int | None:
        if timeout.expires is not None:
            return timeout.expires - self.timeline.slots[slot].ns
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


def _behind(event: Hypercall, reads: list[tuple[int, bytes]]) -> tuple[Behind, ...] | None:
    """Return what was read behind arguments; each is read once."""
    args = {arg: number for number, arg in reversed(list(enumerate(event.args)))}
    found = {args[address]: data for address, data in reads if address in args}
    return tuple(Behind(arg=arg, data=data) for arg, data in sorted(found.items())) or None


def _with_timeout(event: Hypercall, abs_ns: int, delta: int | None) -> Hypercall:
    """Return a call that armed a timer, with its timeout: behind the pointer, or beside the argument."""
    if event.nr == Number.vcpu_op and _sub_op(event) == VcpuOp.set_singleshot_timer:
        flags = next((item.data[U64.size :] for item in event.behind or ()), b"")
        if delta is None:
            return evolve(event, behind=(Behind(arg=_TIMEOUT_ARG, data=U64.pack(abs_ns) + flags),))
        behind = Behind(
            arg=_TIMEOUT_ARG,
            data=bytes(U64.size) + flags,
            now_plus_at=((0, delta),),
            extra={"abs_ns": abs_ns},
        )
        return evolve(event, behind=(behind,))
    known = {"abs_ns": abs_ns} if delta is None else {"abs_ns": abs_ns, "delta_ns": delta}
    return evolve(event, extra={**event.extra, **known})
