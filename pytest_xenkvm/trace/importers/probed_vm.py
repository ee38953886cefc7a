"""The VM itself as the recorder's own probes show it: memory slots, irqchip, vCPUs, GSI routes, interrupts.

The probe `vm_ioctl` shows a request number and the first bytes of its argument in the VMM's memory, as 64-bit
fields `u0`, `u1`, ...
"""

from __future__ import annotations

from typing import Any, Final

from attrs import Factory, define

from pytest_xenkvm.abi.ioctls import KVM_IRQ_LINE, KVM_IRQFD, KVM_SET_GSI_ROUTING
from pytest_xenkvm.abi.kvm import (
    KVM_CAP_SPLIT_IRQCHIP,
    KVM_CREATE_IRQCHIP,
    KVM_ENABLE_CAP,
    KVM_SET_USER_MEMORY_REGION,
)
from pytest_xenkvm.abi.numbers import KVM_IRQ_ROUTING_XEN_EVTCHN, U32_MAX
from pytest_xenkvm.trace.events import Eventfd, Ioctl, JsonObject, MemorySlot, VmShape
from pytest_xenkvm.trace.importers.config import Backing, Config
from pytest_xenkvm.trace.importers.deliveries import Cause
from pytest_xenkvm.trace.importers.lines import TraceLine
from pytest_xenkvm.trace.importers.model import ImportReport
from pytest_xenkvm.trace.importers.threads import Threads
from pytest_xenkvm.trace.importers.timeline import Timeline

_KVM_SET_USER_MEMORY_REGION2: Final = 0x40A0AE49
_KVM_IRQ_LINE_STATUS: Final = 0xC008AE67

VM_REQUESTS: Final = (
    KVM_SET_USER_MEMORY_REGION,
    _KVM_SET_USER_MEMORY_REGION2,
    KVM_CREATE_IRQCHIP,
    KVM_ENABLE_CAP,
    KVM_SET_GSI_ROUTING,
    KVM_IRQ_LINE,
    _KVM_IRQ_LINE_STATUS,
    KVM_IRQFD,
)
"""The ioctls of a VM that are looked at."""

INVENTED_PAGES: Final = 1 << 35
"""Where guest pages are put, in a live recording, for host addresses that back no guest memory."""

_FAULT: Final = "probes that could not read their argument"
_OTHER: Final = "ioctls that are not Xen's"


@define(kw_only=True)
class OpenVmIoctl(Cause):
    """An ioctl under way: its request number and the 64-bit words of its argument."""

    request: int
    words: tuple[int, ...]
    routes: list[JsonObject] = Factory(list)


