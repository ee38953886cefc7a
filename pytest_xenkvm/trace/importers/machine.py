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
from pytest_xenkvm.trace.importers.given import check_memory, contradiction, settled
from pytest_xenkvm.trace.importers.lines import TraceLine
from pytest_xenkvm.trace.importers.model import Given, ImportReport
from pytest_xenkvm.trace.importers.threads import Threads

_HEX: Final = r"(?:0x)?([0-9a-f]{1,16})"
_ENTER: Final = re.compile(rf"[:(]\s*fd: {_HEX}, cmd: {_HEX}, arg: {_HEX}\)?")
_EXIT: Final = re.compile(rf"(?: -> |:\s+){_HEX}")

_TYPE_SHIFT: Final = 8
_TYPE_MASK: Final = 0xFF
_KVM_TYPE: Final = 0xAE
"""The type of KVM's requests: bits 8 to 15."""

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
    path: str
    recorder: str
    requested: Counter[str] = Factory(Counter)
    """How often each Xen ioctl was called; a probe should have shown as many."""
    has_lapic: bool = False
    free_page: int | None = None
    """Guest pages from this number on are free; None: those above all that are known by then."""
    _requests: set[int] = Factory(set)
    _last: dict[int, tuple[int, int]] = Factory(dict)
    _creating: dict[int, int] = Factory(dict)
    """By thread: the vCPU that it is creating."""
    _max_vcpus: int | None = None

    def enter(self, line: TraceLine) -> bool:
        """An ioctl was called; return whether it says something about the VM."""
        match = _ENTER.fullmatch(line.fields.rstrip())
        if match is None:
            raise line.malformed("'fd: .., cmd: .., arg: ..'")
        fd, request, arg = (int(number, 16) for number in match.groups())
        self._last[line.pid] = request, arg
        if request >> _TYPE_SHIFT & _TYPE_MASK == _KVM_TYPE:
            self.threads.uses(line, fd)
        if request in _NAMES:
            self.requested[_NAMES[request]] += 1
            return True
        if request in (_KVM_CREATE_VM, _KVM_CREATE_IRQCHIP, *_LAPIC_IOCTLS):
            self._requests.add(request)
            return True
        if request == _KVM_CREATE_VCPU:
            self._creating[line.pid] = self.threads.created(line, arg)
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
        if request == _KVM_CREATE_VCPU:
            self._created(self._creating.pop(line.pid), result)
        return result if request == KVM_XEN_HVM_CONFIG else None

    def _created(self, index: int, fd: int) -> None:
        if fd >= 0:
            self.threads.has_fd(index, fd)
        else:
            self.threads.not_created(index)

    def header(self, config: Config, *, full: bool) -> Header:
        """Return the header; what it assumes is said in its notes."""
        notes = [f"Imported from {self.recorder} with kprobes.{self.report.lost_note()}"]
        if not full:
            notes.append("The recording began after the VM was configured, so it doesn't replay on its own.")
        check_memory(self.path, self.given, max((page + 1 for page in config.pages), default=0) * PAGE_SIZE)
        told = self.given.memory is not None or self.given.irqchip is not None
        vm = self._shape(config, notes) if full or told else None
        if self.given.cpu_vendor is None:
            self.report.unknown["cpu_vendor (amd assumed)"] += 1
        return Header(
            kernel=self.given.kernel,
            max_vcpus=settled(self.path, "max_vcpus", self.given.max_vcpus, self._max_vcpus),
            cpu_vendor=self.given.cpu_vendor or "amd",
            recorder=self.recorder,
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
        irqchip = self._irqchip(notes)
        if not self.threads.ids:
            notes.append("KVM vCPU ids assumed to be the indexes: KVM_CREATE_VCPU was not seen.")
        return VmShape(irqchip=irqchip, memory=self._memory(config, notes), vcpus=self.threads.shapes())

    def _irqchip(self, notes: list[str]) -> str:
        """Return where the VM's interrupt controllers were; raises `Malformed` if another place was given."""
        lapic = self.has_lapic or not self._requests.isdisjoint(_LAPIC_IOCTLS)
        given, seen, why = self.given.irqchip, None, ""
        if _KVM_CREATE_IRQCHIP in self._requests:
            seen, why = "full", "KVM_CREATE_IRQCHIP was called"
        elif lapic and _KVM_CREATE_VM in self._requests:
            seen, why = "split", "there was a local APIC in the kernel, and no KVM_CREATE_IRQCHIP"
        elif lapic and given == "none":
            raise contradiction(self.path, "irqchip none", "a local APIC in the kernel")
        irqchip = settled(self.path, "irqchip", given, seen)
        if irqchip is None:
            self.report.unknown["irqchip"] += 1
            irqchip = "split" if lapic else "none"
            why = "assumed; " + (
                "there was a local APIC in the kernel" if lapic else "no local APIC was seen"
            )
        if given is None:
            notes.append(f"irqchip {irqchip}: {why}.")
        return irqchip

    def _memory(self, config: Config, notes: list[str]) -> tuple[MemorySlot, ...]:
        invented = config.invented(self.first_free_page(config))
        if invented:
            notes.append("Host addresses that the kernel accepted are given pages above all other memory.")
        if self.given.memory is not None:
            return MemorySlot(gpa=0, size=self.given.memory), *invented
        notes.append("Memory is not recorded: the slots hold just the pages that the kernel accepted.")
        return *config.slots(), *invented
