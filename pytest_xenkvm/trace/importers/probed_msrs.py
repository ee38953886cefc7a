"""The guest's write to the hypercall MSR, which makes the hypercall page and latches the guest's mode."""

from __future__ import annotations

import re
from typing import Final

from attrs import Factory, define, evolve

from pytest_xenkvm.abi.numbers import PAGE_SIZE
from pytest_xenkvm.trace.events import Wrmsr
from pytest_xenkvm.trace.importers.config import Config
from pytest_xenkvm.trace.importers.hypercalls import Modes
from pytest_xenkvm.trace.importers.lines import TraceLine
from pytest_xenkvm.trace.importers.model import ImportReport
from pytest_xenkvm.trace.importers.threads import Threads
from pytest_xenkvm.trace.importers.timeline import Timeline

_MSR: Final = re.compile(r":\s+msr_(read|write) ([0-9a-f]{1,8}) = 0x([0-9a-f]{1,16})( \(?#GP\)?)?")
_EFER: Final = 0xC0000080
EFER_LMA: Final = 1 << 10
"""Long mode is active."""


@define
class ProbedMsrs:
    """Turns kvm:kvm_msr and the probe on kvm_xen_write_hypercall_page into wrmsr events."""

    timeline: Timeline
    config: Config
    modes: Modes
    threads: Threads
    report: ImportReport
    _open: dict[int, int] = Factory(dict)
    """By thread: the slot of a write whose outcome has not been seen."""

    def write_hypercall_page(self, line: TraceLine) -> str | None:
        """KVM is writing the page. The tracepoint follows with the outcome, if it is on."""
        values = line.values("data")
        if values is None:
            return "probes that could not read their argument"
        self._open[line.pid] = self._write(line, values[0])
        return None

    def hypercall_page_written(self, line: TraceLine) -> str | None:
        """KVM has written the page (0), or refused to."""
        values = line.values("ret", bits=32, signed=True)
        slot = self._open.pop(line.pid, None)
        if values is None or slot is None:
            return "results without their call"
        self._known(slot, ok=values[0] == 0)
        return None

    def under_way(self) -> int | None:
        """Return the first slot whose outcome is still to come."""
        return min(self._open.values(), default=None)

    def give_up(self, slot: int) -> None:
        """Wait no longer for the outcome of the write in `slot`: it counts as a success."""
        self._open = {pid: waiting for pid, waiting in self._open.items() if waiting != slot}

    def msr(self, line: TraceLine) -> str | None:
        """An MSR was read or written."""
        match = _MSR.fullmatch(line.fields.rstrip())
        if match is None:
            raise line.malformed("'msr_write MSR = 0xVALUE'")
        number, value, ok = int(match[2], 16), int(match[3], 16), match[4] is None
        vcpu = self.threads.named(line)
        if vcpu is not None and number == _EFER and value & EFER_LMA and ok:
            self.modes.prove(vcpu)
            return None
        if match[1] == "read" or not number or number != self.config.msr:
            return "other MSRs"
        slot = self._open.pop(line.pid, None)
        if slot is None:
            slot = self._write(line, value)
        self._known(slot, ok=ok)
        return None

    def finish(self) -> None:
        """The recording is over: what was not seen by now is assumed."""
        for slot in self._open.values():
            event = self.timeline.slots[slot].event
            assert isinstance(event, Wrmsr)  # noqa: S101  # put there by _write
            self.config.use(event.value // PAGE_SIZE * PAGE_SIZE, PAGE_SIZE)
            self.report.unknown["outcome of a write to the hypercall MSR (success assumed)"] += 1

    def _known(self, slot: int, *, ok: bool) -> None:
        event = self.timeline.slots[slot].event
        assert isinstance(event, Wrmsr)  # noqa: S101  # put there by _write
        self.timeline.slots[slot].event = evolve(event, inferred=False, ok=ok)
        if ok:
            self.config.use(event.value // PAGE_SIZE * PAGE_SIZE, PAGE_SIZE)

    def _write(self, line: TraceLine, value: int) -> int:
        vcpu = self.threads.runner(line)
        longmode = self.modes.current(vcpu)
        self.config.long_mode = self.modes.long_mode = longmode
        event = Wrmsr(vcpu=vcpu, longmode=longmode, msr=self.config.msr, value=value, ok=True, inferred=True)
        return self.timeline.open(line.ns, event)
