"""The VMM's own timers in a replay."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scripted_vmm import Scripted, by_vmm, call, replay

from pytest_xenkvm.replay import vmm_side
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.observation import Place
from pytest_xenkvm.trace.events import (
    Wait,
)
from pytest_xenkvm.vmm import Vcpu, Vm, Vmm, XenExit


def start_in_configure(*timers: tuple[int, int]) -> Callable[[Vm], None]:
    """Starts timers: vCPU and expiry."""

    def configure(vm: Vm) -> None:
        for vcpu, expires_ns in timers:
            vm.vcpus[vcpu].start_vmm_timer(expires_ns)

    return configure


def test_timers_fire_in_order_between_events() -> None:
    """VMM timers expire at their own time, in the order of time, before the event that comes later."""
    vmm = Scripted(configure=start_in_configure((0, 700), (1, 300)))
    replay([call(ts=100), call(ts=500), call(ts=1000), call(ts=1001)], vmm)
    assert vmm.called == [
        ("hypercall", 0),
        ("hypercall", 100),
        ("timer", 1, 300, 300),
        ("hypercall", 500),
        ("timer", 0, 700, 700),
        ("hypercall", 1000),
    ]


def test_a_kernel_timer_at_the_same_time_comes_first() -> None:
    """When a VMM timer expires, the kernel's timers up to that time have fired and later ones have not."""
    seen: list[int] = []

    def configure(vm: Vm) -> None:
        vm.set_shared_info(1)
        for vcpu, expires_ns in zip(vm.vcpus, (400, 401), strict=True):
            vcpu.set_timer(7, expires_ns=expires_ns)
        vm.vcpus[0].start_vmm_timer(400)

    def on_timer(vcpu: Vcpu, _expires_ns: int) -> None:
        seen.extend(other.get_timer().expires_ns for other in vcpu.vm.vcpus)

    replay([Wait(ns=500)], Scripted(configure=configure, on_timer=on_timer))
    assert seen == [0, 401]


def test_a_timer_in_the_past_fires_at_once() -> None:
    """It expires when on_hypercall has returned, before the guest goes on, and its ioctls come first."""
    made: list[str] = []

    def on_hypercall(vcpu: Vcpu, _exit: XenExit) -> int:
        vcpu.start_vmm_timer(0)
        made.append("returned")
        return 0

    def on_timer(vcpu: Vcpu, _expires_ns: int) -> None:
        made.append("fired")
        vcpu.vm.evtchn_send(3, vcpu.id)

    def configure(vm: Vm) -> None:
        vm.set_shared_info(1)
        vm.vcpus[0].set_vcpu_info(0x2000)

    vmm = Scripted(configure=configure, on_hypercall=on_hypercall, on_timer=on_timer)
    observations = replay([call(ts=50)], vmm)
    assert made == ["returned", "fired"]
    at_the_call = [seen for seen in observations if seen.place == Place(0)]
    assert [seen.by_vmm for seen in at_the_call] == [True, False]
    assert by_vmm(at_the_call) == [(Place(0), "KVM_XEN_HVM_EVTCHN_SEND")]
    assert vmm.vm.read_memory(0x2000, 1) == b"\1"


def test_one_timer_a_vcpu() -> None:
    """Starting takes the place of the timer that runs, and stopping stops it; both may be done any time."""
    vmm = Scripted(configure=start_in_configure((0, 10), (0, 20), (1, 30)))
    vmm.methods["on_timer"] = lambda vcpu, _expires_ns: vcpu.vm.vcpus[1].stop_vmm_timer()
    replay([Wait(ns=100)], vmm)
    assert vmm.called == [("timer", 0, 20, 20)]
    vmm.vm.vcpus[0].stop_vmm_timer()


def test_a_timer_may_be_started_again_when_it_expires() -> None:
    """A periodic timer expires as often as it fits into the time that passes."""
    vmm = Scripted(configure=start_in_configure((0, 100)))
    vmm.methods["on_timer"] = lambda vcpu, expires_ns: vcpu.start_vmm_timer(expires_ns + 100)
    replay([Wait(ns=450, ts=450)], vmm)
    assert [when for _, _, _, when in vmm.called] == [100, 200, 300, 400]


def test_the_guest_takes_the_interrupts_of_a_timer() -> None:
    """What on_timer injects between two events is taken before the guest does anything else."""
    left: list[int | None] = []

    def configure(vm: Vm) -> None:
        vm.set_shared_info(1)
        vm.vcpus[1].set_vcpu_info(0x2000)
        vm.vcpus[1].set_upcall_vector(0xF3)
        vm.vcpus[0].start_vmm_timer(10)

    def on_timer(vcpu: Vcpu, _expires_ns: int) -> None:
        vcpu.vm.evtchn_send(3, vcpu.vm.vcpus[1].id)

    def on_hypercall(vcpu: Vcpu, _exit: XenExit) -> int:
        left.append(vcpu._files.host.take_interrupt(1))
        return 0

    events = [call(ts=20), call(ts=30), call(ts=40)]
    vmm = Scripted(configure=configure, on_timer=on_timer, on_hypercall=on_hypercall)
    replay(events, vmm)
    assert left == [None, None, None]
    assert vmm.vm.read_memory(0x2000, 1) == b"\1"


def test_endless_timers_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A timer that is started in the past each time it expires ends the replay, as does one too near."""
    vmm = Scripted(configure=start_in_configure((0, 0)), on_timer=lambda vcpu, _: vcpu.start_vmm_timer(0))
    with pytest.raises(ReplayError, match="expired 10,000 times at 0 ns of the VM's clock: on_timer must"):
        replay([], vmm)
    monkeypatch.setattr(vmm_side, "MAX_FIRINGS", 100)
    vmm = Scripted(configure=start_in_configure((0, 1)))
    vmm.methods["on_timer"] = lambda vcpu, expires_ns: vcpu.start_vmm_timer(expires_ns + 1)
    replay([Wait(ns=100, ts=100), Wait(ns=100, ts=200)], vmm)
    with pytest.raises(ReplayError, match="expired 100 times while the guest did nothing"):
        replay([Wait(ns=101, ts=101)], vmm)


def test_a_timer_needs_on_timer() -> None:
    """A behaviour that starts a timer but can't be told is told so."""

    class Deaf(Vmm):
        def configure(self, vm: Vm) -> None:
            vm.vcpus[0].start_vmm_timer(5)

    with pytest.raises(ReplayError, match="behaviour Deaf started a VMM timer but has no on_timer"):
        replay([Wait(ns=5)], Deaf())


def test_an_expiry_must_be_an_int() -> None:
    """A timer can't be started for a fraction of a nanosecond."""
    with pytest.raises(TypeError, match=r"expires_ns is 1\.5, expected the VM's clock in ns"):
        replay([], Scripted(configure=lambda vm: vm.vcpus[0].start_vmm_timer(1.5)))
