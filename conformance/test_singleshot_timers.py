"""VCPUOP_set_singleshot_timer and VCPUOP_stop_singleshot_timer on a vCPU that has a Xen ID."""

from __future__ import annotations

from errno import EFAULT, EINVAL

import pytest

from pytest_xenkvm.abi.numbers import U32_MAX, U64_MAX, Hypercall, VcpuAttr, VcpuOp
from pytest_xenkvm.abi.xen_numbers import VCPU_SSHOTTMR_FUTURE
from pytest_xenkvm.trace.events import NowPlus

from .kit.calls import Time
from .kit.demands import FORWARDED
from .kit.hosts import Builder
from .kit.setting import ARGUMENT, MEMORY, MODES, MODES_32, MS, NOWHERE, SECOND, Mode
from .kit.stopped import SOON, stays_quiet
from .kit.vcpu import ARMED

pytestmark = pytest.mark.source("kvm_xen_hcall_vcpu_op; Xen's public/vcpu.h: VCPUOP_set_singleshot_timer")

RULE = {"family": "forwarded-timers", "level": "MUST"}
FAR = NowPlus(3600 * SECOND)
ID, PORT = 10, 20
"""What `timers` gives vCPU 0."""


@pytest.mark.xenkvm(rule="forwarded-timers.own-id-in-kernel", **RULE)
@pytest.mark.parametrize("mode", MODES)
def test_own_id_is_served(new_vm: Builder, mode: Mode) -> None:
    """A vCPU that names itself sets and stops its timer in the kernel."""
    vcpu = new_vm.timers().vcpus[0]
    vcpu.set_singleshot(ID, FAR, mode=mode)
    vcpu.timer_is(PORT, ARMED)
    vcpu.stop_singleshot(ID, mode=mode)
    vcpu.timer_is(PORT)
    vcpu.stop_singleshot(ID, mode=mode)
    vcpu.vm.pending()


@pytest.mark.xenkvm(rule="forwarded-timers.own-id-in-kernel", **RULE)
def test_expiry_is_kept(new_vm: Builder) -> None:
    """The expiry that TIMER reads is the guest's timeout, which a later call replaces."""
    vcpu = new_vm.timers().vcpus[0]
    for expiry in (1 << 62, (1 << 61) + 1):
        vcpu.set_singleshot(ID, expiry)
        vcpu.timer_is(PORT, expiry)


@pytest.mark.xenkvm(rule="forwarded-timers.other-id-is-refused", **RULE)
@pytest.mark.parametrize("mode", MODES)
def test_another_id_is_refused(new_vm: Builder, mode: Mode) -> None:
    """A vCPU that names another one is refused with -EINVAL, and its timer is left alone."""
    vcpu = new_vm.timers(vcpus=2).vcpus[0]
    vcpu.set_singleshot(ID, FAR)
    before = vcpu.expires()
    for named in [0, ID - 1, ID + 1, 4095, 0x8000_0000, U32_MAX]:
        vcpu.set_singleshot(named, 1, answers=-EINVAL, mode=mode)
        vcpu.stop_singleshot(named, answers=-EINVAL, mode=mode)
        vcpu.timer_is(PORT, before)
        vcpu.vm.pending()


@pytest.mark.xenkvm(rule="forwarded-timers.other-id-is-refused", **RULE)
def test_id_is_not_the_index(new_vm: Builder) -> None:
    """The number that the guest names is compared with the Xen ID, not with the vCPU's index or KVM id."""
    vm = new_vm.timers(ids=(4, 5))
    for vcpu in vm.vcpus:
        vcpu.stop_singleshot(vcpu.index, answers=-EINVAL)
        vcpu.stop_singleshot(vcpu.id, answers=-EINVAL)
        vcpu.stop_singleshot(10 + vcpu.index)


@pytest.mark.xenkvm(rule="forwarded-timers.other-id-is-refused", **RULE)
def test_id_is_compared_before_the_argument_is_read(new_vm: Builder) -> None:
    """A call that names another vCPU is refused before its argument is looked at."""
    new_vm.timers().vcpus[0].set_singleshot(0, 1, at=NOWHERE, answers=-EINVAL)


@pytest.mark.xenkvm(rule="forwarded-timers.own-id-in-kernel", **RULE)
@pytest.mark.parametrize("mode", MODES)
def test_unreadable_argument(new_vm: Builder, mode: Mode) -> None:
    """An argument that can't be read to its end is -EFAULT, and the timer is left alone."""
    vcpu = new_vm.timers().vcpus[0]
    vcpu.set_singleshot(ID, 1 << 62)
    for at in (NOWHERE, MEMORY, MEMORY - 8, MEMORY - 11):
        vcpu.call(Hypercall.vcpu_op, VcpuOp.set_singleshot_timer, ID, at, answers=-EFAULT, mode=mode)
        vcpu.timer_is(PORT, 1 << 62)


