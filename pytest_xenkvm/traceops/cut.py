"""A piece of a trace that still means what it meant in the whole.

What came before the piece isn't thrown away altogether: the events that set the VM up stay, and a trace that
replays on its own gets the state that the VM had come to (`state.py`). Times, eventfd numbers and all else in
the events stay as they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from attrs import define, field, frozen

from pytest_xenkvm.replay.observation import Divergence
from pytest_xenkvm.rules.run import ReplayOptions, TraceSource, run_trace
from pytest_xenkvm.trace.events import Event, TimedEvent, timed
from pytest_xenkvm.traceops.roles import sets_up
from pytest_xenkvm.traceops.state import state_events, vm_after


@frozen
class Point:
    """A place in a trace: the event with this index, or the moment `ns` after the first event."""

    index: int | None = None
    ns: int | None = None

    def is_reached(self, index: int, now: int) -> bool:
        """Whether the event `index`, at the time `now` (ns), stands there or behind it."""
        return (self.index is not None and index >= self.index) or (self.ns is not None and now >= self.ns)

    def is_passed(self, index: int, now: int) -> bool:
        """Whether it stands behind it."""
        return (self.index is not None and index > self.index) or (self.ns is not None and now > self.ns)


@frozen(kw_only=True)
class Piece:
    """What to cut out: from one point to another, both included; None is the trace's end on that side."""

    start: Point | None = None
    end: Point | None = None
    vcpus: frozenset[int] = frozenset()
    """Whose events, by index; empty: all. Events of no vCPU and, with `bare` off, set-up belong to all."""
    bare: bool = False
    """Nothing but the events that were asked for."""


@define
class Cutting:
    """One pass over a trace that hands out a piece of it, and counts."""

    trace: TraceSource
    piece: Piece
    set_up: int = 0
    """Events from before its start that set the VM up."""
    state: int = 0
    """Events that nobody recorded, which give the VM the state that it had at the start."""
    cut: int = 0
    """Events from between start and end."""
    _now: int = field(default=0, init=False)
    """The time of the event at hand; one without a time happens at that of the one before."""

    def events(self) -> Iterator[Event]:
        """The piece's events, read as they are needed.

        Raises TraceError, ReplayError, HostError and TooMuchState.
        """
        upcoming = self._numbered()
        first: list[tuple[int, Event]] = []
        if self.piece.start is not None:
            yield from self._opening(self.piece.start, upcoming, first)
        for index, event in chain(first, upcoming):
            if self.piece.end is not None and self.piece.end.is_passed(index, self._now):
                return
            if self._belongs(event):
                self.cut += 1
                yield event

    def _numbered(self) -> Iterator[tuple[int, Event]]:
        for index, event in enumerate(self.trace.events()):
            self._now = max(self._now, event.ts or 0)
            yield index, event

    def _opening(
        self, start: Point, upcoming: Iterator[tuple[int, Event]], first: list[tuple[int, Event]]
    ) -> Iterator[Event]:
        """What stays of the events before `start`; the one at `start` goes to `first`."""
        set_up: list[Event] = []

        def before() -> Iterator[TimedEvent]:
            for index, event in upcoming:
                if start.is_reached(index, self._now):
                    first.append((index, event))
                    return
                if sets_up(event):
                    set_up.append(event)
                yield event.ts, event, None

        if self.piece.bare or self.trace.header.scope != "full":
            for _ in before():
                pass
            vm = None
        else:
            vm = vm_after(self.trace.header, before())
        if self.piece.bare or not first:
            return
        yield from set_up
        self.set_up = len(set_up)
        if vm is not None and first[0][0] > 0:
            for event in state_events(vm, vm_after(self.trace.header, timed(set_up))):
                self.state += 1
                yield event

    def _belongs(self, event: Event) -> bool:
        vcpu = getattr(event, "vcpu", None)
        if not self.piece.vcpus or vcpu is None or vcpu in self.piece.vcpus:
            return True
        return not self.piece.bare and sets_up(event)


def new_divergences(piece: TraceSource, whole: TraceSource, until: int | None = None) -> list[Divergence]:
    """Replay a piece on its kernel's profile: the first divergences that the whole doesn't have.

    `until`: the index of the event before which the whole may stop. Raises ReplayError, HostError and
    TraceError.
    """
    found = run_trace(piece, (), ReplayOptions()).divergences
    if not found:
        return []
    known = [
        (divergence.kind, divergence.recorded)
        for divergence in run_trace(whole, (), ReplayOptions(until=until)).divergences
    ]
    return [divergence for divergence in found if (divergence.kind, divergence.recorded) not in known]
