"""The attribute VCPU_TIME_INFO, and the pvclock structures that follow the guest's clock."""

from __future__ import annotations

from errno import EFAULT, EINVAL

import pytest

from pytest_xenkvm.abi.layout import PVCLOCK_GUEST_STOPPED, PVCLOCK_TSC_STABLE, VCPU_TIME_INFO
from pytest_xenkvm.abi.numbers import INVALID_GPA, PAGE_SIZE, HvmAttr, VcpuAttr, XenHvmFlag

from .kit.hosts import Builder
from .kit.setting import LAST_PAGE, MEMORY, MS, NOWHERE, SHARED_INFO, TIME_INFO, VCPU_INFO
from .kit.vm import DEFAULT_FLAGS, ProbeVm

pytestmark = pytest.mark.source(
    "kvm_xen_vcpu_set_attr(VCPU_TIME_INFO), kvm_guest_time_update; Xen's public/xen.h"
)

SIZE = 32
FLAGS = 29
"""Offset of the flags."""
IN_VCPU_INFO = VCPU_INFO + 32


def clock(vm: ProbeVm, place: int) -> tuple[int, ...]:
    """version, pad, tsc_timestamp, system_time, tsc_to_system_mul, tsc_shift, flags."""
    return VCPU_TIME_INFO.unpack(vm.read(place, SIZE))


def test_off_at_first(new_vm: Builder) -> None:
    """A new vCPU has no VCPU_TIME_INFO: INVALID_GPA."""
    new_vm().vcpus[0].get(VcpuAttr.VCPU_TIME_INFO, INVALID_GPA)


@pytest.mark.parametrize(
    "gpa", [TIME_INFO, TIME_INFO + 1, TIME_INFO + PAGE_SIZE - SIZE, LAST_PAGE, 0], ids=hex
)
def test_written_at_the_next_entry(new_vm: Builder, gpa: int) -> None:
    """The structure is written at the vCPU's next entry, at any address whose 32 bytes lie in a page."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_TIME_INFO, gpa)
    vcpu.get(VcpuAttr.VCPU_TIME_INFO, gpa)
    vm.holds(gpa, bytes(SIZE), "VCPU_TIME_INFO before the entry")
    vcpu.run()
    version, pad, _tsc, _time, multiplier, _shift, _flags = clock(vm, gpa)
    if version == 0 or version % 2 or pad or not multiplier:
        vm.fail("a clock with an even version", f"{clock(vm, gpa)}", 0)


def test_nothing_beside_it(new_vm: Builder) -> None:
    """Nothing but the 32 bytes is written."""
    vm = new_vm.ready()
    vm.store(TIME_INFO, b"\x5a" * 96)
    vm.vcpus[0].set(VcpuAttr.VCPU_TIME_INFO, TIME_INFO + 32)
    vm.vcpus[0].run()
    vm.holds(TIME_INFO, b"\x5a" * 32, "memory before VCPU_TIME_INFO")
    vm.holds(TIME_INFO + 64, b"\x5a" * 32, "memory behind VCPU_TIME_INFO")


@pytest.mark.parametrize("offset", [PAGE_SIZE - SIZE + 1, PAGE_SIZE - SIZE + 4, PAGE_SIZE - 1])
def test_must_fit_in_a_page(new_vm: Builder, offset: int) -> None:
    """Where the structure would cross a page it is -EINVAL, and the old one stays."""
    vcpu = new_vm().vcpus[0]
    vcpu.set(VcpuAttr.VCPU_TIME_INFO, TIME_INFO)
    vcpu.set(VcpuAttr.VCPU_TIME_INFO, TIME_INFO + offset, ret=-EINVAL)
    vcpu.set(VcpuAttr.VCPU_TIME_INFO, NOWHERE + offset, ret=-EINVAL)
    vcpu.get(VcpuAttr.VCPU_TIME_INFO, TIME_INFO)


@pytest.mark.parametrize("gpa", [MEMORY, NOWHERE, 1 << 40, INVALID_GPA - 31], ids=hex)
def test_without_memory(new_vm: Builder, gpa: int) -> None:
    """An address without memory is -EFAULT, yet it counts as set and reads back; the guest runs on."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_TIME_INFO, TIME_INFO)
    vcpu.set(VcpuAttr.VCPU_TIME_INFO, gpa, ret=-EFAULT)
    vcpu.get(VcpuAttr.VCPU_TIME_INFO, gpa)
    vcpu.run()
    vm.holds(TIME_INFO, bytes(SIZE), "the old VCPU_TIME_INFO")


