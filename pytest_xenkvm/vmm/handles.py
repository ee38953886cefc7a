"""What a VMM behaviour holds in its hands: a VM and its vCPUs, in KVM's own vocabulary.

Each method is one ioctl, named after it or after the attribute that it sets or reads, and works the same on
every host. Where the kernel refuses, it raises KvmError with the errno.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from weakref import ReferenceType, ref

from attrs import define, field

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import (
    INVALID_GFN,
    INVALID_GPA,
    KVM_IRQ_ROUTING_XEN_EVTCHN,
    KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
    KVM_IRQFD_FLAG_DEASSIGN,
    EvtchnFlag,
    EvtchnStat,
    HvmAttr,
    VcpuAttr,
    XenHvmFlag,
)
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.outbound import OutboundRequest
from pytest_xenkvm.core.vcpu_attrs import TimerSetting
from pytest_xenkvm.hosts import attribute_codec as codec
from pytest_xenkvm.hosts.protocol import HostVm
from pytest_xenkvm.trace.events import VmShape
from pytest_xenkvm.vmm.files import Files, IoctlWatcher, attribute, check, fitting
from pytest_xenkvm.vmm.values import Route, RunstateInfo
from pytest_xenkvm.vmm.vmm_timers import VmmTimers

DEFAULT_HYPERCALL_MSR = 0x4000_0000


@define(eq=False)
class Vcpu:
    """A vCPU. `index` is the order of creation, `id` the KVM vCPU id (APIC id); neither is the Xen ID."""

    index: int
    id: int
    _files: Files = field(repr=False)
    _vm: ReferenceType[Vm] | None = field(default=None, init=False, repr=False)
    """Weak, so that a VM is gone with the last handle, not with the garbage collector's next visit."""

    @property
    def vm(self) -> Vm:
        """The VM that it belongs to."""
        vm = None if self._vm is None else self._vm()
        return _handles(self._files) if vm is None else vm

    def ioctl(self, request: int, argument: bytearray) -> int:
        """Any ioctl of the vCPU's file; a positive result, or KvmError."""
        return self._files.ioctl(request, argument, self.index)

    def set_attr(self, type_: int, value: Any) -> None:
        """KVM_XEN_VCPU_SET_ATTR with the union's member as the core has it: an int, TimerSetting, a tuple."""
        argument = attribute(type_)
        with fitting(VcpuAttr, type_, value):
            codec.store_vcpu_value(argument, type_, value)
        self.ioctl(ioctls.KVM_XEN_VCPU_SET_ATTR, argument)

    def get_attr(self, type_: int) -> Any:
        """KVM_XEN_VCPU_GET_ATTR."""
        argument = attribute(type_)
        self.ioctl(ioctls.KVM_XEN_VCPU_GET_ATTR, argument)
        return codec.load_vcpu_value(argument, type_)

    def set_vcpu_id(self, xen_id: int) -> None:
        """VCPU_ID: the Xen vCPU ID, 0 ... KVM_MAX_VCPUS-1."""
        self.set_attr(VcpuAttr.VCPU_ID, xen_id)

    def get_vcpu_id(self) -> int:
        """VCPU_ID; XEN_VCPU_ID_INVALID (0xffffffff) if it was never set, from Linux 7.3 on."""
        xen_id: int = self.get_attr(VcpuAttr.VCPU_ID)
        return xen_id

    def set_vcpu_info(self, gpa: int | None) -> None:
        """VCPU_INFO at a guest address; None switches off."""
        self.set_attr(VcpuAttr.VCPU_INFO, INVALID_GPA if gpa is None else gpa)

    def set_vcpu_info_hva(self, hva: int) -> None:
        """VCPU_INFO_HVA at a host address; 0 switches off."""
        self.set_attr(VcpuAttr.VCPU_INFO_HVA, hva)

    def set_vcpu_time_info(self, gpa: int | None) -> None:
        """VCPU_TIME_INFO at a guest address; None switches off."""
        self.set_attr(VcpuAttr.VCPU_TIME_INFO, INVALID_GPA if gpa is None else gpa)

    def set_runstate_addr(self, gpa: int | None) -> None:
        """RUNSTATE_ADDR at a guest address; None switches off."""
        self.set_attr(VcpuAttr.RUNSTATE_ADDR, INVALID_GPA if gpa is None else gpa)

    def set_runstate_current(self, state: int) -> None:
        """RUNSTATE_CURRENT."""
        self.set_attr(VcpuAttr.RUNSTATE_CURRENT, RunstateInfo(state))

    def set_runstate_data(self, info: RunstateInfo) -> None:
        """RUNSTATE_DATA."""
        self.set_attr(VcpuAttr.RUNSTATE_DATA, info)

    def get_runstate_data(self) -> RunstateInfo:
        """RUNSTATE_DATA."""
        return RunstateInfo(*self.get_attr(VcpuAttr.RUNSTATE_DATA))

    def adjust_runstate(self, info: RunstateInfo) -> None:
        """RUNSTATE_ADJUST."""
        self.set_attr(VcpuAttr.RUNSTATE_ADJUST, info)

    def set_timer(
        self, port: int, *, expires_ns: int = 0, priority: int = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
    ) -> None:
        """TIMER: the event channel port of the vCPU's timer (0: off), and its expiry (0: not armed)."""
        self.set_attr(VcpuAttr.TIMER, TimerSetting(port=port, priority=priority, expires_ns=expires_ns))

    def get_timer(self) -> TimerSetting:
        """TIMER."""
        timer: TimerSetting = self.get_attr(VcpuAttr.TIMER)
        return timer

    def set_upcall_vector(self, vector: int) -> None:
        """UPCALL_VECTOR of this vCPU; 0 switches off."""
        self.set_attr(VcpuAttr.UPCALL_VECTOR, vector)

    def start_vmm_timer(self, expires_ns: int) -> None:
        """A timer of the VMM's own: on_timer at that time of the VM's clock (ns), or at once if it is past.

        There is one for each vCPU: it takes the place of the one that runs. Raises TypeError for no int.
        """
        self._files.timers.start(self.index, expires_ns)

    def stop_vmm_timer(self) -> None:
        """Stop the VMM's own timer of this vCPU; fine if none runs."""
        self._files.timers.stop(self.index)

    def read_virtual(self, gva: int, size: int) -> bytes | None:
        """Guest memory at a virtual address of the vCPU (KVM_TRANSLATE); None where nothing is mapped.

        In a replay, what lies behind the hypercall that is being answered. Raises UnseenMemory if the
        recording doesn't show it.
        """
        return self._files.host.read_virtual(self.index, gva, size)

    def translate(self, gva: int) -> int | None:
        """The guest address behind a virtual one (KVM_TRANSLATE); None where no memory is mapped.

        In a replay, for the hypercall that is being answered. Raises UnseenMemory if the recording doesn't
        show the guest's page tables.
        """
        return self._files.host.translate(self.index, gva)

    def write_virtual(self, gva: int, data: bytes) -> bool:
        """Store to guest memory at a virtual address of the vCPU; False where nothing is mapped.

        In a replay, memory that the recording doesn't show counts as mapped, and what is stored is lost.
        """
        return self._files.host.write_virtual(self.index, gva, data)


