"""The guest's copy of a runstate account, as RUNSTATE_ADDR has it."""

from __future__ import annotations

from struct import Struct
from typing import Final

from pytest_xenkvm.abi.numbers import PAGE_SIZE, HvmAttr

from .hosts import Builder
from .setting import MS, RUNSTATE
from .vm import ProbeVm

LAYOUTS: Final = {True: Struct("<I4xQQQQQ"), False: Struct("<IQQQQQ")}
"""state, then (64-bit: padding) entry time and the four times."""
RUNSTATE_SIZE: Final = LAYOUTS[True].size
END: Final = RUNSTATE + PAGE_SIZE
FILL: Final = 0x5A


def vm_with(new_vm: Builder, *, long_mode: bool, flag: int = 0) -> ProbeVm:
    """A VM without a configuration: entries don't change the account."""
    vm = new_vm()
    vm.wait(MS)
    vm.set(HvmAttr.LONG_MODE, int(long_mode))
    vm.set(HvmAttr.RUNSTATE_UPDATE_FLAG, flag)
    vm.store(RUNSTATE, bytes([FILL]) * (2 * PAGE_SIZE))
    return vm


def copied(vm: ProbeVm, gpa: int) -> None:
    """The copy must be the account, and memory beside it must be as it was."""
    __tracebackhide__ = True
    layout = LAYOUTS[vm.long_mode]
    account = vm.vcpus[0].runstate()
    mask = b"\xff" * 4 + bytes(4) * vm.long_mode + b"\xff" * 40
    vm.holds(gpa, layout.pack(*account), "the copy of the runstate", mask=mask)
    vm.holds(gpa - 8, bytes([FILL]) * 8, "memory before the copy")
    vm.holds(gpa + layout.size, bytes([FILL]) * 8, "memory behind the copy")
