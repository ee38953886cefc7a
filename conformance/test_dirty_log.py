"""Pages that KVM marks dirty when it writes to areas, which is how a live migration learns of them."""

from __future__ import annotations

import pytest

from pytest_xenkvm.abi.numbers import INVALID_GPA, PAGE_SIZE, HvmAttr, Runstate, VcpuAttr

from .kit.hosts import Builder
from .kit.runstate_copy import LAYOUTS
from .kit.setting import SECOND
from .kit.slots import slot_added
from .kit.vm import ProbeVm

pytestmark = pytest.mark.source(
    "kvm_gpc_mark_dirty_in_slot, mark_page_dirty_in_slot and their callers; KVM_GET_DIRTY_LOG"
)

LOGGED = 0x5000_0000
"""A slot of a few pages whose log is kept."""
PAGES = 4
OTHER = LOGGED + 2 * PAGE_SIZE
PORT = 40
BITS = pytest.mark.parametrize("long_mode", [True, False], ids=["64-bit", "32-bit"])


def with_log(vm: ProbeVm) -> ProbeVm:
    """The VM with the slot added, and nothing due."""
    vm.add_memory(LOGGED, PAGES * PAGE_SIZE, log_dirty=True)
    for vcpu in vm.vcpus:
        vcpu.run()
    marked(vm)
    return vm


def marked(vm: ProbeVm, *pages: int) -> None:
    """Since the last time exactly these pages must have been marked dirty."""
    __tracebackhide__ = True
    found = vm.dirty_log(LOGGED)
    if found != set(pages):
        vm.fail(_words(frozenset(pages)), _words(found))


def _words(pages: frozenset[int]) -> str:
    return f"pages {', '.join(map(hex, sorted(pages))) or 'none'} marked dirty"


# ---- what is marked


@BITS
def test_runstate(new_vm: Builder, *, long_mode: bool) -> None:
    """The page of a runstate copy is marked when it is set, and by each change of state."""
    vm = with_log(new_vm())
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.LONG_MODE, int(long_mode))
    vcpu.set(VcpuAttr.RUNSTATE_ADDR, OTHER + 0x100)
    marked(vm, OTHER)
    for state in (Runstate.BLOCKED, Runstate.RUNNABLE, Runstate.RUNNING):
        vcpu.set(VcpuAttr.RUNSTATE_CURRENT, state)
        marked(vm, OTHER)
        marked(vm)


@BITS
def test_runstate_across_pages(new_vm: Builder, *, long_mode: bool) -> None:
    """Both pages of a runstate copy that crosses a page are marked."""
    vm = with_log(new_vm())
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.LONG_MODE, int(long_mode))
    for before in (1, 20, LAYOUTS[long_mode].size - 1):
        vcpu.set(VcpuAttr.RUNSTATE_ADDR, OTHER - before)
        marked(vm, OTHER - PAGE_SIZE, OTHER)
        vcpu.set(VcpuAttr.RUNSTATE_CURRENT, Runstate.OFFLINE)
        marked(vm, OTHER - PAGE_SIZE, OTHER)


def test_runstate_at_the_entry(new_vm: Builder) -> None:
    """The page of a runstate copy is marked when its vCPU enters the guest."""
    vm = with_log(new_vm.ready())
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.RUNSTATE_ADDR, OTHER)
    marked(vm, OTHER)
    vcpu.run()
    marked(vm, OTHER)


@BITS
def test_kept_selector_bits(new_vm: Builder, *, long_mode: bool) -> None:
    """The page of vcpu_info is marked when it gets selector bits that waited for the guest entry."""
    vm = with_log(new_vm.ready(long_mode=long_mode))
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_INFO, OTHER)
    for _ in range(3):  # an entry that renews the clock in vcpu_info marks it, too
        slot_added(vm)
        vm.dirty_log(LOGGED)
        vm.send(PORT)
        marked(vm)
        vcpu.quiet()
        vcpu.run()
        vcpu.upcall(PORT // vm.layout.word_bits)
        marked(vm, OTHER)
        vm.clear_events()


@pytest.mark.parametrize("attribute", [VcpuAttr.VCPU_INFO, VcpuAttr.VCPU_TIME_INFO])
def test_pvclock(new_vm: Builder, attribute: int) -> None:
    """The page of a pvclock structure is marked when that is written, at an entry."""
    vm = with_log(new_vm.ready())
    vcpu = vm.vcpus[0]
    vcpu.set(attribute, OTHER)
    marked(vm)
    vcpu.run()
    marked(vm, OTHER)
    vm.set_clock(vm.clock() + SECOND)
    vcpu.run()
    marked(vm, OTHER)


def test_hypercall_page(new_vm: Builder) -> None:
    """The hypercall page is marked."""
    vm = with_log(new_vm.ready())
    vm.vcpus[0].wrmsr(OTHER)
    marked(vm, OTHER)


# ---- what isn't


@BITS
def test_delivery(new_vm: Builder, *, long_mode: bool) -> None:
    """Neither shared_info's page nor vcpu_info's is marked when an event is delivered or masked."""
    vm = with_log(new_vm.ready(long_mode=long_mode))
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.SHARED_INFO, LOGGED // PAGE_SIZE)
    vm.shared_info = LOGGED
    vcpu.set(VcpuAttr.VCPU_INFO, OTHER)
    vcpu.run()
    vm.dirty_log(LOGGED)
    vm.mask(PORT + 1)
    vm.send(PORT)
    vm.send(PORT + 1)
    vm.pending(PORT, PORT + 1)
    vcpu.upcall(PORT // vm.layout.word_bits)
    marked(vm)


@BITS
def test_wall_clock(new_vm: Builder, *, long_mode: bool) -> None:
    """Shared_info's page isn't marked when the wall clock is written, by itself or anew."""
    vm = with_log(new_vm())
    vm.set(HvmAttr.LONG_MODE, int(long_mode))
    vm.set(HvmAttr.SHARED_INFO, OTHER // PAGE_SIZE)
    vm.set(HvmAttr.LONG_MODE, int(long_mode))
    version = OTHER + (0xC00 if long_mode else 0x900)
    vm.holds(version, b"\4\0\0\0", "the wall clock's version")
    marked(vm)


def test_host_addresses(new_vm: Builder) -> None:
    """An area that was given by host address has no slot, and nothing is marked."""
    vm = with_log(new_vm.ready())
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_INFO, INVALID_GPA)
    vm.send(PORT)
    vcpu.set(VcpuAttr.VCPU_INFO_HVA, {"gpa": OTHER})
    vcpu.run()
    vcpu.upcall(0)
    marked(vm)


def test_the_vmms_own_stores(new_vm: Builder) -> None:
    """What the VMM stores by itself isn't marked, nor is a page marked because an area was put there."""
    vm = with_log(new_vm.ready())
    vm.store(OTHER, b"\1")
    vm.vcpus[0].set(VcpuAttr.VCPU_INFO, LOGGED)
    vm.vcpus[0].set(VcpuAttr.VCPU_TIME_INFO, OTHER)
    marked(vm)
