"""Timers are KVM's business, of all vCPUs, on all kernels."""

from __future__ import annotations

import pytest
from small_vmm.behaviour import SmallVmmBehaviour
from small_vmm.xen import FIRST_TIMER_PORT, VCPU_OP

from pytest_xenkvm.abi.numbers import VcpuOp
from pytest_xenkvm.plugin.own_tests import Replayer, XenHost
from pytest_xenkvm.trace.events import Hypercall

TIMER_CALLS = (VcpuOp.set_singleshot_timer, VcpuOp.stop_singleshot_timer)


def test_every_vcpu_has_an_id_and_a_port(xenkvm_host: XenHost, xenkvm_vmm: SmallVmmBehaviour) -> None:
    """Both count from vCPU 0."""
    vm = xenkvm_host.create_vm(vcpus=4)
    xenkvm_vmm.configure(vm)
    assert [vcpu.get_vcpu_id() for vcpu in vm.vcpus] == [0, 1, 2, 3]
    assert [vcpu.get_timer().port for vcpu in vm.vcpus] == [FIRST_TIMER_PORT + n for n in range(4)]


@pytest.mark.parametrize("kernel", ["linux-7.2", "linux-7.3"])
def test_no_timer_call_is_forwarded(
    xenkvm_replay: Replayer, xenkvm_vmm: SmallVmmBehaviour, kernel: str
) -> None:
    """The guest's singleshot timers, some thousands of calls, are all served by the kernel."""
    replayed = xenkvm_replay("@linux-boot", vmm=xenkvm_vmm, profile=kernel, rules=[])
    calls = [seen.event for seen in replayed.observations if isinstance(seen.event, Hypercall)]
    timers = [call for call in calls if call.nr == VCPU_OP and call.args[0] in TIMER_CALLS]
    assert len(timers) > 1000
    assert all(call.handled == "kernel" and call.rax == 0 for call in timers)
