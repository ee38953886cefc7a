"""set_timer_op, which carries no vCPU number."""

from __future__ import annotations

import pytest

from pytest_xenkvm.abi.numbers import U32_MAX, U64_MAX, Hypercall, VcpuAttr
from pytest_xenkvm.trace.events import NowPlus

from .kit.demands import FORWARDED
from .kit.hosts import Builder
from .kit.setting import MODES, MODES_32, MS, SECOND, Mode
from .kit.stopped import SOON, stays_quiet
from .kit.vcpu import ARMED

pytestmark = pytest.mark.source("kvm_xen_hcall_set_timer_op, kvm_xen_start_timer (linux_wa)")

RULE = {"rule": "forwarded-timers.set-timer-ignores-id", "family": "forwarded-timers", "level": "MUST"}
PORT = 20
LIMIT = 1 << 50
"""Expiries this far ahead (ns) mean 100 ms: the Linux workaround."""
LATER = 10 * SECOND


@pytest.mark.xenkvm(**RULE)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("xen_id", [None, 0, 7], ids=["unset", "0", "7"])
def test_served_with_and_without_id(new_vm: Builder, xen_id: int | None, mode: Mode) -> None:
    """set_timer_op is served by the kernel if there is a timer port, with or without a Xen ID."""
    vcpu = new_vm.ready(vcpus=2).vcpus[1]
    vcpu.set_timer(PORT)
    if xen_id is not None:
        vcpu.set(VcpuAttr.VCPU_ID, xen_id)
    timeout = vcpu.vm.clock() + 3600 * SECOND
    vcpu.set_timer_op(timeout, mode=mode)
    vcpu.timer_is(PORT, timeout)
    vcpu.set_timer_op(0, mode=mode)
    vcpu.timer_is(PORT)


@pytest.mark.xenkvm(**RULE)
def test_past_fires_at_once(new_vm: Builder) -> None:
    """A timeout that is past fires at once."""
    vm = new_vm.timers()
    vcpu = vm.vcpus[0]
    for timeout in (1, NowPlus(0), NowPlus(-1000)):
        vcpu.set_timer_op(timeout)
        vm.pending(PORT)
        vcpu.upcall(0)
        vcpu.timer_is(PORT)
        vm.clear_events()


@pytest.mark.xenkvm(**RULE)
def test_0_stops(new_vm: Builder) -> None:
    """Timeout 0 stops a running timer instead of firing it."""
    vm = new_vm.timers()
    vm.vcpus[0].set_timer_op(NowPlus(SOON))
    vm.vcpus[0].set_timer_op(0)
    vm.vcpus[0].timer_is(PORT)
    stays_quiet(vm)


@pytest.mark.xenkvm(**RULE)
@pytest.mark.parametrize("mode", MODES)
def test_fires_when_due(new_vm: Builder, mode: Mode) -> None:
    """A timer that is ahead fires when its time has come."""
    vm = new_vm.timers()
    vm.vcpus[0].set_timer_op(vm.clock() + 20 * MS, mode=mode)
    vm.until_pending(PORT)
    vm.vcpus[0].timer_is(PORT)
    vm.vcpus[0].upcall(0)


@pytest.mark.xenkvm(**RULE)
@pytest.mark.parametrize(
    "timeout",
    [U64_MAX, 1 << 63, (1 << 63) | 1, NowPlus(LIMIT + SECOND), NowPlus(2 * LIMIT - SECOND), (1 << 63) - 1],
    ids=str,
)
def test_linux_workaround(new_vm: Builder, timeout: int | NowPlus) -> None:
    """A timeout that is negative, or more than 2^50 ns ahead, means 100 ms from now."""
    vm = new_vm.timers()
    before = vm.clock()
    vm.vcpus[0].set_timer_op(timeout)
    expires = vm.vcpus[0].expires()
    if expires and not before + 100 * MS <= expires <= before + LATER:
        vm.fail("an expiry 100 ms from now", f"it expires {expires - before} ns from now", 0)
    vm.until_pending(PORT)


@pytest.mark.xenkvm(**RULE)
def test_up_to_the_workaround(new_vm: Builder) -> None:
    """A timeout up to 2^50 ns ahead is taken as it is."""
    vm = new_vm.timers()
    before = vm.clock()
    vm.vcpus[0].set_timer_op(NowPlus(LIMIT - SECOND))
    expires = vm.vcpus[0].expires()
    if expires < before + LIMIT - SECOND:
        vm.fail(f"an expiry {LIMIT - SECOND} ns ahead", f"it expires {expires - before} ns from now", 0)
    vm.pending()


@pytest.mark.xenkvm(**RULE)
@pytest.mark.parametrize("mode", MODES_32)
def test_32_bit_timeout_has_two_halves(new_vm: Builder, mode: Mode) -> None:
    """A 32-bit caller's timeout is its first argument and, above bit 31, its second; no other counts."""
    vcpu = new_vm.timers().vcpus[0]
    low, high = 0x8765_4321, 0x1234
    vcpu.call(Hypercall.set_timer_op, low, high, 5, 6, mode=mode)
    vcpu.timer_is(PORT, high << 32 | low)
    vcpu.call(Hypercall.set_timer_op, 0, high, mode=mode, high_halves=U32_MAX)
    vcpu.timer_is(PORT, high << 32)
    vcpu.call(Hypercall.set_timer_op, 0, 0, 5, 6, mode=mode, high_halves=U32_MAX)
    vcpu.timer_is(PORT)


@pytest.mark.xenkvm(**RULE)
def test_64_bit_timeout_has_one_register(new_vm: Builder) -> None:
    """A 64-bit caller's second argument doesn't count."""
    vcpu = new_vm.timers().vcpus[0]
    vcpu.call(Hypercall.set_timer_op, NowPlus(SECOND), 0xFFFF)
    vcpu.timer_is(PORT, ARMED)
    vcpu.call(Hypercall.set_timer_op, 0, 1, 2, 3)
    vcpu.timer_is(PORT)


@pytest.mark.xenkvm(rule="forwarded-timers.no-port-forwards", family="forwarded-timers", level="MUST")
@pytest.mark.parametrize("timeout", [0, 1, U64_MAX])
def test_without_port(new_vm: Builder, timeout: int) -> None:
    """Without a timer port set_timer_op goes to the VMM, also to stop."""
    vcpu = new_vm.ready().vcpus[0]
    vcpu.set(VcpuAttr.VCPU_ID, 0)
    vcpu.set_timer_op(timeout, answers=FORWARDED)
