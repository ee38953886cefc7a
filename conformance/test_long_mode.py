"""The attribute LONG_MODE, and what latches it."""

from __future__ import annotations

from errno import EFAULT

import pytest

from pytest_xenkvm.abi.layout import U32
from pytest_xenkvm.abi.numbers import PAGE_SIZE, HvmAttr

from .kit.hosts import Builder
from .kit.setting import MODES, NOWHERE, PAGE, SHARED_INFO, Mode

pytestmark = pytest.mark.source("kvm_xen_hvm_set_attr(LONG_MODE), kvm_xen_write_hypercall_page")

GFN = SHARED_INFO // PAGE_SIZE


@pytest.mark.parametrize(("value", "read"), [(0, 0), (1, 1), (2, 1), (0x80, 1), (0xFF, 1)])
def test_any_number_is_1(new_vm: Builder, value: int, read: int) -> None:
    """LONG_MODE is 0 at first, and any number but 0 sets it to 1."""
    vm = new_vm()
    vm.get(HvmAttr.LONG_MODE, 0)
    vm.set(HvmAttr.LONG_MODE, value)
    vm.get(HvmAttr.LONG_MODE, read)


@pytest.mark.parametrize("sequence", [(1, 1), (0, 0), (1, 0), (0, 1)], ids=str)
def test_writes_the_wall_clock(new_vm: Builder, sequence: tuple[int, int]) -> None:
    """Each SET of LONG_MODE writes the wall clock of its layout, also if nothing changes."""
    vm = new_vm()
    vm.set(HvmAttr.SHARED_INFO, GFN)
    places = {1: SHARED_INFO + 0xC00, 0: SHARED_INFO + 0x900}
    versions = {1: 0, 0: 2}
    for value in sequence:
        vm.set(HvmAttr.LONG_MODE, value)
        versions[value] += 2
        for layout, place in places.items():
            vm.holds(place, U32.pack(versions[layout]), f"the version of layout {layout}'s wall clock")


def test_32_bit_wall_clock_lies_on_64_bit_ports(new_vm: Builder) -> None:
    """The 32-bit wall clock lies on the pending bits that ports from 2048 on have in the 64-bit layout."""
    vm = new_vm()
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vm.set(HvmAttr.LONG_MODE, 1)
    found = vm.ports_pending()
    if 2049 not in found:
        vm.fail("the wall clock's version 2 to show as port 2049", f"ports {found}")


@pytest.mark.parametrize("value", [0, 1])
def test_refused_shared_info(new_vm: Builder, value: int) -> None:
    """With a shared_info that was refused LONG_MODE answers -EFAULT, yet it switches."""
    vm = new_vm()
    vm.set(HvmAttr.LONG_MODE, 1 - value)
    vm.set(HvmAttr.SHARED_INFO, NOWHERE // PAGE_SIZE, ret=-EFAULT)
    for _ in range(2):
        vm.set(HvmAttr.LONG_MODE, value, ret=-EFAULT)
        vm.get(HvmAttr.LONG_MODE, value)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("before", [0, 1])
def test_latched_by_the_page(new_vm: Builder, before: int, mode: Mode) -> None:
    """The write of the hypercall page latches LONG_MODE from EFER.LMA; compatibility mode counts as long."""
    vm = new_vm()
    vm.config()
    vm.set(HvmAttr.LONG_MODE, before)
    vm.vcpus[0].wrmsr(PAGE, mode=mode)
    vm.get(HvmAttr.LONG_MODE, int(mode.lma))


@pytest.mark.parametrize("mode", MODES)
def test_not_latched_by_hypercalls(new_vm: Builder, mode: Mode) -> None:
    """A hypercall doesn't latch LONG_MODE, whatever mode it comes from."""
    vm = new_vm.ready(long_mode=not mode.longmode)
    vm.vcpus[0].yield_(mode=mode)
    vm.get(HvmAttr.LONG_MODE, int(not mode.longmode))


@pytest.mark.parametrize("value", [PAGE + 1, NOWHERE, 1 << 52], ids=hex)
def test_latched_by_a_write_that_fails(new_vm: Builder, value: int) -> None:
    """LONG_MODE is latched also if the write of the page takes #GP."""
    vm = new_vm()
    vm.config()
    vm.vcpus[0].wrmsr(value, ok=False)
    vm.get(HvmAttr.LONG_MODE, 1)
    vm.vcpus[0].wrmsr(value & 0xFFFF_FFFF | 1, mode=Mode.PROTECTED, ok=False)
    vm.get(HvmAttr.LONG_MODE, 0)


def test_latch_writes_the_wall_clock(new_vm: Builder) -> None:
    """A latch that changes LONG_MODE writes the wall clock in the new layout; others write none."""
    vm = new_vm()
    vm.config()
    vm.set(HvmAttr.SHARED_INFO, GFN)
    clock = SHARED_INFO + 0xC00
    vm.vcpus[0].wrmsr(PAGE)
    vm.holds(clock, U32.pack(2), "the 64-bit wall clock's version")
    vm.vcpus[0].wrmsr(PAGE)
    vm.holds(clock, U32.pack(2), "the 64-bit wall clock's version")
    vm.vcpus[0].wrmsr(PAGE, mode=Mode.PROTECTED)
    vm.holds(SHARED_INFO + 0x900, U32.pack(4), "the 32-bit wall clock's version")


def test_latch_with_refused_shared_info(new_vm: Builder) -> None:
    """With a shared_info that was refused the write takes #GP, but latches, and a second one is fine."""
    vm = new_vm()
    vm.config()
    vm.set(HvmAttr.SHARED_INFO, NOWHERE // PAGE_SIZE, ret=-EFAULT)
    vm.vcpus[0].wrmsr(PAGE, ok=False)
    vm.get(HvmAttr.LONG_MODE, 1)
    vm.holds(PAGE, bytes(32), "the page")
    vm.vcpus[0].wrmsr(PAGE)
    if vm.read(PAGE, 1) != b"\xb8":
        vm.fail("a hypercall page", "the page was not written")
