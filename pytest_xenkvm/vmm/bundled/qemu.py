"""`qemu`: what QEMU 10.0's Xen emulation configures and answers for a PVHVM Linux guest.

Written from QEMU's observable behaviour: what it did in the bundled recordings, and what it documents. Three
things differ, where QEMU leaves a rule to chance: an area that KVM refuses is refused to the guest, too,
where QEMU answers 0; numbers of hypercalls are compared in all their bits, where QEMU looks at 16 of them;
and there is no console and no device, so a guest's events to the VMM end here.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from errno import ENOSYS, EPERM

from pytest_xenkvm.abi.numbers import Hypercall
from pytest_xenkvm.abi.xen_numbers import PortStatus
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.vmm.behaviour import Vmm
from pytest_xenkvm.vmm.bundled import linux, platform, vcpus
from pytest_xenkvm.vmm.bundled.calls import Call, Fields, Refusal
from pytest_xenkvm.vmm.bundled.events import event_channel_op
from pytest_xenkvm.vmm.bundled.minimal import XEN_VERSION
from pytest_xenkvm.vmm.bundled.ports import Port
from pytest_xenkvm.vmm.bundled.state import State
from pytest_xenkvm.vmm.handles import Vcpu, Vm

Handler = Callable[[State, Call], int]


class Qemu(Vmm):
    """QEMU's part in a Xen guest's life, as far as a replay needs it."""

    handlers: dict[int, Handler] = {  # noqa: RUF012 - replaced, never changed
        Hypercall.memory_op: platform.memory_op,
        Hypercall.set_timer_op: vcpus.set_timer_op,
        Hypercall.xen_version: platform.xen_version,
        Hypercall.grant_table_op: platform.grant_table_op,
        Hypercall.vcpu_op: vcpus.vcpu_op,
        Hypercall.sched_op: platform.sched_op,
        Hypercall.event_channel_op: event_channel_op,
        Hypercall.physdev_op: platform.physdev_op,
        Hypercall.hvm_op: platform.hvm_op,
    }
    """Who serves which hypercall."""

    def configure(self, vm: Vm) -> None:
        """Set up Xen hypercalls, the vCPUs' IDs and the event channel of the store; reset everything else."""
        self.state = self.new_state(vm)
        vm.set_xen_version(*XEN_VERSION)
        vm.xen_hvm_config()
        for vcpu in vm.vcpus:
            self.identify(vcpu)
        vm.set_shared_info(None)
        self.open_store(vm)
        for vcpu in vm.vcpus:
            vcpu.set_vcpu_info(None)
            vcpu.set_vcpu_time_info(None)
            with suppress(KvmError):  # a host without run-delay figures has no runstate
                vcpu.set_runstate_addr(None)
            vcpu.set_upcall_vector(0)
            vcpu.set_timer(0)

    def new_state(self, vm: Vm) -> State:
        """What is kept of a VM."""
        return State(vm)

    def identify(self, vcpu: Vcpu) -> None:
        """Tell KVM by what number the guest knows a vCPU."""
        vcpu.set_vcpu_id(vcpu.index)

    def open_store(self, vm: Vm) -> None:
        """Give the guest the port by which it talks to the store; nobody answers there."""
        port = Port(status=PortStatus.INTERDOMAIN, to_vmm=True)
        vm.assign_eventfd(self.state.ports.bind(port, self.state.limit), vm.open_eventfd())

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """Refuse user mode, serve what there is a handler for."""
        if xen_exit.cpl:
            return -EPERM
        handler = self.handlers.get(xen_exit.input)
        if handler is None:
            return -ENOSYS
        try:
            return handler(self.state, Call(vcpu, xen_exit, self.assume))
        except Refusal as refusal:
            return -refusal.errno

    def assume(self, call: Call) -> Fields | None:
        """What the guest is taken to have passed where the recording doesn't show it."""
        return linux.assumed(self.state, call)

    def on_timer(self, vcpu: Vcpu, expires_ns: int) -> None:
        """A timer that the kernel doesn't run."""
        self.state.timer_expired(vcpu, expires_ns)

    def on_migrate(self, source: Vm, target: Vm) -> None:
        """Set up what KVM can't be asked for, then move what it can, timers last."""
        self.prepare(target)
        super().on_migrate(source, target)

    def prepare(self, target: Vm) -> None:
        """Set up on a fresh VM what KVM can't be asked for: interception and outbound ports."""
        target.xen_hvm_config()
        for number, port in self.state.ports.used.items():
            if port.status is PortStatus.IPI:
                target.assign_ipi(number, target.vcpus[port.vcpu].id)
            elif port.to_vmm:
                target.assign_eventfd(number, target.open_eventfd())
