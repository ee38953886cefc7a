"""Family `timers`, as far as events tell: forwarded singleshot timers must fire and stop as Xen's do."""

from __future__ import annotations

from typing import Final

from attrs import Factory, define, frozen

from pytest_xenkvm.abi.numbers import U32_MAX, EvtchnOp, VcpuAttr, VcpuOp
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.abi.xen_numbers import Virq
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.forwarded_calls import (
    ForwardedCall,
    binds_virq,
    forwarded_call,
    vcpu_index,
    word_behind,
)
from pytest_xenkvm.rules.model import Checker, Hypercalls, Ioctls, Judged, Level, Rule
from pytest_xenkvm.rules.timer_answers import XEN_SAYS, Timeout, timeout_of
from pytest_xenkvm.trace.decode import action_words
from pytest_xenkvm.trace.decode_values import duration
from pytest_xenkvm.trace.events import Event, Hypercall, Ioctl, VcpuRun, Wait

GRACE_NS: Final = 100_000_000
"""How late a VMM's own timer may fire."""

_NUMBERS: Final = frozenset({int(Nr.set_timer_op), int(Nr.vcpu_op), int(Nr.event_channel_op)})
_SEND: Final = "KVM_XEN_HVM_EVTCHN_SEND"
_OTHER_WAYS: Final = ("KVM_IRQFD", "KVM_IRQ_LINE")
_SEEN: Final = (
    Hypercalls(forwarded=True, under_test=True),
    Ioctls(frozenset({_SEND, "KVM_XEN_VCPU_SET_ATTR", *_OTHER_WAYS}), under_test=True),
    VcpuRun,
    Wait,
)


@frozen
class _Running:
    """A timer that the VMM serves: the call that set or stopped it, and when it is due (ns, as `ts`)."""

    observation: Observation
    call: ForwardedCall
    due: int


@define(eq=False)
class _Timers(Checker):
    """Follows the timers that a VMM under test serves, and the events that it sends; derive and override.

    Recorded VMMs have devices, too, whose events can't be told from a timer's. A behaviour's events are
    observed before the hypercall or the time that they answer, or right behind it.
    """

    bound: set[int] = Factory(set)
    """vCPUs (indices) on which the guest has bound VIRQ_TIMER, as far as the trace shows."""
    other_ways: bool = False
    """The VMM also raises interrupts in ways that don't show whom they are for."""
    place: int = -1
    sent: list[tuple[int, int]] = Factory(list)
    """Target (index of the vCPU) and port of the events that were sent at this place so far."""

    def observe(self, observation: Observation) -> None:
        """Follow one observation."""
        event, place = observation.event, observation.place
        if place.after or not self.context.vmm_under_test:
            return
        if place.index != self.place:
            self.place, self.sent = place.index, []
        if isinstance(event, Ioctl):
            self._ioctl(observation, event)
            return
        self.goes_on(event)
        if isinstance(event, Hypercall) and event.nr & U32_MAX in _NUMBERS:
            call = forwarded_call(observation, self.context)
            if call is not None and not event.cpl and not call.answer:
                self._served(observation, call)

    def _ioctl(self, observation: Observation, event: Ioctl) -> None:
        if event.name == _SEND:
            shape = self.context.header.vm
            vcpus = () if shape is None else shape.vcpus
            target = next((vcpu.index for vcpu in vcpus if vcpu.id == event.arg["vcpu"]), event.arg["vcpu"])
            self.sent.append((target, event.arg["port"]))
            self.fires(observation, target, event.arg["port"])
        elif event.name in _OTHER_WAYS:
            self.other_ways = True
        elif event.name == "KVM_XEN_VCPU_SET_ATTR" and event.arg["type"] == VcpuAttr.TIMER:
            self.forget(event.vcpu or 0)  # the kernel's from now on

    def _served(self, observation: Observation, call: ForwardedCall) -> None:
        index = call.event.vcpu
        if call.nr == Nr.set_timer_op:
            self.forget(index)
        elif call.nr == Nr.vcpu_op and self._names(call) != index:
            return
        elif call.is_op(Nr.vcpu_op, VcpuOp.stop_singleshot_timer):
            self.stopped(observation, call)
        elif call.is_op(Nr.vcpu_op, VcpuOp.set_singleshot_timer):
            self.armed(observation, call, timeout_of(call))
        elif binds_virq(call, Virq.TIMER):
            self.bound.add(vcpu_index(self.context, word_behind(call.event, 1, 4) or 0))
        elif call.nr == Nr.event_channel_op and call.args[0] in (EvtchnOp.close, EvtchnOp.reset):
            self.bound.clear()

    def _names(self, call: ForwardedCall) -> int | None:
        """The vCPU (index) that a vcpu_op is about."""
        named = call.arg32(1)
        return None if named is None else vcpu_index(self.context, named)

    def events_show(self, index: int) -> bool:
        """Whether the event of that vCPU's timer would show as KVM_XEN_HVM_EVTCHN_SEND."""
        return index in self.bound and self.context.setup.shared_info and not self.other_ways

    def armed(self, observation: Observation, call: ForwardedCall, timeout: Timeout | None) -> None:
        """The guest set its timer, and the VMM answered 0."""

    def stopped(self, observation: Observation, call: ForwardedCall) -> None:
        """The guest stopped its timer, and the VMM answered 0."""
        del observation
        self.forget(call.event.vcpu)

    def forget(self, index: int) -> None:
        """Whatever was known of that vCPU's timer isn't any more."""

    def fires(self, observation: Observation, target: int, port: int) -> None:
        """The VMM sent an event to a vCPU."""

    def goes_on(self, event: Event) -> None:
        """The guest goes on with that event."""


