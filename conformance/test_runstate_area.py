"""Runstate: the guest's copy (RUNSTATE_ADDR) and RUNSTATE_UPDATE_FLAG."""

from __future__ import annotations

from errno import EFAULT, ENOENT

import pytest

from pytest_xenkvm.abi.numbers import (
    INVALID_GPA,
    PAGE_SIZE,
    RUNSTATE_ADJUST_KEEP_STATE,
    HvmAttr,
    Runstate,
    VcpuAttr,
)

from .kit.hosts import Builder
from .kit.runstate_copy import END, FILL, LAYOUTS, RUNSTATE_SIZE, copied, vm_with
from .kit.setting import MEMORY, MS, NOWHERE, RUNSTATE
from .kit.slots import slot_added

pytestmark = pytest.mark.source("kvm_xen_vcpu_set_attr(RUNSTATE_ADDR), kvm_xen_update_runstate_guest")

ADDR, DATA, CURRENT, ADJUST = (
    VcpuAttr.RUNSTATE_ADDR,
    VcpuAttr.RUNSTATE_DATA,
    VcpuAttr.RUNSTATE_CURRENT,
    VcpuAttr.RUNSTATE_ADJUST,
)
ACCOUNT = (int(Runstate.BLOCKED), 1000, 100, 200, 300, 400)
MODES = pytest.mark.parametrize("long_mode", [True, False], ids=["64-bit", "32-bit"])
PLACES = pytest.mark.parametrize("gpa", [RUNSTATE + 0x100, END - 20], ids=["within a page", "across pages"])
FLAG = pytest.mark.parametrize("flag", [0, 1], ids=["plain", "update flag"])


def crossing(long_mode: bool) -> list[int]:  # noqa: FBT001 - a parameter of probes
    """Where a page's end cuts the structure anywhere, within each member and between."""
    size = LAYOUTS[long_mode].size
    return sorted({*range(1, size, 5), 4, 8, 12, 16, 24, 40, size - 1})


def test_none_at_first(new_vm: Builder) -> None:
    """Without a copy RUNSTATE_ADDR reads -ENOENT."""
    new_vm().vcpus[0].get(ADDR, ret=-ENOENT)


@MODES
@FLAG
def test_within_a_page(new_vm: Builder, *, long_mode: bool, flag: int) -> None:
    """The copy is written when RUNSTATE_ADDR is set, at any alignment, and at each change of state."""
    vm = vm_with(new_vm, long_mode=long_mode, flag=flag)
    vcpu = vm.vcpus[0]
    for offset in (0x100, 0x101, 0x104, 0x107, "last"):
        vm.store(RUNSTATE, bytes([FILL]) * (2 * PAGE_SIZE))
        gpa = END - LAYOUTS[long_mode].size if isinstance(offset, str) else RUNSTATE + offset
        vcpu.set(DATA, ACCOUNT)
        vcpu.set(ADDR, gpa)
        vcpu.get(ADDR, gpa)
        copied(vm, gpa)
        for state in Runstate:
            vcpu.set(CURRENT, state)
            copied(vm, gpa)


@MODES
@FLAG
def test_across_pages(new_vm: Builder, *, long_mode: bool, flag: int) -> None:
    """The copy may cross a page anywhere; all of it is kept up to date."""
    vm = vm_with(new_vm, long_mode=long_mode, flag=flag)
    vcpu = vm.vcpus[0]
    for before in crossing(long_mode):
        gpa = END - before
        vm.store(RUNSTATE, bytes([FILL]) * (2 * PAGE_SIZE))
        vcpu.set(DATA, ACCOUNT)
        vcpu.set(ADDR, gpa)
        vcpu.get(ADDR, gpa)
        copied(vm, gpa)
        for state in (Runstate.OFFLINE, Runstate.RUNNING, Runstate.RUNNABLE):
            vcpu.set(CURRENT, state)
            copied(vm, gpa)


@FLAG
@pytest.mark.parametrize(
    ("gpa", "padding"), [(RUNSTATE + 0x100, FILL), (END - 20, 0)], ids=["inside", "across"]
)
def test_padding(new_vm: Builder, gpa: int, padding: int, flag: int) -> None:
    """The 64-bit layout's padding is kept within a page, and zeroed when the copy crosses one."""
    vm = vm_with(new_vm, long_mode=True, flag=flag)
    vm.vcpus[0].set(ADDR, gpa)
    vm.vcpus[0].set(CURRENT, Runstate.BLOCKED)
    vm.holds(gpa + 4, bytes([padding]) * 4, "the padding")


