"""Runstate: a guest's copy whose two pages lie apart in the host, and one with a late entry time.

A host that takes the second page to lie behind the first one is right in most memory, and wrong here.
"""

from __future__ import annotations

import pytest

from pytest_xenkvm.abi.numbers import PAGE_SIZE, HvmAttr, Runstate, VcpuAttr

from .kit.hosts import Builder
from .kit.runstate_copy import FILL, LAYOUTS, vm_with
from .kit.setting import MEMORY, RUNSTATE
from .kit.vm import ProbeVm

pytestmark = pytest.mark.source("kvm_xen_update_runstate_guest, kvm_xen_vcpu_set_attr(RUNSTATE_ADDR)")

ADDR, DATA, CURRENT = VcpuAttr.RUNSTATE_ADDR, VcpuAttr.RUNSTATE_DATA, VcpuAttr.RUNSTATE_CURRENT
ACCOUNT = (int(Runstate.BLOCKED), 1000, 100, 200, 300, 400)
MODES = pytest.mark.parametrize("long_mode", [True, False], ids=["64-bit", "32-bit"])
FLAG = pytest.mark.parametrize("flag", [0, 1], ids=["plain", "update flag"])
LATE = 1 << 60
"""A clock (ns) that makes use of an entry time's last byte, but for the update flag's bit."""


def copied_across(vm: ProbeVm, before: int) -> None:
    """The copy at `before` bytes before the second slot must be the account, with FILL around it."""
    __tracebackhide__ = True
    packed = LAYOUTS[vm.long_mode].pack(*vm.vcpus[0].runstate())
    behind = len(packed) - before
    vm.holds(MEMORY - before - 8, bytes([FILL]) * 8 + packed[:before], "the copy in the first slot")
    vm.holds(MEMORY, packed[before:] + bytes([FILL]) * 8, "the copy in the second slot")
    if behind <= 0:
        vm.fail("a copy in two slots", f"it ends {-behind} bytes before the second", 0)


@MODES
@FLAG
def test_across_slots(new_vm: Builder, *, long_mode: bool, flag: int) -> None:
    """A copy that begins in one memory slot and ends in another is kept up to date in both."""
    vm = vm_with(new_vm, long_mode=long_mode, flag=flag)
    vcpu = vm.vcpus[0]
    vm.add_memory(MEMORY, 2 * PAGE_SIZE)
    size = LAYOUTS[long_mode].size
    for before in (1, 4, 8, 11, 12, 15, 16, 20, 24, size - 1):
        vm.store(MEMORY - PAGE_SIZE, bytes([FILL]) * PAGE_SIZE)
        vm.store(MEMORY, bytes([FILL]) * PAGE_SIZE)
        vcpu.set(DATA, ACCOUNT)
        vcpu.set(ADDR, MEMORY - before)
        copied_across(vm, before)
        for state in (Runstate.OFFLINE, Runstate.RUNNING):
            vcpu.set(CURRENT, state)
            copied_across(vm, before)


@MODES
@FLAG
def test_mode_changed(new_vm: Builder, *, long_mode: bool, flag: int) -> None:
    """A copy in two slots follows LONG_MODE, also where only one layout reaches the second slot."""
    vm = vm_with(new_vm, long_mode=long_mode, flag=flag)
    vcpu = vm.vcpus[0]
    vm.add_memory(MEMORY)
    for before in (20, 45):
        vm.set(HvmAttr.LONG_MODE, int(long_mode))
        vcpu.set(ADDR, MEMORY - before)
        vm.store(MEMORY - PAGE_SIZE, bytes([FILL]) * PAGE_SIZE)
        vm.store(MEMORY, bytes([FILL]) * PAGE_SIZE)
        vm.set(HvmAttr.LONG_MODE, int(not long_mode))
        vcpu.set(CURRENT, Runstate.BLOCKED)
        if LAYOUTS[vm.long_mode].size > before:
            copied_across(vm, before)
        else:
            vm.holds(MEMORY - before, LAYOUTS[False].pack(*vcpu.runstate()), "the copy")
            vm.holds(MEMORY, bytes([FILL]) * 8, "the second slot")


@MODES
@FLAG
@pytest.mark.parametrize("slots", [1, 2])
def test_late_entry_time(new_vm: Builder, *, long_mode: bool, flag: int, slots: int) -> None:
    """All 8 bytes of an entry time are copied, and the update flag is no part of it when the copy is over."""
    vm = vm_with(new_vm, long_mode=long_mode, flag=flag)
    vcpu, layout = vm.vcpus[0], LAYOUTS[long_mode]
    vm.add_memory(MEMORY)
    vm.set_clock(LATE)
    gpa = RUNSTATE + 0x100 if slots == 1 else MEMORY - 20
    vm.store(RUNSTATE + 0x100, bytes(layout.size))
    vcpu.set(ADDR, gpa)
    vcpu.set(CURRENT, Runstate.BLOCKED)
    account = vcpu.runstate()
    if account[1] < LATE:
        vm.fail(f"an entry time from {LATE} ns on", f"{account[1]} ns", 0)
    if slots == 1:
        vm.holds(gpa, layout.pack(*account), "the copy of the runstate")
    else:
        vm.store(MEMORY + layout.size - 20, bytes([FILL]) * 8)
        vm.store(MEMORY - 28, bytes([FILL]) * 8)
        copied_across(vm, 20)