@define(eq=False)
class _PastFiresAtOnce(_Timers):
    waiting: dict[int, _Running] = Factory(dict)

    def armed(self, observation: Observation, call: ForwardedCall, timeout: Timeout | None) -> None:
        """It must have fired, or fire before the vCPU goes on."""
        index = call.event.vcpu
        self.forget(index)
        if timeout is None or not timeout.past or not self.events_show(index):
            return
        if any(target == index for target, _port in self.sent):
            self.hold()
        else:
            self.waiting[index] = _Running(observation, call, 0)

    def forget(self, index: int) -> None:
        """Another timer, or the kernel's."""
        self.waiting.pop(index, None)

    def fires(self, observation: Observation, target: int, port: int) -> None:
        """It did."""
        del observation, port
        if self.waiting.pop(target, None) is not None:
            self.hold()

    def goes_on(self, event: Event) -> None:
        """Too late for vCPUs that enter the guest."""
        vcpu = getattr(event, "vcpu", None)
        for index in [*self.waiting] if isinstance(event, Wait) else [vcpu]:
            late = self.waiting.pop(index, None) if index is not None else None
            if late is not None:
                self.violate(
                    late.observation,
                    f"{late.call.words}, and no event was sent to the vCPU before it went on, though the "
                    "timeout had passed; a timer in the past fires at once: send the event of VIRQ_TIMER "
                    "with KVM_XEN_HVM_EVTCHN_SEND when the call is made",
                )


@define(eq=False)
class _FiresWhenDue(_Timers):
    running: dict[int, _Running] = Factory(dict)

    def armed(self, observation: Observation, call: ForwardedCall, timeout: Timeout | None) -> None:
        """It is due when the timeout says."""
        index, ts = call.event.vcpu, call.event.ts
        self.forget(index)
        if timeout is None or timeout.delta is None or timeout.past or ts is None:
            return
        if self.events_show(index):
            self.running[index] = _Running(observation, call, ts + timeout.delta)

    def forget(self, index: int) -> None:
        """Stopped, or the kernel's."""
        self.running.pop(index, None)

    def fires(self, observation: Observation, target: int, port: int) -> None:
        """It did, or something else came that may be it."""
        del observation, port
        if self.running.pop(target, None) is not None:
            self.hold()

    def goes_on(self, event: Event) -> None:
        """Find those that are overdue."""
        late = [index for index, timer in self.running.items() if (event.ts or 0) > timer.due + GRACE_NS]
        for index in late:
            timer = self.running.pop(index)
            self.violate(
                timer.observation,
                f"{timer.call.words}, and {duration((event.ts or 0) - timer.due)} after the timeout the "
                "vCPU has got no event; the call was forwarded, so the VMM must run the timer: send the "
                "event of VIRQ_TIMER with KVM_XEN_HVM_EVTCHN_SEND when it is due",
            )


