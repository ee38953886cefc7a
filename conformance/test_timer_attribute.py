"""The attribute TIMER, and timers that fire while their event can't be delivered."""

from __future__ import annotations

from errno import EFAULT, EINVAL

import pytest

from pytest_xenkvm.abi.numbers import INVALID_GFN, PAGE_SIZE, U32_MAX, U64_MAX, HvmAttr, VcpuAttr
from pytest_xenkvm.trace.events import NowPlus

from .kit.calls import Time
from .kit.hosts import Builder
from .kit.setting import MS, NOWHERE, SECOND, SHARED_INFO
from .kit.stopped import SOON, stays_quiet
from .kit.vcpu import ARMED
from .kit.vm import ProbeVm

pytestmark = pytest.mark.source(
    "kvm_xen_vcpu_set_attr(TIMER), kvm_xen_vcpu_get_attr(TIMER), xen_timer_callback, "
    "kvm_xen_inject_timer_irqs"
)

GFN = SHARED_INFO // PAGE_SIZE
PAST: dict[str, Time] = {
    "1 ns": 1,
    "now": NowPlus(0),
    "just past": NowPlus(-1000),
    "negative": U64_MAX,
    "far back": (1 << 63) + 3600 * SECOND,
}


def test_none_at_first(new_vm: Builder) -> None:
    """A new vCPU has no timer: port 0, priority 2LEVEL, not armed."""
    new_vm().vcpus[0].timer_is(0)


@pytest.mark.parametrize("port", [1, 63, 4095, 4096, 0x7FFF_FFFF, U32_MAX])
def test_ports(new_vm: Builder, port: int) -> None:
    """Any port is accepted, also one out of range, and reads back."""
    vcpu = new_vm.ready().vcpus[0]
    vcpu.set_timer(port)
    vcpu.timer_is(port)


@pytest.mark.parametrize("priority", [0, 1, 0x7FFF_FFFF, 0xFFFF_FFFE])
def test_priority(new_vm: Builder, priority: int) -> None:
    """A priority other than 2LEVEL is -EINVAL, and the old timer stays and runs on."""
    vcpu = new_vm.ready().vcpus[0]
    vcpu.set_timer(9, 1 << 62)
    vcpu.set_timer(10, 1 << 61, priority=priority, ret=-EINVAL)
    vcpu.timer_is(9, 1 << 62)


def test_priority_without_port(new_vm: Builder) -> None:
    """With port 0 the priority isn't looked at."""
    vcpu = new_vm.ready().vcpus[0]
    vcpu.set_timer(9, 1 << 62)
    vcpu.set_timer(0, 1 << 62, priority=0)
    vcpu.timer_is(0)


def test_arms(new_vm: Builder) -> None:
    """With port and expiry the timer is armed, without Linux' workaround; expiry 0 stops it."""
    vcpu = new_vm.ready().vcpus[0]
    for expiry in (1 << 62, 1 << 51, (1 << 63) - 1):
        vcpu.set_timer(9, expiry)
        vcpu.timer_is(9, expiry)
    vcpu.set_timer(9)
    vcpu.timer_is(9)


def test_port_0_stops(new_vm: Builder) -> None:
    """Port 0 stops a timer that runs."""
    vm = new_vm.ready()
    vm.vcpus[0].set_timer(9, NowPlus(SOON))
    vm.vcpus[0].set_timer(0)
    stays_quiet(vm)
    vm.vcpus[0].timer_is(0)


def test_setting_anew_stops(new_vm: Builder) -> None:
    """Each SET stops the timer that ran before."""
    vm = new_vm.ready()
    vm.vcpus[0].set_timer(9, NowPlus(SOON))
    vm.vcpus[0].set_timer(10)
    stays_quiet(vm)
    vm.vcpus[0].timer_is(10)


@pytest.mark.parametrize("past", PAST)
def test_past_fires_at_once(new_vm: Builder, past: str) -> None:
    """An expiry that is past fires at once, and reads as 0 then."""
    vm = new_vm.ready()
    vm.vcpus[0].set_timer(9, PAST[past])
    vm.pending(9)
    vm.vcpus[0].upcall(0)
    vm.vcpus[0].timer_is(9)


