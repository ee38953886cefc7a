"""When a vCPU's timer fires, and on which vCPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_xenkvm.abi.numbers import INVALID_GFN, PAGE_SIZE, HvmAttr
from pytest_xenkvm.trace.events import NowPlus

from .kit.hosts import Builder
from .kit.setting import MS, SECOND, SHARED_INFO
from .kit.vcpu import ProbeVcpu

pytestmark = pytest.mark.source("kvm_xen_start_timer, xen_timer_callback, kvm_xen_inject_timer_irqs")

ID, PORT = 10, 20
"""What `timers` gives vCPU 0."""


def by_singleshot(vcpu: ProbeVcpu, expiry: NowPlus) -> None:
    """VCPUOP_set_singleshot_timer."""
    vcpu.set_singleshot(ID + vcpu.index, expiry)


def by_set_timer_op(vcpu: ProbeVcpu, expiry: NowPlus) -> None:
    """set_timer_op."""
    vcpu.set_timer_op(expiry)


def by_attribute(vcpu: ProbeVcpu, expiry: NowPlus) -> None:
    """The attribute TIMER."""
    vcpu.set_timer(PORT + vcpu.index, expiry)


WAYS = pytest.mark.parametrize(
    "arm", [by_singleshot, by_set_timer_op, by_attribute], ids=lambda way: way.__name__
)


@WAYS
def test_not_before_its_time(new_vm: Builder, arm: Callable[[ProbeVcpu, NowPlus], None]) -> None:
    """A timer's event isn't there before the guest's clock has reached the expiry."""
    vm = new_vm.timers()
    due = vm.clock() + SECOND
    arm(vm.vcpus[0], NowPlus(SECOND))
    vm.wait(MS)
    fired, now = vm.ports_pending(), vm.clock()
    if fired and now < due:
        vm.fail(f"nothing is pending before {due} ns", f"ports {fired} are pending at {now} ns", 0)


@WAYS
def test_the_next_one(new_vm: Builder, arm: Callable[[ProbeVcpu, NowPlus], None]) -> None:
    """A timer that fired can be armed again, and fires again, each time once."""
    vm = new_vm.timers(vcpus=2)
    for _ in range(2):
        arm(vm.vcpus[1], NowPlus(2 * MS))
        vm.until_pending(PORT + 1)
        vm.vcpus[1].upcall(0)
        vm.vcpus[0].quiet()
        vm.vcpus[1].timer_is(PORT + 1)
        vm.clear_events()
        vm.wait(4 * MS)
        vm.pending()


@pytest.mark.parametrize("by", ["entry", "GET"])
def test_late_on_its_own_vcpu(new_vm: Builder, by: str) -> None:
    """The event of a timer that waited for shared_info is announced to the timer's vCPU."""
    vm = new_vm.ready(ids=(3, 1))
    vm.set(HvmAttr.SHARED_INFO, INVALID_GFN)
    vm.vcpus[1].set_timer(6, 1)
    vm.set(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE_SIZE)
    if by == "entry":
        vm.vcpus[1].run()
    vm.vcpus[1].timer_is(6)
    vm.pending(6)
    vm.vcpus[1].upcall(0)
    vm.vcpus[0].quiet()
