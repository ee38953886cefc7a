"""Who answers a hypercall: the kernel, the VMM, or KVM's own hypercall interface."""

from __future__ import annotations

import pytest

from pytest_xenkvm.abi.numbers import U32_MAX, U64_MAX, HvmAttr, Hypercall, SchedOp, XenHvmFlag, XenVer

from .kit.demands import FORWARDED
from .kit.hosts import SWITCHED_OFF_AFTER, Builder
from .kit.moved_rip import forwarded_then_moved
from .kit.setting import ARGUMENT, MODES, MODES_32, Mode

pytestmark = pytest.mark.source(
    "kvm_xen_hypercall, kvm_xen_hypercall_complete_userspace, kvm_emulate_hypercall"
)

SERVED = {
    Hypercall.set_timer_op,
    Hypercall.xen_version,
    Hypercall.vcpu_op,
    Hypercall.sched_op,
    Hypercall.event_channel_op,
}
OTHERS = [
    number
    for number in [*range(64), 127, 128, 1000, 0x7FFF_FFFF, 0x8000_0000, U32_MAX]
    if number not in SERVED
]
VERSION = 0x4_0011
KVM_ENOSYS = -1000
KVM_EPERM = -1


@pytest.mark.parametrize("mode", MODES)
def test_other_numbers(new_vm: Builder, mode: Mode) -> None:
    """Every number but the five that the kernel may serve goes to the VMM, with all its arguments."""
    vcpu = new_vm.timers().vcpus[0]
    for number in OTHERS:
        vcpu.call(number, 1, 2, 3, 0x4444, 0x5555, 0x6666, answers=FORWARDED, mode=mode)


def test_number_has_64_bits(new_vm: Builder) -> None:
    """The number of a 64-bit call is compared in all 64 bits."""
    vm = new_vm.timers()
    vm.set(HvmAttr.XEN_VERSION, VERSION)
    for number in SERVED:
        for high in (1 << 32, 1 << 63):
            vm.vcpus[0].call(number | high, 0, 0, answers=FORWARDED)
    vm.vcpus[0].call(U64_MAX, answers=FORWARDED)


@pytest.mark.parametrize("mode", MODES_32)
def test_upper_halves_of_a_32_bit_call(new_vm: Builder, mode: Mode) -> None:
    """Of a 32-bit caller's registers only the lower halves count, and only they are shown to the VMM."""
    vm = new_vm.ready()
    vm.set(HvmAttr.XEN_VERSION, VERSION)
    for high in (1, 0x8000_0000, U32_MAX):
        vm.vcpus[0].call(Hypercall.xen_version, XenVer.version, answers=VERSION, mode=mode, high_halves=high)
        vm.vcpus[0].call(Hypercall.hvm_op, 1, 2, 3, 4, 5, 6, answers=FORWARDED, mode=mode, high_halves=high)


@pytest.mark.parametrize("cpl", [0, 1, 2, 3])
@pytest.mark.parametrize("mode", MODES)
def test_privilege(new_vm: Builder, mode: Mode, cpl: int) -> None:
    """From above CPL 0 nothing is served: all goes to the VMM, which is told the CPL."""
    vm = new_vm.ready()
    vm.set(HvmAttr.XEN_VERSION, VERSION)
    served = VERSION if cpl == 0 else FORWARDED
    vm.vcpus[0].call(Hypercall.xen_version, XenVer.version, answers=served, mode=mode, cpl=cpl)
    yielded = 0 if cpl == 0 else FORWARDED
    vm.vcpus[0].call(Hypercall.sched_op, SchedOp.yield_, answers=yielded, mode=mode, cpl=cpl)
    vm.vcpus[0].call(Hypercall.hvm_op, 1, answers=FORWARDED, mode=mode, cpl=cpl)


@pytest.mark.parametrize("mode", MODES)
def test_the_vmms_answer(new_vm: Builder, mode: Mode) -> None:
    """The guest finds the VMM's answer in RAX, in the width of its mode."""
    vcpu = new_vm.ready().vcpus[0]
    for answer in (0, 1, -38 & U64_MAX, 1 << 31, U32_MAX, 1 << 32, 1 << 63, U64_MAX):
        vcpu.call(Hypercall.hvm_op, 1, 2, answers=FORWARDED, mode=mode, vmm=answer)


