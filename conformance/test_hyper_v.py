"""Guests that may make Hyper-V's hypercalls, too: bit 31 of the number tells which are meant."""

from __future__ import annotations

import pytest

from pytest_xenkvm.abi.numbers import (
    HV_STATUS_INVALID_HYPERCALL_CODE,
    HV_STATUS_INVALID_HYPERCALL_INPUT,
    Hypercall,
    SchedOp,
    XenVer,
)

from .kit.demands import FORWARDED
from .kit.hosts import Builder
from .kit.setting import MODES, Mode
from .kit.vm import ProbeVm

pytestmark = pytest.mark.source("kvm_xen_hypercall, kvm_hv_hypercall_enabled, kvm_hv_hypercall")

NUMBERS = (0, 1, 17, 24, 29, 32, 100, 0x7FFF_FFFF)
BIT_31 = 1 << 31


def intercepting(new_vm: Builder, *, hyper_v: bool) -> ProbeVm:
    """A VM whose hypercalls are intercepted."""
    vm = new_vm()
    if hyper_v:
        vm.enable_hyper_v()
    vm.config()
    return vm


@pytest.mark.parametrize("mode", MODES)
def test_bit_31(new_vm: Builder, mode: Mode) -> None:
    """Where Hyper-V's hypercalls are enabled its ABI, not the VMM, answers numbers with bit 31."""
    vcpu = intercepting(new_vm, hyper_v=True).vcpus[0]
    status = HV_STATUS_INVALID_HYPERCALL_CODE if mode.longmode else HV_STATUS_INVALID_HYPERCALL_INPUT
    for number in NUMBERS:
        vcpu.call(number | BIT_31, answers=status, mode=mode)
        if mode.longmode:
            vcpu.call(1 << 32 | number | BIT_31, answers=status)


@pytest.mark.parametrize("mode", MODES)
def test_other_numbers(new_vm: Builder, mode: Mode) -> None:
    """Where Hyper-V's hypercalls are enabled all other numbers, even and odd, are Xen's as ever."""
    vcpu = intercepting(new_vm, hyper_v=True).vcpus[0]
    for number in (0, 1, 26, 33, 34, 100, 0x7FFF_FFFF):
        vcpu.call(number, answers=FORWARDED, mode=mode)
    vcpu.call(Hypercall.sched_op, SchedOp.yield_, mode=mode)
    vcpu.call(Hypercall.xen_version, XenVer.version, answers=FORWARDED, mode=mode)
    if mode.longmode:
        vcpu.call(1 << 32 | 33, answers=FORWARDED)
        vcpu.call(1 << 63 | 34, answers=FORWARDED)


@pytest.mark.parametrize("mode", MODES)
def test_without_hyper_v(new_vm: Builder, mode: Mode) -> None:
    """Without Hyper-V a number with bit 31 set goes to the VMM like any other."""
    vcpu = intercepting(new_vm, hyper_v=False).vcpus[0]
    for number in NUMBERS:
        vcpu.call(number | BIT_31, answers=FORWARDED, mode=mode)
