"""The account of where a vCPU's time went."""

from __future__ import annotations

from errno import EINVAL

import pytest
from xen_vms import PAGE, make_vm, ready_vm, refusal

from pytest_xenkvm.abi.numbers import U64_MAX, HvmAttr, Runstate, VcpuAttr
from pytest_xenkvm.core.machine import XenVm
from pytest_xenkvm.core.profile import LINUX_6_12, LINUX_7_2, LINUX_7_3, PROFILES, Profile
from pytest_xenkvm.core.state import VcpuState

OLD = pytest.mark.parametrize("profile", [LINUX_6_12, LINUX_7_2], ids=["linux-6.12", "linux-7.2"])
ALL = pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)


def running(profile: Profile) -> tuple[XenVm, VcpuState]:
    """A vCPU that was offline for 100 ns and runs since."""
    vm = make_vm(profile)
    (vcpu,) = vm.state.vcpus
    vm.advance(100)
    vm.set_vcpu_attr(vcpu, VcpuAttr.RUNSTATE_CURRENT, (Runstate.RUNNING, 0, 0, 0, 0, 0))
    assert data(vm, vcpu) == (Runstate.RUNNING, 100, 0, 0, 0, 100)
    return vm, vcpu


def data(vm: XenVm, vcpu: VcpuState) -> tuple[int, ...]:
    """The RUNSTATE_DATA attribute."""
    return tuple(vm.get_vcpu_attr(vcpu, VcpuAttr.RUNSTATE_DATA))


def enter_state(vm: XenVm, vcpu: VcpuState, state: Runstate) -> None:
    """RUNSTATE_CURRENT."""
    vm.set_vcpu_attr(vcpu, VcpuAttr.RUNSTATE_CURRENT, (state, 0, 0, 0, 0, 0))


@ALL
def test_time_goes_to_the_state_that_ends(profile: Profile) -> None:
    """Each change adds the time since the last one to the state before it."""
    vm, vcpu = running(profile)
    for now, state in ((110, Runstate.BLOCKED), (130, Runstate.OFFLINE), (135, Runstate.RUNNING)):
        vm.advance(now)
        enter_state(vm, vcpu, state)
    assert data(vm, vcpu) == (Runstate.RUNNING, 135, 10, 0, 20, 105)


def test_the_current_state_is_read_alone() -> None:
    """RUNSTATE_CURRENT shows the state and no times."""
    vm, vcpu = running(LINUX_7_3)
    enter_state(vm, vcpu, Runstate.BLOCKED)
    assert tuple(vm.get_vcpu_attr(vcpu, VcpuAttr.RUNSTATE_CURRENT)) == (Runstate.BLOCKED,)


@ALL
def test_stolen_time_is_runnable(profile: Profile) -> None:
    """Of the time spent running, what the scheduler kept the vCPU waiting counts as runnable."""
    vm, vcpu = running(profile)
    vm.advance(150)
    vcpu.run_delay = 30
    enter_state(vm, vcpu, Runstate.BLOCKED)
    assert data(vm, vcpu) == (Runstate.BLOCKED, 150, 20, 30, 0, 100)
    vm.advance(160)
    vcpu.run_delay = 35
    enter_state(vm, vcpu, Runstate.RUNNING)
    assert data(vm, vcpu) == (Runstate.RUNNING, 160, 20, 30, 10, 100), "waiting while blocked is not stolen"
    vm.advance(170)
    enter_state(vm, vcpu, Runstate.OFFLINE)
    assert data(vm, vcpu) == (Runstate.OFFLINE, 170, 30, 30, 10, 100), "and not stolen later either"


def test_stolen_time_never_exceeds_the_elapsed_time() -> None:
    """From Linux 7.3 a run-delay figure larger than the elapsed time is capped."""
    vm, vcpu = running(LINUX_7_3)
    vm.advance(110)
    vcpu.run_delay = 25
    enter_state(vm, vcpu, Runstate.BLOCKED)
    assert data(vm, vcpu) == (Runstate.BLOCKED, 110, 0, 10, 0, 100)


@OLD
def test_stolen_time_was_not_capped_before(profile: Profile) -> None:
    """Before Linux 7.3 more stolen than elapsed time makes the running time wrap."""
    vm, vcpu = running(profile)
    vm.advance(110)
    vcpu.run_delay = 25
    enter_state(vm, vcpu, Runstate.BLOCKED)
    assert data(vm, vcpu) == (Runstate.BLOCKED, 110, U64_MAX + 1 - 15, 25, 0, 100)


def test_a_backward_clock_accounts_no_time() -> None:
    """From Linux 7.3 a clock that went backwards changes the state alone, until it has caught up."""
    vm, vcpu = running(LINUX_7_3)
    vm.set_clock(60)
    vcpu.run_delay = 5
    enter_state(vm, vcpu, Runstate.BLOCKED)
    assert data(vm, vcpu) == (Runstate.BLOCKED, 100, 0, 0, 0, 100)
    vm.advance(70)
    enter_state(vm, vcpu, Runstate.RUNNING)
    assert data(vm, vcpu) == (Runstate.RUNNING, 100, 0, 0, 0, 100)
    vm.advance(110)
    enter_state(vm, vcpu, Runstate.OFFLINE)
    assert data(vm, vcpu) == (Runstate.OFFLINE, 110, 10, 0, 0, 100), "the run delay of then was seen"