@pytest.mark.xenkvm(rule="forwarded-timers.own-id-in-kernel", **RULE)
@pytest.mark.parametrize(
    ("mode", "size"),
    [(Mode.LONG, 16), (Mode.PROTECTED, 12), (Mode.COMPAT, 12)],
    ids=["64-bit", "32-bit", "compat"],
)
def test_argument_at_the_end_of_memory(new_vm: Builder, mode: Mode, size: int) -> None:
    """The argument has 16 bytes for a 64-bit caller and 12 for a 32-bit one: a byte less is -EFAULT."""
    vcpu = new_vm.timers().vcpus[0]
    vcpu.store_time(MEMORY - 16, 1 << 62, bytes(16))
    vcpu.store_time(MEMORY - size, 1 << 62, bytes(size))
    vcpu.call(Hypercall.vcpu_op, VcpuOp.set_singleshot_timer, ID, MEMORY - size, mode=mode)
    vcpu.timer_is(PORT, 1 << 62)
    late = MEMORY - size + 1
    vcpu.call(Hypercall.vcpu_op, VcpuOp.set_singleshot_timer, ID, late, answers=-EFAULT, mode=mode)


@pytest.mark.xenkvm(rule="forwarded-timers.numbers-are-32-bit", **RULE)
@pytest.mark.parametrize(("op_high", "id_high"), [(0, 1), (0, U32_MAX), (1, 0), (0x8000_0000, 0x10)], ids=str)
def test_numbers_lose_their_upper_halves(new_vm: Builder, op_high: int, id_high: int) -> None:
    """Sub-op and vCPU number of a 64-bit call are compared without their bits 32 to 63."""
    vcpu = new_vm.timers().vcpus[0]
    ops = VcpuOp.set_singleshot_timer | op_high << 32, VcpuOp.stop_singleshot_timer | op_high << 32
    vcpu.store_time(ARGUMENT, 1 << 62, bytes(16))
    vcpu.call(Hypercall.vcpu_op, ops[0], ID | id_high << 32, ARGUMENT)
    vcpu.timer_is(PORT, 1 << 62)
    vcpu.call(Hypercall.vcpu_op, ops[0], ID + 1 | id_high << 32, ARGUMENT, answers=-EINVAL)
    vcpu.call(Hypercall.vcpu_op, ops[1], ID + 1 | id_high << 32, answers=-EINVAL)
    vcpu.call(Hypercall.vcpu_op, ops[1], ID | id_high << 32)
    vcpu.timer_is(PORT)


@pytest.mark.xenkvm(rule="forwarded-timers.own-id-in-kernel", **RULE)
@pytest.mark.parametrize("mode", MODES_32)
def test_32_bit_callers_have_no_upper_halves(new_vm: Builder, mode: Mode) -> None:
    """Whatever the upper halves of a 32-bit caller's registers hold, the call is the same."""
    vcpu = new_vm.timers().vcpus[0]
    for high in (1, U32_MAX):
        vcpu.set_singleshot(ID, 1 << 62, mode=mode, high_halves=high)
        vcpu.timer_is(PORT, 1 << 62)
        vcpu.stop_singleshot(ID, mode=mode, high_halves=high)
        vcpu.timer_is(PORT)
        vcpu.stop_singleshot(ID + 1, mode=mode, high_halves=high, answers=-EINVAL)


@pytest.mark.xenkvm(rule="forwarded-timers.no-port-forwards", **RULE)
@pytest.mark.xenkvm(rule="forwarded-timers.exit-is-intact", **RULE)
@pytest.mark.xenkvm(rule="forwarded-timers.answer-reaches-guest", **RULE)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("named", [ID, ID + 1], ids=["own", "another"])
def test_without_port(new_vm: Builder, named: int, mode: Mode) -> None:
    """On a vCPU without a timer port timer calls go to the VMM, with and without the right ID."""
    vcpu = new_vm.ready().vcpus[0]
    vcpu.set(VcpuAttr.VCPU_ID, ID)
    vcpu.set_singleshot(named, 1, answers=FORWARDED, mode=mode)
    vcpu.set_singleshot(named, 1, at=NOWHERE, answers=FORWARDED, mode=mode)
    vcpu.stop_singleshot(named, answers=FORWARDED, mode=mode)
    vcpu.set_timer_op(1, answers=FORWARDED, mode=mode)
    vcpu.set_timer_op(0, answers=FORWARDED, mode=mode)


@pytest.mark.xenkvm(rule="forwarded-timers.no-port-forwards", **RULE)
def test_port_taken_away(new_vm: Builder) -> None:
    """Port 0 in the TIMER attribute ends acceleration of timer calls."""
    vcpu = new_vm.timers().vcpus[0]
    vcpu.stop_singleshot(ID)
    vcpu.set_timer(0)
    vcpu.stop_singleshot(ID, answers=FORWARDED)
    vcpu.set_timer_op(1, answers=FORWARDED)


