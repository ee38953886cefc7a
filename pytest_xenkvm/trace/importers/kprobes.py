"""Lines with the kprobe events on KVM's Xen code (docs/reference/importers.md): scope "full".

An ioctl or hypercall takes its place in the trace where it began; what its return probe shows is filled
in later. Only what a probe or tracepoint showed becomes an event, except inferred ones.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Final

from attrs import define

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Event
from pytest_xenkvm.trace.importers.clock import GuestClock
from pytest_xenkvm.trace.importers.config import Config
from pytest_xenkvm.trace.importers.deliveries import Deliveries
from pytest_xenkvm.trace.importers.ftrace_lines import FTRACE
from pytest_xenkvm.trace.importers.given import check_header
from pytest_xenkvm.trace.importers.hypercalls import HypercallMaker, Modes, args_trusted, is_xen_exit
from pytest_xenkvm.trace.importers.lines import Syntax, TraceLine, read_lines
from pytest_xenkvm.trace.importers.machine import Machine
from pytest_xenkvm.trace.importers.model import Given, Imported, ImportReport, check_size
from pytest_xenkvm.trace.importers.probed_calls import ProbedCalls
from pytest_xenkvm.trace.importers.probed_ioctls import ProbedIoctls
from pytest_xenkvm.trace.importers.probed_msrs import EFER_LMA, ProbedMsrs
from pytest_xenkvm.trace.importers.probed_vm import INVENTED_PAGES, ProbedVm
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
    "hvm_get_attr": "attributes read (only their type was probed)",
    "vcpu_get_attr": "attributes read (only their type was probed)",
    "setup_evtchn": "GSI routes (the probe doesn't see all of them)",
    "complete_userspace": _INSIDE,
    "inject_pending_events": _INSIDE,
    "inject_timer_irqs": _INSIDE,
    "shared_info_init": _INSIDE,
    "kvm_pvclock_update": _CLOCKS,
    "kvm_track_tsc": _CLOCKS,
    "kvm_update_master_clock": _CLOCKS,
    "kvm_write_tsc_offset": _CLOCKS,
}
"""Events that are known and give nothing, with the reason."""


@define
class KprobeImport:
    """One import under way: every line goes to the part that understands its event."""

    timeline: Timeline
    config: Config
    clock: GuestClock
    machine: Machine
    ioctls: ProbedIoctls
    calls: ProbedCalls
    msrs: ProbedMsrs
    deliveries: Deliveries
    maker: HypercallMaker
    threads: Threads
    vm: ProbedVm
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

    def _enter_ioctl(self, line: TraceLine) -> str | None:
        return None if self.machine.enter(line) else "ioctls that are not Xen's"

    def _leave_ioctl(self, line: TraceLine) -> str | None:
        ret = self.machine.leave(line)
        if ret is None:
            return "results of ioctls that are not Xen's"
        self.ioctls.hvm_config_returned(line, ret)
        return None

    def _sys_ioctl(self, line: TraceLine) -> str | None:
        entered = line.fields.startswith("(")
        return self._enter_ioctl(line) if entered else self._leave_ioctl(line)

    def _hvm_config(self, line: TraceLine) -> str | None:
        if self.config_slot is None:
            self.config_slot = len(self.timeline.slots)
        return self.ioctls.hvm_config(line)

    def _start_timer(self, line: TraceLine) -> str | None:
        ioctl = self.ioctls.under_way(line)
        return self.calls.start_timer(line, vcpu=ioctl.event.vcpu if ioctl else None)

    def _timer_expires(self, line: TraceLine) -> str | None:
        return self.calls.timer_set(line, self.ioctls.under_way(line))

    def _userspace_exit(self, line: TraceLine) -> str | None:
        return self.calls.forwarded(line) if is_xen_exit(line) else "exits to userspace that are not Xen's"

    def _hypercall_enter(self, line: TraceLine) -> str | None:
        values = line.values("efer")
        if values is not None:
            self.maker.modes.told(self.threads.runner(line), longmode=bool(values[0] & EFER_LMA))
        return None

    def _hypercall_page(self, line: TraceLine) -> str | None:
        if line.value("efer") is not None:
            self._hypercall_enter(line)
        return self.msrs.write_hypercall_page(line)

    def _upcall(self, line: TraceLine) -> str | None:
        return None if self.deliveries.upcall(line) else _INTERRUPTS

    def _delivery(self, line: TraceLine) -> str | None:
        return None if self.deliveries.begin(line) else "probes that could not read their argument"

    def _delivered(self, line: TraceLine) -> str | None:
        cause = self.calls.under_way(line) or self.ioctls.under_way(line) or self.vm.under_way(line)
        return None if self.deliveries.end(line, cause) else "results without their call"

    def _interrupt(self, line: TraceLine) -> str | None:
        match = _ACCEPTED.fullmatch(line.fields)
        if match is None:
            raise line.malformed("'apicid ID vec VECTOR'")
        self.machine.has_lapic = True
        upcall = self.deliveries.interrupt(int(match[1], 16), int(match[2]), line)
        return None if upcall else _INTERRUPTS

    def settle(self, ns: int, *, held: int, full: bool) -> Iterator[Event]:
        """Yield, and forget, the events before trace time `ns` that nothing to come can change.

        If an outcome that is still to come holds back more than `held` moments, it counts as lost. `full`:
        whether the trace is to have scope "full".
        """
        slots = self.timeline.slots
        before = next((number for number, slot in slots.items() if slot.ns >= ns), self.timeline.end)
        while (waiting := self._first_waiting(before)) < before and len(slots) > held:
            self.ioctls.give_up(waiting)
            self.msrs.give_up(waiting)
            self.vm.give_up(waiting)
            self.calls.give_up(waiting, full=full)
        self._resolve(waiting, full=full)
        self.clock.forget(ns)
        yield from self.timeline.settle(waiting)

    def finish(self, *, full: bool) -> Iterator[Event]:
        """The recording is over: yield the events that are left."""
        self.calls.finish(full=full)
        self.msrs.finish()
        self.ioctls.finish(intercepted=self.calls.first_slot is not None)
        yield from self.timeline.settle(self.timeline.end)

    def _first_waiting(self, before: int) -> int:
        waiting = (self.calls.waiting(), self.ioctls.waiting(), self.msrs.under_way(), self.vm.waiting())
        return min([before, *(slot for slot in waiting if slot is not None)])

    def _resolve(self, before: int, *, full: bool) -> None:
        self.calls.resolve(before, full=full)
        self.ioctls.resolve(before)

    def imported(self) -> Imported:
        """The recording is over."""
        first = self.calls.first_slot
        full = self.config_slot is not None and (first is None or self.config_slot < first)
        events = list(self.finish(full=full))
        header = self.machine.header(self.config, full=full)
        if not events:
            raise Malformed("neither hypercall nor Xen ioctl found, expected their probes", self.machine.path)
        check_header(self.machine.path, header, events)
        self.report.count(events)
        return Imported(header=header, events=events, report=self.report)


_Handler = Callable[[KprobeImport, TraceLine], str | None]
"""Returns why the line is skipped, or None if it is used."""

_HANDLERS: Final[Mapping[str, _Handler]] = {
    "sys_ioctl": lambda self, line: self._sys_ioctl(line),
    "sys_enter_ioctl": lambda self, line: self._enter_ioctl(line),
    "sys_exit_ioctl": lambda self, line: self._leave_ioctl(line),
    "hvm_config": lambda self, line: self._hvm_config(line),
    "hvm_config_ret": lambda self, line: self.ioctls.config_returned(line),
    "hvm_set_attr": lambda self, line: self.ioctls.hvm_set_attr(line),
    "hvm_set_attr_ret": lambda self, line: self.ioctls.returned(line),
    "vcpu_set_attr": lambda self, line: self.ioctls.vcpu_set_attr(line),
    "vcpu_set_attr_ret": lambda self, line: self.ioctls.returned(line),
    "hvm_evtchn_send": lambda self, line: self.ioctls.hvm_evtchn_send(line),
    "hvm_evtchn_send_ret": lambda self, line: self.ioctls.returned(line),
    "kvm_xen_hypercall": lambda self, line: self.calls.called(line),
    "hypercall_enter": lambda self, line: self._hypercall_enter(line),
    "hypercall_ret": lambda self, line: self.calls.returned(line),
    "hypercall_answered": lambda self, line: self.calls.answered(line),
    "kvm_userspace_exit": lambda self, line: self._userspace_exit(line),
    "guest_read": lambda self, line: self.calls.guest_read(line),
    "start_timer": lambda self, line: self._start_timer(line),
    "timer_expires": lambda self, line: self._timer_expires(line),
    "set_evtchn_fast": lambda self, line: self._delivery(line),
    "set_evtchn_fast_ret": lambda self, line: self._delivered(line),
    "inject_vcpu_vector": lambda self, line: self._upcall(line),
    "kvm_apic_accept_irq": lambda self, line: self._interrupt(line),
    "kvm_msr": lambda self, line: self.msrs.msr(line),
    "write_hypercall_page": lambda self, line: self._hypercall_page(line),
    "write_hypercall_page_ret": lambda self, line: self.msrs.hypercall_page_written(line),
    "hvm_get_attr_ret": lambda self, line: self.ioctls.hvm_got_attr(line),
    "vcpu_get_attr_ret": lambda self, line: self.ioctls.vcpu_got_attr(line),
    "vm_ioctl": lambda self, line: self.vm.enter(line),
    "vm_ioctl_ret": lambda self, line: self.vm.leave(line),
    "xen_route": lambda self, line: self.vm.route(line),
    "vcpu_created": lambda self, line: self.vm.vcpu_created(line),
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
    report = ImportReport()
    importer = kprobe_import(report, given or Given(), path=path, recorder=syntax.recorder)
    for line in read_lines(lines, path, report, syntax):
        importer.take(line)
        check_size(importer.timeline.end, line.path, line.number)
    return importer.imported()


def kprobe_import(
    report: ImportReport, given: Given, *, path: str, recorder: str, live: bool = False
) -> KprobeImport:
    """Return an import, of what `recorder` wrote to `path`, that has seen nothing yet.

    `live`: the recorder's own probes, which also show the VM's memory and when the host's timers expire;
    their events are handed over while the recording goes on (`KprobeImport.settle`).
    """
    timeline, config, clock = Timeline(), Config(), GuestClock()
    threads, modes = Threads(report), Modes(report)
    machine = Machine(threads, report, given, path, recorder, free_page=INVENTED_PAGES if live else None)
    deliveries = Deliveries(config, threads, timeline, clock, report)
    maker = HypercallMaker(modes, report, args_trusted(given.kernel))
    return KprobeImport(
        timeline=timeline,
        config=config,
        clock=clock,
        machine=machine,
        ioctls=ProbedIoctls(timeline, config, modes, threads, machine, report),
        calls=ProbedCalls(
            timeline, config, maker, threads, deliveries, clock, report, is_delta=False if live else None
        ),
        msrs=ProbedMsrs(timeline, config, modes, threads, report),
        deliveries=deliveries,
        maker=maker,
        threads=threads,
        vm=ProbedVm(timeline, config, threads, report),
        report=report,
    )
