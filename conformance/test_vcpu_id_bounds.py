"""Which Xen IDs the attribute VCPU_ID takes, and which numbers are a vCPU's ID."""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL

import pytest

from pytest_xenkvm.abi.numbers import KVM_MAX_VCPUS_ALLOWED, XEN_VCPU_ID_INVALID, VcpuAttr

from .kit.hosts import Builder
from .kit.setting import MODES, Mode

pytestmark = pytest.mark.source("kvm_xen_vcpu_set_attr, kvm_xen_hcall_vcpu_op; KVM_CAP_MAX_VCPUS")

RULE = {"family": "vcpu-id-bounds", "level": "MUST"}


@pytest.mark.xenkvm(rule="vcpu-id-bounds.valid-is-accepted", **RULE)
@pytest.mark.xenkvm(rule="vcpu-id-bounds.set-reads-back", **RULE)
@pytest.mark.parametrize("offset", [None, 1, 2, 1000, -2, -1], ids=["0", "1", "2", "1000", "max-2", "max-1"])
def test_valid_ids_are_accepted(new_vm: Builder, offset: int | None) -> None:
    """VCPU_ID takes the Xen IDs from 0 to KVM_MAX_VCPUS-1, and they read back."""
    vm = new_vm()
    xen_id = offset or 0
    if xen_id < 0:
        xen_id += vm.max_vcpus
    vm.vcpus[0].set(VcpuAttr.VCPU_ID, xen_id)
    vm.vcpus[0].get(VcpuAttr.VCPU_ID, xen_id)


@pytest.mark.xenkvm(rule="forwarded-timers.other-id-is-refused", family="forwarded-timers", level="MUST")
@pytest.mark.parametrize("mode", MODES)
def test_every_bit_of_a_number_counts(new_vm: Builder, mode: Mode) -> None:
    """A number that differs from the Xen ID in any one of its 32 bits names another vCPU: -EINVAL."""
    vcpu = new_vm.timers().vcpus[0]
    vcpu.set_singleshot(10, 1 << 62, mode=mode)
    for bit in range(32):
        vcpu.stop_singleshot(10 ^ 1 << bit, answers=-EINVAL, mode=mode)
    vcpu.timer_is(20, 1 << 62)


BEYOND: dict[str, Callable[[int], int]] = {
    "KVM_MAX_VCPUS": lambda bound: bound,
    "KVM_MAX_VCPUS + 1": lambda bound: bound + 1,
    "2^31 - 1": lambda _bound: 0x7FFF_FFFF,
    "2^31": lambda _bound: 0x8000_0000,
    "2^32 - 2": lambda _bound: 0xFFFF_FFFE,
    "2^32 - 1": lambda _bound: XEN_VCPU_ID_INVALID,
}


@pytest.mark.xenkvm(rule="vcpu-id-bounds.invalid-is-refused", **RULE)
@pytest.mark.xenkvm(rule="vcpu-id-bounds.refused-changes-nothing", **RULE)
@pytest.mark.parametrize("which", BEYOND)
def test_ids_beyond_the_bound_are_refused(new_vm: Builder, which: str) -> None:
    """VCPU_ID refuses the Xen IDs from KVM_MAX_VCPUS on with -EINVAL, and the old one stays."""
    vm = new_vm()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_ID, 5)
    vcpu.set(VcpuAttr.VCPU_ID, BEYOND[which](vm.max_vcpus), ret=-EINVAL)
    vcpu.get(VcpuAttr.VCPU_ID, 5)


@pytest.mark.xenkvm(rule="vcpu-id-bounds.set-reads-back", **RULE)
def test_ids_can_be_changed(new_vm: Builder) -> None:
    """A Xen ID that was set can be set anew, and two vCPUs may have the same one."""
    vm = new_vm(vcpus=2)
    for xen_id in (3, 0, 3):
        vm.vcpus[0].set(VcpuAttr.VCPU_ID, xen_id)
        vm.vcpus[0].get(VcpuAttr.VCPU_ID, xen_id)
    vm.vcpus[1].set(VcpuAttr.VCPU_ID, 3)
    vm.vcpus[1].get(VcpuAttr.VCPU_ID, 3)


@pytest.mark.xenkvm(rule="vcpu-id-bounds.sentinel-is-no-id", **RULE)
def test_bound_keeps_ids_and_sentinel_apart(new_vm: Builder) -> None:
    """KVM_CAP_MAX_VCPUS is what CONFIG_KVM_MAX_NR_VCPUS can be, far below XEN_VCPU_ID_INVALID."""
    vm = new_vm()
    vm.vcpus[0].get(VcpuAttr.VCPU_ID)
    if vm.max_vcpus not in KVM_MAX_VCPUS_ALLOWED:
        allowed = f"{KVM_MAX_VCPUS_ALLOWED.start} ... {KVM_MAX_VCPUS_ALLOWED.stop - 1}"
        vm.fail(allowed, f"KVM_MAX_VCPUS is {vm.max_vcpus}")
