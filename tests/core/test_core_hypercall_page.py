"""The hypercall page: what a guest's write to the MSR does."""

from __future__ import annotations

from errno import EFAULT
from struct import pack

import pytest
from xen_vms import (
    INTERCEPT,
    MSR,
    NOWHERE,
    PAGE,
    PRIORITY,
    VCPU_INFO,
    changed,
    make_vm,
    observable,
    ready_vm,
    refusal,
)

from pytest_xenkvm.abi.numbers import (
    INVALID_GPA,
    U64_MAX,
    HvmAttr,
    VcpuAttr,
)
from pytest_xenkvm.core.hypercall_page import MsrWrite
from pytest_xenkvm.core.memory import HVA_BASE
from pytest_xenkvm.core.profile import PROFILES, Profile
from pytest_xenkvm.core.state import HvmConfig


@pytest.mark.parametrize(("vendor", "instruction"), [("intel", "0f01c1"), ("amd", "0f01d9")])
def test_the_hypercall_page_of_each_vendor(vendor: str, instruction: str) -> None:
    """Every stub loads its number, makes a VMCALL on Intel and a VMMCALL on AMD, and returns."""
    vm = ready_vm(cpu_vendor=vendor)
    (vcpu,) = vm.state.vcpus
    assert vm.wrmsr(vcpu, MSR, 4 * PAGE, long_mode_active=True) is MsrWrite.OK
    page = vm.state.memory.read(4 * PAGE, PAGE)
    assert page is not None
    for number in range(128):
        stub = b"\xb8" + pack("<I", number) + bytes.fromhex(instruction) + b"\xc3"
        assert page[32 * number : 32 * number + 32] == stub + b"\xcc" * 23


@pytest.mark.parametrize(
    ("msr", "value"),
    [(MSR + 1, 4 * PAGE), (0, 4 * PAGE), (MSR, 4 * PAGE + 1), (MSR, NOWHERE), (MSR, U64_MAX)],
)
def test_a_hypercall_page_that_takes_gp(msr: int, value: int) -> None:
    """Another MSR, an unaligned address and an address without memory take #GP and write nothing."""
    vm = ready_vm()
    before = observable(vm)
    assert vm.wrmsr(vm.state.vcpus[0], msr, value, long_mode_active=True) is MsrWrite.GP
    assert changed(before, observable(vm)) == set()


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_the_vmms_own_write(profile: Profile) -> None:
    """KVM_SET_MSRS of the hypercall MSR writes the page up to Linux 6.12; later it sets nothing."""
    vm = ready_vm(profile)
    writes = profile.name == "linux-6.12"
    for msr, value in ((MSR, 4 * PAGE), (MSR + 1, 4 * PAGE), (MSR, NOWHERE)):
        vm.state.memory.write(4 * PAGE, bytes(PAGE))
        done = writes and msr == MSR and value != NOWHERE
        assert vm.set_msr(msr, value) is done
        assert (vm.state.memory.read(4 * PAGE, 1) == b"\xb8") is done
    vm.configure(HvmConfig(flags=0, msr=MSR, blob_addr_64=HVA_BASE + NOWHERE, blob_size_64=1))
    assert not vm.set_msr(MSR, 4 * PAGE)


@pytest.mark.parametrize(
    ("number", "long_mode_active", "content"),
    [(0, True, 1), (1, True, 2), (2, True, None), (0, False, 2), (1, False, None)],
)
def test_a_blob_page_is_copied(*, number: int, long_mode_active: bool, content: int | None) -> None:
    """Without INTERCEPT_HCALL the low bits number a page of the blob of that mode; too large takes #GP."""
    vm = make_vm()
    for page in (1, 2):
        vm.state.memory.write(page * PAGE, bytes([page]) * PAGE)
    vm.configure(
        HvmConfig(
            msr=MSR,
            blob_addr_64=HVA_BASE + PAGE,
            blob_size_64=2,
            blob_addr_32=HVA_BASE + 2 * PAGE,
            blob_size_32=1,
        )
    )
    written = vm.wrmsr(vm.state.vcpus[0], MSR, 4 * PAGE + number, long_mode_active=long_mode_active)
    assert written is (MsrWrite.GP if content is None else MsrWrite.OK)
    assert vm.state.memory.read(4 * PAGE, PAGE) == bytes([content or 0]) * PAGE


def test_a_blob_that_cannot_be_read_fails_the_run() -> None:
    """A blob address without memory makes KVM_RUN fail with -EFAULT; the mode is latched all the same."""
    vm = make_vm()
    vm.configure(HvmConfig(msr=MSR, blob_addr_64=PAGE, blob_size_64=1))
    assert refusal(vm.wrmsr, vm.state.vcpus[0], MSR, 4 * PAGE, long_mode_active=True) == EFAULT
    assert vm.get_attr(HvmAttr.LONG_MODE) == 1


def test_a_latched_mode_frees_deferred_selector_bits() -> None:
    """Bits above 31 that wait in the 32-bit layout reach vcpu_info as soon as the write latches long mode."""
    vm = ready_vm()
    (vcpu,) = vm.state.vcpus
    vm.set_vcpu_attr(vcpu, VcpuAttr.VCPU_INFO, INVALID_GPA)
    vm.evtchn_send(port=64 * 40, vcpu_id=0, priority=PRIORITY)
    vm.set_attr(HvmAttr.LONG_MODE, 0)
    vm.set_vcpu_attr(vcpu, VcpuAttr.VCPU_INFO, VCPU_INFO)
    vm.enter(vcpu)
    assert vcpu.deferred_sel == 1 << 40
    assert vm.wrmsr(vcpu, MSR, 4 * PAGE, long_mode_active=True) is MsrWrite.OK
    assert vcpu.deferred_sel == 0
    assert vm.state.memory.read(VCPU_INFO + 8, 8) == (1 << 40).to_bytes(8, "little")


def test_the_first_write_with_a_refused_shared_info_takes_gp() -> None:
    """The write latches the mode and fails on the wall clock once; the second one passes."""
    vm = make_vm()
    (vcpu,) = vm.state.vcpus
    vm.configure(HvmConfig(flags=INTERCEPT, msr=MSR))
    assert refusal(vm.set_attr, HvmAttr.SHARED_INFO, NOWHERE // PAGE) == EFAULT
    assert vm.wrmsr(vcpu, MSR, 4 * PAGE, long_mode_active=True) is MsrWrite.GP
    assert vm.get_attr(HvmAttr.LONG_MODE) == 1
    assert vm.wrmsr(vcpu, MSR, 4 * PAGE, long_mode_active=True) is MsrWrite.OK
