"""Stolen time: what the host's scheduler keeps a running vCPU waiting counts as runnable."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import pytest

from pytest_xenkvm.abi.numbers import Runstate, VcpuAttr

from .kit.hosts import Builder
from .kit.setting import MS
from .kit.vcpu import ProbeVcpu

pytestmark = pytest.mark.source("kvm_xen_update_runstate, kvm_xen_vcpu_set_attr(RUNSTATE_DATA)")

CURRENT, DATA = VcpuAttr.RUNSTATE_CURRENT, VcpuAttr.RUNSTATE_DATA
STOLEN: Final = 50 * MS
TRIES: Final = 3
"""Others may take the CPU as well."""

Account = tuple[int, int, int, int, int, int]


def vcpu_of(new_vm: Builder) -> ProbeVcpu:
    """A vCPU of a VM without a configuration: entries don't change its account."""
    vm = new_vm()
    vm.wait(2 * MS)
    return vm.vcpus[0]


def spent(vcpu: ProbeVcpu, state: Runstate, before: Account) -> list[int]:
    """The times (ns) by which the account has grown when the state is entered anew."""
    vcpu.set(CURRENT, state)
    return [new - old for new, old in zip(vcpu.runstate()[2:], before[2:], strict=True)]


@pytest.mark.parametrize("state", [Runstate.RUNNING, Runstate.BLOCKED], ids=lambda state: state.name)
def test_while_waiting_for_the_cpu(new_vm: Builder, state: Runstate) -> None:
    """Time for which a vCPU waits for the CPU counts as runnable if it was running, and not at all if not."""
    vcpu = vcpu_of(new_vm)
    vcpu.set(CURRENT, state)
    before = vcpu.runstate()
    stolen = vcpu.vm.wait_for_cpu(STOLEN)
    times = spent(vcpu, state, before)
    elapsed = vcpu.runstate()[1] - before[1]
    runnable = times[Runstate.RUNNABLE]
    if state is Runstate.RUNNING:
        if not stolen * 9 // 10 <= runnable <= elapsed or sum(times[:2]) != elapsed:
            vcpu.vm.fail(f"{stolen} ns of {elapsed} runnable, the rest running", f"{times}", 0)
    elif times != [elapsed if index == state else 0 for index in range(4)]:
        vcpu.vm.fail(f"all of {elapsed} ns in state {int(state)}", f"{times}", 0)


def by_current(vcpu: ProbeVcpu) -> None:
    """The time that was stolen is accounted."""
    vcpu.set(CURRENT, Runstate.RUNNING)


def by_data(vcpu: ProbeVcpu) -> None:
    """The account is replaced."""
    now = vcpu.vm.clock()
    vcpu.set(DATA, (int(Runstate.RUNNING), now, now, 0, 0, 0))


@pytest.mark.parametrize("ends", [by_current, by_data], ids=lambda way: way.__name__)
def test_accounted_once(new_vm: Builder, ends: Callable[[ProbeVcpu], None]) -> None:
    """What was stolen before the account was last brought up to date, or replaced, isn't accounted again."""
    vcpu = vcpu_of(new_vm)
    for _ in range(TRIES):
        vcpu.set(CURRENT, Runstate.RUNNING)
        vcpu.vm.wait_for_cpu(STOLEN)
        ends(vcpu)
        before = vcpu.runstate()
        vcpu.vm.wait(STOLEN * 3 // 4)
        times = spent(vcpu, Runstate.RUNNING, before)
        if times[Runstate.RUNNING] > times[Runstate.RUNNABLE] >= 0:
            return
    vcpu.vm.fail("most of the time since then running", f"{times}", 0)
