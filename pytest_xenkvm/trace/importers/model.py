"""What every importer takes and gives: the caller's knowledge, the trace, and an honest report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Final

from attrs import Factory, define, frozen

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Event, Header

MAX_EVENTS: Final = 2_000_000
"""A recording that gives more events is refused: a trace is held in memory as a whole."""


@frozen(kw_only=True)
class Given:
    """What the caller knows and a recording can't show; None leaves it to the importer.

    `kernel`: release of the recorded host (`uname -r`); `irqchip`: "none", "split" or "full"; `memory`:
    bytes of guest memory, one slot at 0.
    """

    kernel: str | None = None
    max_vcpus: int | None = None
    cpu_vendor: str | None = None
    irqchip: str | None = None
    memory: int | None = None


@define(kw_only=True)
class ImportReport:
    """What became of a recording's lines, and what the trace says without having seen it.

    `lines` = `used` + the sum of `skipped` (reason: lines). `lost`: events that the recorder says it
    dropped. `inferred`: events that were not recorded but are implied, by kind. `unknown`: facts that
    were assumed, estimated or left out, each with how often.
    """

    lines: int = 0
    used: int = 0
    lost: int = 0
    skipped: Counter[str] = Factory(Counter)
    events: Counter[str] = Factory(Counter)
    inferred: Counter[str] = Factory(Counter)
    unknown: Counter[str] = Factory(Counter)

    def skip(self, reason: str) -> None:
        """Count the current line as not used, for `reason`."""
        self.skipped[reason] += 1

    def count(self, events: Iterable[Event]) -> None:
        """Count the trace's events by kind."""
        for event in events:
            (self.inferred if event.inferred else self.events)[event.kind] += 1

    def lost_note(self) -> str:
        """A sentence for the trace's header about what the recorder lost, with a blank before it; or ""."""
        return f" The recorder lost {self.lost:,} events or more." if self.lost else ""

    def __str__(self) -> str:
        """A short table for people, one count a line."""
        rows = [
            (self.lines, "lines read"),
            (self.used, "used"),
            *((n, f"skipped: {reason}") for reason, n in self.skipped.most_common()),
            (self.lost, "events lost by the recorder"),
            *((n, f"events: {kind}") for kind, n in self.events.most_common()),
            *((n, f"inferred events: {kind}") for kind, n in self.inferred.most_common()),
            *((n, f"not recorded: {what}") for what, n in self.unknown.most_common()),
        ]
        return "\n".join(f"{count:>9,}  {what}" for count, what in rows)


NAMELESS: Final = "number and arguments of a forwarded hypercall (left out)"
"""What `ImportReport.unknown` calls a `Forwarded` that gave no event."""


@frozen(kw_only=True)
class Forwarded:
    """A KVM_EXIT_XEN of which the recording shows nothing but the vCPU and, maybe, the time."""

    vcpu: int
    ts: int | None


@frozen(kw_only=True)
class Imported:
    """The trace made from a recording, and how it was made.

    `forwarded`: hypercalls that are no events, since the recording doesn't name them; in order.
    """

    header: Header
    events: list[Event]
    report: ImportReport
    forwarded: tuple[Forwarded, ...] = ()


Importer = Callable[..., Imported]
"""`importer(lines, *, path, given=Given())`; raises `Malformed` with path and line number."""


def check_size(events: int, path: str, line: int) -> None:
    """Raise `Malformed` if a trace has grown beyond `MAX_EVENTS`."""
    if events > MAX_EVENTS:
        raise Malformed(f"the recording gives more than {MAX_EVENTS:,} events; cut it", path, line=line)
