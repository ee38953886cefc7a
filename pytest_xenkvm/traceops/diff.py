"""Two courses of events side by side: where they part, and what differs how often.

Events are compared by what happened: their times, whether they were inferred, and unknown keys don't count.
Where the courses don't go on alike, the next place is looked for where they do, among the next events only:
memory is bounded, and what is moved further than that counts as missing on one side and new on the other.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Hashable, Iterable, Iterator
from enum import Enum
from itertools import islice
from typing import Any, Final

from attrs import define, field, frozen

from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.trace.events import Event, EventfdRead, Hypercall, Ioctl, Irq, Mem, Wrmsr
from pytest_xenkvm.trace.labels import event_label

CONTEXT: Final = 3
"""Events before the first difference that are kept."""
MAX_LABELS: Final = 1000
"""Rows of the summary: a hostile trace may hold any number of hypercall numbers."""
OTHERS: Final = "(others)"

_TRIES: Final = ((16, 4), (64, 8), (1000, 16), (1000, 4), (1000, 1))
"""Among how many events of either side a common place is looked for, how many must agree in a row there."""

_NOT_COMPARED: Final = frozenset({"ts", "inferred", "extra"})
_OUTCOMES: Final[dict[type[Event], frozenset[str]]] = {
    Ioctl: frozenset({"ret", "out", "undetermined", "sum_ok"}),
    Hypercall: frozenset({"handled", "exit", "rax", "run_ret"}),
    EventfdRead: frozenset({"value"}),
    Wrmsr: frozenset({"ok", "run_ret"}),
    Irq: frozenset({"vector"}),
}


class How(Enum):
    """How two courses differ at an event."""

    OUTCOME = "outcome"
    """The same was done, and something else came of it."""
    ARGUMENTS = "arguments"
    """Something of the same kind was done with other arguments."""
    ONLY_A = "only A"
    ONLY_B = "only B"


@frozen
class Step:
    """An event of a course. `index`: its place in the trace; `also`: what came of it that it doesn't say."""

    index: int
    event: Event
    also: tuple[str, ...] = ()
    by_vmm: bool = False
    """An ioctl of the VMM under test, made for the event `index`."""


@frozen(kw_only=True)
class Difference:
    """A step of one course that the other doesn't have, or has otherwise."""

    how: How
    a: Step | None
    b: Step | None


def recorded_steps(events: Iterable[Event]) -> Iterator[Step]:
    """The course of a trace."""
    for index, event in enumerate(events):
        yield Step(index, event)


def replayed_steps(observations: Iterable[Observation]) -> Iterator[Step]:
    """The course of a replay: the events as they happened there."""
    for seen in observations:
        also = tuple(
            f"{found.kind}: {found.observed}" for found in seen.divergences if found.kind in {"irq", "sum_ok"}
        )
        yield Step(seen.place.index, seen.event, also, seen.by_vmm)


@define
class Comparison:
    """Compares two courses; what it has counted is complete when `differences` came to its end."""

    a: Iterable[Step]
    b: Iterable[Step]
    same: int = 0
    found: int = 0
    before: tuple[Step, ...] = ()
    """The last steps that both have before the first difference."""
    counts: dict[str, Counter[How | None]] = field(factory=dict)
    """By label, how often steps differed in each way; None: how often they were the same."""

    def differences(self) -> Iterator[Difference]:
        """The differences, in order. Raises what reading `a` and `b` raises."""
        a, b = _Ahead(iter(self.a)), _Ahead(iter(self.b))
        recent: deque[Step] = deque(maxlen=CONTEXT)
        while (key := a.keys(1)) or b.keys(1):
            if key == b.keys(1):
                left, right = a.take(), b.take()
                how = _how(left, right)
                self._count(left, how)
                if how is None:
                    self.same += 1
                    if not self.found:
                        recent.append(left)
                    continue
                pairs = [Difference(how=how, a=left, b=right)]
            else:
                pairs = list(self._parted(a, b))
            if not self.found:
                self.before = tuple(recent)
            self.found += len(pairs)
            yield from pairs

    def _parted(self, a: _Ahead, b: _Ahead) -> Iterator[Difference]:
        only_a, only_b = _next_common_place(a, b)
        for _ in range(only_a):
            step = a.take()
            self._count(step, How.ONLY_A)
            yield Difference(how=How.ONLY_A, a=step, b=None)
        for _ in range(only_b):
            step = b.take()
            self._count(step, How.ONLY_B)
            yield Difference(how=How.ONLY_B, a=None, b=step)

    def _count(self, step: Step, how: How | None) -> None:
        label = event_label(step.event)
        if label not in self.counts and len(self.counts) >= MAX_LABELS:
            label = OTHERS
        self.counts.setdefault(label, Counter())[how] += 1


@define
class _Ahead:
    """A course of which some steps were read ahead."""

    upcoming: Iterator[Step]
    _steps: deque[Step] = field(factory=deque)
    _keys: deque[Hashable] = field(factory=deque)

    def keys(self, size: int) -> list[Hashable]:
        """The keys of the next `size` steps, fewer at the end, which stay to be taken."""
        for step in islice(self.upcoming, max(size - len(self._steps), 0)):
            self._steps.append(step)
            self._keys.append(_key(step))
        return list(islice(self._keys, size))

    def take(self) -> Step:
        """The next step, which was read ahead."""
        self._keys.popleft()
        return self._steps.popleft()


def _next_common_place(a: _Ahead, b: _Ahead) -> tuple[int, int]:
    """How many steps of either side come before the nearest place where both go on alike."""
    keys_a: list[Hashable] = []
    keys_b: list[Hashable] = []
    for window, size in _TRIES:
        keys_a, keys_b = a.keys(window), b.keys(window)
        places: dict[tuple[Hashable, ...], int] = {}
        for j in range(len(keys_b) - size + 1):
            places.setdefault(tuple(keys_b[j : j + size]), j)
        best: tuple[int, int] | None = None
        for i in range(len(keys_a) - size + 1):
            if best is not None and i >= sum(best):
                break
            place = places.get(tuple(keys_a[i : i + size]))
            if place is not None and (best is None or i + place < sum(best)):
                best = i, place
        if best is not None:
            return best
    return len(keys_a), len(keys_b)


def _key(step: Step) -> Hashable:
    """Steps that may be the same one, in both courses."""
    return event_label(step.event), getattr(step.event, "vcpu", None), step.by_vmm


def _how(left: Step, right: Step) -> How | None:
    if left.event is right.event and left.also == right.also:
        return None
    one, other = vars(left.event), vars(right.event)
    if one.keys() != other.keys():
        return How.ARGUMENTS
    differing = {name for name, value in one.items() if name not in _NOT_COMPARED and value != other[name]}
    if not differing:
        return None if left.also == right.also else How.OUTCOME
    return How.OUTCOME if differing <= _outcomes(left.event) else How.ARGUMENTS


def _outcomes(event: Event) -> Any:
    if isinstance(event, Mem) and event.op == "read":
        return {"data", "mask", "sum_ok"}
    return _OUTCOMES.get(type(event), frozenset())
