"""Sub-operations of one hypercall mean nothing to another."""

from __future__ import annotations

import pytest

from pytest_xenkvm.abi.layout import U32
from pytest_xenkvm.abi.numbers import EvtchnOp, Hypercall, SchedOp, VcpuOp

from .kit.demands import FORWARDED
from .kit.hosts import Builder
from .kit.setting import ARGUMENT, MODES, Mode

pytestmark = pytest.mark.source("kvm_xen_hypercall")

WITH_SUB_OPS = (
    Hypercall.xen_version,
    Hypercall.event_channel_op,
    Hypercall.sched_op,
    Hypercall.vcpu_op,
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", WITH_SUB_OPS, ids=lambda number: number.name)
def test_sub_operations_of_others(new_vm: Builder, number: Hypercall, mode: Mode) -> None:
    """A sub-operation that the kernel serves in another hypercall goes to the VMM in this one, undone."""
    vm = new_vm.timers()
    vcpu = vm.vcpus[0]
    vm.outbound(9, port=5)
    vm.store(ARGUMENT, U32.pack(9) + bytes(20))
    served = {
        Hypercall.event_channel_op: (EvtchnOp.send,),
        Hypercall.sched_op: (SchedOp.yield_, SchedOp.poll),
        Hypercall.vcpu_op: (VcpuOp.set_singleshot_timer, VcpuOp.stop_singleshot_timer),
    }
    for other, sub_ops in served.items():
        for sub_op in sub_ops if other is not number else ():
            second = 10 if other is Hypercall.vcpu_op else ARGUMENT
            vcpu.call(number, sub_op, second, ARGUMENT, answers=FORWARDED, mode=mode)
            vm.pending()
            vcpu.timer_is(20)
