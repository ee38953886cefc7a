"""Runstate: the account of where a vCPU's time goes (RUNSTATE_CURRENT, _DATA, _ADJUST)."""

from __future__ import annotations

from errno import EINVAL

import pytest

from pytest_xenkvm.abi.numbers import RUNSTATE_ADJUST_KEEP_STATE, U32_MAX, U64_MAX, Runstate, VcpuAttr

from .kit.hosts import Builder
from .kit.setting import MS, RUNSTATE, SECOND
from .kit.vcpu import ProbeVcpu

pytestmark = pytest.mark.source(
    "kvm_xen_vcpu_set_attr(RUNSTATE_*), kvm_xen_update_runstate; Xen's public/vcpu.h: vcpu_runstate_info"
)

CURRENT, DATA, ADJUST = VcpuAttr.RUNSTATE_CURRENT, VcpuAttr.RUNSTATE_DATA, VcpuAttr.RUNSTATE_ADJUST
KEEP = RUNSTATE_ADJUST_KEEP_STATE
ACCOUNT = (int(Runstate.BLOCKED), 1000, 100, 200, 300, 400)
"""A state, and times (ns) that add up to its entry time."""
BAD_STATES = [4, 5, U32_MAX, 1 << 32, 1 << 32 | 1, 1 << 63]
AHEAD = 1 << 62


def aged(new_vm: Builder) -> ProbeVcpu:
    """A vCPU of a VM that has lived for 2 ms and has no Xen configuration, so that entries change nothing."""
    vm = new_vm()
    vm.wait(2 * MS)
    return vm.vcpus[0]


def account(vcpu: ProbeVcpu, *expected: int) -> None:
    """RUNSTATE_DATA must read so."""
    __tracebackhide__ = True
    vcpu.get(DATA, expected)


def adds_up(vcpu: ProbeVcpu) -> None:
    """The four times must add up to the entry time."""
    __tracebackhide__ = True
    _state, entry, *times = vcpu.runstate()
    if entry != sum(times) & U64_MAX:
        vcpu.vm.fail("times that add up to the entry time", f"entry time {entry}, times {times}", vcpu.index)


def test_at_first(new_vm: Builder) -> None:
    """A new vCPU's account reads as running, with all times 0; RUNSTATE_ADJUST can't be read: -EINVAL."""
    vcpu = new_vm().vcpus[0]
    account(vcpu, 0, 0, 0, 0, 0, 0)
    vcpu.get(ADJUST, ret=-EINVAL)


@pytest.mark.parametrize("state", Runstate, ids=lambda state: state.name)
def test_first_state(new_vm: Builder, state: Runstate) -> None:
    """The first RUNSTATE_CURRENT counts all time until then as offline."""
    vcpu = aged(new_vm)
    vcpu.set(CURRENT, (state, 9, 9, 9, 9, 9))
    read, entry, *times = vcpu.runstate()
    if read != state or not entry or times != [0, 0, 0, entry]:
        vcpu.vm.fail(f"state {int(state)} with all time offline", f"{(read, entry, *times)}", 0)


def test_bad_states(new_vm: Builder) -> None:
    """A state above 3 is -EINVAL in all three attributes, and the account stays."""
    vcpu = aged(new_vm)
    vcpu.set(DATA, ACCOUNT)
    for state in BAD_STATES:
        vcpu.set(CURRENT, (state, 0, 0, 0, 0, 0), ret=-EINVAL)
        vcpu.set(DATA, (state, 0, 0, 0, 0, 0), ret=-EINVAL)
        vcpu.set(ADJUST, (state, 0, 0, 0, 0, 0), ret=-EINVAL)
        account(vcpu, *ACCOUNT)


