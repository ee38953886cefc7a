"""Lines with kvm:kvm_xen_hypercall and perhaps kvm:kvm_userspace_exit: scope "hypercalls"."""

from __future__ import annotations

from collections.abc import Iterable

from attrs import Factory, define, evolve

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Event, Header, Hypercall
from pytest_xenkvm.trace.importers.ftrace_lines import FTRACE
from pytest_xenkvm.trace.importers.given import check_header, given_shape
from pytest_xenkvm.trace.importers.hypercalls import (
    HypercallMaker,
    Modes,
    args_trusted,
    exit_of,
    is_xen_exit,
    parse_call,
)
from pytest_xenkvm.trace.importers.lines import Syntax, TraceLine, read_lines
from pytest_xenkvm.trace.importers.model import Given, Imported, ImportReport, check_size
from pytest_xenkvm.trace.importers.threads import Threads


@define
class _Reader:
    """The events so far, and each thread's last hypercall that no exit has followed yet."""

    maker: HypercallMaker
    threads: Threads
    report: ImportReport
    events: list[Hypercall] = Factory(list)
    _start: int = 0
    _now: int = 0
    """Time of the last event; a clock that went backwards stands still."""
    _waiting: dict[int, int] = Factory(dict)

    def take(self, line: TraceLine) -> None:
        """Take one line of the recording."""
        if line.event == "kvm_xen_hypercall":
            self._call(line)
        elif line.event == "kvm_userspace_exit":
            self._exit(line)
        else:
            self.report.skip("other events")

    def _call(self, line: TraceLine) -> None:
        if not self.events:
            self._start = line.ns
        self._now = max(self._now, line.ns - self._start)
        self._waiting[line.pid] = len(self.events)
        self.events.append(self.maker.make(self.threads.runner(line), parse_call(line), self._now))
        self.report.used += 1
        check_size(len(self.events), line.path, line.number)

    def _exit(self, line: TraceLine) -> None:
        index = self._waiting.get(line.pid)
        if not is_xen_exit(line):
            self.report.skip("exits to userspace that are no KVM_EXIT_XEN")
        elif index is None:
            self.report.skip("KVM_EXIT_XEN without its hypercall")
        else:
            del self._waiting[line.pid]
            call = self.events[index]
            self.events[index] = evolve(call, handled="userspace", exit=exit_of(call))
            self.report.used += 1


def import_ftrace(
    lines: Iterable[str], *, path: str, given: Given | None = None, syntax: Syntax = FTRACE
) -> Imported:
    """Import the hypercalls of a plain ftrace, or of the same events in another recorder's `syntax`.

    `handled` is "userspace" or unknown, `rax` unknown.
    Raises `Malformed` for a line that is not what its event prints.
    """
    given = given or Given()
    report = ImportReport()
    maker = HypercallMaker(Modes(report), report, args_trusted(given.kernel))
    reader = _Reader(maker, Threads(report), report)
    for line in read_lines(lines, path, report, syntax):
        reader.take(line)
    header = Header(
        kernel=given.kernel,
        max_vcpus=given.max_vcpus,
        cpu_vendor=given.cpu_vendor or "amd",
        recorder=syntax.recorder,
        scope="hypercalls",
        vm=given_shape(path, given, reader.events),
        unseen=("irq", "mem"),
        notes=f"Imported from {syntax.recorder}'s kvm_xen_hypercall: no configuration, no results."
        + report.lost_note(),
    )
    events: list[Event] = [*reader.events]
    if not events:
        raise Malformed("no hypercall found, expected events kvm_xen_hypercall", path)
    check_header(path, header, events)
    report.count(events)
    return Imported(header=header, events=events, report=report)