@MODES
def test_data_doesnt_write(new_vm: Builder, *, long_mode: bool) -> None:
    """RUNSTATE_DATA doesn't write the copy; RUNSTATE_ADJUST does, also if it keeps the state."""
    vm = vm_with(new_vm, long_mode=long_mode)
    vcpu, gpa = vm.vcpus[0], RUNSTATE + 0x100
    vcpu.set(ADDR, gpa)
    before = vm.read(gpa, 44)
    vcpu.set(DATA, ACCOUNT)
    vm.holds(gpa, before, "the copy")
    vcpu.set(ADJUST, (RUNSTATE_ADJUST_KEEP_STATE, 0, 0, 0, 0, 0))
    copied(vm, gpa)
    vcpu.set(ADJUST, (Runstate.OFFLINE, 0, 0, 0, 0, 0))
    copied(vm, gpa)


@MODES
def test_switched_off(new_vm: Builder, *, long_mode: bool) -> None:
    """INVALID_GPA switches the copy off, within a page and across two, also if there is none."""
    vm = vm_with(new_vm, long_mode=long_mode)
    vcpu = vm.vcpus[0]
    for gpa in (RUNSTATE + 0x100, END - 20):
        vcpu.set(ADDR, gpa)
        for _ in range(2):
            vcpu.set(ADDR, INVALID_GPA)
            vcpu.get(ADDR, ret=-ENOENT)
        vm.store(gpa, bytes([FILL]) * 48)
        vcpu.set(CURRENT, Runstate.OFFLINE)
        vm.holds(gpa, bytes([FILL]) * 48, "the old copy")


@pytest.mark.parametrize("gpa", [NOWHERE, MEMORY, MEMORY - 1, MEMORY - 20, NOWHERE - 20, 1 << 40], ids=hex)
def test_without_memory(new_vm: Builder, gpa: int) -> None:
    """Where there is no memory, under either part, it is -EFAULT, and the copy is off altogether."""
    vm = vm_with(new_vm, long_mode=True)
    vcpu = vm.vcpus[0]
    vcpu.set(ADDR, END - 20)
    vcpu.set(ADDR, gpa, ret=-EFAULT)
    vcpu.get(ADDR, ret=-ENOENT)
    vm.store(END - 20, bytes([FILL]) * 48)
    vcpu.set(CURRENT, Runstate.OFFLINE)
    vm.holds(END - 20, bytes([FILL]) * 48, "the old copy")


@MODES
def test_end_of_memory(new_vm: Builder, *, long_mode: bool) -> None:
    """The copy may end with memory: a byte further on is -EFAULT."""
    vm = vm_with(new_vm, long_mode=long_mode)
    vcpu, size = vm.vcpus[0], LAYOUTS[long_mode].size
    vcpu.set(DATA, ACCOUNT)
    vcpu.set(ADDR, MEMORY - size)
    mask = b"\xff" * 4 + bytes(4) * long_mode + b"\xff" * 40
    vm.holds(MEMORY - size, LAYOUTS[long_mode].pack(*ACCOUNT), "the copy", mask=mask)
    vcpu.set(ADDR, MEMORY - size + 1, ret=-EFAULT)


def test_grows_with_long_mode(new_vm: Builder) -> None:
    """A 32-bit copy at a page's end crosses into the next one from LONG_MODE on."""
    vm = vm_with(new_vm, long_mode=False)
    vcpu, gpa = vm.vcpus[0], END - 44
    vcpu.set(DATA, ACCOUNT)
    vcpu.set(ADDR, gpa)
    copied(vm, gpa)
    vm.set(HvmAttr.LONG_MODE, 1)
    vcpu.set(CURRENT, Runstate.OFFLINE)
    copied(vm, gpa)


def test_shrinks_with_long_mode(new_vm: Builder) -> None:
    """A 64-bit copy that crosses a page goes on as a 32-bit one, within the page."""
    vm = vm_with(new_vm, long_mode=True)
    vcpu, gpa = vm.vcpus[0], END - 44
    vcpu.set(ADDR, gpa)
    vm.set(HvmAttr.LONG_MODE, 0)
    vm.store(END, bytes([FILL]) * 16)
    vcpu.set(CURRENT, Runstate.OFFLINE)
    copied(vm, gpa)


