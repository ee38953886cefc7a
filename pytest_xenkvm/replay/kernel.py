"""Kernel replay: everything that a full trace holds is done again on a host and every outcome compared.

Interrupts: after an entry into the guest (vcpu_run, wait, hypercall, wrmsr) the recorded `irq` events say
what the guest took; when they end, nothing may be pending any more. After a VM-wide vector the guest
clears evtchn_upcall_pending, a one-byte store that belongs to the same window.

Nearly all events of a trace repeat earlier ones at another time, and come out as recorded. So what holds for
an event at any time is found out once (`_Known`), and an observation is made only where somebody wants it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Final

from attrs import Factory, define, field

from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.hosts.protocol import Host
from pytest_xenkvm.replay.compare import Difference, differences, unjudged
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.observation import EVERYONE, Audience, Divergence, Observation, Place, Tally
from pytest_xenkvm.replay.stepper import Again, Stepper
from pytest_xenkvm.trace.events import (
    BRIEF_BYTES,
    Event,
    Header,
    Hypercall,
    Ioctl,
    Irq,
    Mem,
    TimedEvent,
    VcpuRun,
    Wait,
    Wrmsr,
    at_time,
    brief,
)

UNTIMED_EVENT_NS: Final = 1000
"""What passes before an event without a time, so that "long ago" lies in the past."""

CONTEXT_EVENTS: Final = 3
"""How many earlier events of a vCPU a divergence carries."""

_MAX_KNOWN: Final = 4096
"""Events that are remembered, small ones only: the trace may hold any number of any size."""

_MAX_MEMBERS: Final = 8
"""Members of the argument of a small ioctl."""

_AFTER_THE_LAST: Final[TimedEvent] = (None, Event())

_Recent = deque[tuple[int, "int | None", Event]]
"""Index, time and short form of a vCPU's last events."""


def kernel_replay(
    host: Host,
    header: Header,
    events: Iterable[TimedEvent],
    audience: Audience = EVERYONE,
    tally: Tally | None = None,
) -> Iterator[Observation]:
    """Replay a trace of scope "full" on `host`: the observations that `audience` wants, in order.

    Those with something to tell, a divergence or an outcome that nobody saw, are yielded to any audience.
    `tally` counts all events. Raises ReplayError for a trace that doesn't describe its VM, HostError if the
    VM can't be had.
    """
    if header.scope != "full" or header.vm is None:
        raise ReplayError(
            "the trace holds hypercalls only, not what the VMM configured: replay it with a VMM behaviour"
        )
    vm = host.create_vm(header.vm, cpu_vendor=header.cpu_vendor)
    stepper = Stepper(vm, header)
    return _KernelReplay(stepper, len(header.vm.vcpus), audience, tally or Tally()).observations(events)


@define(eq=False)
class _Known:
    """What holds for an event whenever it happens."""

    event: Event
    again: Again
    wanted: bool
    window: tuple[int, ...]
    """vCPUs that take interrupts after it."""
    kept: Event
    recent: _Recent
    adds_up: bool
    """It was recorded that times add up, which must be looked at each time."""
    inferred: bool
    idle: bool = field(init=False)
    """There is nothing more to do if it comes out as recorded and nobody takes interrupts."""

    def __attrs_post_init__(self) -> None:
        self.idle = not (self.wanted or self.window or self.adds_up)


