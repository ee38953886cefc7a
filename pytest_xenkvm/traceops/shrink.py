"""A failing trace becomes a small one that fails in the same way.

What a trace's events are for says more than trying: nothing after the failure is needed, and before it the
set-up and the last events nearly always do. Then all of a vCPU, of a kind, of a hypercall are left out
together where that can be, and what remains goes through delta debugging, until no event can be left out
by itself. Each try is a replay (`Judgement`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import chain, islice
from typing import Final

from attrs import define, field, frozen

from pytest_xenkvm.rules.run import TraceSource
from pytest_xenkvm.trace.events import Event, Header, Irq, Mem
from pytest_xenkvm.trace.labels import event_label
from pytest_xenkvm.traceops.failure import Failure, Judgement, NotFailing, Setting
from pytest_xenkvm.traceops.roles import sets_up

_WINDOWS: Final = (1, 16, 256, 1 << 12, 1 << 16, 1 << 20)
"""How many of the last events are tried together with the set-up, before all."""

_LONGER: Final = 16
"""How many times more events each try adds to a beginning that is too short to fail."""

Progress = Callable[[int, int], None]
"""Told how many events are left, and how many replays that took."""


@frozen(kw_only=True)
class Shrunk:
    """What a trace was shrunk to."""

    header: Header
    events: tuple[Event, ...]
    indices: tuple[int, ...]
    """Which events of the trace these are."""
    minimal: bool
    """No event can be left out; False if time ran out."""
    replays: int
    seconds: float


class _OutOfTime(Exception):
    pass


def shrink(
    trace: TraceSource,
    setting: Setting,
    failure: Failure,
    budget: float = float("inf"),
    progress: Progress | None = None,
) -> Shrunk:
    """Leave out as many events of `trace` as can be, while it fails as `find_failure` found.

    `budget`: seconds after which the smallest so far is returned; so it is at a KeyboardInterrupt. Times,
    eventfd numbers and all else in the events stay as they were. Raises TraceError if `trace` can't be read,
    NotFailing if the failure doesn't show again.
    """
    began = time.monotonic()
    judgement = Judgement(trace.header, setting, failure)
    events = _some_that_fail(trace, judgement)
    shrinking = _Shrinking(
        judgement=judgement, events=events, kept=list(events), deadline=began + budget, progress=progress
    )
    minimal = True
    try:
        shrinking.leave_out_groups()
        shrinking.minimise()
    except (_OutOfTime, KeyboardInterrupt):
        minimal = False
    kept = shrinking.kept
    return Shrunk(
        header=trace.header,
        events=tuple(events[index] for index in kept),
        indices=tuple(kept),
        minimal=minimal,
        replays=judgement.replays,
        seconds=time.monotonic() - began,
    )


def _some_that_fail(trace: TraceSource, judgement: Judgement) -> dict[int, Event]:
    """Events by index that fail, as few as can be told without trying much; raises NotFailing."""
    index = judgement.failure.index
    shortest = 0 if index is None else index + 1
    events = _window(trace, judgement, shortest)
    if events is None:
        end = _beginning(trace, judgement, shortest)
        events = None if end == shortest else _window(trace, judgement, end)
        if events is None:
            events = dict(enumerate(islice(trace.events(), end)))
    return events


def _beginning(trace: TraceSource, judgement: Judgement, shortest: int) -> int:
    """How many events from the start are enough; `shortest`, to the one that fails, or some more."""
    too_short, enough, step = shortest - 1, shortest, 1
    while not judgement.beginning_fails(trace, enough):
        if next(islice(trace.events(), enough, None), None) is None:
            raise NotFailing("replayed once more, the trace doesn't fail in the same way")
        too_short, enough, step = enough, enough + step, step * _LONGER
    while enough - too_short > 1:
        middle = (too_short + enough) // 2
        if judgement.beginning_fails(trace, middle):
            enough = middle
        else:
            too_short = middle
    return enough


def _window(trace: TraceSource, judgement: Judgement, end: int) -> dict[int, Event] | None:
    """As few of the last events before `end` as will do, and all set-up before them; None if all it takes."""
    for size in _WINDOWS:
        if size >= end:
            break
        events = _with_set_up(trace, end, size)
        if judgement.part_fails(events, list(events)):
            return events
    return None


def _with_set_up(trace: TraceSource, end: int, size: int) -> dict[int, Event]:
    kept: dict[int, Event] = {}
    last: deque[tuple[int, Event]] = deque(maxlen=size)
    for index, event in enumerate(islice(trace.events(), end)):
        if sets_up(event):
            kept[index] = event
        last.append((index, event))
    return dict(sorted([*kept.items(), *(item for item in last if item[0] not in kept)]))


@define
class _Shrinking:
    judgement: Judgement
    events: dict[int, Event]
    kept: list[int]
    """The smallest part so far that fails."""
    deadline: float
    progress: Progress | None
    _tried: set[tuple[int, ...]] = field(factory=set, init=False)

    def leave_out_groups(self) -> None:
        """Leave out like events together, large groups first."""
        self._without([index for index in self.kept if not sets_up(self.events[index])])
        for key in (_is_inferred, _vcpu, _kind, event_label, _label_and_vcpu):
            groups: dict[Hashable, list[int]] = {}
            for index in self.kept:
                groups.setdefault(key(self.events[index]), []).append(index)
            for group in sorted(groups.values(), key=len, reverse=True):
                self._without(group)

    def minimise(self) -> None:
        """Leave out runs of events, ever shorter ones, until none can be left out by itself.

        From the end on: what an event was needed for goes before the event. Interrupts go with what let the
        guest take them, for neither can do without the other.
        """
        size = len(self.kept) // 2
        while size > 1:
            self._without_runs(size)
            size = min(size, len(self.kept)) // 2
        while self._without_runs(1) or self._without_each():
            pass

    def _without_runs(self, size: int) -> bool:
        units = self._units()
        for end in range(len(units), 0, -size):
            self._without(chain.from_iterable(units[max(end - size, 0) : end]))
        return sum(map(len, units)) > len(self.kept)

    def _without_each(self) -> bool:
        before = len(self.kept)
        for index in reversed(self.kept):
            self._without([index])
        return len(self.kept) < before

    def _units(self) -> list[list[int]]:
        """What is kept, each event with the interrupts that follow and their acknowledgement in memory."""
        units: list[list[int]] = []
        taken = False
        for index in self.kept:
            event = self.events[index]
            acknowledges = taken and isinstance(event, Mem) and not any(event.data)
            taken = isinstance(event, Irq)
            if units and (taken or acknowledges):
                units[-1].append(index)
            else:
                units.append([index])
        return units

    def _without(self, group: Iterable[int]) -> None:
        """Leave the events of `group` out if the rest fails; never the one that fails itself."""
        unneeded = set(group) - {self.judgement.failure.index}
        rest = [index for index in self.kept if index not in unneeded]
        if len(rest) < len(self.kept) and self._fails(rest):
            self.kept = rest
            if self.progress is not None:
                self.progress(len(rest), self.judgement.replays)

    def _fails(self, kept: Sequence[int]) -> bool:
        key = tuple(kept)
        if key in self._tried:
            return False
        if time.monotonic() > self.deadline:
            raise _OutOfTime
        fails = self.judgement.part_fails(self.events, kept)
        if not fails:
            self._tried.add(key)
        return fails


def _is_inferred(event: Event) -> Hashable:
    return event.inferred


def _vcpu(event: Event) -> Hashable:
    return getattr(event, "vcpu", None)


def _kind(event: Event) -> Hashable:
    return event.kind


def _label_and_vcpu(event: Event) -> Hashable:
    return event_label(event), _vcpu(event)