# ---- without INTERCEPT_HCALL


NOT_INTERCEPTING = {
    "no config": None,
    "no flag": (0, 0x4000_0000),
    "only EVTCHN_SEND": (int(XenHvmFlag.EVTCHN_SEND), 0x4000_0000),
    "nothing": (0, 0),
}


@pytest.mark.parametrize("mode", MODES)
def test_rip_moved_by_the_vmm(new_vm: Builder, mode: Mode) -> None:
    """If the VMM moves RIP before it answers, the guest goes on there: no answer, nothing skipped."""
    vcpu = new_vm.ready().vcpus[0]
    for number in (Hypercall.vcpu_op, 127):
        forwarded_then_moved(vcpu, number, mode=mode)
        vcpu.call(number, answers=FORWARDED, mode=mode)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("how", NOT_INTERCEPTING)
def test_without_intercept(new_vm: Builder, how: str, mode: Mode) -> None:
    """Without INTERCEPT_HCALL and an MSR, KVM's own hypercall interface answers: -1000, -1 above CPL 0."""
    vm = new_vm()
    config = NOT_INTERCEPTING[how]
    if config is not None:
        vm.config(*config)
    vm.set(HvmAttr.XEN_VERSION, VERSION)
    vm.vcpus[0].set_timer(9)
    for number in (0, 2, 3, 15, 17, 24, 29, 32, 34, 1000, U32_MAX):
        vm.vcpus[0].call(number, 0, ARGUMENT, answers=KVM_ENOSYS, mode=mode)
        vm.vcpus[0].call(number, 0, ARGUMENT, answers=KVM_EPERM, mode=mode, cpl=3)
    vm.vcpus[0].call(1, answers=0, mode=mode)
    vm.vcpus[0].call(1, answers=KVM_EPERM, mode=mode, cpl=1)


def test_intercept_without_msr(new_vm: Builder) -> None:
    """INTERCEPT_HCALL without an MSR intercepts nothing."""
    vm = new_vm.alone()
    vm.config(msr=0)
    vm.vcpus[0].call(Hypercall.hvm_op, answers=KVM_ENOSYS)


def test_msr_given_up(new_vm: Builder) -> None:
    """A VM that gives up its MSR but not INTERCEPT_HCALL goes on to intercept, for a second at the most."""
    vm = new_vm.alone()
    vm.config()
    vm.config(msr=0)
    vm.vcpus[0].call(Hypercall.hvm_op, answers=FORWARDED)
    vm.wait(SWITCHED_OFF_AFTER)
    vm.vcpus[0].call(Hypercall.hvm_op, answers=KVM_ENOSYS)


# ---- xen_version


@pytest.mark.parametrize("mode", MODES)
def test_xen_version(new_vm: Builder, mode: Mode) -> None:
    """XENVER_version is answered with the attribute XEN_VERSION; while that is 0, it goes to the VMM."""
    vm = new_vm.ready()
    vm.get(HvmAttr.XEN_VERSION, 0)
    for version in (0, 1, VERSION, 0x7FFF_FFFF, 0x8000_0000, U32_MAX):
        vm.set(HvmAttr.XEN_VERSION, version)
        vm.get(HvmAttr.XEN_VERSION, version)
        vm.vcpus[0].call(Hypercall.xen_version, XenVer.version, answers=version or FORWARDED, mode=mode)


def test_other_xen_version_ops(new_vm: Builder) -> None:
    """Other sub-operations of xen_version go to the VMM; the sub-op is compared in 64 bits."""
    vm = new_vm.ready()
    vm.set(HvmAttr.XEN_VERSION, VERSION)
    for op in (*range(1, 11), 1 << 32, 1 << 63):
        vm.vcpus[0].call(Hypercall.xen_version, op, ARGUMENT, answers=FORWARDED)


def test_xen_version_taken_away(new_vm: Builder) -> None:
    """XEN_VERSION 0 ends the kernel's answer."""
    vm = new_vm.ready()
    vm.set(HvmAttr.XEN_VERSION, VERSION)
    vm.set(HvmAttr.XEN_VERSION, 0)
    vm.vcpus[0].call(Hypercall.xen_version, XenVer.version, answers=FORWARDED)
