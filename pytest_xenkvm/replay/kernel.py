"""Kernel replay: everything that a full trace holds is done again on a host and every outcome compared.

Interrupts: after an entry into the guest (vcpu_run, wait, hypercall, wrmsr) the recorded `irq` events say
what the guest took; when they end, nothing may be pending any more. After a VM-wide vector the guest
clears evtchn_upcall_pending, a one-byte store that belongs to the same window.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from attrs import Factory, define

from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.hosts.protocol import Host
from pytest_xenkvm.replay.compare import Difference, differences, unjudged
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.observation import Divergence, Observation, Place
from pytest_xenkvm.replay.stepper import Stepper
from pytest_xenkvm.trace.events import (
    Event,
    Eventfd,
    EventfdRead,
    EventfdWrite,
    Header,
    Hypercall,
    Ioctl,
    Irq,
    Mem,
    VcpuRun,
    Wait,
    Wrmsr,
    brief,
)

UNTIMED_EVENT_NS: Final = 1000
"""What passes before an event without a time, so that "long ago" lies in the past."""

CONTEXT_EVENTS: Final = 3
"""How many earlier events of a vCPU a divergence carries."""


def kernel_replay(host: Host, header: Header, events: Iterable[Event]) -> Iterator[Observation]:
    """Replay a trace of scope "full" on `host`, an observation an event, in order.

    Raises ReplayError for a trace that doesn't describe its VM, HostError if the VM can't be had.
    """
    if header.scope != "full" or header.vm is None:
        raise ReplayError(
            "the trace holds hypercalls only, not what the VMM configured: replay it with a VMM behaviour"
        )
    vm = host.create_vm(header.vm, cpu_vendor=header.cpu_vendor)
    replay = _KernelReplay(Stepper(vm, header), vcpus=len(header.vm.vcpus))
    upcoming = iter(events)
    current = next(upcoming, None)
    index = 0
    while current is not None:
        following = next(upcoming, None)
        yield replay.step(Place(index), current, following)
        current, index = following, index + 1


@define
class _KernelReplay:
    stepper: Stepper
    vcpus: int
    now: int = 0
    """When the previous event was complete (ns since the first event)."""
    window: tuple[int, ...] = ()
    """vCPUs that are taking interrupts."""
    recent: dict[int | None, deque[tuple[Place, Event]]] = Factory(dict)

    def step(self, place: Place, event: Event, following: Event | None) -> Observation:
        self.stepper.vm.pass_time(ns=UNTIMED_EVENT_NS if event.ts is None else 0, until=self.now)
        happened = self._do(event)
        unseen: tuple[str, ...] = ()
        if happened is not None:
            found, unseen = list(differences(event, happened)), unjudged(event)
        elif isinstance(event, Irq):
            found = [Difference("irq", event.vector, None)]
        else:
            found, unseen = [], ("unseen memory",)
        if self.window:
            found += self._close_window(event, following)
        self.now = max(self.now, event.ts or 0)
        observation = Observation(
            place=place,
            event=event if happened is None else happened,
            divergences=tuple(self._divergence(place, event, happened or event, item) for item in found),
            unjudged=unseen,
            answer=_answer_given(event, happened),
        )
        self._remember(place, event)
        return observation

    def _do(self, event: Event) -> Event | None:
        """Do the event; None if what happens can't be known, or no interrupt is pending."""
        if isinstance(event, Wait):
            self.window = tuple(range(self.vcpus))
            return self.stepper.wait(event, self.vcpus)
        if isinstance(event, (Hypercall, Wrmsr, VcpuRun)):
            self.window = (event.vcpu,)
        return _STEPS[type(event)](self.stepper, event)

    def _close_window(self, event: Event, following: Event | None) -> list[Difference]:
        """When the guest is done with interrupts: those that it should have taken but didn't."""
        if isinstance(following, Irq):
            return []
        if isinstance(event, Irq) and _is_handlers_store(following):
            return []
        window, self.window = self.window, ()
        if isinstance(event, Wrmsr) and event.run_ret is not None:
            return []
        pending = [(vcpu, self.stepper.vm.take_interrupt(vcpu)) for vcpu in window]
        if "irq" in self.stepper.header.unseen:
            return []
        return [
            Difference("irq", None, {"vcpu": vcpu, "vector": vector})
            for vcpu, vector in pending
            if vector is not None
        ]

    def _divergence(self, place: Place, recorded: Event, happened: Event, found: Difference) -> Divergence:
        return Divergence(
            place=place,
            kind=found.kind,
            expected=found.expected,
            observed=found.observed,
            recorded=brief(recorded),
            happened=brief(happened),
            preceding=tuple(self.recent.get(getattr(recorded, "vcpu", None), ())),
        )

    def _remember(self, place: Place, event: Event) -> None:
        vcpu = getattr(event, "vcpu", None)
        self.recent.setdefault(vcpu, deque(maxlen=CONTEXT_EVENTS)).append((place, brief(event)))


def _recorded_answer(event: Hypercall, _exit: XenExit) -> int:
    """The VMM of the recording answers; an answer that nobody saw is 0."""
    return event.rax or 0


def _answer_given(recorded: Event, happened: Event | None) -> int | None:
    """What `_recorded_answer` was, if the event was a hypercall that was forwarded."""
    if isinstance(recorded, Hypercall) and isinstance(happened, Hypercall) and happened.exit is not None:
        return recorded.rax or 0
    return None


def _is_handlers_store(event: Event | None) -> bool:
    return isinstance(event, Mem) and event.op == "write" and event.data == b"\0"


def _hypercall(stepper: Stepper, event: Hypercall) -> Hypercall | None:
    return stepper.hypercall(event, _recorded_answer)


_STEPS: Final[dict[type[Event], Callable[[Stepper, Any], Event | None]]] = {
    Hypercall: _hypercall,
    Mem: Stepper.mem,
    Ioctl: Stepper.ioctl,
    VcpuRun: Stepper.vcpu_run,
    Irq: Stepper.irq,
    Wrmsr: Stepper.wrmsr,
    Eventfd: Stepper.eventfd,
    EventfdRead: Stepper.eventfd_read,
    EventfdWrite: Stepper.eventfd_write,
}
