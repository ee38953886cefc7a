"""Memory slots that the VMM deletes while areas lie in them, and puts back."""

from __future__ import annotations

from errno import EFAULT

import pytest

from pytest_xenkvm.abi.layout import U32
from pytest_xenkvm.abi.numbers import PAGE_SIZE, HvmAttr, Runstate, VcpuAttr

from .kit.hosts import Builder
from .kit.runstate_copy import FILL, LAYOUTS, copied
from .kit.setting import MS, NOWHERE, SECOND
from .kit.vm import ProbeVm

pytestmark = pytest.mark.source(
    "kvm_gpc_check, kvm_gpc_refresh (virt/kvm/pfncache.c), called throughout arch/x86/kvm/xen.c"
)

HEAD, TAIL = NOWHERE, NOWHERE + PAGE_SIZE
"""Two slots of a page."""
PORT, VECTOR = 40, 0x55
BITS = pytest.mark.parametrize("long_mode", [True, False], ids=["64-bit", "32-bit"])


def put_back(vm: ProbeVm, gpa: int) -> None:
    """A slot of a page, whose bytes all hold FILL."""
    vm.add_memory(gpa)
    vm.store(gpa, bytes([FILL]) * PAGE_SIZE)


# ---- runstate


@BITS
@pytest.mark.parametrize("flag", [0, 1], ids=["plain", "update flag"])
@pytest.mark.parametrize(
    ("gpa", "deleted"),
    [(HEAD + 0x100, HEAD), (TAIL - 20, HEAD), (TAIL - 20, TAIL)],
    ids=["within a page", "across pages, the first", "across pages, the second"],
)
def test_runstate(new_vm: Builder, gpa: int, deleted: int, flag: int, *, long_mode: bool) -> None:
    """A runstate copy that has lost a slot is left alone, and kept up to date again once the slot is back."""
    vm = new_vm()
    vm.wait(MS)
    vm.set(HvmAttr.LONG_MODE, int(long_mode))
    vm.set(HvmAttr.RUNSTATE_UPDATE_FLAG, flag)
    for page in (HEAD, TAIL):
        put_back(vm, page)
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.RUNSTATE_ADDR, gpa)
    copied(vm, gpa)
    vm.remove_memory(deleted)
    other = HEAD + TAIL - deleted
    before = vm.read(other, PAGE_SIZE)
    for state in (Runstate.BLOCKED, Runstate.RUNNABLE, Runstate.OFFLINE):
        vcpu.set(VcpuAttr.RUNSTATE_CURRENT, state)
        vm.holds(other, before, "what is left of the copy")
    vcpu.get(VcpuAttr.RUNSTATE_ADDR, gpa)
    put_back(vm, deleted)
    vcpu.set(VcpuAttr.RUNSTATE_CURRENT, Runstate.BLOCKED)
    copied(vm, gpa)


@pytest.mark.parametrize("gpa", [HEAD + 0x100, TAIL - 20], ids=["within a page", "across pages"])
def test_runstate_at_the_entry(new_vm: Builder, gpa: int) -> None:
    """A vCPU whose runstate copy has lost its slot goes on entering the guest."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    for page in (HEAD, TAIL):
        put_back(vm, page)
    vcpu.set(VcpuAttr.RUNSTATE_ADDR, gpa)
    vm.remove_memory(HEAD)
    vcpu.run()
    vcpu.yield_()
    put_back(vm, HEAD)
    vcpu.run()
    running_or_runnable = b"\xfe\xff\xff\xff"
    vm.holds(gpa, bytes(4), "the state in the copy", mask=running_or_runnable)


def test_pages_that_lie_apart(new_vm: Builder) -> None:
    """The update flag of a copy across pages is cleared where the entry time ends, also at its page's end."""
    for order in ((HEAD, TAIL), (TAIL, HEAD)):  # the host takes its pages in that order
        for long_mode, layout in LAYOUTS.items():
            vm = new_vm()
            vm.wait(MS)
            vm.set(HvmAttr.LONG_MODE, int(long_mode))
            vm.set(HvmAttr.RUNSTATE_UPDATE_FLAG, 1)
            for page in order:
                put_back(vm, page)
            gpa = TAIL - (layout.size - 4 * 8)
            vm.vcpus[0].set(VcpuAttr.RUNSTATE_ADDR, gpa)
            for state in (Runstate.OFFLINE, Runstate.RUNNING):
                vm.vcpus[0].set(VcpuAttr.RUNSTATE_CURRENT, state)
                copied(vm, gpa)


# ---- events


@BITS
def test_shared_info(new_vm: Builder, *, long_mode: bool) -> None:
    """Without its slot shared_info is as good as refused, and it is used again once the slot is back."""
    vm = new_vm.ready(long_mode=long_mode)
    vm.add_memory(HEAD)
    vm.set(HvmAttr.SHARED_INFO, HEAD // PAGE_SIZE)
    vm.shared_info = HEAD
    vm.send(PORT)
    vm.pending(PORT)
    vm.remove_memory(HEAD)
    vm.send(PORT, ret=-EFAULT)
    vm.set(HvmAttr.LONG_MODE, int(long_mode), ret=-EFAULT)
    vm.get(HvmAttr.SHARED_INFO, HEAD // PAGE_SIZE)
    vm.vcpus[0].run()
    vm.add_memory(HEAD)
    vm.send(PORT)
    vm.pending(PORT)


@BITS
def test_vcpu_info(new_vm: Builder, *, long_mode: bool) -> None:
    """Selector bits are kept, and no interrupt is taken, until the slot of vcpu_info is back."""
    vm = new_vm.ready(long_mode=long_mode)
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.UPCALL_VECTOR, VECTOR)
    vm.add_memory(HEAD)
    vcpu.set(VcpuAttr.VCPU_INFO, HEAD)
    vcpu.run()
    vm.remove_memory(HEAD)
    vm.send(PORT)
    vcpu.run()
    vcpu.took()
    vm.add_memory(HEAD)
    vcpu.quiet()
    vcpu.run()
    vcpu.took(VECTOR)
    selector = vm.layout.pending_sel
    vm.holds(HEAD + selector, (1 << PORT // vm.layout.word_bits).to_bytes(4, "little"), "the selector")


@pytest.mark.parametrize("attribute", [VcpuAttr.VCPU_INFO, VcpuAttr.VCPU_TIME_INFO])
def test_pvclock(new_vm: Builder, attribute: int) -> None:
    """A pvclock structure that has lost its slot keeps nobody from the guest, and is written in a new one."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vm.add_memory(HEAD)
    vcpu.set(attribute, HEAD)
    vcpu.run()
    vm.remove_memory(HEAD)
    vm.set_clock(vm.clock() + SECOND)
    vcpu.run()
    vm.add_memory(HEAD)
    vm.set_clock(vm.clock() + SECOND)
    vcpu.run()
    version = U32.unpack(vm.read(HEAD + (32 if attribute == VcpuAttr.VCPU_INFO else 0), 4))[0]
    if version == 0 or version % 2:
        vm.fail("the clock has an even version", f"{version}", 0)
