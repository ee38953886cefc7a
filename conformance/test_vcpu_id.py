"""The Xen ID of a vCPU: unset until the VMM sets it (attribute VCPU_ID)."""

from __future__ import annotations

import pytest

from pytest_xenkvm.abi.numbers import XEN_VCPU_ID_INVALID, Hypercall, HvmAttr, VcpuAttr, VcpuOp

from .kit.demands import FORWARDED
from .kit.hosts import Builder

pytestmark = pytest.mark.source("x")


@pytest.mark.xenkvm(rule="vcpu-id.new-is-unset")
def test_new_id(new_vm: Builder) -> None:
    """A new vCPU's VCPU_ID reads XEN_VCPU_ID_INVALID."""
    vm = new_vm(vcpus=2)
    for vcpu in vm.vcpus:
        vcpu.get(VcpuAttr.VCPU_ID, XEN_VCPU_ID_INVALID)


@pytest.mark.xenkvm(rule="vcpu-id.unset-forwards")
def test_forwards(new_vm: Builder) -> None:
    """Forward."""
    vm = new_vm.ready()
    vm.vcpus[0].set_timer(9)
    vm.vcpus[0].stop_singleshot(0, answers=FORWARDED)
