"""Kernel replay: everything that a full trace holds is done again on a host and every outcome compared.

Interrupts: after an entry into the guest (vcpu_run, wait, hypercall, wrmsr) the recorded `irq` events say
what the guest took; when they end, nothing may be pending any more. After a VM-wide vector the guest
clears evtchn_upcall_pending, a one-byte store that belongs to the same window.

Nearly all events of a trace repeat earlier ones at another time, and come out as recorded. So what holds for
an event at any time is found out once (`Knowledge`), and an observation is made only where somebody wants it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, pairwise
from typing import Final

from attrs import define, field

from pytest_xenkvm.hosts.protocol import Host
from pytest_xenkvm.replay.compare import Difference, differences, unjudged
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.known import Knowledge
from pytest_xenkvm.replay.observation import (
    EVERYONE,
    Audience,
    Divergence,
    Observation,
    Place,
    Tally,
)
from pytest_xenkvm.replay.stepper import Stepper, recorded_answer
from pytest_xenkvm.trace.events import (
    Event,
    Header,
    Hypercall,
    Irq,
    Mem,
    TimedEvent,
    Wrmsr,
    as_told,
    at_time,
    brief,
)

UNTIMED_EVENT_NS: Final = 1000
"""What passes before an event without a time, so that "long ago" lies in the past."""

_AFTER_THE_LAST: Final[TimedEvent] = (None, Event(), None)


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
    knowledge = Knowledge(stepper, len(header.vm.vcpus), audience)
    return _KernelReplay(stepper, knowledge, audience, tally or Tally()).observations(events)


@define(eq=False)
class _KernelReplay:
    stepper: Stepper
    knowledge: Knowledge
    audience: Audience
    tally: Tally
    irqs_seen: bool = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.irqs_seen = "irq" not in self.stepper.header.unseen

    def observations(  # noqa: C901, PLR0912, PLR0915 - calls for parts take as long as the parts do
        self, events: Iterable[TimedEvent]
    ) -> Iterator[Observation]:
        knowledge, irqs_seen, index = self.knowledge, self.irqs_seen, -1
        known_of, call_of = knowledge.events.get, knowledge.calls.get
        clock, take_interrupt = self.stepper.clock(), self.stepper.vm.take_interrupt
        begun = now = 0  # when the event before was complete, when this one was (ns since the first event)
        due = 0  # until then the VM's clock may stand still, unless it is looked at
        window: tuple[int, ...] = ()  # vCPUs that are taking interrupts
        hypercalls = inferred = 0
        for index, (current, following) in enumerate(pairwise(chain(events, (_AFTER_THE_LAST,)))):
            ts, event, told = current
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
                call = call_of(id(event)) or knowledge.learn_call(event)
                happened = call.again(ts, told)
                hypercalls += 1
                repeats = call.repeats
                if happened is event and repeats.valid and type(following[1]) is not Irq:
                    window = ()
                    vector = take_interrupt(call.vcpu)
                    if vector is None or not irqs_seen:
                        repeats.times += 1
                        call.recent.append((index, current))
                        continue
                    found = [_missed(call.vcpu, vector)]
                else:
                    window, found = call.window, []
                recent, as_recorded = call.recent, happened is event
                event = kept = as_told(event, told)
                tells = call.unseen or not as_recorded
                happened = event if as_recorded else happened
                wanted = tells or knowledge.wants_again(call)
            elif (
                (known := known_of(id(event))) is not None
                and (quick := known.quick) is not None
                and not window
            ):
                if begun >= due:
                    due = clock(begun)
                if known.inferred:
                    inferred += 1
                ret = quick.do()
                if ret == quick.expected:
                    known.recent.append((index, current))
                    continue
                happened = quick.happened(ret)
                kept, recent, found, tells, wanted = known.kept, known.recent, [], True, True
            else:
                clock(begun)
                due, found = 0, []
                if type(event) is Hypercall:
                    happened = self.stepper.hypercall(event, ts, recorded_answer)
                    kept, recent, window = brief(event), knowledge.recent(event.vcpu), (event.vcpu,)
                    tells = happened is not event or event.rax is None or event.handled is None
                    wanted = tells or self.audience.wants_call(event)
                    hypercalls += 1
                else:
                    known = known or knowledge.learn(event)
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
            recent.append((index, (ts, kept, None)))
        clock(begun)
        self.tally.events += index + 1
        self.tally.hypercalls += hypercalls
        self.tally.inferred += inferred

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
        recent = self.knowledge.recent(getattr(recorded, "vcpu", None))
        return Divergence(
            place=place,
            kind=found.kind,
            expected=found.expected,
            observed=found.observed,
            recorded=brief(recorded),
            happened=brief(happened),
            preceding=tuple(
                (Place(index), at_time(as_told(event, told), ts)) for index, (ts, event, told) in recent
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