@pytest.mark.xenkvm(rule="forwarded-timers.above-cpl0-forwards", **RULE)
@pytest.mark.parametrize("mode", MODES)
def test_above_cpl_0(new_vm: Builder, mode: Mode) -> None:
    """Timer calls from CPL 1 to 3 go to the VMM and change nothing."""
    vcpu = new_vm.timers().vcpus[0]
    vcpu.set_singleshot(ID, 1 << 62)
    for cpl in (1, 2, 3):
        vcpu.set_singleshot(ID, 1, answers=FORWARDED, mode=mode, cpl=cpl)
        vcpu.stop_singleshot(ID, answers=FORWARDED, mode=mode, cpl=cpl)
        vcpu.stop_singleshot(ID + 1, answers=FORWARDED, mode=mode, cpl=cpl)
        vcpu.set_timer_op(1, answers=FORWARDED, mode=mode, cpl=cpl)
        vcpu.timer_is(PORT, 1 << 62)
        vcpu.vm.pending()


ANSWERS = [0, 1, -38 & U64_MAX, -22 & U64_MAX, 1 << 31, U32_MAX, 1 << 63, U64_MAX, 0x1234_5678_9ABC_DEF0]


@pytest.mark.xenkvm(rule="forwarded-timers.answer-reaches-guest", **RULE)
@pytest.mark.parametrize("mode", MODES)
def test_answers_reach_the_guest(new_vm: Builder, mode: Mode) -> None:
    """The guest finds what the VMM answers in RAX, in the width of its mode, whatever the value."""
    vcpu = new_vm.ready().vcpus[0]
    for answer in ANSWERS:
        vcpu.stop_singleshot(0, answers=FORWARDED, mode=mode, vmm=answer)


@pytest.mark.xenkvm(rule="forwarded-timers.exit-is-intact", **RULE)
def test_exit_has_whole_registers(new_vm: Builder) -> None:
    """KVM_EXIT_XEN has all 64 bits of each argument, also where KVM itself looks at 32."""
    vcpu = new_vm.ready().vcpus[0]
    args = [VcpuOp.stop_singleshot_timer | 1 << 63, 0xFFFF_FFFF_0000_0001, U64_MAX, 1 << 62, 0xABC << 32, 6]
    vcpu.call(Hypercall.vcpu_op, *args, answers=FORWARDED)


PAST: dict[str, Time] = {
    "0": 0,
    "1 ns": 1,
    "now": NowPlus(0),
    "just past": NowPlus(-1000),
    "negative": U64_MAX,
    "far back": (1 << 63) + 3600 * SECOND,
}


@pytest.mark.xenkvm(rule="forwarded-timers.own-id-in-kernel", **RULE)
@pytest.mark.parametrize("past", PAST)
def test_past_fires_at_once(new_vm: Builder, past: str) -> None:
    """A timeout that is past fires at once, also with VCPU_SSHOTTMR_future and other flags."""
    vcpu = new_vm.timers().vcpus[0]
    for flags in (0, VCPU_SSHOTTMR_FUTURE, U32_MAX):
        vcpu.set_singleshot(ID, PAST[past], flags=flags)
        vcpu.vm.pending(PORT)
        vcpu.upcall(PORT // 64)
        vcpu.timer_is(PORT)
        vcpu.vm.clear_events()


@pytest.mark.xenkvm(rule="forwarded-timers.own-id-in-kernel", **RULE)
@pytest.mark.parametrize("mode", MODES)
def test_fires_when_due(new_vm: Builder, mode: Mode) -> None:
    """A timer that is ahead fires when its time has come: its port becomes pending, on its vCPU only."""
    vm = new_vm.timers(vcpus=2)
    vcpu = vm.vcpus[1]
    vcpu.set_singleshot(ID + 1, NowPlus(5 * MS), mode=mode)
    vm.until_pending(PORT + 1)
    vm.pending(PORT + 1)
    vcpu.upcall(0)
    vm.vcpus[0].quiet()
    vcpu.timer_is(PORT + 1)


@pytest.mark.xenkvm(rule="forwarded-timers.own-id-in-kernel", **RULE)
def test_stopped_timer_doesnt_fire(new_vm: Builder) -> None:
    """A timer that was stopped doesn't fire, however much time passes."""
    vcpu = new_vm.timers().vcpus[0]
    vcpu.set_singleshot(ID, NowPlus(SOON))
    vcpu.stop_singleshot(ID)
    stays_quiet(vcpu.vm)


@pytest.mark.xenkvm(rule="forwarded-timers.own-id-in-kernel", **RULE)
def test_no_linux_workaround(new_vm: Builder) -> None:
    """A singleshot timeout far ahead is taken as it is: the workaround is set_timer_op's alone."""
    vcpu = new_vm.timers().vcpus[0]
    for timeout in ((1 << 63) - 1, 1 << 51):
        vcpu.set_singleshot(ID, timeout)
        vcpu.timer_is(PORT, timeout)


def test_other_sub_ops_are_forwarded(new_vm: Builder) -> None:
    """A vcpu_op other than the two goes to the VMM, whatever vCPU it names."""
    vcpu = new_vm.timers().vcpus[0]
    for op in [op for op in range(16) if op not in (8, 9)] + [U32_MAX]:
        vcpu.call(Hypercall.vcpu_op, op, ID, ARGUMENT, answers=FORWARDED)
        vcpu.call(Hypercall.vcpu_op, op | 8 << 32, ID + 1, ARGUMENT, answers=FORWARDED)
