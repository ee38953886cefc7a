"""Runstate: the account of where a vCPU's time went, and its copy in guest memory.

Changes of state (`kvm_xen_update_runstate`): the time since the last change is added to the state that
ends. A vCPU whose account never began (entry time 0) is taken to have been offline until now. Of the time
spent running, what the host's scheduler kept the vCPU waiting counts as runnable ("stolen").

The guest's copy (`kvm_xen_update_runstate_guest`) has any alignment and may cross a page. With the
RUNSTATE_UPDATE_FLAG, bit 63 of its entry time is set first and cleared last, so that a guest sees an
update in progress; both happen within one operation here and leave no trace. The 64-bit layout's
padding is kept, but zeroed when the area crosses a page.
"""

from __future__ import annotations

from collections.abc import Sequence
from errno import EINVAL
from struct import Struct
from typing import Final

from pytest_xenkvm.abi.numbers import (
    INVALID_GPA,
    PAGE_SIZE,
    RUNSTATE_ADJUST_KEEP_STATE,
    U64_MAX,
    Runstate,
)
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.state import VcpuState, VmState

_put_times: Final = Struct("<QQQQQ").pack_into
"""state_entry_time and the four times."""
_put_state: Final = Struct("<I").pack_into

_RUNNING: Final = int(Runstate.RUNNING)
_RUNNABLE: Final = int(Runstate.RUNNABLE)
_OFFLINE: Final = int(Runstate.OFFLINE)
"""Plain numbers: they are asked at every guest entry."""


def set_area(vm: VmState, vcpu: VcpuState, gpa: int) -> None:
    """RUNSTATE_ADDR: put the guest's copy at `gpa` (INVALID_GPA: nowhere) and write it.

    Raises KvmError -EFAULT where there is no memory; both parts are then off.
    """
    vcpu.runstate_head.deactivate()
    vcpu.runstate_tail.deactivate()
    if gpa == INVALID_GPA:
        return
    size = vm.layout.runstate_size
    head = min(size, PAGE_SIZE - gpa % PAGE_SIZE)
    try:
        vcpu.runstate_head.activate_gpa(vm.memory, gpa, head)
        if head < size:
            vcpu.runstate_tail.activate_gpa(vm.memory, gpa + head & U64_MAX, size - head)
    except KvmError:
        vcpu.runstate_head.deactivate()
        vcpu.runstate_tail.deactivate()
        raise
    write_guest(vm, vcpu)


def change(vm: VmState, vcpu: VcpuState, state: int) -> None:
    """Account the time until now, enter `state` and write the guest's copy."""
    account, now = vcpu.runstate, vm.now
    if account.entry_time == 0:
        account.state = _OFFLINE
    elapsed = now - account.entry_time
    if elapsed >= 0 or not vm.profile.runstate_ignores_backward_clock:
        if vcpu.run_delay != account.seen_run_delay:
            elapsed -= _add_stolen(vm, vcpu, elapsed)
        times = account.times
        times[account.state] = times[account.state] + elapsed & U64_MAX
        account.entry_time = now
    account.seen_run_delay = vcpu.run_delay
    account.state = state
    if vcpu.runstate_head.active:
        write_guest(vm, vcpu, atomic=state == _RUNNABLE)


def _add_stolen(vm: VmState, vcpu: VcpuState, elapsed: int) -> int:
    """Count as runnable what of `elapsed` the scheduler kept a running vCPU waiting; return it (ns)."""
    account = vcpu.runstate
    if account.state != _RUNNING:
        return 0
    stolen = vcpu.run_delay - account.seen_run_delay
    if vm.profile.runstate_ignores_backward_clock:
        stolen = min(stolen, elapsed)
    account.times[_RUNNABLE] = account.times[_RUNNABLE] + stolen & U64_MAX
    return stolen


