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

from pytest_xenkvm.hosts.protocol import Host
from pytest_xenkvm.replay.compare import Difference, differences, unjudged
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.observation import (
    EVERYONE,
    Audience,
    Divergence,
    Observation,
    Place,
    Repeats,
    Tally,
)
from pytest_xenkvm.replay.stepper import Again, CallAgain, Quick, Stepper, recorded_answer
from pytest_xenkvm.trace.events import (
    Event,
    Header,
    Hypercall,
    Irq,
    Mem,
    TimedEvent,
    Told,
    VcpuRun,
    Wait,
    Wrmsr,
    as_told,
    at_time,
    brief,
    is_small,
)

UNTIMED_EVENT_NS: Final = 1000
"""What passes before an event without a time, so that "long ago" lies in the past."""

CONTEXT_EVENTS: Final = 3
"""How many earlier events of a vCPU a divergence carries."""

_MAX_KNOWN: Final = 4096
"""Events that are remembered, small ones only: the trace may hold any number of any size."""

_AFTER_THE_LAST: Final[TimedEvent] = (None, Event(), None)

_NOT_COUNTED: Final = Repeats(valid=False)

_Recent = deque[tuple[int, "int | None", Event, "Told | None"]]
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
    """What holds for an event other than a hypercall whenever it happens."""

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
    quick: Quick | None
    """Does it again, if that is all there is to do when it comes out as recorded."""


