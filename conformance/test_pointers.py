"""Guest pointers: what the kernel's walk of the guest's page tables makes of them."""

from __future__ import annotations

from errno import EFAULT

import pytest

from pytest_xenkvm.abi.layout import U32
from pytest_xenkvm.abi.numbers import PAGE_SIZE, EvtchnOp, Hypercall, SchedOp, VcpuOp

from .kit.hosts import Builder
from .kit.setting import ARGUMENT, MEMORY, MODES_32, NOWHERE, Mode

pytestmark = pytest.mark.source("kvm_read_guest_virt: the page walk looks at bits 0 to 47")

ALIASES = [1 << 48, 1 << 52, 1 << 62, 1 << 63, 0xFFFF << 48, 0xFFFE << 48]
"""Upper bits of pointers that are not canonical, and that the walk doesn't look at."""
UNMAPPED = [1 << 32, 1 << 38, 1 << 39, 1 << 46, 1 << 47, 0xFFFF_8000_0000_0000]
"""Upper bits of pointers where the guest has nothing mapped."""
HOLES = [MEMORY, NOWHERE, 0xBFFF_F000, 0xFED0_0000, 0xFFFF_F000]
"""What the guest has mapped without memory behind it."""


def test_aliases(new_vm: Builder) -> None:
    """Bits 48 to 63 of a 64-bit pointer are ignored: a pointer that isn't canonical works."""
    vm = new_vm.timers()
    vcpu = vm.vcpus[0]
    fd = vm.eventfd()
    vm.outbound(9, fd=fd)
    for upper in ALIASES:
        vm.store(ARGUMENT, U32.pack(9))
        vcpu.call(Hypercall.event_channel_op, EvtchnOp.send, ARGUMENT | upper)
        vm.eventfd_holds(fd, 1)
        vcpu.store_time(ARGUMENT, 1 << 62, bytes(16))
        vcpu.call(Hypercall.vcpu_op, VcpuOp.set_singleshot_timer, 10, ARGUMENT | upper)
        vcpu.timer_is(20, 1 << 62)


def test_nothing_there(new_vm: Builder) -> None:
    """A pointer to nothing is -EFAULT, and changes nothing."""
    vm = new_vm.timers()
    vcpu = vm.vcpus[0]
    fd = vm.eventfd()
    vm.outbound(9, fd=fd)
    vm.store(ARGUMENT, U32.pack(9))
    for pointer in [ARGUMENT | upper for upper in UNMAPPED] + HOLES + [2**64 - 1, 2**64 - 4096]:
        vcpu.call(Hypercall.event_channel_op, EvtchnOp.send, pointer, answers=-EFAULT)
        vcpu.call(Hypercall.vcpu_op, VcpuOp.set_singleshot_timer, 10, pointer, answers=-EFAULT)
        vcpu.call(Hypercall.sched_op, SchedOp.poll, pointer, answers=-EFAULT)
        vm.eventfd_holds(fd, 0)
        vcpu.timer_is(20)


@pytest.mark.parametrize("mode", MODES_32)
def test_nothing_there_in_32_bits(new_vm: Builder, mode: Mode) -> None:
    """A 32-bit caller's pointer to nothing is -EFAULT, also where it would wrap."""
    vm = new_vm.timers()
    vcpu = vm.vcpus[0]
    for pointer in (*HOLES, 0xFFFF_FFFE, 0xFFFF_FFF8):
        vcpu.call(Hypercall.event_channel_op, EvtchnOp.send, pointer, answers=-EFAULT, mode=mode)
        vcpu.call(Hypercall.vcpu_op, VcpuOp.set_singleshot_timer, 10, pointer, answers=-EFAULT, mode=mode)
        vcpu.call(Hypercall.sched_op, SchedOp.poll, pointer, answers=-EFAULT, mode=mode)


def test_across_pages(new_vm: Builder) -> None:
    """An argument may cross a page."""
    vm = new_vm.timers()
    at = ARGUMENT + PAGE_SIZE - 7
    vm.vcpus[0].set_singleshot(10, 1 << 62 | 5, at=at)
    vm.vcpus[0].timer_is(20, 1 << 62 | 5)
    vm.send(5)
    vm.vcpus[0].poll([6, 5], 1, at=at, array=ARGUMENT + 3 * PAGE_SIZE - 5)