@pytest.mark.parametrize("state", Runstate, ids=lambda state: state.name)
def test_time_goes_to_the_state(new_vm: Builder, state: Runstate) -> None:
    """The time until a change of state goes to the state that ends, and to no other."""
    vcpu = aged(new_vm)
    vcpu.set(CURRENT, state)
    before = vcpu.runstate()
    vcpu.vm.wait(5 * MS)
    other = (state + 1) % 4
    vcpu.set(CURRENT, other)
    after = vcpu.runstate()
    spent = [new - old for new, old in zip(after[2:], before[2:], strict=True)]
    stolen = spent[Runstate.RUNNABLE] if state is Runstate.RUNNING else 0
    moved = spent[state] + stolen
    rest = [time for index, time in enumerate(spent) if index != state and not (stolen and index == 1)]
    if after[0] != other or moved < 5 * MS or any(rest) or after[1] - before[1] != moved:
        vcpu.vm.fail(f"5 ms and more in state {int(state)}", f"times grew by {spent}", 0)
    adds_up(vcpu)


@pytest.mark.parametrize("state", Runstate, ids=lambda state: state.name)
def test_current_reads_back(new_vm: Builder, state: Runstate) -> None:
    """RUNSTATE_CURRENT reads the state."""
    vcpu = aged(new_vm)
    vcpu.set(CURRENT, state)
    read = vcpu.get(CURRENT)["state"]
    if read != state:
        vcpu.vm.fail(f"state {int(state)}", f"state {read}", 0)


GOOD = {
    "an account": ACCOUNT,
    "nothing": (1, 0, 0, 0, 0, 0),
    "offline": (3, 10, 1, 2, 3, 4),
    "a sum that wraps to 0": (0, 0, 1 << 63, 1 << 63, 0, 0),
    "a sum that wraps": (1, 1000, 1100, -100 & U64_MAX, 0, 0),
}


@pytest.mark.parametrize("which", GOOD)
def test_data_reads_back(new_vm: Builder, which: str) -> None:
    """RUNSTATE_DATA replaces the account; its times must add up to the entry time modulo 2^64."""
    vcpu = aged(new_vm)
    vcpu.set(DATA, GOOD[which])
    account(vcpu, *GOOD[which])


@pytest.mark.parametrize("member", [1, 2, 3, 4, 5])
def test_data_must_add_up(new_vm: Builder, member: int) -> None:
    """Times that don't add up to the entry time are -EINVAL, and the account stays."""
    vcpu = aged(new_vm)
    vcpu.set(DATA, ACCOUNT)
    for off_by in (1, -1, 1 << 32, 1 << 63):
        wrong = list(GOOD["offline"])
        wrong[member] = wrong[member] + off_by & U64_MAX
        vcpu.set(DATA, wrong, ret=-EINVAL)
        vcpu.set(ADJUST, wrong, ret=-EINVAL)
        vcpu.set(ADJUST, (KEEP, *wrong[1:]), ret=-EINVAL)
        account(vcpu, *ACCOUNT)


def test_data_must_not_lie_ahead(new_vm: Builder) -> None:
    """An entry time ahead of the VM's clock is -EINVAL, set or adjusted to, and the account stays."""
    vcpu = aged(new_vm)
    vcpu.set(DATA, ACCOUNT)
    soon = vcpu.vm.clock() + 3600 * 1000 * MS
    for entry in (soon, AHEAD, U64_MAX):
        vcpu.set(DATA, (0, entry, entry, 0, 0, 0), ret=-EINVAL)
        vcpu.set(ADJUST, (KEEP, entry - 1000, entry - 1000, 0, 0, 0), ret=-EINVAL)
        vcpu.set(ADJUST, (1, entry - 1000, entry - 1000, 0, 0, 0), ret=-EINVAL)
    account(vcpu, *ACCOUNT)


