"""A VM as its host drives it: create vCPUs, make ioctls, enter the guest, let time pass.

The order of things at a guest entry (all supported kernels): the kernel updates clocks and runstate and
delivers deferred selector bits and timers; the guest takes interrupts; then it executes its hypercall or
WRMSR; then the kernel delivers what that caused, and the guest takes interrupts again.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL, ENOENT
from typing import Any, Final

from attrs import define, frozen

from pytest_xenkvm.abi.numbers import (
    KVM_CAP_MAX_VCPUS,
    KVM_CAP_XEN_HVM,
    KVM_EXIT_XEN_HCALL,
    RUN_DELAY_HVM_FLAGS,
    U32_MAX,
    U64_MAX,
    Runstate,
    XenHvmFlag,
)
from pytest_xenkvm.core import evtchn, lapic, routing, runstate, timer, vcpu_attrs, vm_attrs
from pytest_xenkvm.core.clockpage import update_vcpu_clocks
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.eventfd import Eventfd, lookup
from pytest_xenkvm.core.hypercall_page import MsrWrite, write_msr, write_msr_for_vmm
from pytest_xenkvm.core.hypercalls import Call, Forward, HypercallRegisters, ReadVirt, dispatch
from pytest_xenkvm.core.memory import Buffer, GuestMemory
from pytest_xenkvm.core.profile import HostLimits, Profile
from pytest_xenkvm.core.state import HvmConfig, VcpuState, VmState

_RUNNING: Final = int(Runstate.RUNNING)


@frozen(kw_only=True, slots=False)
class XenExit:
    """KVM_EXIT_XEN: what the VMM sees of a forwarded hypercall."""

    type: int
    longmode: int
    cpl: int
    input: int
    params: tuple[int, int, int, int, int, int]


@define(eq=False)
class XenVm:
    """A virtual machine with KVM's Xen support. Operations raise KvmError where the kernel refuses."""

    state: VmState

    @classmethod
    def create(
        cls,
        profile: Profile,
        memory: GuestMemory,
        *,
        limits: HostLimits,
        irqchip: str = "full",
        cpu_vendor: str = "amd",
    ) -> XenVm:
        """A VM without vCPUs, its clock at 0."""
        return cls(
            VmState(
                profile=profile,
                limits=limits,
                memory=memory,
                irqchip=irqchip,
                cpu_vendor=cpu_vendor,
            )
        )

    def create_vcpu(self, vcpu_id: int) -> VcpuState:
        """KVM_CREATE_VCPU; the Xen ID is what the profile says an unset one is (`kvm_xen_init_vcpu`)."""
        state = self.state
        vcpu = VcpuState(index=len(state.vcpus), id=vcpu_id, xen_id=state.profile.unset_vcpu_id)
        state.vcpus.append(vcpu)
        state.vcpus_by_id.setdefault(vcpu_id, vcpu)
        return vcpu

    # Ioctls

    def add_memory(self, gpa: int, buffer: Buffer, *, log_dirty: bool = False) -> None:
        """KVM_SET_USER_MEMORY_REGION with a new slot, which overlaps no other."""
        self.state.memory.add(gpa, buffer, log_dirty=log_dirty)
        self._slots_changed()

    def remove_memory(self, gpa: int) -> None:
        """KVM_SET_USER_MEMORY_REGION of size 0 for the slot at `gpa`; KvmError -EINVAL if there is none."""
        if not self.state.memory.remove(gpa):
            raise KvmError(EINVAL)
        self._slots_changed()

    def dirty_log(self, gpa: int) -> frozenset[int]:
        """KVM_GET_DIRTY_LOG of the slot at `gpa`: guest addresses of pages marked dirty since the last time.

        Raises KvmError -ENOENT if there is no such slot, or it keeps no log.
        """
        log = self.state.memory.dirty_log(gpa)
        if log is None:
            raise KvmError(ENOENT)
        found = frozenset(log)
        log.clear()
        return found

    def check_extension(self, capability: int) -> int:
        """KVM_CHECK_EXTENSION for the two capabilities that matter here; 0 for others."""
        if capability == KVM_CAP_MAX_VCPUS:
            return self.state.limits.max_vcpus
        if capability != KVM_CAP_XEN_HVM:
            return 0
        offered = sum(XenHvmFlag)
        return offered if self.state.limits.run_delay_info else offered & ~RUN_DELAY_HVM_FLAGS

    def enable_hyper_v(self) -> None:
        """KVM_SET_CPUID2 with Hyper-V's leaves and KVM_SET_MSRS of HV_X64_MSR_GUEST_OS_ID."""
        self.state.hyper_v = True

    def configure(self, config: HvmConfig) -> None:
        """KVM_XEN_HVM_CONFIG."""
        vm_attrs.configure(self.state, config)

    def set_attr(self, type_: int, value: Any) -> None:
        """KVM_XEN_HVM_SET_ATTR."""
        vm_attrs.set_attr(self.state, type_, value)

    def get_attr(self, type_: int) -> Any:
        """KVM_XEN_HVM_GET_ATTR."""
        return vm_attrs.get_attr(self.state, type_)

    def set_vcpu_attr(self, vcpu: VcpuState, type_: int, value: Any) -> None:
        """KVM_XEN_VCPU_SET_ATTR."""
        vcpu_attrs.set_attr(self.state, vcpu, type_, value)

    def get_vcpu_attr(self, vcpu: VcpuState, type_: int) -> Any:
        """KVM_XEN_VCPU_GET_ATTR."""
        return vcpu_attrs.get_attr(self.state, vcpu, type_)

    def evtchn_send(self, *, port: int, vcpu_id: int, priority: int) -> None:
        """KVM_XEN_HVM_EVTCHN_SEND."""
        evtchn.send_from_vmm(self.state, port=port, vcpu_id=vcpu_id, priority=priority)

    def set_gsi_routing(self, entries: Sequence[routing.GsiRoute]) -> None:
        """KVM_SET_GSI_ROUTING."""
        routing.set_gsi_routing(self.state, entries)

    def set_irq_line(self, *, gsi: int, level: int) -> int:
        """KVM_IRQ_LINE; the status that KVM_IRQ_LINE_STATUS reports."""
        return routing.set_irq_line(self.state, gsi=gsi, level=level)

    def set_irqfd(self, *, fd: int, gsi: int, flags: int) -> None:
        """KVM_IRQFD."""
        routing.set_irqfd(self.state, fd=fd, gsi=gsi, flags=flags)

    def open_eventfd(self, fd: int) -> Eventfd:
        """The VMM opens an eventfd with number `fd`."""
        eventfd = self.state.files[fd] = Eventfd()
        return eventfd

    def eventfd(self, fd: int) -> Eventfd:
        """The VMM's eventfd with number `fd`; raises KvmError -EBADF or -EINVAL."""
        return lookup(self.state.files, fd)

    # The guest

    def enter(self, vcpu: VcpuState) -> None:
        """KVM_RUN up to the guest: clocks, runstate, deferred events and timers."""
        state = self.state
        if vcpu.clock_update_due or vcpu.master_clock_due:
            update_vcpu_clocks(state, vcpu)
        if state.config.msr:
            runstate.change(state, vcpu, _RUNNING)
        if vcpu.deferred_sel or vcpu.timer.pending:
            self._settle(vcpu)

    def hypercall(
        self,
        vcpu: VcpuState,
        registers: HypercallRegisters,
        read: ReadVirt,
        *,
        linear_rip: int = 0,
        block_until: int | None = None,
    ) -> int | XenExit:
        """The guest executes VMCALL or VMMCALL: its new RAX (EAX in 32-bit mode), or the exit.

        A forwarded call waits for `complete_hypercall`; what a handled one caused is delivered. A call
        that blocks moves the VM's clock, to `block_until` (ns) at the most.
        """
        return self.execute(Call(self.state, vcpu, registers.seen_by_kernel(), read, block_until), linear_rip)

    def execute(self, call: Call, linear_rip: int = 0) -> int | XenExit:
        """The same with all that a handler looks at, the registers as the kernel sees them."""
        vcpu, seen = call.vcpu, call.regs
        result = dispatch(call)
        if type(result) is Forward:
            vcpu.hypercall_rip = linear_rip
            return XenExit(
                type=KVM_EXIT_XEN_HCALL,
                longmode=int(seen.longmode),
                cpl=seen.cpl,
                input=seen.nr,
                params=seen.args,
            )
        if vcpu.deferred_sel or vcpu.timer.pending:
            self._settle(vcpu)
        return result & (U64_MAX if seen.longmode else U32_MAX)

    def complete_hypercall(self, vcpu: VcpuState, *, linear_rip: int = 0) -> bool:
        """KVM_RUN after a forwarded hypercall: whether the guest gets the VMM's result.

        It does only if its linear RIP is still that of the hypercall
        (`kvm_xen_hypercall_complete_userspace`). Raises KvmError -EINVAL if none waits.
        """
        if vcpu.hypercall_rip is None:
            raise KvmError(EINVAL)
        completes = vcpu.hypercall_rip == linear_rip
        vcpu.hypercall_rip = None
        self._settle(vcpu)
        return completes

    def wrmsr(self, vcpu: VcpuState, msr: int, value: int, *, long_mode_active: bool) -> MsrWrite:
        """The guest writes an MSR, with EFER.LMA as given. Raises KvmError when KVM_RUN fails."""
        outcome = write_msr(self.state, msr, value, long_mode_active=long_mode_active)
        if vcpu.master_clock_due:
            update_vcpu_clocks(self.state, vcpu)
        self._settle(vcpu)
        return outcome

    def set_msr(self, msr: int, value: int) -> bool:
        """KVM_SET_MSRS of one MSR: whether it was set."""
        return write_msr_for_vmm(self.state, msr, value)

    def enable_local_apic(self, vcpu: VcpuState, *, enabled: bool) -> None:
        """The guest enables or disables its local APIC by software."""
        lapic.enable_by_software(self.state, vcpu, enabled=enabled)
        self._settle(vcpu)

    def next_vector(self, vcpu: VcpuState) -> int | None:
        """The interrupt vector that the guest would take now; None if there is none."""
        return lapic.next_vector(self.state, vcpu)

    def take_vector(self, vcpu: VcpuState) -> int | None:
        """The guest takes that interrupt and sends EOI."""
        return lapic.take_vector(self.state, vcpu)

    # Time

    def advance(self, until: int) -> None:
        """Let the VM's clock reach `until` (ns), firing timers; earlier times change nothing."""
        timer.advance(self.state, until)

    def set_clock(self, now: int) -> None:
        """KVM_SET_CLOCK: the VM's clock (u64 ns), forwards or backwards; timers take as long as before."""
        timer.set_clock(self.state, now)

    def _slots_changed(self) -> None:
        for area in self.state.areas:
            area.slots_changed()

    def _settle(self, vcpu: VcpuState) -> None:
        if vcpu.deferred_sel:
            evtchn.merge_deferred(self.state, vcpu)
        if vcpu.timer.pending and self.state.intercepts_hypercalls:
            timer.inject_pending(self.state, vcpu)
