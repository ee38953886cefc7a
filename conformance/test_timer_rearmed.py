"""Timers that are armed anew while they run."""

from __future__ import annotations

import pytest

from pytest_xenkvm.trace.events import NowPlus

from .kit.calls import Time
from .kit.hosts import Builder
from .kit.setting import SECOND
from .kit.stopped import SOON, stays_quiet
from .kit.vcpu import ProbeVcpu

pytestmark = pytest.mark.source("kvm_xen_start_timer, kvm_xen_stop_timer")

WAYS = 3


def arm(vcpu: ProbeVcpu, way: int, time: Time) -> None:
    """Arm the timer by set_timer_op, by set_singleshot_timer or by the attribute TIMER."""
    if way == 0:
        vcpu.set_timer_op(time)
    elif way == 1:
        vcpu.set_singleshot(10 + vcpu.index, time)
    else:
        vcpu.set_timer(20 + vcpu.index, time)


def test_in_the_past(new_vm: Builder) -> None:
    """A timer that is armed anew with a time in the past fires at once, and not when it was due before."""
    vm = new_vm.timers(vcpus=WAYS * WAYS)
    for vcpu in vm.vcpus:
        arm(vcpu, vcpu.index // WAYS, NowPlus(SOON))
        arm(vcpu, vcpu.index % WAYS, 1)
        vcpu.timer_is(20 + vcpu.index)
    vm.pending(*(20 + vcpu.index for vcpu in vm.vcpus))
    stays_quiet(vm)


def test_further_ahead(new_vm: Builder) -> None:
    """A timer that is armed anew for later doesn't fire when it was due before."""
    vm = new_vm.timers(vcpus=WAYS * WAYS)
    far = vm.clock() + 3600 * SECOND
    for vcpu in vm.vcpus:
        arm(vcpu, vcpu.index // WAYS, NowPlus(SOON))
        arm(vcpu, vcpu.index % WAYS, far)
        vcpu.timer_is(20 + vcpu.index, far)
    stays_quiet(vm)
