"""The Xen ID of a vCPU that its VMM has not set one on."""

from __future__ import annotations

from errno import EINVAL

import pytest

from pytest_xenkvm.abi.numbers import U32_MAX, XEN_VCPU_ID_INVALID, VcpuAttr

from .kit.demands import FORWARDED
from .kit.hosts import Builder
from .kit.setting import MODES, NOWHERE, Mode

pytestmark = pytest.mark.source(
    "kvm_xen_init_vcpu, kvm_xen_vcpu_set_attr, kvm_xen_hcall_vcpu_op (commit c10bd49bdcc9, Linux 7.3)"
)

PORT = 9


@pytest.mark.xenkvm(rule="vcpu-id.new-is-unset", family="vcpu-id", level="MUST")
@pytest.mark.parametrize("ids", [(0,), (0, 1, 2), (5, 0, 3)], ids=str)
def test_new_vcpu_has_no_id(new_vm: Builder, ids: tuple[int, ...]) -> None:
    """The Xen ID of a new vCPU reads XEN_VCPU_ID_INVALID, whatever its index and KVM id."""
    for vcpu in new_vm(ids=ids).vcpus:
        vcpu.get(VcpuAttr.VCPU_ID, XEN_VCPU_ID_INVALID)


@pytest.mark.xenkvm(rule="vcpu-id.new-is-unset", family="vcpu-id", level="MUST")
def test_another_vcpus_id_is_its_own(new_vm: Builder) -> None:
    """Setting one vCPU's Xen ID leaves the others unset."""
    vm = new_vm(vcpus=3)
    vm.vcpus[1].set(VcpuAttr.VCPU_ID, 1)
    vm.vcpus[0].get(VcpuAttr.VCPU_ID, XEN_VCPU_ID_INVALID)
    vm.vcpus[2].get(VcpuAttr.VCPU_ID, XEN_VCPU_ID_INVALID)


@pytest.mark.xenkvm(rule="vcpu-id.refused-set-leaves-unset", family="vcpu-id", level="MUST")
@pytest.mark.parametrize("refused", [XEN_VCPU_ID_INVALID, XEN_VCPU_ID_INVALID - 1, 0x8000_0000], ids=hex)
def test_refused_set_leaves_it_unset(new_vm: Builder, refused: int) -> None:
    """A VCPU_ID that is refused leaves an unset Xen ID unset."""
    vcpu = new_vm().vcpus[0]
    vcpu.set(VcpuAttr.VCPU_ID, refused, ret=-EINVAL)
    vcpu.get(VcpuAttr.VCPU_ID, XEN_VCPU_ID_INVALID)


@pytest.mark.xenkvm(rule="vcpu-id.sentinel-is-refused", family="vcpu-id", level="MUST")
@pytest.mark.parametrize("before", [None, 3], ids=["unset", "set"])
def test_sentinel_cant_be_written(new_vm: Builder, before: int | None) -> None:
    """XEN_VCPU_ID_INVALID can't be written to VCPU_ID, so that an ID can't be unset."""
    vcpu = new_vm().vcpus[0]
    if before is not None:
        vcpu.set(VcpuAttr.VCPU_ID, before)
    vcpu.set(VcpuAttr.VCPU_ID, XEN_VCPU_ID_INVALID, ret=-EINVAL)


NAMED = {
    "0": 0,
    "its index": 1,
    "another": 2,
    "the sentinel": XEN_VCPU_ID_INVALID,
    "0 in 32 bits": 1 << 32,
    "the sentinel in 32 bits": 1 << 40 | U32_MAX,
}


@pytest.mark.xenkvm(rule="vcpu-id.unset-forwards", family="vcpu-id", level="MUST")
@pytest.mark.xenkvm(rule="forwarded-timers.exit-is-intact", family="forwarded-timers", level="MUST")
@pytest.mark.parametrize("named", NAMED.values(), ids=NAMED)
def test_unset_id_forwards(new_vm: Builder, named: int) -> None:
    """While the Xen ID is unset, singleshot timer calls go to the VMM, whatever vCPU the guest names."""
    vcpu = new_vm.ready(vcpus=2).vcpus[1]
    vcpu.set_timer(PORT)
    vcpu.set_singleshot(named, 1, answers=FORWARDED)
    vcpu.stop_singleshot(named, answers=FORWARDED)
    vcpu.timer_is(PORT)
    vcpu.vm.pending()


@pytest.mark.xenkvm(rule="vcpu-id.unset-forwards", family="vcpu-id", level="MUST")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("named", [0, XEN_VCPU_ID_INVALID], ids=["0", "sentinel"])
def test_unset_id_forwards_in_every_mode(new_vm: Builder, mode: Mode, named: int) -> None:
    """While the Xen ID is unset, 32-bit callers are forwarded like 64-bit ones."""
    vcpu = new_vm.ready().vcpus[0]
    vcpu.set_timer(PORT)
    vcpu.set_singleshot(named, 1, answers=FORWARDED, mode=mode)
    vcpu.stop_singleshot(named, answers=FORWARDED, mode=mode)
    vcpu.vm.pending()


@pytest.mark.xenkvm(rule="vcpu-id.unset-forwards", family="vcpu-id", level="MUST")
def test_unset_id_forwards_before_the_argument_is_read(new_vm: Builder) -> None:
    """While the Xen ID is unset, a set_singleshot_timer is forwarded also if its argument can't be read."""
    vcpu = new_vm.ready().vcpus[0]
    vcpu.set_timer(PORT)
    vcpu.set_singleshot(0, 1, at=NOWHERE, answers=FORWARDED)


@pytest.mark.xenkvm(rule="vcpu-id.unset-forwards", family="vcpu-id", level="MUST")
@pytest.mark.xenkvm(rule="forwarded-timers.own-id-in-kernel", family="forwarded-timers", level="MUST")
def test_setting_the_id_ends_forwarding(new_vm: Builder) -> None:
    """Singleshot timer calls stay in the kernel from the moment the Xen ID is set."""
    vcpu = new_vm.ready(vcpus=2).vcpus[1]
    vcpu.set_timer(PORT)
    vcpu.stop_singleshot(7, answers=FORWARDED)
    vcpu.set(VcpuAttr.VCPU_ID, 7)
    vcpu.stop_singleshot(7)


@pytest.mark.xenkvm(rule="vcpu-id.unset-forwards", family="vcpu-id", level="MUST")
def test_refused_set_goes_on_forwarding(new_vm: Builder) -> None:
    """After a VCPU_ID that was refused, singleshot timer calls go on to be forwarded."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set_timer(PORT)
    vcpu.set(VcpuAttr.VCPU_ID, vm.max_vcpus, ret=-EINVAL)
    vcpu.stop_singleshot(vm.max_vcpus, answers=FORWARDED)
    vcpu.stop_singleshot(0, answers=FORWARDED)
