"""The attributes SHARED_INFO and SHARED_INFO_HVA, and the wall clock that comes with them."""

from __future__ import annotations

from errno import EFAULT, EINVAL

import pytest

from pytest_xenkvm.abi.layout import U32
from pytest_xenkvm.abi.numbers import INVALID_GFN, PAGE_SIZE, U32_MAX, HvmAttr

from .kit.hosts import Builder
from .kit.setting import LAST_PAGE, MEMORY, NOWHERE, OTHER_SHARED_INFO, SECOND, SHARED_INFO
from .kit.vm import ProbeVm

pytestmark = pytest.mark.source("kvm_xen_hvm_set_attr, kvm_xen_hvm_get_attr, kvm_xen_shared_info_init")

GFN, OTHER_GFN = SHARED_INFO // PAGE_SIZE, OTHER_SHARED_INFO // PAGE_SIZE
UNMAPPED_HVA = 0x1_0000
"""No process maps that, but it could."""
CLOCK_64, CLOCK_32 = 0xC00, 0x900


def version(vm: ProbeVm, place: int) -> int:
    """The version of the wall clock there."""
    number: int = U32.unpack(vm.read(place, 4))[0]
    return number


def test_off_at_first(new_vm: Builder) -> None:
    """A new VM has no shared_info: INVALID_GFN, and host address 0."""
    vm = new_vm()
    vm.get(HvmAttr.SHARED_INFO, INVALID_GFN)
    vm.get(HvmAttr.SHARED_INFO_HVA, 0)


