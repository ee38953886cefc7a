"""Lines with the kprobe events on KVM's Xen code (docs/reference/importers.md): scope "full".

An ioctl or hypercall takes its place in the trace where it began; what its return probe shows is filled
in later. Only what a probe or tracepoint showed becomes an event, except inferred ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from attrs import define

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.importers.clock import GuestClock
from pytest_xenkvm.trace.importers.config import Config
from pytest_xenkvm.trace.importers.deliveries import Deliveries
from pytest_xenkvm.trace.importers.ftrace_lines import FTRACE
from pytest_xenkvm.trace.importers.given import check_header
from pytest_xenkvm.trace.importers.hypercalls import HypercallMaker, Modes, args_trusted
from pytest_xenkvm.trace.importers.lines import Syntax, TraceLine, read_lines
from pytest_xenkvm.trace.importers.machine import Machine
from pytest_xenkvm.trace.importers.model import Given, Imported, ImportReport, check_size
from pytest_xenkvm.trace.importers.probed_calls import ProbedCalls
from pytest_xenkvm.trace.importers.probed_ioctls import ProbedIoctls
from pytest_xenkvm.trace.importers.probed_msrs import ProbedMsrs
from pytest_xenkvm.trace.importers.threads import Threads
from pytest_xenkvm.trace.importers.timeline import Timeline

_ACCEPTED: Final = re.compile(r":\s+apicid ([0-9a-f]{1,8}) vec (\d{1,3})\b.*")

_INTERRUPTS: Final = "interrupts and wake-ups"
_INSIDE: Final = "steps inside the kernel that no event stands for"
_CLOCKS: Final = "the host's clock"
_SKIPPED: Final[Mapping[str, str]] = {
    "kvm_inj_virq": _INTERRUPTS,
    "kvm_msi_set_irq": _INTERRUPTS,
    "kvm_set_irq": _INTERRUPTS,
    "kvm_vcpu_wakeup": _INTERRUPTS,
    "kvm_userspace_exit": "exits to userspace (hypercall_ret tells those that matter)",
    "hvm_get_attr": "attributes read (only their type was probed)",
    "vcpu_get_attr": "attributes read (only their type was probed)",
    "setup_evtchn": "GSI routes (the probe doesn't see all of them)",
    "complete_userspace": _INSIDE,
    "inject_pending_events": _INSIDE,
    "inject_timer_irqs": _INSIDE,
    "inject_vcpu_vector": _INSIDE,
    "shared_info_init": _INSIDE,
    "kvm_pvclock_update": _CLOCKS,
    "kvm_track_tsc": _CLOCKS,
    "kvm_update_master_clock": _CLOCKS,
    "kvm_write_tsc_offset": _CLOCKS,
}
"""Events that are known and give nothing, with the reason."""


@define
class _Importer:
    """One import under way: every line goes to the part that understands its event."""

    timeline: Timeline
    config: Config
    clock: GuestClock
    machine: Machine
    ioctls: ProbedIoctls
    calls: ProbedCalls
    msrs: ProbedMsrs
    deliveries: Deliveries
    report: ImportReport
    config_slot: int | None = None

    def take(self, line: TraceLine) -> None:
        """Take one event of the recording."""
        handler = _HANDLERS.get(line.event)
        reason = _SKIPPED.get(line.event, "other events") if handler is None else handler(self, line)
        if reason is None:
            self.report.used += 1
        else:
            self.report.skip(reason)
        check_size(len(self.timeline.slots), line.path, line.number)

    def enter_ioctl(self, line: TraceLine) -> str | None:
        return None if self.machine.enter(line) else "ioctls that are not Xen's"

    def leave_ioctl(self, line: TraceLine) -> str | None:
        ret = self.machine.leave(line)
        if ret is None:
            return "results of ioctls that are not Xen's"
        self.ioctls.hvm_config_returned(line, ret)
        return None

    def sys_ioctl(self, line: TraceLine) -> str | None:
        entered = line.fields.startswith("(")
        return self.enter_ioctl(line) if entered else self.leave_ioctl(line)

    def hvm_config(self, line: TraceLine) -> str | None:
        if self.config_slot is None:
            self.config_slot = len(self.timeline.slots)
        return self.ioctls.hvm_config(line)

    def start_timer(self, line: TraceLine) -> str | None:
        ioctl = self.ioctls.under_way(line)
        return self.calls.start_timer(line, vcpu=ioctl.event.vcpu if ioctl else None)

    def delivery(self, line: TraceLine) -> str | None:
        return None if self.deliveries.begin(line) else "probes that could not read their argument"

    def delivered(self, line: TraceLine) -> str | None:
        cause = self.calls.under_way(line) or self.ioctls.under_way(line)
        return None if self.deliveries.end(line, cause) else "results without their call"

    def interrupt(self, line: TraceLine) -> str | None:
        match = _ACCEPTED.fullmatch(line.fields)
        if match is None:
            raise line.malformed("'apicid ID vec VECTOR'")
        self.machine.has_lapic = True
        upcall = self.deliveries.interrupt(int(match[1], 16), int(match[2]), line)
        return None if upcall else _INTERRUPTS

    def imported(self) -> Imported:
        """The recording is over."""
        first = self.calls.first_slot
        full = self.config_slot is not None and (first is None or self.config_slot < first)
        self.calls.finish(full=full)
        self.msrs.finish()
        self.ioctls.finish(intercepted=first is not None)
        header = self.machine.header(self.config, full=full)
        events = self.timeline.flatten()
        if not events:
            raise Malformed("neither hypercall nor Xen ioctl found, expected their probes", self.machine.path)
        check_header(self.machine.path, header, events)
        self.report.count(events)
        return Imported(header=header, events=events, report=self.report)


_Handler = Callable[[_Importer, TraceLine], str | None]
"""Returns why the line is skipped, or None if it is used."""

_HANDLERS: Final[Mapping[str, _Handler]] = {
    "sys_ioctl": _Importer.sys_ioctl,
    "sys_enter_ioctl": _Importer.enter_ioctl,
    "sys_exit_ioctl": _Importer.leave_ioctl,
    "hvm_config": _Importer.hvm_config,
    "hvm_set_attr": lambda self, line: self.ioctls.hvm_set_attr(line),
    "hvm_set_attr_ret": lambda self, line: self.ioctls.returned(line),
    "vcpu_set_attr": lambda self, line: self.ioctls.vcpu_set_attr(line),
    "vcpu_set_attr_ret": lambda self, line: self.ioctls.returned(line),
    "hvm_evtchn_send": lambda self, line: self.ioctls.hvm_evtchn_send(line),
    "hvm_evtchn_send_ret": lambda self, line: self.ioctls.returned(line),
    "kvm_xen_hypercall": lambda self, line: self.calls.called(line),
    "hypercall_ret": lambda self, line: self.calls.returned(line),
    "start_timer": _Importer.start_timer,
    "set_evtchn_fast": _Importer.delivery,
    "set_evtchn_fast_ret": _Importer.delivered,
    "kvm_apic_accept_irq": _Importer.interrupt,
    "kvm_msr": lambda self, line: self.msrs.msr(line),
    "write_hypercall_page": lambda self, line: self.msrs.write_hypercall_page(line),
}

PROBES: Final = frozenset({"hvm_config", "hvm_set_attr", "vcpu_set_attr", "hvm_evtchn_send", "hypercall_ret"})
"""Events by which a recording shows that these probes were on."""


def import_kprobes(
    lines: Iterable[str], *, path: str, given: Given | None = None, syntax: Syntax = FTRACE
) -> Imported:
    """Import configuration, hypercalls and results from the kprobe events, in ftrace's or another `syntax`.

    The scope is "full" if the recording holds the VM's configuration, else "hypercalls". Raises
    `Malformed` for a line that is not what its event prints, and for a recording of two VMs.
    """
    given = given or Given()
    report = ImportReport()
    timeline, config, clock = Timeline(), Config(), GuestClock()
    threads, modes = Threads(report), Modes(report)
    machine = Machine(threads, report, given, path, syntax.recorder)
    deliveries = Deliveries(config, threads, timeline, clock, report)
    maker = HypercallMaker(modes, report, args_trusted(given.kernel))
    importer = _Importer(
        timeline=timeline,
        config=config,
        clock=clock,
        machine=machine,
        ioctls=ProbedIoctls(timeline, config, modes, threads, machine, report),
        calls=ProbedCalls(timeline, config, maker, threads, deliveries, clock, report),
        msrs=ProbedMsrs(timeline, config, modes, threads, report),
        deliveries=deliveries,
        report=report,
    )
    for line in read_lines(lines, path, report, syntax):
        importer.take(line)
    return importer.imported()
