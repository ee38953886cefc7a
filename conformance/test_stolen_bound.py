"""Stolen time that exceeds the time since the runstate account was last brought up to date."""

from __future__ import annotations

import pytest

from pytest_xenkvm.abi.numbers import RUNSTATE_ADJUST_KEEP_STATE, Runstate, VcpuAttr

from .kit.hosts import Builder
from .kit.setting import MS

pytestmark = pytest.mark.source("kvm_xen_update_runstate")

STOLEN = 50 * MS
TRIES = 3
"""A slow host may take longer for the rest than it lost before."""


def test_no_more_than_elapsed(new_vm: Builder) -> None:
    """From Linux 7.3 on no more than the elapsed time counts as stolen; before, running time goes back."""
    vm = new_vm()
    vcpu = vm.vcpus[0]
    capped = vm.profile.runstate_ignores_backward_clock
    for _ in range(TRIES):
        vm.wait(2 * MS)
        vcpu.set(VcpuAttr.RUNSTATE_CURRENT, Runstate.RUNNING)
        stolen = vm.wait_for_cpu(STOLEN)
        since = vm.clock() - vcpu.runstate()[1]
        vcpu.set(VcpuAttr.RUNSTATE_ADJUST, (RUNSTATE_ADJUST_KEEP_STATE, since, 0, 0, since, 0))
        before = vcpu.runstate()
        vcpu.set(VcpuAttr.RUNSTATE_CURRENT, Runstate.RUNNING)
        after = vcpu.runstate()
        elapsed, runnable = after[1] - before[1], after[3] - before[3]
        if elapsed < stolen // 2:
            break
    else:
        pytest.skip(f"this host took {elapsed // MS} ms for what {STOLEN // MS} ms are many")
    if (runnable <= elapsed) != capped or (not capped and runnable < stolen * 9 // 10):
        demanded = f"at most {elapsed} ns" if capped else f"at least {stolen * 9 // 10} ns"
        vm.fail(f"{demanded} more runnable", f"{runnable} ns more", 0)