def test_switched_off(new_vm: Builder) -> None:
    """INVALID_GPA switches it off, also if it is off."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_TIME_INFO, TIME_INFO)
    for _ in range(2):
        vcpu.set(VcpuAttr.VCPU_TIME_INFO, INVALID_GPA)
        vcpu.get(VcpuAttr.VCPU_TIME_INFO, INVALID_GPA)
    vcpu.run()
    vm.holds(TIME_INFO, bytes(SIZE), "the old VCPU_TIME_INFO")


def test_each_vcpu_has_its_own(new_vm: Builder) -> None:
    """A vCPU's entry writes its own structure."""
    vm = new_vm.ready(vcpus=2)
    vm.vcpus[1].set(VcpuAttr.VCPU_TIME_INFO, TIME_INFO + PAGE_SIZE)
    vm.vcpus[1].run()
    vm.vcpus[0].get(VcpuAttr.VCPU_TIME_INFO, INVALID_GPA)
    vm.holds(TIME_INFO, bytes(SIZE), "vCPU 0's place")
    if clock(vm, TIME_INFO + PAGE_SIZE)[0] == 0:
        vm.fail("a clock", "nothing was written", 1)


def test_the_same_clock_in_vcpu_info(new_vm: Builder) -> None:
    """vcpu_info holds the same clock as VCPU_TIME_INFO, version and flags aside."""
    vm = new_vm.ready()
    vm.vcpus[0].run()
    vm.vcpus[0].set(VcpuAttr.VCPU_TIME_INFO, TIME_INFO)
    vm.vcpus[0].run()
    in_info, in_time = clock(vm, IN_VCPU_INFO), clock(vm, TIME_INFO)
    if in_info[1:6] != in_time[1:6] or not in_info[0]:
        vm.fail(f"{in_info} in both", f"VCPU_TIME_INFO holds {in_time}", 0)


@pytest.mark.parametrize("by", [VcpuAttr.VCPU_INFO, VcpuAttr.VCPU_INFO_HVA], ids=["gpa", "hva"])
def test_vcpu_info_renews_the_clock(new_vm: Builder, by: int) -> None:
    """Setting vcpu_info has the clock in it written at the vCPU's next entry, and only then."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.run()
    version = clock(vm, IN_VCPU_INFO)[0]
    vcpu.set(by, VCPU_INFO if by == VcpuAttr.VCPU_INFO else {"gpa": VCPU_INFO})
    if clock(vm, IN_VCPU_INFO)[0] != version:
        vm.fail("the clock is left alone until the entry", f"{clock(vm, IN_VCPU_INFO)}", 0)
    vcpu.run()
    if clock(vm, IN_VCPU_INFO)[0] != version + 2:
        vm.fail(f"a clock with version {version + 2}", f"{clock(vm, IN_VCPU_INFO)}", 0)


def test_version_goes_on(new_vm: Builder) -> None:
    """Each update makes the version the second number behind what it was, an even one."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    for before, after in ((7, 10), (10, 12), (0xFFFF_FFFF, 2)):
        vm.store(TIME_INFO, before.to_bytes(4, "little"))
        vcpu.set(VcpuAttr.VCPU_TIME_INFO, TIME_INFO)
        vcpu.run()
        vm.holds(TIME_INFO, after.to_bytes(4, "little"), "the version")