@define(eq=False)
class _KernelReplay:
    stepper: Stepper
    vcpus: int
    audience: Audience
    tally: Tally
    recent: dict[int | None, _Recent] = Factory(dict)
    known: dict[int, _Known] = Factory(dict)
    """By the identity of their event."""
    irqs_seen: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.irqs_seen = "irq" not in self.stepper.header.unseen

    def observations(  # noqa: C901, PLR0912 - a call for each part would take as long as the part does
        self, events: Iterable[TimedEvent]
    ) -> Iterator[Observation]:
        upcoming = iter(events)
        current = next(upcoming, None)
        if current is None:
            return
        tally, known_of, recent_of = self.tally, self.known, self.recent
        pass_time, hypercall = self.stepper.vm.pass_time, self.stepper.hypercall
        wants_call = self.audience.wants_call
        now = 0  # when the previous event was complete (ns since the first event)
        reached = -1  # what the VM's clock has been brought to
        window: tuple[int, ...] = ()  # vCPUs that are taking interrupts
        for index, following in enumerate(chain(upcoming, (_AFTER_THE_LAST,))):
            ts, event = current
            current = following
            if ts is None:
                pass_time(ns=UNTIMED_EVENT_NS, until=now)
            elif reached != now:
                reached = now
                pass_time(until=now)
            if ts is not None and ts > now:
                now = ts
            tally.events += 1
            if type(event) is Hypercall:
                happened: Event | None = hypercall(event, ts, _recorded_answer)
                kept: Event = event if event.behind is None and not event.extra else brief(event)
                recent = recent_of.get(event.vcpu) or self._recent(event.vcpu)
                told = happened is not event or event.rax is None or event.handled is None
                wanted = told or wants_call(event)
                window = (event.vcpu,)
                tally.hypercalls += 1
                tally.inferred += event.inferred
            else:
                known = known_of.get(id(event)) or self._know(event)
                happened = known.again(ts)
                kept, recent = known.kept, known.recent
                if known.inferred:
                    tally.inferred += 1
                if happened is event and known.idle and not window:
                    recent.append((index, ts, kept))
                    continue
                told = happened is not event or known.adds_up
                wanted = told or known.wanted
                window = known.window or window
            found = self._compare(event, happened) if told else []
            if window and not goes_on_with_interrupts(event, following[1]):
                if type(event) is not Wrmsr or event.run_ret is None:
                    found += self._pending(window)
                window = ()
            if found and not wanted and type(event) is Hypercall:
                self.audience.recall(event)
            if wanted or found:
                yield self._observation(index, ts, event, happened, found)
            recent.append((index, ts, kept))

    def _know(self, event: Event) -> _Known:
        window: tuple[int, ...] = ()
        if isinstance(event, Wait):
            window = tuple(range(self.vcpus))
        elif isinstance(event, (Wrmsr, VcpuRun)):
            window = (event.vcpu,)
        known = _Known(
            event=event,
            again=self.stepper.again(event, self.vcpus),
            wanted=self.audience.wants(event),
            window=window,
            kept=brief(event),
            recent=self._recent(getattr(event, "vcpu", None)),
            adds_up=bool(getattr(event, "sum_ok", None)),
            inferred=event.inferred,
        )
        if _is_small(event):
            if len(self.known) >= _MAX_KNOWN:
                self.known.clear()
            self.known[id(event)] = known
        return known

    def _recent(self, vcpu: int | None) -> _Recent:
        return self.recent.setdefault(vcpu, deque(maxlen=CONTEXT_EVENTS))

    def _compare(self, event: Event, happened: Event | None) -> list[Difference]:
        """The outcomes that differ; `happened` None: it can't be known, or no interrupt is pending."""
        if happened is not None:
            return list(differences(event, happened))
        return [Difference("irq", event.vector, None)] if isinstance(event, Irq) else []

    def _pending(self, window: tuple[int, ...]) -> list[Difference]:
        """Interrupts that the guest should have taken but didn't."""
        take = self.stepper.vm.take_interrupt
        vectors = [take(vcpu) for vcpu in window]
        return [
            Difference("irq", None, {"vcpu": vcpu, "vector": vector})
            for vcpu, vector in zip(window, vectors, strict=True)
            if vector is not None and self.irqs_seen
        ]

    def _observation(
        self, index: int, ts: int | None, event: Event, happened: Event | None, found: list[Difference]
    ) -> Observation:
        place, recorded = Place(index), at_time(event, ts)
        outcome = recorded if happened is event or happened is None else at_time(happened, ts)
        unseen = unjudged(event)
        if happened is None and not isinstance(event, Irq):
            unseen = ("unseen memory",)
        return Observation(
            place=place,
            event=outcome,
            divergences=tuple(self._divergence(place, recorded, outcome, item) for item in found),
            unjudged=unseen,
            answer=_answer_given(event, happened),
        )

    def _divergence(self, place: Place, recorded: Event, happened: Event, found: Difference) -> Divergence:
        recent = self.recent.get(getattr(recorded, "vcpu", None), ())
        return Divergence(
            place=place,
            kind=found.kind,
            expected=found.expected,
            observed=found.observed,
            recorded=brief(recorded),
            happened=brief(happened),
            preceding=tuple((Place(index), at_time(event, ts)) for index, ts, event in recent),
        )


def _recorded_answer(event: Hypercall, _exit: XenExit) -> int:
    """The VMM of the recording answers; an answer that nobody saw is 0."""
    return event.rax or 0


def _answer_given(recorded: Event, happened: Event | None) -> int | None:
    """What `_recorded_answer` was, if the event was a hypercall that was forwarded."""
    if isinstance(recorded, Hypercall) and isinstance(happened, Hypercall) and happened.exit is not None:
        return recorded.rax or 0
    return None


def goes_on_with_interrupts(event: Event, following: Event) -> bool:
    """Whether the guest is still at interrupts after the event."""
    if type(following) is Irq:
        return True
    handlers_store = type(following) is Mem and following.op == "write" and following.data == b"\0"
    return handlers_store and type(event) is Irq


def _is_small(event: Event) -> bool:
    if event.extra:
        return False
    if isinstance(event, Ioctl):
        return len(event.arg) <= _MAX_MEMBERS and all(type(value) is int for value in event.arg.values())
    return not isinstance(event, Mem) or len(event.data) <= BRIEF_BYTES