def set_current(vm: VmState, vcpu: VcpuState, state: int) -> None:
    """RUNSTATE_CURRENT; only the state counts. Raises KvmError -EINVAL for a state above 3."""
    _check_state(state)
    change(vm, vcpu, state)


def set_data(vm: VmState, vcpu: VcpuState, values: Sequence[int]) -> None:
    """RUNSTATE_DATA: state, entry time and four times replace the account; the guest's copy stays.

    Raises KvmError -EINVAL for a state above 3, times that don't add up to the entry time (mod 2^64), or
    an entry time ahead of the VM's clock.
    """
    state, entry_time, *times = values
    _check_state(state)
    _check_sum(entry_time, times)
    if entry_time > vm.now:
        raise KvmError(EINVAL)
    account = vcpu.runstate
    account.state, account.entry_time, account.times = state, entry_time, times
    account.seen_run_delay = vcpu.run_delay


def adjust(vm: VmState, vcpu: VcpuState, values: Sequence[int]) -> None:
    """RUNSTATE_ADJUST: add entry time and times (mod 2^64), then enter `state` unless it is 2^64-1.

    Raises KvmError -EINVAL as `set_data` does.
    """
    state, entry_time, *times = values
    if state != RUNSTATE_ADJUST_KEEP_STATE:
        _check_state(state)
    _check_sum(entry_time, times)
    account = vcpu.runstate
    new_entry_time = account.entry_time + entry_time & U64_MAX
    if new_entry_time > vm.now:
        raise KvmError(EINVAL)
    account.entry_time = new_entry_time
    account.times = [old + more & U64_MAX for old, more in zip(account.times, times, strict=True)]
    if state == RUNSTATE_ADJUST_KEEP_STATE:
        write_guest(vm, vcpu)
    else:
        change(vm, vcpu, state)


def write_guest(vm: VmState, vcpu: VcpuState, *, atomic: bool = False) -> None:
    """Write the account to the guest's copy, if there is one.

    A copy set in the 32-bit layout may need a second page since LONG_MODE. An `atomic` update (into
    RUNNABLE, which the scheduler makes too) can't map a page and writes nothing; the next other one does.
    """
    head = vcpu.runstate_head.mapped
    if head is None and not atomic:
        head = vcpu.runstate_head.refresh(vm.memory)
    if head is None:
        return
    layout, account = vm.layout, vcpu.runstate
    size, room, start = layout.runstate_size, len(head), layout.runstate_entry_time
    entry_time, (running, runnable, blocked, offline) = account.entry_time & U64_MAX, account.times
    if size <= room:
        _put_state(head, 0, account.state)
        _put_times(head, start, entry_time, running, runnable, blocked, offline)
        vcpu.runstate_head.mark_dirty()
        return
    tail = vcpu.runstate_tail.mapped if atomic else _tail(vm, vcpu, size - room)
    if tail is None:
        return
    image = bytearray(size)
    _put_state(image, 0, account.state)
    _put_times(image, start, entry_time, running, runnable, blocked, offline)
    head[:] = image[:room]
    tail[: size - room] = image[room:]
    vcpu.runstate_head.mark_dirty()
    vcpu.runstate_tail.mark_dirty()


def _tail(vm: VmState, vcpu: VcpuState, size: int) -> memoryview | None:
    """Where the copy goes on. An area set in the 32-bit layout may need a second page since LONG_MODE."""
    if not vcpu.runstate_tail.active:
        gpa = vcpu.runstate_head.gpa
        try:
            vcpu.runstate_tail.activate_gpa(vm.memory, gpa + PAGE_SIZE - gpa % PAGE_SIZE, size)
        except KvmError:
            return None
    return vcpu.runstate_tail.refresh(vm.memory)


def _check_state(state: int) -> None:
    if state > Runstate.OFFLINE:
        raise KvmError(EINVAL)


def _check_sum(entry_time: int, times: Sequence[int]) -> None:
    if entry_time != sum(times) & U64_MAX:
        raise KvmError(EINVAL)