@define(eq=False)
class _StopCancels(_Timers):
    ports: dict[int, int] = Factory(dict)
    """Port of each vCPU's timer: what the VMM sends when the guest sets a timer in the past."""
    past: tuple[int, int] | None = None
    """vCPU and place of the last timer that was set in the past."""
    running: dict[int, _Running] = Factory(dict)
    cancelled: dict[int, _Running] = Factory(dict)

    def armed(self, observation: Observation, call: ForwardedCall, timeout: Timeout | None) -> None:
        """A new timer; one in the past shows the port."""
        index, ts = call.event.vcpu, call.event.ts
        self.forget(index)
        if timeout is None or timeout.delta is None:
            return
        if timeout.past:
            self.past = (index, observation.place.index)
            self._learn({port for target, port in self.sent if target == index})
        elif ts is not None:
            self.running[index] = _Running(observation, call, ts + timeout.delta)

    def stopped(self, observation: Observation, call: ForwardedCall) -> None:
        """From now on nothing may come."""
        timer = self.running.pop(call.event.vcpu, None)
        if timer is not None:
            self.cancelled[call.event.vcpu] = _Running(observation, call, timer.due)

    def forget(self, index: int) -> None:
        """Set anew, or the kernel's."""
        self.running.pop(index, None)
        self.cancelled.pop(index, None)

    def fires(self, observation: Observation, target: int, port: int) -> None:
        """It must not if it was stopped."""
        if self.past == (target, observation.place.index):
            self._learn({port})
        if self.ports.get(target) != port:
            return
        self.running.pop(target, None)
        timer = self.cancelled.pop(target, None)
        if timer is not None:
            self.violate(
                observation,
                f"vCPU {target}: the VMM sends port {port}, the one of this vCPU's timer, though the guest "
                f"has stopped the timer (line {timer.observation.place.line}: "
                f"{action_words(timer.call.event)} was answered 0) and not set it again; stop the VMM's own "
                "timer when the call is made",
            )

    def goes_on(self, event: Event) -> None:
        """A stopped timer that didn't fire when it would have been due was cancelled."""
        for index, timer in [*self.cancelled.items()]:
            if index in self.ports and (event.ts or 0) > timer.due:
                del self.cancelled[index]
                self.hold()

    def _learn(self, ports: set[int]) -> None:
        """A single event at that moment is the timer's."""
        if self.past is not None and len(ports) == 1:
            self.ports[self.past[0]] = ports.pop()


RULES: Final = (
    Rule(
        id="timers.past-fires-at-once",
        title="A forwarded singleshot timer whose timeout has passed fires before its vCPU goes on.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation=f"{XEN_SAYS}; kvm_xen_start_timer",
        explanation=(
            "The timeout is absolute, so it may have passed when the call arrives. Xen, and the kernel where "
            "it serves the call, deliver the event then and there. A VMM that takes the negative rest for "
            "'nothing to do' leaves a guest without a tick, which it waits for in vain."
        ),
        advice="Deliver VIRQ_TIMER's event from the call itself if the timeout isn't ahead.",
        checker=_PastFiresAtOnce,
        sees=_SEEN,
        exercised_by=(
            "a VMM under test, and a forwarded set_singleshot_timer at CPL 0 that it answers with 0, its "
            "timeout shown and past, on a vCPU whose VIRQ_TIMER the guest was seen to bind, with "
            "SHARED_INFO set"
        ),
    ),
    Rule(
        id="timers.fire-when-due",
        title="A forwarded singleshot timer that the VMM accepted fires when its time has come.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation=f"{XEN_SAYS}; kvm_xen_hypercall",
        explanation=(
            "A forwarded call leaves no timer in the kernel. A VMM that answers 0 has taken it over, and "
            f"owes the guest an event at the timeout, or at most {GRACE_NS // 1_000_000} ms later."
        ),
        advice="Run a timer of the VMM's own, or answer -ENOSYS so that the guest looks for another.",
        checker=_FiresWhenDue,
        sees=_SEEN,
        exercised_by=(
            "a VMM under test, and a forwarded set_singleshot_timer at CPL 0 that it answers with 0, its "
            "timeout shown and ahead, on a vCPU whose VIRQ_TIMER the guest was seen to bind, with "
            "SHARED_INFO set"
        ),
    ),
    Rule(
        id="timers.stop-cancels",
        title="A singleshot timer that the VMM has stopped for its guest doesn't fire.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation="Xen's public/vcpu.h: VCPUOP_stop_singleshot_timer; kvm_xen_stop_timer",
        explanation=(
            "A guest stops its timer when it switches to another clock event device or takes the vCPU down; "
            "a late event then meets a handler that isn't there any more. An answer of 0 says that the timer "
            "is stopped."
        ),
        advice="Cancel the VMM's own timer before answering.",
        checker=_StopCancels,
        sees=_SEEN,
        exercised_by=(
            "a forwarded stop_singleshot_timer at CPL 0 that was answered with 0, of a timer that would have "
            "been due before the trace ends, by a VMM under test that was seen to send the timer's port"
        ),
    ),
)