@OLD
def test_a_backward_clock_made_time_wrap_before(profile: Profile) -> None:
    """Before Linux 7.3 a clock that went backwards takes time away from the state, modulo 2^64."""
    vm, vcpu = running(profile)
    vm.set_clock(60)
    enter_state(vm, vcpu, Runstate.BLOCKED)
    assert data(vm, vcpu) == (Runstate.BLOCKED, 60, U64_MAX + 1 - 40, 0, 0, 100)


@ALL
def test_a_clock_that_stands_still_is_not_backward(profile: Profile) -> None:
    """A change with no time elapsed accounts none and is otherwise an ordinary change."""
    vm, vcpu = running(profile)
    enter_state(vm, vcpu, Runstate.BLOCKED)
    assert data(vm, vcpu) == (Runstate.BLOCKED, 100, 0, 0, 0, 100)


@ALL
def test_only_a_configured_vm_accounts_entries(profile: Profile) -> None:
    """An entry makes the vCPU running if a hypercall MSR is configured, and else changes nothing."""
    for vm, state in ((make_vm(profile), Runstate.OFFLINE), (ready_vm(profile), Runstate.RUNNING)):
        (vcpu,) = vm.state.vcpus
        vm.advance(10)
        enter_state(vm, vcpu, Runstate.OFFLINE)
        vm.enter(vcpu)
        assert data(vm, vcpu)[0] == state


@pytest.mark.parametrize(
    ("attr", "values", "errno"),
    [
        (VcpuAttr.RUNSTATE_CURRENT, (4, 0, 0, 0, 0, 0), EINVAL),
        (VcpuAttr.RUNSTATE_CURRENT, (U64_MAX, 0, 0, 0, 0, 0), EINVAL),
        (VcpuAttr.RUNSTATE_DATA, (4, 0, 0, 0, 0, 0), EINVAL),
        (VcpuAttr.RUNSTATE_DATA, (3, 100, 25, 25, 25, 25), 0),
        (VcpuAttr.RUNSTATE_DATA, (3, 101, 26, 25, 25, 25), EINVAL),
        (VcpuAttr.RUNSTATE_DATA, (3, 100, 25, 25, 25, 24), EINVAL),
        (VcpuAttr.RUNSTATE_DATA, (3, 1, 2, U64_MAX, 0, 0), 0),
        (VcpuAttr.RUNSTATE_DATA, (U64_MAX, 0, 0, 0, 0, 0), EINVAL),
        (VcpuAttr.RUNSTATE_ADJUST, (U64_MAX, 0, 0, 0, 0, 0), 0),
        (VcpuAttr.RUNSTATE_ADJUST, (4, 0, 0, 0, 0, 0), EINVAL),
        (VcpuAttr.RUNSTATE_ADJUST, (U64_MAX, 1, 1, 0, 0, 0), EINVAL),
        (VcpuAttr.RUNSTATE_ADJUST, (U64_MAX, U64_MAX, 0, 0, 0, U64_MAX), 0),
        (VcpuAttr.RUNSTATE_ADJUST, (U64_MAX, 0, 1, 0, 0, 0), EINVAL),
    ],
)
def test_what_an_account_may_be_set_to(attr: VcpuAttr, values: tuple[int, ...], errno: int) -> None:
    """The state is at most 3, the times add up to the entry time, which isn't ahead of the clock."""
    vm, vcpu = running(LINUX_7_3)
    before = data(vm, vcpu)
    assert refusal(vm.set_vcpu_attr, vcpu, attr, values) == errno
    if errno:
        assert data(vm, vcpu) == before


def test_the_guests_copy_goes_on_in_another_slot() -> None:
    """A copy across pages may lie in two slots; without the second one the address is refused and off."""
    vm = make_vm(slots=((0, PAGE), (PAGE, PAGE)))
    (vcpu,) = vm.state.vcpus
    vm.set_attr(HvmAttr.LONG_MODE, 1)
    vm.advance(100)
    vm.set_vcpu_attr(vcpu, VcpuAttr.RUNSTATE_ADDR, PAGE - 12)
    enter_state(vm, vcpu, Runstate.BLOCKED)
    head, tail = vm.state.memory.read(PAGE - 12, 12), vm.state.memory.read(PAGE, 36)
    assert head is not None
    assert tail is not None
    numbers = [2, 100, 0, 0, 0, 100]
    assert head + tail == b"".join(number.to_bytes(8, "little") for number in numbers)
    assert refusal(vm.set_vcpu_attr, vcpu, VcpuAttr.RUNSTATE_ADDR, 2 * PAGE - 12) != 0
    assert refusal(vm.get_vcpu_attr, vcpu, VcpuAttr.RUNSTATE_ADDR) != 0
