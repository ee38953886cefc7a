"""Behaviours that break one rule each: about what they answer, and to whom."""

from __future__ import annotations

from contextlib import suppress
from errno import ENOSYS
from typing import cast

from attrs import evolve

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import HvmOp, Hypercall, VcpuAttr, VcpuOp, XenHvmFlag
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.vmm.bundled import platform, vcpus
from pytest_xenkvm.vmm.bundled.calls import Call
from pytest_xenkvm.vmm.bundled.minimal import Minimal
from pytest_xenkvm.vmm.bundled.qemu import Qemu
from pytest_xenkvm.vmm.bundled.state import State
from pytest_xenkvm.vmm.handles import Vcpu, Vm

_SHORT: int = 0xFFFF


class InterceptsNothing(Minimal):
    """Sets up everything but KVM_XEN_HVM_CONFIG's INTERCEPT_HCALL."""

    def configure(self, vm: Vm) -> None:
        """Take the flag back."""
        super().configure(vm)
        vm.xen_hvm_config(flags=XenHvmFlag.EVTCHN_SEND)


class TellsNoVersion(Minimal):
    """Leaves XEN_VERSION unset, and doesn't serve XENVER_version either."""

    def configure(self, vm: Vm) -> None:
        """0 is none."""
        super().configure(vm)
        vm.set_xen_version(0, 0)


class LeavesCallsUnanswered(Minimal):
    """Answers what it knows and nothing else."""

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """Without a default."""
        answer = super().on_hypercall(vcpu, xen_exit)
        return cast("int", None) if answer == -ENOSYS else answer


class ServesUserMode(Minimal):
    """Doesn't look at the privilege level."""

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """Take every caller for the kernel."""
        return super().on_hypercall(vcpu, evolve(xen_exit, cpl=0))


class CutsNumbers(Minimal):
    """Looks at 16 bits of a hypercall's number."""

    def on_hypercall(self, vcpu: Vcpu, xen_exit: XenExit) -> int:
        """Keep the lower ones."""
        return super().on_hypercall(vcpu, evolve(xen_exit, input=xen_exit.input & _SHORT))


class ServesAnyVcpu(Minimal):
    """Doesn't look at which vCPU a vcpu_op names."""

    def vcpu_op(self, sub_op: int, named: int) -> int:
        """Take every number for vCPU 0."""
        return super().vcpu_op(sub_op, named * 0)


class StopsNoPeriodicTimer(Minimal):
    """Leaves VCPUOP_stop_periodic_timer to a kernel that doesn't serve it."""

    def vcpu_op(self, sub_op: int, named: int) -> int:
        """Implement none of vcpu_op."""
        answer = super().vcpu_op(sub_op, named)
        return -ENOSYS if answer == 0 else answer


class LeavesTimersUnserved(Minimal):
    """Sets IDs but no timer ports, and answers -ENOSYS to the timer hypercalls that are forwarded."""

    def configure(self, vm: Vm) -> None:
        """Take the ports back."""
        super().configure(vm)
        for vcpu in vm.vcpus:
            vcpu.set_timer(0)


def _register_nothing(state: State, call: Call) -> int:
    """vcpu_op that leaves areas to the kernel."""
    areas = (
        VcpuOp.register_vcpu_info,
        VcpuOp.register_runstate_memory_area,
        VcpuOp.register_vcpu_time_memory_area,
    )
    number = call.xen_exit.params[1]
    if call.op not in areas or number >= len(state.vm.vcpus):
        return vcpus.vcpu_op(state, call)
    if call.op == VcpuOp.register_vcpu_info:
        state.newest = number
    return 0


class LeavesAreasToTheKernel(Qemu):
    """Answers 0 when the guest registers an area, and doesn't tell KVM."""

    handlers = {**Qemu.handlers, Hypercall.vcpu_op: _register_nothing}  # noqa: RUF012 - never changed


def _set_vector_of_the_vm(state: State, call: Call) -> int:
    """hvm_op with QEMU's old mistake: the VM's ioctl on the vCPU's file, its result thrown away."""
    if call.op != HvmOp.set_evtchn_upcall_vector:
        return platform.hvm_op(state, call)
    number, vector = call.read(1, platform.UPCALL_VECTOR)
    argument = bytearray(ioctls.ATTR_SIZE)
    ioctls.ATTR_HEADER.pack_into(argument, 0, VcpuAttr.UPCALL_VECTOR)
    argument[ioctls.ATTR_HEADER.size] = vector
    with suppress(KvmError):
        state.vm.vcpus[number].ioctl(ioctls.KVM_XEN_HVM_SET_ATTR, argument)
    return 0


class SetsVectorsOnTheVm(Qemu):
    """Sets a vCPU's upcall vector with the ioctl of the VM."""

    handlers = {**Qemu.handlers, Hypercall.hvm_op: _set_vector_of_the_vm}  # noqa: RUF012 - never changed