def test_unstable_flag(new_vm: Builder) -> None:
    """With PVCLOCK_TSC_UNSTABLE configured no clock says that it is stable; a change renews the clocks."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_TIME_INFO, TIME_INFO)
    vcpu.run()
    version = clock(vm, TIME_INFO)[0]
    vm.config(flags=DEFAULT_FLAGS | XenHvmFlag.PVCLOCK_TSC_UNSTABLE)
    vcpu.run()
    for place in (TIME_INFO, IN_VCPU_INFO):
        if clock(vm, place)[-1] & PVCLOCK_TSC_STABLE:
            vm.fail("a clock without PVCLOCK_TSC_STABLE", f"{clock(vm, place)}", 0)
    renewed = clock(vm, TIME_INFO)[0]
    if renewed == version:
        vm.fail("a clock that was renewed", f"{clock(vm, TIME_INFO)}", 0)
    vm.config(flags=DEFAULT_FLAGS & ~XenHvmFlag.EVTCHN_SEND | XenHvmFlag.PVCLOCK_TSC_UNSTABLE)
    vcpu.run()
    if clock(vm, TIME_INFO)[0] != renewed:
        vm.fail("a clock that is left alone by other flags", f"{clock(vm, TIME_INFO)}", 0)


@pytest.mark.parametrize("place", [TIME_INFO, IN_VCPU_INFO], ids=["VCPU_TIME_INFO", "vcpu_info"])
def test_guest_stopped_is_kept(new_vm: Builder, place: int) -> None:
    """PVCLOCK_GUEST_STOPPED stays set in its structure until the guest clears it."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.run()
    vm.store(place + FLAGS, bytes([PVCLOCK_GUEST_STOPPED]))
    vcpu.set(VcpuAttr.VCPU_TIME_INFO, TIME_INFO)
    vcpu.run()
    vm.holds(place + FLAGS, bytes([PVCLOCK_GUEST_STOPPED]), "the flags", mask=bytes([PVCLOCK_GUEST_STOPPED]))
    other = TIME_INFO if place == IN_VCPU_INFO else IN_VCPU_INFO
    bleeds = place == IN_VCPU_INFO and vm.profile.guest_stopped_bleeds
    expected = PVCLOCK_GUEST_STOPPED if bleeds else 0
    vm.holds(other + FLAGS, bytes([expected]), "the other's flags", mask=bytes([PVCLOCK_GUEST_STOPPED]))


@pytest.mark.parametrize("how", ["SHARED_INFO", "LONG_MODE"])
def test_wall_clock_renews_the_others(new_vm: Builder, how: str) -> None:
    """Writing the wall clock renews the pvclock structures too up to Linux 7.2, and no more from 7.3 on."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_TIME_INFO, TIME_INFO)
    vcpu.run()
    vcpu.run()
    before = clock(vm, TIME_INFO)[0]
    if how == "SHARED_INFO":
        vm.set(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE_SIZE)
    else:
        vm.set(HvmAttr.LONG_MODE, 1)
    vcpu.run()
    after = clock(vm, TIME_INFO)[0]
    if (after != before) != vm.profile.shared_info_updates_clocks:
        renewed = "renewed" if vm.profile.shared_info_updates_clocks else "left alone"
        vm.fail(f"the clock is {renewed} (version {before} before)", f"version {after}", 0)


def test_clock_that_was_set(new_vm: Builder) -> None:
    """KVM_SET_CLOCK moves the guest's clock, and the vCPU's next entry renews the structures."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_TIME_INFO, TIME_INFO)
    vcpu.run()
    ahead = vm.clock() + 10_000_000 * MS
    vm.set_clock(ahead)
    vcpu.run()
    if clock(vm, TIME_INFO)[3] < ahead:
        vm.fail(f"system_time from {ahead} ns on", f"{clock(vm, TIME_INFO)}", 0)