@FLAG
def test_entries_write(new_vm: Builder, flag: int) -> None:
    """A vCPU's entry into the guest writes its copy as running, in a VM with a hypercall MSR."""
    vm = vm_with(new_vm, long_mode=True, flag=flag)
    vcpu, gpa = vm.vcpus[0], RUNSTATE + 0x100
    vcpu.set(ADDR, gpa)
    vcpu.set(CURRENT, Runstate.BLOCKED)
    vcpu.run()
    vm.holds(gpa, b"\2\0\0\0", "the state")
    vm.config()
    vcpu.run()
    vm.holds(gpa, b"\0\0\0\0", "the state")
    vm.holds(gpa + 15, b"\0", "the entry time's highest byte, with the update flag")


def test_update_flag(new_vm: Builder) -> None:
    """RUNSTATE_UPDATE_FLAG is 0 at first; any number but 0 sets it to 1."""
    vm = new_vm()
    vm.get(HvmAttr.RUNSTATE_UPDATE_FLAG, 0)
    for value, read in ((1, 1), (0, 0), (2, 1), (0xFF, 1)):
        vm.set(HvmAttr.RUNSTATE_UPDATE_FLAG, value)
        vm.get(HvmAttr.RUNSTATE_UPDATE_FLAG, read)


def test_each_vcpu_has_its_own(new_vm: Builder) -> None:
    """A copy holds its own vCPU's account."""
    vm = new_vm(vcpus=2)
    vm.wait(MS)
    vm.set(HvmAttr.LONG_MODE, 1)
    for vcpu in vm.vcpus:
        vcpu.set(DATA, (vcpu.index + 1, 10, 10, 0, 0, 0))
        vcpu.set(ADDR, RUNSTATE + 64 * vcpu.index)
    vm.vcpus[0].set(ADDR, INVALID_GPA)
    vm.vcpus[1].get(ADDR, RUNSTATE + 64)
    vm.holds(RUNSTATE, b"\1\0\0\0", "vCPU 0's copy")
    vm.holds(RUNSTATE + 64, b"\2\0\0\0", "vCPU 1's copy")


# ---- a copy that must be found anew, since memory slots changed


@MODES
@FLAG
@PLACES
def test_runstate_goes_on(new_vm: Builder, gpa: int, *, long_mode: bool, flag: int) -> None:
    """The guest's copy is kept up to date, though it must be found anew."""
    vm = vm_with(new_vm, long_mode=long_mode, flag=flag)
    vcpu = vm.vcpus[0]
    vcpu.set(ADDR, gpa)
    for state in (Runstate.BLOCKED, Runstate.RUNNING, Runstate.OFFLINE):
        slot_added(vm)
        vcpu.set(CURRENT, state)
        copied(vm, gpa)
    slot_added(vm)
    vcpu.set(ADJUST, (RUNSTATE_ADJUST_KEEP_STATE, 0, 0, 0, 0, 0))
    copied(vm, gpa)


@PLACES
def test_runnable_finds_nothing_anew(new_vm: Builder, gpa: int) -> None:
    """The change to RUNNABLE, which the scheduler makes too, leaves a copy that must be found anew as it was.

    The next change to another state writes it.
    """
    vm = vm_with(new_vm, long_mode=True)
    vcpu = vm.vcpus[0]
    vcpu.set(ADDR, gpa)
    slot_added(vm)
    before = vm.read(gpa, RUNSTATE_SIZE)
    vcpu.set(CURRENT, Runstate.RUNNABLE)
    vm.holds(gpa, before, "the copy of the runstate")
    vcpu.set(CURRENT, Runstate.BLOCKED)
    copied(vm, gpa)
    vcpu.set(CURRENT, Runstate.RUNNABLE)
    copied(vm, gpa)


def test_runstate_at_the_entry(new_vm: Builder) -> None:
    """A vCPU that enters the guest writes its copy, though it must be found anew."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(ADDR, RUNSTATE)
    vm.store(RUNSTATE, bytes([FILL]) * RUNSTATE_SIZE)
    slot_added(vm)
    vcpu.run()
    running_or_runnable = b"\xfe\xff\xff\xff"
    vm.holds(RUNSTATE, bytes(4), "the state in the copy", mask=running_or_runnable)
