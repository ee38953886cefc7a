"""strace of a VMM's ioctls: the VM's shape, and when which vCPU forwarded a hypercall.

strace prints the arguments of Xen's ioctls as pointers, and of a KVM_EXIT_XEN (`-e kvm=vcpu`) nothing but the
name. So the trace has the VM, of scope "hypercalls"; its hypercalls come from QEMU's log of the same run, by
`with_answers`. What neither shows is left out and counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Final

from attrs import Factory, define

from pytest_xenkvm.abi.ioctls import IOCTLS
from pytest_xenkvm.abi.numbers import KVM_CAP_XEN_HVM, PAGE_SIZE
from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Event, Header, Ioctl, MemorySlot, VcpuShape, VmShape
from pytest_xenkvm.trace.fields import MAX_VCPUS
from pytest_xenkvm.trace.header import MAX_MEMORY, MAX_SLOTS
from pytest_xenkvm.trace.importers.given import check_header, settled
from pytest_xenkvm.trace.importers.model import (
    NAMELESS,
    Forwarded,
    Given,
    Imported,
    ImportReport,
    check_size,
)
from pytest_xenkvm.trace.importers.strace_lines import StraceCall, read_strace

_NUMBER: Final = r"(0x[0-9a-f]{1,16}|\d{1,20})"
_REGION: Final = re.compile(
    rf"\{{slot={_NUMBER}, flags=[^,]{{1,100}}, guest_phys_addr={_NUMBER}, memory_size={_NUMBER}[,}}].*",
    re.ASCII,
)
_SMM: Final = 1 << 16
"""Slots from here on are of another address space: the same memory, seen from system management mode."""
_GPA_END: Final = 1 << 52

_OTHERS: Final = "ioctls that say nothing about the VM"


@define
class _Vm:
    """What the calls have shown so far; each method returns why its call is skipped, or None."""

    path: str
    report: ImportReport
    fd: int | None = None
    vcpus: list[VcpuShape] = Factory(list)
    memory: list[tuple[int, int]] = Factory(list)
    """First and last-but-one page of what was ever mapped, merged and in order."""
    events: list[Event] = Factory(list)
    forwarded: list[Forwarded] = Factory(list)
    irqchip: bool = False
    lapic: bool = False
    max_vcpus: int | None = None
    _index_by_fd: dict[int, int] = Factory(dict)
    _start: int | None = None
    _now: int = 0

    def take(self, call: StraceCall) -> None:
        """Take one call."""
        ts = self._time(call)
        handler = _HANDLERS.get(call.request)
        if call.request == "KVM_RUN":
            reason = self._run(call, ts)
        elif call.request in IOCTLS and "XEN" in call.request:
            result = "success" if call.ret >= 0 else "an error"
            self.report.unknown[f"argument of {call.request}, whose result was {result} (left out)"] += 1
            reason = "Xen ioctls (their argument is a pointer)"
        elif call.request == "KVM_CHECK_EXTENSION":
            reason = self._extension(call, ts)
        elif handler is None or call.ret < 0:
            reason = _OTHERS
        else:
            reason = handler(self, call)
        if reason is None:
            self.report.used += 1
        else:
            self.report.skip(reason)
        check_size(len(self.forwarded) + len(self.events), self.path, call.number)

    def _time(self, call: StraceCall) -> int | None:
        if call.ns is None:
            return None
        if self._start is None:
            self._start = call.ns
        self._now = max(self._now, call.ns - self._start)
        return self._now

    def _run(self, call: StraceCall, ts: int | None) -> str | None:
        if call.exit != "KVM_EXIT_XEN":
            return "runs of a vCPU without a KVM_EXIT_XEN"
        if call.fd not in self._index_by_fd:
            return "KVM_EXIT_XEN of a vCPU whose creation was not recorded"
        self.forwarded.append(Forwarded(vcpu=self._index_by_fd[call.fd], ts=ts))
        return None

    def _extension(self, call: StraceCall, ts: int | None) -> str | None:
        if call.arg == "KVM_CAP_XEN_HVM":
            event = Ioctl(ts=ts, name=call.request, arg={"cap": KVM_CAP_XEN_HVM}, ret=call.ret)
            self.events.append(event)
        elif call.arg == "KVM_CAP_MAX_VCPUS" and call.ret > 0:
            self.max_vcpus = call.ret
        else:
            return _OTHERS
        return None

    def create_vm(self, call: StraceCall) -> str | None:
        if self.vcpus:
            what = "a second VM is created, after vCPUs of the first; expected a recording of one VM"
            raise Malformed(what, self.path, line=call.number)
        self.fd = call.ret
        self.memory.clear()
        return None

    def create_vcpu(self, call: StraceCall) -> str | None:
        if not re.fullmatch(_NUMBER, call.arg) or int(call.arg, 0) >> 32:
            return "ioctls of KVM's that strace doesn't show whole"
        shape = VcpuShape(index=len(self.vcpus), id=int(call.arg, 0))
        if len(self.vcpus) == MAX_VCPUS or any(known.id == shape.id for known in self.vcpus):
            what = f"vCPU {shape.index} of id {shape.id} is created; expected at most {MAX_VCPUS}, each once"
            raise Malformed(what, self.path, line=call.number)
        self.vcpus.append(shape)
        self._index_by_fd[call.ret] = shape.index
        return None

    def create_irqchip(self, call: StraceCall) -> str | None:
        del call
        self.irqchip = True
        return None

    def use_lapic(self, call: StraceCall) -> str | None:
        del call
        self.lapic = True
        return None

    def set_memory(self, call: StraceCall) -> str | None:
        match = _REGION.fullmatch(call.arg)
        if match is None:
            return "ioctls of KVM's that strace doesn't show whole"
        slot, gpa, size = (int(number, 0) for number in match.groups())
        if slot >= _SMM or not size:
            return "memory of system management mode, and memory taken away"
        if gpa % PAGE_SIZE or size % PAGE_SIZE or gpa + size > _GPA_END:
            what = f"memory of {size:#x} bytes at {gpa:#x} was accepted; expected whole pages below 2^52"
            raise Malformed(what, self.path, line=call.number)
        self._map(gpa // PAGE_SIZE, (gpa + size) // PAGE_SIZE)
        return None

    def _map(self, first: int, end: int) -> None:
        if len(self.memory) > MAX_SLOTS:  # too many for a trace's header
            return
        apart = [known for known in self.memory if known[1] < first or known[0] > end]
        touched = [known for known in self.memory if known not in apart]
        merged = min([first, *(low for low, _ in touched)]), max([end, *(high for _, high in touched)])
        self.memory = sorted([*apart, merged])

    def shape(self, given: Given, notes: list[str]) -> VmShape | None:
        """Return the VM, or None if its creation, or too much of it, was not recorded."""
        pages = sum(end - first for first, end in self.memory)
        if self.fd is None or len(self.memory) > MAX_SLOTS or pages * PAGE_SIZE > MAX_MEMORY:
            notes.append("The VM's shape is not known: its creation was not recorded, or it is too big.")
            return None
        irqchip = "full" if self.irqchip else "split" if self.lapic else "none"
        settled(self.path, "irqchip", given.irqchip, irqchip)
        lowest = next((end * PAGE_SIZE for first, end in self.memory if first == 0), None)
        settled(self.path, "memory", given.memory, lowest)
        memory = tuple(
            MemorySlot(gpa=first * PAGE_SIZE, size=(end - first) * PAGE_SIZE) for first, end in self.memory
        )
        notes.append("Memory: all that was ever mapped.")
        return VmShape(irqchip=irqchip, memory=memory, vcpus=tuple(self.vcpus))


_Handler = Callable[[_Vm, StraceCall], str | None]

_HANDLERS: Final[Mapping[str, _Handler]] = {
    "KVM_CREATE_VM": _Vm.create_vm,
    "KVM_CREATE_VCPU": _Vm.create_vcpu,
    "KVM_CREATE_IRQCHIP": _Vm.create_irqchip,
    "KVM_GET_LAPIC": _Vm.use_lapic,
    "KVM_SET_LAPIC": _Vm.use_lapic,
    "KVM_SET_USER_MEMORY_REGION": _Vm.set_memory,
    "KVM_SET_USER_MEMORY_REGION2": _Vm.set_memory,
}
"""What is taken of calls that succeeded."""


def import_strace(lines: Iterable[str], *, path: str, given: Given | None = None) -> Imported:
    """Import the VM and its forwarded hypercalls, without their registers, from `strace -e kvm=vcpu`.

    Raises `Malformed` for a recording of two VMs, and for what contradicts `given`.
    """
    given = given or Given()
    report = ImportReport()
    vm = _Vm(path, report)
    for call in read_strace(lines, path, report):
        vm.take(call)
    notes = ["Imported from strace: no argument of a Xen ioctl, no register of a hypercall."]
    if vm.forwarded:
        report.unknown[NAMELESS] = len(vm.forwarded)
    header = Header(
        kernel=given.kernel,
        max_vcpus=settled(path, "max_vcpus", given.max_vcpus, vm.max_vcpus),
        cpu_vendor=given.cpu_vendor or "amd",
        recorder="strace",
        scope="hypercalls",
        vm=vm.shape(given, notes),
        unseen=("irq", "mem"),
        notes=" ".join(notes),
    )
    check_header(path, header, ())
    report.count(vm.events)
    return Imported(header=header, events=vm.events, report=report, forwarded=tuple(vm.forwarded))