def test_by_gfn(new_vm: Builder) -> None:
    """What was set by frame number reads back so, and has no host address."""
    vm = new_vm()
    for gfn in (GFN, 0, LAST_PAGE // PAGE_SIZE):
        vm.set(HvmAttr.SHARED_INFO, gfn)
        vm.get(HvmAttr.SHARED_INFO, gfn)
        vm.get(HvmAttr.SHARED_INFO_HVA, 0)


def test_by_hva(new_vm: Builder) -> None:
    """What was set by host address reads back so, and has no frame number; each replaces the other."""
    vm = new_vm()
    for _ in range(2):
        vm.set(HvmAttr.SHARED_INFO, OTHER_GFN)
        vm.set(HvmAttr.SHARED_INFO_HVA, {"gpa": SHARED_INFO})
        vm.get(HvmAttr.SHARED_INFO, INVALID_GFN)
        vm.get(HvmAttr.SHARED_INFO_HVA, {"gpa": SHARED_INFO})
        vm.send(5)
        vm.pending(5)
        vm.clear_events()


@pytest.mark.parametrize("on", ["gfn", "hva"])
@pytest.mark.parametrize(
    ("attribute", "off"), [(HvmAttr.SHARED_INFO, INVALID_GFN), (HvmAttr.SHARED_INFO_HVA, 0)]
)
def test_switched_off(new_vm: Builder, on: str, attribute: int, off: int) -> None:
    """INVALID_GFN, or host address 0, switches shared_info off, however it was set, and also if it is off."""
    vm = new_vm()
    if on == "gfn":
        vm.set(HvmAttr.SHARED_INFO, GFN)
    else:
        vm.set(HvmAttr.SHARED_INFO_HVA, {"gpa": SHARED_INFO})
    for _ in range(2):
        vm.set(attribute, off)
        vm.get(HvmAttr.SHARED_INFO, INVALID_GFN)
        vm.get(HvmAttr.SHARED_INFO_HVA, 0)
        vm.send(5, ret=-EINVAL)


@pytest.mark.parametrize("offset", [1, 8, 0x800, PAGE_SIZE - 1])
def test_unaligned_hva(new_vm: Builder, offset: int) -> None:
    """A host address that is not page-aligned is -EINVAL, and the old shared_info stays."""
    vm = new_vm()
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vm.set(HvmAttr.SHARED_INFO_HVA, vm.hva(SHARED_INFO) + offset, ret=-EINVAL)
    vm.set(HvmAttr.SHARED_INFO_HVA, offset, ret=-EINVAL)
    vm.get(HvmAttr.SHARED_INFO, GFN)
    vm.send(5)
    vm.pending(5)


@pytest.mark.parametrize("hva", [0x7FFF_FFFF_F000, 0xFFFF_8000_0000_0000, 0xFFFF_FFFF_FFFF_F000], ids=hex)
def test_hva_of_no_process(new_vm: Builder, hva: int) -> None:
    """A host address that no process can have is -EINVAL, and the old shared_info stays."""
    vm = new_vm()
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vm.set(HvmAttr.SHARED_INFO_HVA, hva, ret=-EINVAL)
    vm.get(HvmAttr.SHARED_INFO, GFN)


def test_hva_without_memory(new_vm: Builder) -> None:
    """A host address without memory is -EFAULT, yet it counts as set and reads back."""
    vm = new_vm()
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vm.set(HvmAttr.SHARED_INFO_HVA, UNMAPPED_HVA, ret=-EFAULT)
    vm.get(HvmAttr.SHARED_INFO_HVA, UNMAPPED_HVA)
    vm.get(HvmAttr.SHARED_INFO, INVALID_GFN)
    vm.send(5, ret=-EFAULT)


@pytest.mark.parametrize("gfn", [MEMORY // PAGE_SIZE, 0x4_0000, 0xF_EE00, 0x10_0000, (1 << 52) - 1], ids=hex)
def test_gfn_without_memory(new_vm: Builder, gfn: int) -> None:
    """A frame without memory is -EFAULT, yet it counts as set and reads back."""
    vm = new_vm()
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vm.set(HvmAttr.SHARED_INFO, gfn, ret=-EFAULT)
    vm.get(HvmAttr.SHARED_INFO, gfn)
    vm.get(HvmAttr.SHARED_INFO_HVA, 0)
    vm.send(5, ret=-EFAULT)
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vm.send(5)
    vm.pending(5)


@pytest.mark.parametrize(
    ("gfn", "frame"), [(1 << 52 | GFN, GFN), (1 << 63 | OTHER_GFN, OTHER_GFN), (1 << 52, 0)]
)
def test_gfn_is_shifted(new_vm: Builder, gfn: int, frame: int) -> None:
    """A frame number is shifted without a check: its bits from 52 on are lost."""
    vm = new_vm()
    vm.set(HvmAttr.SHARED_INFO, gfn)
    vm.get(HvmAttr.SHARED_INFO, frame)
    vm.shared_info = frame * PAGE_SIZE
    vm.send(5)
    vm.pending(5)


@pytest.mark.parametrize("by", ["gfn", "hva"])
@pytest.mark.parametrize(
    ("long_mode", "place", "other"),
    [(1, CLOCK_64, CLOCK_32), (0, CLOCK_32, CLOCK_64)],
    ids=["64-bit", "32-bit"],
)
def test_wall_clock(new_vm: Builder, by: str, long_mode: int, place: int, other: int) -> None:
    """Setting shared_info writes the wall clock where the layout has it: an even version and a time."""
    vm = new_vm()
    vm.set(HvmAttr.LONG_MODE, long_mode)
    if by == "gfn":
        vm.set(HvmAttr.SHARED_INFO, GFN)
    else:
        vm.set(HvmAttr.SHARED_INFO_HVA, {"gpa": SHARED_INFO})
    if version(vm, SHARED_INFO + place) != 2:
        vm.fail("wall clock version 2", f"{version(vm, SHARED_INFO + place)}")
    nanoseconds = U32.unpack(vm.read(SHARED_INFO + place + 8, 4))[0]
    if nanoseconds >= 1_000_000_000:
        vm.fail("nanoseconds below a second", f"{nanoseconds}")
    vm.holds(SHARED_INFO + (0xC0C if long_mode else 0x924), bytes(4), "the wall clock's sec_hi")
    vm.holds(SHARED_INFO + other, bytes(12), "the other layout's wall clock")


@pytest.mark.parametrize(
    ("before", "after"),
    [(0, 2), (1, 4), (2, 4), (7, 10), (U32_MAX - 1, 0), (U32_MAX, 2), (0x8000_0001, 0x8000_0004)],
)
def test_wall_clock_version(new_vm: Builder, before: int, after: int) -> None:
    """The wall clock's version goes from what the page holds to the second number behind, an even one."""
    vm = new_vm.ready()
    vm.store(SHARED_INFO + CLOCK_64, U32.pack(before))
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vm.holds(SHARED_INFO + CLOCK_64, U32.pack(after), "the wall clock's version")


@pytest.mark.parametrize(("long_mode", "sec_hi"), [(1, 0xC0C), (0, 0x924)], ids=["64-bit", "32-bit"])
@pytest.mark.parametrize("by", ["gfn", "hva"])
def test_all_of_the_wall_clock_is_written(new_vm: Builder, by: str, long_mode: int, sec_hi: int) -> None:
    """The wall clock's seconds, their upper half and the nanoseconds are written, whatever the page held."""
    vm = new_vm()
    vm.set(HvmAttr.LONG_MODE, long_mode)
    vm.store(SHARED_INFO, b"\xff" * PAGE_SIZE)
    if by == "gfn":
        vm.set(HvmAttr.SHARED_INFO, GFN)
    else:
        vm.set(HvmAttr.SHARED_INFO_HVA, {"gpa": SHARED_INFO})
    place = SHARED_INFO + (CLOCK_64 if long_mode else CLOCK_32)
    seconds, nanoseconds = U32.unpack(vm.read(place + 4, 4))[0], U32.unpack(vm.read(place + 8, 4))[0]
    if seconds == U32_MAX or nanoseconds >= 1_000_000_000:
        vm.fail("a time", f"{seconds} s and {nanoseconds} ns")
    vm.holds(SHARED_INFO + sec_hi, bytes(4), "the wall clock's sec_hi")


@pytest.mark.parametrize(("long_mode", "sec_hi"), [(1, 0xC0C), (0, 0x924)], ids=["64-bit", "32-bit"])
def test_wall_clock_is_real_time(new_vm: Builder, long_mode: int, sec_hi: int) -> None:
    """The wall clock plus the guest's clock is about the host's real time, also if that clock was set."""
    vm = new_vm()
    vm.set(HvmAttr.LONG_MODE, long_mode)
    vm.set_clock(vm.clock() + 3600 * SECOND)
    vm.set(HvmAttr.SHARED_INFO, GFN)
    place = SHARED_INFO + (CLOCK_64 if long_mode else CLOCK_32)
    low, ns, high = (U32.unpack(vm.read(at, 4))[0] for at in (place + 4, place + 8, SHARED_INFO + sec_hi))
    before = vm.real_time()
    shown = (high << 32 | low) * SECOND + ns + vm.clock()
    if not before - SECOND <= shown <= vm.real_time() + SECOND:
        vm.fail(f"about {before} ns since 1970", f"{shown} ns")


def test_rest_of_the_page(new_vm: Builder) -> None:
    """Nothing but the wall clock is written to the page."""
    vm = new_vm()
    vm.set(HvmAttr.LONG_MODE, 1)
    vm.store(SHARED_INFO, b"\x5a" * PAGE_SIZE)
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vm.holds(SHARED_INFO, b"\x5a" * CLOCK_64, "shared_info before the wall clock")
    rest = CLOCK_64 + 16
    vm.holds(SHARED_INFO + rest, b"\x5a" * (PAGE_SIZE - rest), "shared_info behind the wall clock")


def test_wall_clock_is_not_rewritten_elsewhere(new_vm: Builder) -> None:
    """Moving shared_info leaves the old page alone."""
    vm = new_vm.ready()
    before = vm.read(SHARED_INFO, PAGE_SIZE)
    vm.set(HvmAttr.SHARED_INFO, OTHER_GFN)
    vm.set(HvmAttr.LONG_MODE, 1)
    vm.holds(SHARED_INFO, before, "the old shared_info")


def test_nowhere_is_no_frame(new_vm: Builder) -> None:
    """An address that the guest has mapped but no memory slot backs is no shared_info."""
    vm = new_vm()
    vm.set(HvmAttr.SHARED_INFO, NOWHERE // PAGE_SIZE, ret=-EFAULT)
    vm.set(HvmAttr.LONG_MODE, 1, ret=-EFAULT)
    vm.get(HvmAttr.LONG_MODE, 1)
