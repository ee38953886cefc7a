"""The events in order, and between them the guest's stores that later outcomes imply.

The guest's memory is not recorded, but the kernel's answers say what single bits of it were. Each slot
of the timeline may therefore ask for bits as the guest must have left them (`imply`), and note bits that
the kernel set itself (`set_by_kernel`). When the timeline is flattened, one pass follows every byte: a bit
that is not as asked costs an inferred one-byte store, which leaves the byte's other bits as a replay has
them at that point.

A live recording settles slots as it goes on: they leave the timeline for good, and what is asked for them
afterwards is asked for as early as still possible.
"""

from __future__ import annotations

from collections.abc import Iterator

from attrs import Factory, define

from pytest_xenkvm.trace.events import Event, Mem, at_time

Bit = tuple[int, int]
"""A bit of guest memory: (gpa of its byte, bit 0 ... 7)."""


@define
class Slot:
    """A moment: at most one event, what must be true before it and what the kernel did after it.

    `ns` is the trace clock; `first`: events that the slot's event stands on.
    """

    ns: int
    event: Event | None = None
    first: list[Event] = Factory(list)
    asked: list[tuple[Bit, bool]] = Factory(list)
    kernel_set: list[Bit] = Factory(list)


@define
class Timeline:
    """Slots in the order of the recording, by their numbers; settled ones are gone."""

    slots: dict[int, Slot] = Factory(dict)
    end: int = 0
    """The number that the next slot will have."""
    _now: int = 0
    _start: int | None = None
    _memory: dict[int, int] = Factory(dict)
    """Bytes of guest memory as the settled slots have left them."""
    _last: dict[Bit, int] = Factory(dict)
    """Where a bit was last spoken of: twice the slot's number if before its event, and 1 more if after."""

    def open(self, ns: int, event: Event | None = None) -> int:
        """Append a slot and return its number. A trace clock that went backwards stands still."""
        self._now = max(ns, self._now)
        self.slots[self.end] = Slot(self._now, event)
        self.end += 1
        return self.end - 1

    def imply(self, bit: Bit, slot: int | None, ns: int, *, value: bool) -> None:
        """Ask that `bit` was `value` before `slot`, or before now (`ns`) if there it was spoken of since."""
        if slot is None or 2 * slot < self._last.get(bit, 0):
            slot = self.open(ns)
        elif slot not in self.slots:
            slot = next(iter(self.slots), None)
            slot = self.open(ns) if slot is None else slot
        self.slots[slot].asked.append((bit, value))
        self._last[bit] = 2 * slot

    def set_by_kernel(self, bit: Bit, slot: int) -> None:
        """The kernel set `bit` because of what happened in `slot`."""
        slot = max(slot, self._last.get(bit, 0) // 2)
        self.slots[slot].kernel_set.append(bit)
        self._last[bit] = 2 * slot + 1

    def settle(self, before: int) -> Iterator[Event]:
        """Drop the slots with numbers below `before`; yield their events, the implied stores among them.

        `ts` is in ns since the first event of all.
        """
        while self.slots and (number := next(iter(self.slots))) < before:
            slot = self.slots.pop(number)
            happened = [*slot.first, *_stores(slot, self._memory), *([slot.event] if slot.event else [])]
            if happened and self._start is None:
                self._start = slot.ns
            yield from (at_time(event, slot.ns - (self._start or 0)) for event in happened)
            for gpa, bit in slot.kernel_set:
                self._memory[gpa] = self._memory.get(gpa, 0) | 1 << bit

    def flatten(self) -> list[Event]:
        """Return all events that are left."""
        return list(self.settle(self.end))


def _stores(slot: Slot, memory: dict[int, int]) -> list[Event]:
    stores: list[Event] = []
    for (gpa, bit), value in slot.asked:
        byte = memory.get(gpa, 0)
        wanted = byte | 1 << bit if value else byte & ~(1 << bit)
        if wanted != byte:
            memory[gpa] = wanted
            stores.append(Mem(op="write", gpa=gpa, data=bytes([wanted]), inferred=True))
    return stores