@define
class ProbedVm:
    """Learns the VM's shape, and turns ioctls on its GSIs into events."""

    timeline: Timeline
    config: Config
    threads: Threads
    report: ImportReport
    irqchip: str = "none"
    mapped: list[MemorySlot] = Factory(list)
    """All guest memory that there ever was, in order of addresses."""
    _open: dict[int, OpenVmIoctl] = Factory(dict)
    _xen_gsis: set[int] = Factory(set)
    _eventfds: set[int] = Factory(set)

    def shape(self) -> VmShape:
        """Return the VM as it is by now; memory that was there once counts as there."""
        memory = (*self.mapped, *self.config.invented(INVENTED_PAGES))
        return VmShape(irqchip=self.irqchip, memory=memory, vcpus=self.threads.shapes())

    def under_way(self, line: TraceLine) -> OpenVmIoctl | None:
        """Return the ioctl that this thread is in."""
        return self._open.get(line.pid)

    def waiting(self) -> int | None:
        """Return the first slot whose result is still to come."""
        return min((ioctl.slot for ioctl in self._open.values()), default=None)

    def give_up(self, slot: int) -> None:
        """Wait no longer for the result of the ioctl in `slot`: it never happened, as far as can be told."""
        self._open = {pid: ioctl for pid, ioctl in self._open.items() if ioctl.slot != slot}

    def vcpu_created(self, line: TraceLine) -> str | None:
        """A vCPU was created: its index and its KVM vCPU id."""
        values = line.values("idx", "id", bits=32)
        if values is None:
            return _FAULT
        self.threads.has_id(line, *values)
        return None

    def enter(self, line: TraceLine) -> str | None:
        """One of `VM_REQUESTS` was called."""
        request, words = line.values("cmd", bits=32), line.values("u0", "u1", "u2", "u3")
        if request is None or words is None:
            self._open.pop(line.pid, None)
            return None if request and request[0] == KVM_CREATE_IRQCHIP else _FAULT
        self._open[line.pid] = OpenVmIoctl(slot=self.timeline.open(line.ns), request=request[0], words=words)
        return None

    def route(self, line: TraceLine) -> str | None:
        """One route of a KVM_SET_GSI_ROUTING is a Xen event channel."""
        values = line.values("gsi", "port", "vcpu", "prio", bits=32)
        ioctl = self._open.get(line.pid)
        if values is None or ioctl is None:
            return _FAULT
        gsi, port, vcpu, priority = values
        target = {"port": port, "vcpu": vcpu, "priority": priority}
        ioctl.routes.append({"gsi": gsi, "type": KVM_IRQ_ROUTING_XEN_EVTCHN, "xen_evtchn": target})
        return None

    def leave(self, line: TraceLine) -> str | None:
        """The ioctl returned."""
        result = line.values("ret", bits=64, signed=True)
        ioctl = self._open.pop(line.pid, None)
        request = line.values("cmd", bits=32)
        if result is None or request is None:
            return _FAULT
        if request[0] == KVM_CREATE_IRQCHIP:
            self.irqchip = "full" if result[0] == 0 else self.irqchip
            return None
        if ioctl is None:
            return "results without their call"
        return self._take(ioctl, result[0])

    def _take(self, ioctl: OpenVmIoctl, ret: int) -> str | None:
        match ioctl.request:
            case request if request in (KVM_SET_USER_MEMORY_REGION, _KVM_SET_USER_MEMORY_REGION2):
                if ret == 0:
                    self._memory(*ioctl.words)
                return None
            case request if request == KVM_ENABLE_CAP:
                if ret == 0 and ioctl.words[0] & U32_MAX == KVM_CAP_SPLIT_IRQCHIP:
                    self.irqchip = "split"
                return None
            case request if request == KVM_SET_GSI_ROUTING:
                return self._routing(ioctl, ret)
            case request if request == KVM_IRQFD:
                return self._irqfd(ioctl, ret)
        return self._irq_line(ioctl, ret)

    def _memory(self, slot_flags: int, gpa: int, size: int, hva: int) -> None:
        """A slot was set, or (size 0) deleted."""
        number = slot_flags & U32_MAX
        self.config.backing.pop(number, None)
        if size:
            self.config.backing[number] = Backing(gpa=gpa, size=size, hva=hva)
            self.mapped = merged([*self.mapped, MemorySlot(gpa=gpa, size=size)])

    def _routing(self, ioctl: OpenVmIoctl, ret: int) -> str | None:
        if not ioctl.routes and not self._xen_gsis:
            return _OTHER
        if ret != 0:
            # The kernel stopped at the route that it refused, and changed nothing.
            self.report.unknown["routes of a KVM_SET_GSI_ROUTING that was refused (left out)"] += 1
            return None
        self._xen_gsis = {route["gsi"] for route in ioctl.routes}
        self._event(ioctl, "KVM_SET_GSI_ROUTING", {"entries": ioctl.routes}, ret)
        return None

    def _irqfd(self, ioctl: OpenVmIoctl, ret: int) -> str | None:
        fd, gsi = ioctl.words[0] & U32_MAX, ioctl.words[0] >> 32
        if gsi not in self._xen_gsis:
            return _OTHER
        if fd not in self._eventfds and ret == 0:
            self._eventfds.add(fd)
            self.timeline.slots[ioctl.slot].first.append(Eventfd(fd=fd, inferred=True))
        arg = {"fd": fd, "gsi": gsi, "flags": ioctl.words[1] & U32_MAX}
        self._event(ioctl, "KVM_IRQFD", arg, ret)
        return None

    def _irq_line(self, ioctl: OpenVmIoctl, ret: int) -> str | None:
        gsi, level = ioctl.words[0] & U32_MAX, ioctl.words[0] >> 32
        if gsi not in self._xen_gsis:
            return _OTHER
        self._event(ioctl, "KVM_IRQ_LINE", {"irq": gsi, "level": int(level != 0)}, ret)
        return None

    def _event(self, ioctl: OpenVmIoctl, name: str, arg: dict[str, Any], ret: int) -> None:
        self.timeline.slots[ioctl.slot].event = Ioctl(name=name, arg=arg, ret=ret)


def merged(slots: list[MemorySlot]) -> list[MemorySlot]:
    """Return the fewest slots that hold the same memory, in order of addresses."""
    joined: list[MemorySlot] = []
    for slot in sorted(slots, key=lambda slot: slot.gpa):
        if joined and joined[-1].gpa + joined[-1].size >= slot.gpa:
            last = joined.pop()
            end = max(last.gpa + last.size, slot.gpa + slot.size)
            slot = MemorySlot(gpa=last.gpa, size=end - last.gpa)  # noqa: PLW2901
        joined.append(slot)
    return joined
