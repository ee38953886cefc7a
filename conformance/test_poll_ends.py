"""What ends a SCHEDOP_poll and what doesn't, and what it leaves behind: nothing."""

from __future__ import annotations

from errno import EFAULT

import pytest

from pytest_xenkvm.abi.numbers import INVALID_GPA, HvmAttr, VcpuAttr
from pytest_xenkvm.trace.events import NowPlus

from .kit.hosts import Builder
from .kit.polling import PORT, at_once, blocked_for, until_timeout
from .kit.setting import MS, NOWHERE, SECOND

pytestmark = pytest.mark.source("kvm_xen_schedop_poll, kvm_xen_check_poller, __kvm_xen_has_interrupt")

GSI = 5
DELAY = 100 * MS


def test_event_that_waits(new_vm: Builder) -> None:
    """While a selector bit waits for vcpu_info no poll blocks, whatever its ports."""
    vm = new_vm.timers()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_INFO, INVALID_GPA)
    vm.send(5)
    for _ in range(2):
        at_once(vcpu, 6)
    vcpu.place_vcpu_info()
    vcpu.run()
    vcpu.upcall(0)
    vm.clear_events()
    until_timeout(vcpu, 6)


def test_timeout_ends_with_its_poll(new_vm: Builder) -> None:
    """The timeout of a poll that an event ended doesn't end a later poll, which has none."""
    vm = new_vm.timers()
    vcpu = vm.vcpus[0]
    vcpu.set_timer(PORT, NowPlus(50 * MS))
    vcpu.poll([PORT], 200 * MS)
    vm.clear_events()
    vcpu.set_timer(PORT, NowPlus(400 * MS))
    vcpu.poll([PORT], 0)
    vm.pending(PORT)


@pytest.mark.parametrize("port", [PORT, 0], ids=str)
@pytest.mark.parametrize("polled", [(PORT,), (PORT, 21)], ids=str)
def test_event_after_the_poll(new_vm: Builder, port: int, polled: tuple[int, ...]) -> None:
    """A masked event of a port of a finished poll, or of port 0, ends no later poll."""
    vm = new_vm.timers()
    vcpu = vm.vcpus[0]
    vm.mask(port)
    vm.route((GSI, port, vcpu.id))
    blocked_for(vcpu, *polled, timeout=MS)
    vm.irq_line(GSI, 1)
    vm.pending(port)
    until_timeout(vcpu, 6)


def test_events_of_other_vcpus(new_vm: Builder) -> None:
    """A masked event of the polled port that goes to another vCPU doesn't end the poll.

    The timer may fire before a slow host gets to the poll, so that it has several tries.
    """
    vm = new_vm.timers(vcpus=2)
    vm.mask(PORT)
    for delay in (20 * MS, 200 * MS, SECOND):
        vm.clear_events()
        vm.vcpus[1].set_timer(PORT, NowPlus(delay))
        took = blocked_for(vm.vcpus[0], PORT, timeout=2 * delay)
        if took >= delay * 7 // 4:
            vm.pending(PORT)
            return
    vm.fail("the poll blocks for its timeout, 2 s", f"it took {took} ns", 0)


@pytest.mark.parametrize("polled", [6, 4095], ids=str)
def test_masked_event_of_no_polled_port(new_vm: Builder, polled: int) -> None:
    """A masked event of another port that comes while a vCPU polls one port doesn't end the poll."""
    vm = new_vm.timers()
    vm.mask(PORT)
    vm.vcpus[0].set_timer(PORT, NowPlus(DELAY))
    took = blocked_for(vm.vcpus[0], polled, timeout=2 * DELAY)
    if took < DELAY * 7 // 4:
        vm.fail(f"the poll blocks for its timeout, {2 * DELAY // MS} ms", f"it took {took} ns", 0)
    vm.pending(PORT)


def test_upcall_vector_with_refused_vcpu_info(new_vm: Builder) -> None:
    """With the VM-wide vector, which vcpu_info raises, a poll comes back at once while vcpu_info is refused.

    It blocks if vcpu_info is off, or there is no such vector.
    """
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.UPCALL_VECTOR, 0x55)
    until_timeout(vcpu, 5)
    vcpu.set(VcpuAttr.VCPU_INFO, NOWHERE, ret=-EFAULT)
    at_once(vcpu, 5)
    vm.set(HvmAttr.UPCALL_VECTOR, 0)
    until_timeout(vcpu, 5)
    vm.set(HvmAttr.UPCALL_VECTOR, 0x55)
    vcpu.set(VcpuAttr.VCPU_INFO, INVALID_GPA)
    until_timeout(vcpu, 5)