@define(eq=False)
class _KnownCall:
    """What holds for all hypercalls that one object stands for."""

    event: Hypercall
    again: CallAgain
    vcpu: int
    recent: _Recent
    unseen: bool
    """An outcome was not recorded."""
    repeats: Repeats = _NOT_COUNTED
    """Counts those that come out as recorded, while it is valid."""
    window: tuple[int, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.window = (self.vcpu,)


@define(eq=False)
class _KernelReplay:
    stepper: Stepper
    vcpus: int
    audience: Audience
    tally: Tally
    recent: dict[int | None, _Recent] = Factory(dict)
    known: dict[int, _Known] = Factory(dict)
    """By the identity of their event."""
    known_calls: dict[int, _KnownCall] = Factory(dict)
    irqs_seen: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.irqs_seen = "irq" not in self.stepper.header.unseen

    def observations(  # noqa: C901, PLR0912, PLR0915 - calls for parts take as long as the parts do
        self, events: Iterable[TimedEvent]
    ) -> Iterator[Observation]:
        upcoming = iter(events)
        current = next(upcoming, None)
        if current is None:
            return
        known_of, call_of = self.known.get, self.known_calls.get
        clock, take_interrupt = self.stepper.clock(), self.stepper.vm.take_interrupt
        now = 0  # when the event before was complete (ns since the first event)
        due = 0  # until then the VM's clock may stand still, unless it is looked at
        window: tuple[int, ...] = ()  # vCPUs that are taking interrupts
        hypercalls = inferred = 0
        for index, following in enumerate(chain(upcoming, (_AFTER_THE_LAST,))):
            ts, event, told = current
            current = following
            begun = now
            if ts is None:
                self.stepper.vm.pass_time(ns=UNTIMED_EVENT_NS, until=now)
                due = 0
            elif ts > now:
                now = ts
            happened: Event | None
            found: list[Difference]
            if told is not None:
                clock(begun)
                due = 0
                call = call_of(id(event)) or self._know_call(event)
                happened = call.again(ts, told)
                hypercalls += 1
                window, found = call.window, []
                if happened is event and call.repeats.valid and type(following[1]) is not Irq:
                    window = ()
                    vector = take_interrupt(call.vcpu)
                    if vector is None or not self.irqs_seen:
                        call.repeats.times += 1
                        call.recent.append((index, ts, event, told))
                        continue
                    found = [_missed(call.vcpu, vector)]
                recent, as_recorded = call.recent, happened is event
                event = kept = as_told(event, told)
                tells = call.unseen or not as_recorded
                happened = event if as_recorded else happened
                wanted = tells or self._wants_again(call)
            elif (known := known_of(id(event))) is not None and known.quick is not None and not window:
                if begun >= due:
                    due = clock(begun)
                if known.inferred:
                    inferred += 1
                happened = known.quick()
                if happened is None:
                    known.recent.append((index, ts, event, None))
                    continue
                kept, recent, found, tells, wanted = known.kept, known.recent, [], True, True
            else:
                clock(begun)
                due, found = 0, []
                if type(event) is Hypercall:
                    happened = self.stepper.hypercall(event, ts, recorded_answer)
                    kept, recent, window = brief(event), self._recent(event.vcpu), (event.vcpu,)
                    tells = happened is not event or event.rax is None or event.handled is None
                    wanted = tells or self.audience.wants_call(event)
                    hypercalls += 1
                else:
                    known = known or self._know(event)
                    happened = known.again(ts)
                    kept, recent, window = known.kept, known.recent, known.window or window
                    tells = happened is not event or known.adds_up
                    wanted = tells or known.wanted
                inferred += event.inferred
            if tells:
                found += self._compare(event, happened)
            if window and not goes_on_with_interrupts(event, following[1]):
                if type(event) is not Wrmsr or event.run_ret is None:
                    found += self._pending(window)
                window = ()
            if found and not wanted and type(event) is Hypercall:
                self.audience.recall(event)
            if wanted or found:
                yield self._observation(index, ts, event, happened, found)
            recent.append((index, ts, kept, None))
        clock(begun)
        self.tally.events += index + 1
        self.tally.hypercalls += hypercalls
        self.tally.inferred += inferred

    def _know(self, event: Event) -> _Known:
        window: tuple[int, ...] = ()
        if isinstance(event, Wait):
            window = tuple(range(self.vcpus))
        elif isinstance(event, (Wrmsr, VcpuRun)):
            window = (event.vcpu,)
        wanted = self.audience.wants(event)
        known = _Known(
            event=event,
            again=self.stepper.again(event, self.vcpus),
            quick=None if wanted else self.stepper.quick(event),
            wanted=wanted,
            window=window,
            kept=brief(event),
            recent=self._recent(getattr(event, "vcpu", None)),
            adds_up=bool(getattr(event, "sum_ok", None)),
            inferred=event.inferred,
        )
        if is_small(event):
            if len(self.known) >= _MAX_KNOWN:
                self.known.clear()
            self.known[id(event)] = known
        return known

    def _know_call(self, event: Event) -> _KnownCall:
        assert isinstance(event, Hypercall)  # only hypercalls are told  # noqa: S101 - for mypy
        unseen = event.rax is None or event.handled is None
        known = _KnownCall(
            event=event,
            again=self.stepper.call_again(event),
            vcpu=event.vcpu,
            recent=self._recent(event.vcpu),
            unseen=unseen,
            repeats=(None if unseen else self.audience.repeats(event)) or _NOT_COUNTED,
        )
        if len(self.known_calls) >= _MAX_KNOWN:
            self.known_calls.clear()
        self.known_calls[id(event)] = known
        return known

    def _wants_again(self, call: _KnownCall) -> bool:
        """Whether the audience wants such a hypercall, which came out as recorded; if not, it is counted."""
        wanted = self.audience.wants_call(call.event)
        if not wanted:
            call.repeats = self.audience.repeats(call.event) or _NOT_COUNTED
        return wanted

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
            _missed(vcpu, vector)
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
            preceding=tuple(
                (Place(index), at_time(as_told(event, told), ts)) for index, ts, event, told in recent
            ),
        )


def _answer_given(recorded: Event, happened: Event | None) -> int | None:
    """What `recorded_answer` was, if the event was a hypercall that was forwarded."""
    if isinstance(recorded, Hypercall) and isinstance(happened, Hypercall) and happened.exit is not None:
        return recorded.rax or 0
    return None


def goes_on_with_interrupts(event: Event, following: Event) -> bool:
    """Whether the guest is still at interrupts after the event."""
    if type(following) is Irq:
        return True
    handlers_store = type(following) is Mem and following.op == "write" and following.data == b"\0"
    return handlers_store and type(event) is Irq


def _missed(vcpu: int, vector: int) -> Difference:
    """The guest should have taken an interrupt but didn't."""
    return Difference("irq", None, {"vcpu": vcpu, "vector": vector})
