"""Parts of one recording, or views of one VM, become one trace in the order of time.

What is merged must be about one VM on one host; `merged_header` says what has to agree. An event that several
inputs hold, at the same time and the same in every field, happened once: it is written once. Between inputs
only times tell the order; events of one input keep theirs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Final

from attrs import define, evolve, field, frozen

from pytest_xenkvm.trace.events import Event, Eventfd, Header, VmShape, at_time

MAX_AT_ONCE: Final = 2000
"""Events of one input at the same time: each is looked for among those of the others."""


class NotMergeable(Exception):
    """Traces that can't be one; `str()` is one sentence that names what doesn't agree."""


@frozen(kw_only=True)
class Input:
    """A trace to merge: its name for messages, header, events, and when its time 0 was (ns)."""

    name: str
    header: Header
    events: Iterable[Event]
    offset: int = 0


@define
class Merged:
    """What the inputs came to; complete when `events` has been read."""

    header: Header
    dropped_keys: tuple[str, ...]
    """Unknown keys of the header that differ, and are left out."""
    events: Iterator[Event] = field(init=False)
    written: int = 0
    repeated: int = 0
    """Events that more than one input holds."""


def merge(inputs: Sequence[Input], notes: str = "") -> Merged:
    """Merge; `notes` are put before those of the inputs. Raises NotMergeable, also while events are read."""
    header, dropped = merged_header(inputs)
    merged = Merged(evolve(header, notes="; ".join(filter(None, (notes, header.notes)))), dropped)
    merged.events = _Merging(inputs, merged).events()
    return merged


# ---- headers


def merged_header(inputs: Sequence[Input]) -> tuple[Header, tuple[str, ...]]:
    """The header of all, and unknown keys that were left out because they differ. Raises NotMergeable.

    Must be the same: scope and CPU vendor; kernel, KVM_MAX_VCPUS, and the VM's irqchip and memory, unless
    unknown in one. A VM may have fewer vCPUs in one input, but the same KVM id at each index.
    """
    first, *others = inputs
    header = first.header
    for other in others:
        for name in ("scope", "cpu_vendor"):
            _same(name, first.name, getattr(header, name), other.name, getattr(other.header, name))
        header = evolve(
            header,
            kernel=_known("kernel", header, first.name, other),
            max_vcpus=_known("max_vcpus", header, first.name, other),
            vm=_shape(header.vm, first.name, other),
        )
    headers = [each.header for each in inputs]
    keys = dict.fromkeys(key for each in headers for key in each.extra)
    kept = {key: _values(headers, key) for key in keys}
    merged = evolve(
        header,
        recorder=", ".join(dict.fromkeys(each.recorder for each in headers)),
        notes="; ".join(dict.fromkeys(each.notes for each in headers if each.notes)),
        unseen=tuple(dict.fromkeys(kind for each in headers for kind in each.unseen)),
        extra={key: values[0] for key, values in kept.items() if len(values) == 1},
    )
    return merged, tuple(key for key, values in kept.items() if len(values) > 1)


def _values(headers: Iterable[Header], key: str) -> list[Any]:
    found: list[Any] = []
    for header in headers:
        if key in header.extra and header.extra[key] not in found:
            found.append(header.extra[key])
    return found


def _same(what: str, name: str, value: object, other_name: str, other_value: object) -> None:
    if value != other_value:
        raise NotMergeable(
            f"{other_name}: its {what} is {other_value}, that of {name} is {value};"
            " both must be of one VM on one host"
        )


def _known(what: str, header: Header, name: str, other: Input) -> Any:
    value, other_value = getattr(header, what), getattr(other.header, what)
    if value is None or other_value is None:
        return other_value if value is None else value
    _same(what, name, value, other.name, other_value)
    return value


def _shape(shape: VmShape | None, name: str, other: Input) -> VmShape | None:
    found = other.header.vm
    if shape is None or found is None:
        return found if shape is None else shape
    _same("irqchip", name, shape.irqchip, other.name, found.irqchip)
    _same("memory", name, _sizes(shape), other.name, _sizes(found))
    for vcpu, other_vcpu in zip(shape.vcpus, found.vcpus, strict=False):
        _same(f"vCPU {vcpu.index}'s KVM id", name, vcpu.id, other.name, other_vcpu.id)
    return max(shape, found, key=lambda each: len(each.vcpus))


def _sizes(shape: VmShape) -> str:
    return ", ".join(f"{slot.size:#x} bytes at {slot.gpa:#x}" for slot in shape.memory) or "none"


# ---- events


@define
class _Reader:
    """One input, a run of events at the same time at once."""

    source: Input
    time: int | None = None
    """When the events of `run` happened (ns); None at the end."""
    run: list[Event] = field(factory=list)
    _upcoming: Iterator[Event] = field(init=False)
    _next: Event | None = field(init=False)
    _read: int = 0

    def __attrs_post_init__(self) -> None:
        self._upcoming = iter(self.source.events)
        self._next = next(self._upcoming, None)
        if self._next is not None and self._next.ts is None:
            raise NotMergeable(f"{self.source.name}: event 0 has no time (ts), by which traces are merged")
        self.advance()

    def advance(self) -> None:
        """Go on to the next run."""
        self.run = []
        if self._next is None:
            self.time = None
            return
        self.time = max(self.time or 0, self._at(self._next))
        while self._next is not None and self._at(self._next) <= self.time:
            ts = self._next.ts
            moved = self.source.offset and ts is not None
            self.run.append(at_time(self._next, self._at(self._next)) if moved else self._next)
            if len(self.run) > MAX_AT_ONCE:
                raise NotMergeable(
                    f"{self.source.name}: more than {MAX_AT_ONCE:,} events from event"
                    f" {self._read - MAX_AT_ONCE} on have no time of their own, by which traces are merged"
                )
            self._read += 1
            self._next = next(self._upcoming, None)

    def _at(self, event: Event) -> int:
        """When it happened; without a time, or with an earlier one, with the event before it."""
        return self.time or 0 if event.ts is None else event.ts + self.source.offset


@define
class _Merging:
    inputs: Sequence[Input]
    merged: Merged
    eventfds: dict[int, str] = field(factory=dict)
    """Who created an eventfd."""

    def events(self) -> Iterator[Event]:
        readers = [_Reader(source) for source in self.inputs]
        while True:
            times = [reader.time for reader in readers if reader.time is not None]
            if not times:
                return
            now = min(times)
            due = [reader for reader in readers if reader.time == now]
            yield from self._at_once(due)
            for reader in due:
                reader.advance()

    def _at_once(self, due: Sequence[_Reader]) -> Iterator[Event]:
        """The runs of several inputs at the same time: events of all once, around them those of each."""
        queues = [list(reversed(reader.run)) for reader in due]
        while any(queues):
            chosen = self._choose(queues)
            event = queues[chosen][-1]
            if isinstance(event, Eventfd):
                self._check_eventfd(event, due[chosen].source.name)
            for queue in queues:
                if queue and queue[-1] == event:
                    queue.pop()
                    self.merged.repeated += 1
            self.merged.repeated -= 1
            self.merged.written += 1
            yield event

    @staticmethod
    def _choose(queues: Sequence[list[Event]]) -> int:
        """Whose first event comes next: one that no other input still has to come to."""
        filled = [number for number, queue in enumerate(queues) if queue]
        if len(filled) > 1:
            for number in filled:
                event = queues[number][-1]
                if not any(event in queues[other][:-1] for other in filled if other != number):
                    return number
        return filled[0]

    def _check_eventfd(self, event: Eventfd, name: str) -> None:
        creator = self.eventfds.setdefault(event.fd, name)
        if creator != name:
            raise NotMergeable(
                f"{name}: creates eventfd {event.fd}, as {creator} does at another time;"
                " in one trace a number stands for one eventfd"
            )