def test_adjust_adds(new_vm: Builder) -> None:
    """RUNSTATE_ADJUST adds to entry time and times modulo 2^64; state 2^64-1 keeps the state."""
    vcpu = aged(new_vm)
    vcpu.set(DATA, ACCOUNT)
    vcpu.set(ADJUST, (KEEP, 10, 1, 2, 3, 4))
    account(vcpu, 2, 1010, 101, 202, 303, 404)
    vcpu.set(ADJUST, (KEEP, 0, 7, -7 & U64_MAX, 0, 0))
    account(vcpu, 2, 1010, 108, 195, 303, 404)
    vcpu.set(ADJUST, (KEEP, -10 & U64_MAX, -8 & U64_MAX, 5, -3 & U64_MAX, -4 & U64_MAX))
    account(vcpu, 2, 1000, 100, 200, 300, 400)
    vcpu.set(ADJUST, (KEEP, 0, 0, 0, 0, 0))
    account(vcpu, *ACCOUNT)


@pytest.mark.parametrize("state", Runstate, ids=lambda state: state.name)
def test_adjust_enters_a_state(new_vm: Builder, state: Runstate) -> None:
    """RUNSTATE_ADJUST with a state adds first, then enters it: the time since goes to the state that was."""
    vcpu = aged(new_vm)
    vcpu.set(DATA, ACCOUNT)
    vcpu.set(ADJUST, (state, 10, 1, 2, 3, 4))
    read, entry, running, runnable, blocked, offline = vcpu.runstate()
    fine = (read, running, runnable, offline) == (state, 101, 202, 404)
    if not fine or blocked != entry - 101 - 202 - 404 or entry <= 1010:
        vcpu.vm.fail("100 + 1, 200 + 2, 400 + 4 and the rest blocked", f"{vcpu.runstate()}", 0)


def test_entries_run(new_vm: Builder) -> None:
    """A vCPU that enters the guest is running, in a VM with a hypercall MSR; others keep their account."""
    vm = new_vm(vcpus=2)
    vm.wait(MS)
    first, second = vm.vcpus
    for vcpu in vm.vcpus:
        vcpu.set(DATA, ACCOUNT)
        vcpu.run()
        account(vcpu, *ACCOUNT)
    vm.config(flags=0)
    first.run()
    state, entry, running, _runnable, blocked, offline = first.runstate()
    if state != Runstate.RUNNING or blocked <= 300 or offline != 400 or entry <= 1000 or running < 100:
        vm.fail("running, with the time until then blocked", f"{first.runstate()}", 0)
    adds_up(first)
    account(second, *ACCOUNT)


def test_clock_that_goes_back(new_vm: Builder) -> None:
    """A clock that went back accounts no time and moves no entry time from Linux 7.3 on; before, it does."""
    vcpu = aged(new_vm)
    vm = vcpu.vm
    vm.set_clock(7200 * SECOND)
    entry = vm.clock()
    vcpu.set(DATA, (int(Runstate.BLOCKED), entry, 0, 0, entry, 0))
    vm.set_clock(3600 * SECOND)
    vcpu.set(CURRENT, Runstate.OFFLINE)
    if vm.profile.runstate_ignores_backward_clock:
        account(vcpu, Runstate.OFFLINE, entry, 0, 0, entry, 0)
        vm.set_clock(7300 * SECOND)
        vcpu.set(CURRENT, Runstate.RUNNABLE)
        _state, now, *times = vcpu.runstate()
        if now < 7300 * SECOND or times != [0, 0, entry, now - entry]:
            vm.fail("the time since then offline", f"{vcpu.runstate()}", 0)
        return
    _state, now, *times = vcpu.runstate()
    if not 3600 * SECOND <= now < 7200 * SECOND or times != [0, 0, now, 0]:
        vm.fail("an hour and a little blocked, as of now", f"{vcpu.runstate()}", 0)


def test_each_vcpu_has_its_own(new_vm: Builder) -> None:
    """Accounts of different vCPUs don't touch one another."""
    vm = new_vm(vcpus=2)
    vm.wait(MS)
    vm.vcpus[0].set(DATA, ACCOUNT)
    account(vm.vcpus[1], 0, 0, 0, 0, 0, 0)
    vm.holds(RUNSTATE, bytes(64), "memory without a copy")
