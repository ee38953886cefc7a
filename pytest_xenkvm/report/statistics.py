"""What a trace is made of: hypercalls and who answered them, vCPUs, timers, attributes, rates.

Read in one pass with bounded memory. Of timers, what the kernel does is told as the trace shows it: one that
was armed for a time relative to the guest's clock fires then, unless it is stopped or armed anew before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from typing import Any, Final

from attrs import define, field, frozen

from pytest_xenkvm.report.rates import Rates
from pytest_xenkvm.report.timeline_state import Arming, VmState
from pytest_xenkvm.trace.decode import has_failed
from pytest_xenkvm.trace.events import Event, Header, Hypercall, Ioctl
from pytest_xenkvm.trace.labels import call_label, event_label

MAX_NAMES: Final = 1000
"""Names that are counted apart: a hostile trace may hold any number of hypercall numbers."""
OTHERS: Final = "(others)"

_STOPPING: Final = frozenset({"VCPUOP_stop_singleshot_timer"})
_NS_PER_S: Final = 1_000_000_000


@frozen
class Forwarded:
    """The key under which rates count hypercalls that were forwarded."""


FORWARDED: Final = Forwarded()
HYPERCALLS: Final = "hypercalls"
EVENTS: Final = "events"


@define
class Timers:
    """What became of a vCPU's timer."""

    armed: int = 0
    fired: int = 0
    stopped: int = 0
    forwarded: int = 0
    """Timer hypercalls that the VMM had to answer."""


@define
class Statistics:
    """Counts of one trace; `see` each of its events in order."""

    header: Header
    events: int = 0
    inferred: int = 0
    first: int | None = None
    """Time of the first event that has one (ns)."""
    kinds: Counter[str] = field(factory=Counter)
    hypercalls: dict[str, Counter[str]] = field(factory=dict)
    """By name: count, kernel, forwarded, unknown, failed."""
    ioctls: dict[str, Counter[str]] = field(factory=dict)
    """By name, with the attribute: count, failed."""
    vcpus: dict[int, Counter[str]] = field(factory=dict)
    """By index: events, hypercalls, forwarded, irqs."""
    timers: dict[int, Timers] = field(factory=dict)
    rates: Rates = field(factory=Rates)
    _state: VmState = field(init=False)
    _now: int = 0

    def __attrs_post_init__(self) -> None:
        self._state = VmState.of(self.header)

    @property
    def seconds(self) -> float:
        """From the first event with a time to the last."""
        return 0.0 if self.first is None else (self._now - self.first) / _NS_PER_S

    def see(self, event: Event) -> None:
        """Count an event."""
        if event.ts is not None:
            self.first = event.ts if self.first is None else self.first
            self._now = max(self._now, event.ts)
        self.events += 1
        self.inferred += event.inferred
        self.kinds[event.kind] += 1
        self._rate(EVENTS)
        for expiry in self._state.expired(self._now):
            self._timers(expiry.vcpu).fired += 1
        vcpu = getattr(event, "vcpu", None)
        if vcpu is not None:
            whose = self.vcpus.setdefault(vcpu, Counter())
            whose["events"] += 1
            whose["irqs"] += event.kind == "irq"
        if isinstance(event, Hypercall):
            self._see_call(event)
        elif isinstance(event, Ioctl):
            row = _row(self.ioctls, event_label(event))
            row["count"] += 1
            row["failed"] += has_failed(event)
            if event.vcpu is not None:
                self._see_arming(event.vcpu, self._state.ioctl(event, self.events, self._now))
            else:
                self._state.ioctl(event, self.events, self._now)

    def _see_call(self, event: Hypercall) -> None:
        label = call_label(event)
        answered = {"kernel": "kernel", "userspace": "forwarded"}.get(event.handled or "", "unknown")
        row = _row(self.hypercalls, label)
        row["count"] += 1
        row[answered] += 1
        row["failed"] += has_failed(event)
        whose = self.vcpus[event.vcpu]
        whose["hypercalls"] += 1
        whose["forwarded"] += answered == "forwarded"
        self._rate(HYPERCALLS)
        self._rate(label if label in self.hypercalls else OTHERS)
        if answered == "forwarded":
            self._rate(FORWARDED)
        if label in TIMER_CALLS:
            self._timers(event.vcpu).forwarded += answered == "forwarded"
            self._see_arming(event.vcpu, self._state.hypercall(event, self.events, self._now))
            if label in _STOPPING and answered == "kernel" and not has_failed(event):
                self._timers(event.vcpu).stopped += 1

    def _see_arming(self, vcpu: int, arming: Arming | None) -> None:
        if arming is not None:
            self._timers(vcpu).armed += 1

    def _timers(self, vcpu: int) -> Timers:
        return self.timers.setdefault(vcpu, Timers())

    def _rate(self, what: Hashable) -> None:
        if self.first is not None:
            self.rates.count(what, max(self._now - self.first, 0))

    def as_json(self) -> dict[str, Any]:
        """All of it, as a JSON-serialisable object; times in ns."""
        return {
            "events": self.events,
            "inferred": self.inferred,
            "seconds": self.seconds,
            "kinds": dict(self.kinds.most_common()),
            "hypercalls": [
                {"name": name, **_full(row, CALL_COLUMNS)} for name, row in ranked(self.hypercalls)
            ],
            "ioctls": [{"name": name, **_full(row, IOCTL_COLUMNS)} for name, row in ranked(self.ioctls)],
            "vcpus": [
                {
                    "vcpu": vcpu,
                    **_full(row, VCPU_COLUMNS),
                    "timers": timers_json(self.timers.get(vcpu, Timers())),
                }
                for vcpu, row in sorted(self.vcpus.items())
            ],
            "rates": {
                "interval_ns": self.rates.width,
                "events": self.rates.bins(EVENTS),
                "hypercalls": self.rates.bins(HYPERCALLS),
                "forwarded": self.rates.bins(FORWARDED),
            },
        }


CALL_COLUMNS: Final = ("count", "kernel", "forwarded", "unknown", "failed")
IOCTL_COLUMNS: Final = ("count", "failed")
VCPU_COLUMNS: Final = ("events", "hypercalls", "forwarded", "irqs")
TIMER_CALLS: Final = frozenset({*_STOPPING, "VCPUOP_set_singleshot_timer", "set_timer_op"})


def timers_json(timers: Timers) -> dict[str, int]:
    """What became of a vCPU's timer, by name."""
    return {
        "armed": timers.armed,
        "fired": timers.fired,
        "stopped": timers.stopped,
        "forwarded": timers.forwarded,
    }


def ranked(rows: dict[str, Counter[str]]) -> list[tuple[str, Counter[str]]]:
    """The most frequent first."""
    return sorted(rows.items(), key=lambda row: (-row[1]["count"], row[0]))


def _row(rows: dict[str, Counter[str]], label: str) -> Counter[str]:
    if label not in rows and len(rows) >= MAX_NAMES:
        label = OTHERS
    return rows.setdefault(label, Counter())


def _full(row: Counter[str], columns: tuple[str, ...]) -> dict[str, int]:
    return {column: row[column] for column in columns}