@define(eq=False)
class Vm:
    """A VM with its vCPUs in the order of creation."""

    _files: Files = field(repr=False)
    vcpus: tuple[Vcpu, ...]

    @staticmethod
    def on(host: HostVm, shape: VmShape, watch: IoctlWatcher | None = None) -> Vm:
        """Handles for a VM that exists on a host; `watch` is told of each ioctl made through them."""
        return _handles(Files(host, shape, watch))

    @property
    def vmm_timers(self) -> VmmTimers:
        """The VMM's own timers, for whoever moves the VM's clock."""
        return self._files.timers

    @property
    def outbound_eventfds(self) -> frozenset[int]:
        """The eventfds that outbound ports signal."""
        return frozenset(self._files.outbound_eventfds.values())

    def ioctl(self, request: int, argument: int | bytearray) -> int:
        """Any ioctl of the VM's file; a positive result, or KvmError."""
        return self._files.ioctl(request, argument)

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION."""
        return self.ioctl(ioctls.KVM_CHECK_EXTENSION, capability)

    def xen_hvm_config(
        self,
        *,
        flags: int = XenHvmFlag.INTERCEPT_HCALL | XenHvmFlag.EVTCHN_SEND,
        msr: int = DEFAULT_HYPERCALL_MSR,
    ) -> None:
        """KVM_XEN_HVM_CONFIG without a blob."""
        self.ioctl(ioctls.KVM_XEN_HVM_CONFIG, bytearray(ioctls.HVM_CONFIG.pack(flags, msr, 0, 0, 0, 0)))

    def set_attr(self, type_: int, value: Any) -> None:
        """KVM_XEN_HVM_SET_ATTR with the union's member: an int, or OutboundRequest for EVTCHN."""
        argument = attribute(type_)
        with fitting(HvmAttr, type_, value):
            codec.store_vm_value(argument, type_, value)
        self.ioctl(ioctls.KVM_XEN_HVM_SET_ATTR, argument)

    def get_attr(self, type_: int) -> Any:
        """KVM_XEN_HVM_GET_ATTR."""
        argument = attribute(type_)
        self.ioctl(ioctls.KVM_XEN_HVM_GET_ATTR, argument)
        return codec.load_vm_value(argument, type_)

    def set_long_mode(self, *, on: bool) -> None:
        """LONG_MODE."""
        self.set_attr(HvmAttr.LONG_MODE, int(on))

    def set_shared_info(self, gfn: int | None) -> None:
        """SHARED_INFO at a guest frame number; None switches off."""
        self.set_attr(HvmAttr.SHARED_INFO, INVALID_GFN if gfn is None else gfn)

    def set_shared_info_hva(self, hva: int) -> None:
        """SHARED_INFO_HVA at a page-aligned host address; 0 switches off."""
        self.set_attr(HvmAttr.SHARED_INFO_HVA, hva)

    def set_upcall_vector(self, vector: int) -> None:
        """UPCALL_VECTOR of the VM; 0 switches off."""
        self.set_attr(HvmAttr.UPCALL_VECTOR, vector)

    def set_xen_version(self, major: int, minor: int) -> None:
        """XEN_VERSION."""
        self.set_attr(HvmAttr.XEN_VERSION, major << 16 | minor)

    def set_runstate_update_flag(self, *, on: bool) -> None:
        """RUNSTATE_UPDATE_FLAG."""
        self.set_attr(HvmAttr.RUNSTATE_UPDATE_FLAG, int(on))

    def assign_ipi(self, port: int, vcpu_id: int) -> None:
        """EVTCHN: an outbound IPI port, delivered to its own number on a vCPU."""
        self._evtchn(EvtchnFlag.ASSIGN, EvtchnStat.IPI, port, (port, vcpu_id))

    def assign_interdomain(self, send_port: int, port: int, vcpu_id: int) -> None:
        """EVTCHN: an outbound interdomain port, delivered to a local one on a vCPU."""
        self._evtchn(EvtchnFlag.ASSIGN, EvtchnStat.INTERDOMAIN, send_port, (port, vcpu_id))

    def assign_eventfd(self, send_port: int, fd: int) -> None:
        """EVTCHN: an outbound port that signals an eventfd."""
        self._evtchn(EvtchnFlag.ASSIGN, EvtchnStat.INTERDOMAIN, send_port, (0, fd))

    def deassign(self, send_port: int) -> None:
        """EVTCHN: drop an outbound port."""
        self._evtchn(EvtchnFlag.DEASSIGN, 0, send_port, (0, 0))

    def reset_evtchn(self) -> None:
        """EVTCHN: drop all outbound ports."""
        self._evtchn(EvtchnFlag.RESET, 0, 0, (0, 0))

    def _evtchn(self, flags: int, type_: int, send_port: int, target: tuple[int, int]) -> None:
        port, vcpu = target
        request = OutboundRequest(
            send_port=send_port,
            type=type_,
            flags=flags,
            port=port,
            vcpu=vcpu,
            priority=KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
        )
        self.set_attr(HvmAttr.EVTCHN, request)

    def evtchn_send(self, port: int, vcpu_id: int) -> None:
        """KVM_XEN_HVM_EVTCHN_SEND."""
        priority = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
        self.ioctl(ioctls.KVM_XEN_HVM_EVTCHN_SEND, bytearray(ioctls.XEN_EVTCHN.pack(port, vcpu_id, priority)))

    def set_gsi_routing(self, routes: Sequence[Route]) -> None:
        """KVM_SET_GSI_ROUTING."""
        entries = b"".join(
            ioctls.GSI_ROUTING_ENTRY.pack(
                route.gsi, KVM_IRQ_ROUTING_XEN_EVTCHN, 0, 0, route.port, route.vcpu_id, route.priority
            )
            for route in routes
        )
        header = ioctls.GSI_ROUTING_HEADER.pack(len(routes), 0)
        self.ioctl(ioctls.KVM_SET_GSI_ROUTING, bytearray(header + entries))

    def assign_irqfd(self, fd: int, gsi: int) -> None:
        """KVM_IRQFD."""
        self.ioctl(ioctls.KVM_IRQFD, bytearray(ioctls.IRQFD.pack(fd, gsi, 0, 0)))

    def deassign_irqfd(self, fd: int, gsi: int) -> None:
        """KVM_IRQFD with KVM_IRQFD_FLAG_DEASSIGN."""
        self.ioctl(ioctls.KVM_IRQFD, bytearray(ioctls.IRQFD.pack(fd, gsi, KVM_IRQFD_FLAG_DEASSIGN, 0)))

    def set_irq_line(self, gsi: int, level: int) -> None:
        """KVM_IRQ_LINE."""
        self.ioctl(ioctls.KVM_IRQ_LINE, bytearray(ioctls.IRQ_LINE.pack(gsi, level)))

    def get_clock(self) -> int:
        """KVM_GET_CLOCK: the VM's clock (ns), which is the guest's Xen clock."""
        argument = bytearray(ioctls.CLOCK_DATA.size)
        self.ioctl(ioctls.KVM_GET_CLOCK, argument)
        clock: int = ioctls.CLOCK_DATA.unpack(argument)[0]
        return clock

    def set_clock(self, ns: int) -> None:
        """KVM_SET_CLOCK: the VM's clock (ns), forwards or backwards; a running timer fires no sooner."""
        self.ioctl(ioctls.KVM_SET_CLOCK, bytearray(ioctls.CLOCK_DATA.pack(ns, 0, 0, 0)))

    def open_eventfd(self) -> int:
        """Create an eventfd; its number."""
        return self._files.host.open_eventfd()

    def read_eventfd(self, fd: int) -> int:
        """Drain an eventfd; 0 if there was nothing."""
        return check(self._files.host.read_eventfd(fd))

    def write_eventfd(self, fd: int, value: int) -> None:
        """Add to an eventfd."""
        check(self._files.host.write_eventfd(fd, value))

    def read_memory(self, gpa: int, size: int) -> bytes | None:
        """Guest memory at [gpa, gpa + size); None where there is none."""
        return self._files.host.read_memory(gpa, size)

    def write_memory(self, gpa: int, data: bytes) -> bool:
        """Store to guest memory; False where there is none."""
        return self._files.host.write_memory(gpa, data)

    def gpa_to_hva(self, gpa: int) -> int | None:
        """The VMM's own address of guest memory; None where there is none."""
        return self._files.host.gpa_to_hva(gpa)

    def hva_to_gpa(self, hva: int) -> int | None:
        """The opposite of `gpa_to_hva`; None for an address that backs no guest memory."""
        return self._files.host.hva_to_gpa(hva)


def _handles(files: Files) -> Vm:
    vm = Vm(files, tuple(Vcpu(vcpu.index, vcpu.id, files) for vcpu in files.shape.vcpus))
    for vcpu in vm.vcpus:
        vcpu._vm = ref(vm)  # noqa: SLF001 - made here
    return vm


__all__ = ["KvmError", "Route", "RunstateInfo", "TimerSetting", "Vcpu", "Vm"]
