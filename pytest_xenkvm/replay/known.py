"""What holds for an event whenever it happens, found out once: nearly all events of a trace come again."""

from __future__ import annotations

from collections import deque
from typing import Final

from attrs import Factory, define, field

from pytest_xenkvm.replay.observation import Audience, Repeats
from pytest_xenkvm.replay.quick import Quick
from pytest_xenkvm.replay.stepper import Again, CallAgain, Stepper
from pytest_xenkvm.trace.events import (
    Event,
    Hypercall,
    TimedEvent,
    VcpuRun,
    Wait,
    Wrmsr,
    brief,
    is_small,
)

CONTEXT_EVENTS: Final = 3
"""How many earlier events of a vCPU a divergence carries."""

_MAX_KNOWN: Final = 4096
"""Events that are remembered, small ones only: the trace may hold any number of any size."""

_NOT_COUNTED: Final = Repeats(valid=False)

Recent = deque[tuple[int, TimedEvent]]
"""Index and short form of a vCPU's last events."""


@define(eq=False)
class Known:
    """What holds for an event other than a hypercall."""

    again: Again
    wanted: bool
    window: tuple[int, ...]
    """vCPUs that take interrupts after it."""
    kept: Event
    recent: Recent
    adds_up: bool
    """It was recorded that times add up, which must be looked at each time."""
    inferred: bool
    event: Event
    quick: Quick | None
    """Does it again, if that is all there is to do when it comes out as recorded."""


@define(eq=False)
class KnownCall:
    """What holds for all hypercalls that one object stands for."""

    event: Hypercall
    again: CallAgain
    vcpu: int
    recent: Recent
    unseen: bool
    """An outcome was not recorded."""
    repeats: Repeats = _NOT_COUNTED
    """Counts those that come out as recorded, while it is valid."""
    window: tuple[int, ...] = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.window = (self.vcpu,)


@define(eq=False)
class Knowledge:
    """What is known of the events of one replay, and the last events of each of its vCPUs."""

    stepper: Stepper
    vcpus: int
    audience: Audience
    events: dict[int, Known] = Factory(dict)
    """By the identity of the event."""
    calls: dict[int, KnownCall] = Factory(dict)
    """Of hypercalls that stand for several, by the same."""
    _recent: dict[int | None, Recent] = Factory(dict)

    def learn(self, event: Event) -> Known:
        """Find out about an event other than a hypercall."""
        window: tuple[int, ...] = ()
        if isinstance(event, Wait):
            window = tuple(range(self.vcpus))
        elif isinstance(event, (Wrmsr, VcpuRun)):
            window = (event.vcpu,)
        wanted = self.audience.wants(event)
        known = Known(
            event=event,
            again=self.stepper.again(event, self.vcpus),
            quick=None if wanted else self.stepper.quick(event),
            wanted=wanted,
            window=window,
            kept=brief(event),
            recent=self.recent(getattr(event, "vcpu", None)),
            adds_up=bool(getattr(event, "sum_ok", None)),
            inferred=event.inferred,
        )
        if is_small(event):
            if len(self.events) >= _MAX_KNOWN:
                self.events.clear()
            self.events[id(event)] = known
        return known

    def learn_call(self, event: Event) -> KnownCall:
        """Find out about a hypercall that stands for several."""
        assert isinstance(event, Hypercall)  # only hypercalls are told  # noqa: S101 - for mypy
        unseen = event.rax is None or event.handled is None
        known = KnownCall(
            event=event,
            again=self.stepper.call_again(event),
            vcpu=event.vcpu,
            recent=self.recent(event.vcpu),
            unseen=unseen,
            repeats=(None if unseen else self.audience.repeats(event)) or _NOT_COUNTED,
        )
        if len(self.calls) >= _MAX_KNOWN:
            self.calls.clear()
        self.calls[id(event)] = known
        return known

    def wants_again(self, call: KnownCall) -> bool:
        """Whether the audience wants such a hypercall, which came out as recorded; if not, it is counted."""
        wanted = self.audience.wants_call(call.event)
        if not wanted:
            call.repeats = self.audience.repeats(call.event) or _NOT_COUNTED
        return wanted

    def recent(self, vcpu: int | None) -> Recent:
        """The last events of a vCPU, and of None those of the VM."""
        return self._recent.setdefault(vcpu, deque(maxlen=CONTEXT_EVENTS))
