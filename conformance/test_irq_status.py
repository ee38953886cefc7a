"""What KVM_IRQ_LINE_STATUS tells of an event that a GSI is routed to."""

from __future__ import annotations

from struct import Struct

import pytest

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import INVALID_GFN, INVALID_GPA, HvmAttr, VcpuAttr

from .kit.hosts import Builder
from .kit.slots import slot_added
from .kit.vm import ProbeVm

pytestmark = pytest.mark.source("kvm_set_irq, evtchn_set_fn, kvm_xen_set_evtchn")

GSI, PORT = 5, 40
LINE = Struct("<iI")
DELIVERED, PENDING_ALREADY, IGNORED = 1, 0, -1


def told(vm: ProbeVm, expected: int, *, level: int = 1, gsi: int = GSI) -> None:
    """Set the line, whose status must be that."""
    __tracebackhide__ = True
    argument = bytearray(LINE.pack(gsi, level))
    ret = vm.untold_ioctl(ioctls.KVM_IRQ_LINE_STATUS, argument)
    status = LINE.unpack(argument)[0]
    if (ret, status) != (0, expected):
        vm.fail(f"KVM_IRQ_LINE_STATUS tells {expected} and returns 0", f"it tells {status} and returns {ret}")


def routed(new_vm: Builder) -> ProbeVm:
    """A VM with a route to PORT on vCPU 0."""
    vm = new_vm.ready(irqchip="split")
    vm.route((GSI, PORT, 0))
    return vm


def test_delivered_and_pending_already(new_vm: Builder) -> None:
    """An event that is delivered tells 1, one that is pending already 0, also once its slot was added."""
    vm = routed(new_vm)
    told(vm, DELIVERED)
    told(vm, PENDING_ALREADY)
    vm.pending(PORT)
    vm.clear_events()
    slot_added(vm)
    told(vm, DELIVERED)
    slot_added(vm)
    told(vm, PENDING_ALREADY)
    vm.vcpus[0].run()
    vm.vcpus[0].upcall(0)


def test_without_vcpu_info(new_vm: Builder) -> None:
    """An event whose selector bit waits counts as delivered."""
    vm = routed(new_vm)
    vm.vcpus[0].set(VcpuAttr.VCPU_INFO, INVALID_GPA)
    told(vm, DELIVERED)
    told(vm, PENDING_ALREADY)


def test_masked(new_vm: Builder) -> None:
    """An event of a masked port tells -1 though it becomes pending, and then 0."""
    vm = routed(new_vm)
    vm.mask(PORT)
    told(vm, IGNORED)
    vm.pending(PORT)
    told(vm, PENDING_ALREADY)


def test_ignored(new_vm: Builder) -> None:
    """Level 0, a GSI without a route and an event that can't be delivered tell -1."""
    vm = routed(new_vm)
    told(vm, IGNORED, level=0)
    told(vm, IGNORED, gsi=GSI + 1)
    vm.route((GSI, 4096, 0))
    told(vm, IGNORED)
    vm.route((GSI, PORT, 99))
    told(vm, IGNORED)
    vm.route((GSI, PORT, 0))
    vm.set(HvmAttr.SHARED_INFO, INVALID_GFN)
    told(vm, IGNORED)
