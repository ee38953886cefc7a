"""The VM around the Xen ioctls: what the recording shows of it, and what has to be assumed."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

from attrs import Factory, define

from pytest_xenkvm.abi.ioctls import IOCTLS, KVM_CHECK_EXTENSION, KVM_XEN_HVM_CONFIG
from pytest_xenkvm.abi.numbers import KVM_CAP_MAX_VCPUS, PAGE_SIZE
from pytest_xenkvm.trace.events import Header, MemorySlot, VmShape
from pytest_xenkvm.trace.importers.config import Config
from pytest_xenkvm.trace.importers.ftrace_lines import TraceLine
from pytest_xenkvm.trace.importers.model import Given, ImportReport
from pytest_xenkvm.trace.importers.threads import Threads

_HEX: Final = r"(?:0x)?([0-9a-f]{1,16})"
_ENTER: Final = re.compile(rf"[:(]\s*fd: {_HEX}, cmd: {_HEX}, arg: {_HEX}\)?")
_EXIT: Final = re.compile(rf"(?: -> |:\s+){_HEX}")

_KVM_CREATE_VM: Final = 0xAE01
_KVM_CREATE_VCPU: Final = 0xAE41
_KVM_CREATE_IRQCHIP: Final = 0xAE60
_LAPIC_IOCTLS: Final = frozenset({0x8400AE8E, 0x4400AE8F})
"""KVM_GET_LAPIC and KVM_SET_LAPIC, which fail without an in-kernel local APIC."""

_PROBED: Final = frozenset(
    {"KVM_XEN_HVM_CONFIG", "KVM_XEN_HVM_SET_ATTR", "KVM_XEN_VCPU_SET_ATTR", "KVM_XEN_HVM_EVTCHN_SEND"}
)
_NAMES: Final = {request: name for name, request in IOCTLS.items() if name in _PROBED}


@define
class Machine:
    """Learns from the ioctls' entries and exits, and writes the header."""

    threads: Threads
    report: ImportReport
    given: Given
    requested: Counter[str] = Factory(Counter)
    """How often each Xen ioctl was called; a probe should have shown as many."""
    has_lapic: bool = False
    free_page: int | None = None
    """Guest pages from this number on are free; None: those above all that are known by then."""
    _requests: set[int] = Factory(set)
    _last: dict[int, tuple[int, int]] = Factory(dict)
    _max_vcpus: int | None = None

    def enter(self, line: TraceLine) -> bool:
        """An ioctl was called; return whether it says something about the VM."""
        match = _ENTER.fullmatch(line.fields.rstrip())
        if match is None:
            raise line.malformed("'fd: .., cmd: .., arg: ..'")
        request, arg = int(match[2], 16), int(match[3], 16)
        self._last[line.pid] = request, arg
        if request in _NAMES:
            self.requested[_NAMES[request]] += 1
            return True
        if request in (_KVM_CREATE_VM, _KVM_CREATE_IRQCHIP, *_LAPIC_IOCTLS):
            self._requests.add(request)
            return True
        if request == _KVM_CREATE_VCPU:
            self.threads.created(line, arg)
            return True
        return (request, arg) == (KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS)

    def leave(self, line: TraceLine) -> int | None:
        """An ioctl returned; return the result if it was KVM_XEN_HVM_CONFIG, which has no return probe."""
        match = _EXIT.fullmatch(line.fields.rstrip())
        if match is None:
            raise line.malformed("'-> RESULT'")
        result = int(match[1], 16)
        result -= result >> 63 << 64
        request, arg = self._last.pop(line.pid, (0, 0))
        if (request, arg) == (KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS) and result > 0:
            self._max_vcpus = result
        return result if request == KVM_XEN_HVM_CONFIG else None

    def header(self, config: Config, *, full: bool) -> Header:
        """Return the header; what it assumes is said in its notes."""
        notes = ["Imported from ftrace with kprobes."]
        if not full:
            notes.append("The recording began after the VM was configured, so it doesn't replay on its own.")
        vm = self._shape(config, notes) if full else None
        if self.given.cpu_vendor is None:
            self.report.unknown["cpu_vendor (amd assumed)"] += 1
        return Header(
            kernel=self.given.kernel,
            max_vcpus=self._max_vcpus if self.given.max_vcpus is None else self.given.max_vcpus,
            cpu_vendor=self.given.cpu_vendor or "amd",
            recorder="ftrace",
            scope="full" if full else "hypercalls",
            vm=vm,
            unseen=("irq", "mem"),
            notes=" ".join(notes),
        )

    def first_free_page(self, config: Config) -> int:
        """Return the number of the first guest page above all that are known."""
        if self.free_page is not None:
            return self.free_page
        given = -(-(self.given.memory or 0) // PAGE_SIZE)
        return max([given, *(page + 1 for page in config.pages)])

    def _shape(self, config: Config, notes: list[str]) -> VmShape:
        irqchip = self.given.irqchip
        if irqchip is None:
            irqchip, why = self._irqchip()
            notes.append(f"irqchip {irqchip}: {why}.")
        if not self.threads.ids:
            notes.append("KVM vCPU ids assumed to be the indexes: KVM_CREATE_VCPU was not seen.")
        return VmShape(irqchip=irqchip, memory=self._memory(config, notes), vcpus=self.threads.shapes())

    def _irqchip(self) -> tuple[str, str]:
        if _KVM_CREATE_IRQCHIP in self._requests:
            return "full", "KVM_CREATE_IRQCHIP was called"
        lapic = self.has_lapic or not self._requests.isdisjoint(_LAPIC_IOCTLS)
        from_the_start = _KVM_CREATE_VM in self._requests
        if lapic and from_the_start:
            return "split", "there was a local APIC in the kernel, and no KVM_CREATE_IRQCHIP"
        self.report.unknown["irqchip"] += 1
        if lapic:
            return "split", "assumed; there was a local APIC in the kernel"
        return "none", "assumed; no local APIC was seen"

    def _memory(self, config: Config, notes: list[str]) -> tuple[MemorySlot, ...]:
        invented = config.invented(self.first_free_page(config))
        if invented:
            notes.append("Host addresses that the kernel accepted are given pages above all other memory.")
        if self.given.memory is not None:
            return MemorySlot(gpa=0, size=self.given.memory), *invented
        notes.append("Memory is not recorded: the slots hold just the pages that the kernel accepted.")
        return *config.slots(), *invented
