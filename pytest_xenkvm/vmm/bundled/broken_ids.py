"""Behaviours that break one rule each: about Xen IDs, and about moving them to another VM."""

from __future__ import annotations

from contextlib import suppress

from attrs import evolve

from pytest_xenkvm.abi.numbers import U32_MAX, XEN_VCPU_ID_INVALID, Hypercall, VcpuAttr, VcpuOp
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.vmm.bundled.minimal import FIRST_TIMER_PORT, Minimal
from pytest_xenkvm.vmm.bundled.qemu import Qemu
from pytest_xenkvm.vmm.handles import Vcpu, Vm
from pytest_xenkvm.vmm.snapshot import restore_snapshot, take_snapshot


class ForgetsIds(Qemu):
    """Gives an ID to vCPU 0 alone, and a timer port to all: serves forwarded calls beside the kernel."""

    def identify(self, vcpu: Vcpu) -> None:
        """As if there were only one vCPU."""
        if vcpu.index == 0:
            super().identify(vcpu)


class SharesIds(Minimal):
    """Gives every vCPU ID 0, and its own only when the guest brings that vCPU up."""

    def configure(self, vm: Vm) -> None:
        """What Linux up to 7.2 has for a default."""
        super().configure(vm)
        for vcpu in vm.vcpus:
            vcpu.set_vcpu_id(0)

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """The vCPU that comes up is known by its vcpu_info."""
        op, number = (param & U32_MAX for param in xen_exit.params[:2])
        brings_up = xen_exit.input == Hypercall.vcpu_op and op == VcpuOp.register_vcpu_info
        if brings_up and not xen_exit.cpl and number < len(self.vm.vcpus):
            self.vm.vcpus[number].set_vcpu_id(number)
        return super().on_hypercall(vcpu, xen_exit)


class SwapsIds(Minimal):
    """Counts vCPUs from the end."""

    def configure(self, vm: Vm) -> None:
        """The last vCPU is Xen's vCPU 0."""
        super().configure(vm)
        for vcpu in vm.vcpus:
            vcpu.set_vcpu_id(len(vm.vcpus) - 1 - vcpu.index)


class WritesUnsetIds(Minimal):
    """When it migrates, writes what an unset ID reads as to every vCPU before it writes the right one."""

    def on_migrate(self, source: Vm, target: Vm) -> None:
        """As a VMM does that takes an unset ID for a value like any other."""
        for vcpu in target.vcpus:
            with suppress(KvmError):
                vcpu.set_vcpu_id(XEN_VCPU_ID_INVALID)
        super().on_migrate(source, target)


class RestoresTimersFirst(Minimal):
    """When it migrates, sets each vCPU's timer port before its ID."""

    def on_migrate(self, source: Vm, target: Vm) -> None:
        """In the order in which it comes to mind."""
        for vcpu in target.vcpus:
            vcpu.set_timer(FIRST_TIMER_PORT + vcpu.index)
        super().on_migrate(source, target)


class RestoresAreasLast(Qemu):
    """When it migrates, sets running timers before there is a shared_info page for their events."""

    def on_migrate(self, source: Vm, target: Vm) -> None:
        """VCPUs first, then the VM."""
        self.prepare(target)
        snapshot = take_snapshot(source)
        kept = (VcpuAttr.VCPU_ID, VcpuAttr.TIMER)
        vcpus = tuple({key: values[key] for key in kept if key in values} for values in snapshot.vcpus)
        restore_snapshot(evolve(snapshot, vm={}, vcpus=vcpus), target)
        restore_snapshot(snapshot, target)