@pytest.mark.parametrize("long_mode", [True, False], ids=["64-bit", "32-bit"])
def test_fires_when_due(new_vm: Builder, *, long_mode: bool) -> None:
    """A timer that is armed by the VMM fires when its time has come, on its vCPU."""
    vm = new_vm.ready(ids=(3, 1), long_mode=long_mode)
    vm.vcpus[1].set_timer(40, NowPlus(5 * MS))
    vm.until_pending(40)
    vm.vcpus[1].upcall(40 // vm.layout.word_bits)
    vm.vcpus[0].quiet()
    vm.vcpus[1].timer_is(40)


def test_runs_without_entries(new_vm: Builder) -> None:
    """A timer fires also while its vCPU isn't in the guest, and needs no configuration."""
    vm = new_vm()
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vm.vcpus[0].set_timer(9, NowPlus(2 * MS))
    vm.until(lambda: vm.vcpus[0].expires() == 0, "the timer fires")
    vm.pending(9)


@pytest.mark.parametrize("port", [0x1000, 0x7FFF_FFFF, U32_MAX])
def test_event_of_a_port_out_of_range(new_vm: Builder, port: int) -> None:
    """The event of a port out of range is lost when the timer fires."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set_timer(port, 1)
    vcpu.timer_is(port)
    vcpu.run()
    vcpu.quiet()
    vm.pending()


def test_bound_follows_the_layout(new_vm: Builder) -> None:
    """Port 1024 is out of range in the 32-bit layout only."""
    for long_mode in (True, False):
        vm = new_vm.ready(long_mode=long_mode)
        vm.vcpus[0].set_timer(1024, 1)
        vm.vcpus[0].run()
        vm.pending(*([1024] if long_mode else []))
        vm.vcpus[0].set_timer(1023, 1)
        vm.pending(*([1023, 1024] if long_mode else [1023]))


def test_masked(new_vm: Builder) -> None:
    """The event of a masked port becomes pending unannounced."""
    vm = new_vm.ready()
    vm.mask(9)
    vm.vcpus[0].set_timer(9, 1)
    vm.pending(9)
    vm.vcpus[0].quiet()
    vm.vcpus[0].timer_is(9)


def test_pending_already(new_vm: Builder) -> None:
    """A timer whose port is pending already just ends."""
    vm = new_vm.ready()
    vm.store(SHARED_INFO + 0x800, (1 << 9).to_bytes(8, "little"))
    vm.vcpus[0].set_timer(9, 1)
    vm.vcpus[0].quiet()
    vm.vcpus[0].timer_is(9)


def test_each_vcpu_has_its_own(new_vm: Builder) -> None:
    """Timers of different vCPUs don't touch one another."""
    vm = new_vm.ready(vcpus=3)
    for vcpu in vm.vcpus:
        vcpu.set_timer(40 + vcpu.index, 1 << 62 | vcpu.index)
    vm.vcpus[1].set_timer(0)
    vm.vcpus[0].timer_is(40, 1 << 62)
    vm.vcpus[1].timer_is(0)
    vm.vcpus[2].timer_is(42, 1 << 62 | 2)


# ---- while there is no shared_info


def without_shared_info(vm: ProbeVm, how: str) -> None:
    """Take shared_info away."""
    if how == "off":
        vm.set(HvmAttr.SHARED_INFO, INVALID_GFN)
    else:
        vm.set(HvmAttr.SHARED_INFO, NOWHERE // PAGE_SIZE, ret=-EFAULT)


HOW = pytest.mark.parametrize("how", ["off", "refused"])


@HOW
@pytest.mark.parametrize("by", ["entry", "GET"])
def test_delivered_late(new_vm: Builder, how: str, by: str) -> None:
    """A timer that fired without shared_info delivers its event at the next entry or GET with one."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    without_shared_info(vm, how)
    vcpu.set_timer(6, 1)
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vm.pending()
    if by == "entry":
        vcpu.run()
    else:
        vcpu.timer_is(6)
    vm.pending(6)
    vcpu.upcall(0)
    vcpu.timer_is(6)


@HOW
@pytest.mark.parametrize("by", ["entry", "GET"])
def test_lost_for_good(new_vm: Builder, how: str, by: str) -> None:
    """If shared_info still isn't there at the next entry or GET, the event is lost."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    without_shared_info(vm, how)
    vcpu.set_timer(6, 1)
    if by == "entry":
        vcpu.run()
    vcpu.timer_is(6)
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vcpu.run()
    vm.pending()
    vcpu.quiet()


def test_stopped_while_it_waits(new_vm: Builder) -> None:
    """A SET takes back an event that waits for shared_info."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.SHARED_INFO, INVALID_GFN)
    vcpu.set_timer(6, 1)
    vcpu.set_timer(6)
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vcpu.run()
    vm.pending()


def test_waits_for_intercept(new_vm: Builder) -> None:
    """An event that waits for shared_info is delivered at an entry only while hypercalls are intercepted."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vm.config(flags=0)
    vm.set(HvmAttr.SHARED_INFO, INVALID_GFN)
    vcpu.set_timer(6, 1)
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vcpu.run()
    vm.pending()
    vm.config()
    vcpu.run()
    vm.pending(6)


def test_port_out_of_range_doesnt_wait(new_vm: Builder) -> None:
    """A timer with a port out of range doesn't wait for shared_info: its event is lost at once."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.SHARED_INFO, INVALID_GFN)
    vcpu.set_timer(4096, 1)
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vcpu.set(VcpuAttr.VCPU_ID, 0)
    vcpu.run()
    vm.pending()


def test_runs_without_shared_info(new_vm: Builder) -> None:
    """A timer can be armed without shared_info, and delivers if that is there when it fires."""
    vm = new_vm.ready()
    vm.set(HvmAttr.SHARED_INFO, INVALID_GFN)
    vm.vcpus[0].set_timer(6, NowPlus(200 * MS))
    vm.vcpus[0].timer_is(6, ARMED)
    vm.set(HvmAttr.SHARED_INFO, GFN)
    vm.until_pending(6)
