"""Clocks in guest memory: the wall clock in shared_info and the pvclock structures of each vCPU."""

from __future__ import annotations

from typing import Final

from pytest_xenkvm.abi.layout import (
    PVCLOCK_GUEST_STOPPED,
    PVCLOCK_TSC_STABLE,
    U32,
    VCPU_INFO_TIME,
    VCPU_TIME_INFO,
    WALL_CLOCK,
)
from pytest_xenkvm.abi.numbers import U32_MAX, XenHvmFlag
from pytest_xenkvm.core.state import VcpuState, VmState

_NS_PER_S: Final = 1_000_000_000
_TSC_MUL_1GHZ: Final = 1 << 31
_TSC_SHIFT_1GHZ: Final = 1
"""A TSC that counts ns: ((tsc << 1) * 2^31) >> 32."""


def write_wall_clock(vm: VmState) -> None:
    """Write the wall clock where the current layout has it (`kvm_xen_shared_info_init`).

    The version goes through an odd value and ends even: ((v + 1) | 1) + 1 of what the page holds. Raises
    KvmError if shared_info is off (-EINVAL) or refused (-EFAULT).
    """
    page, place = vm.shared_info.usable(vm.memory), vm.layout.wall_clock
    seconds, ns = divmod(vm.boot_time_ns, _NS_PER_S)
    WALL_CLOCK.pack_into(page, place, _next_even_version(page, place), seconds & U32_MAX, ns)
    U32.pack_into(page, vm.layout.wall_clock_sec_hi, seconds >> 32 & U32_MAX)
    if vm.profile.shared_info_updates_clocks:
        for vcpu in vm.vcpus:
            vcpu.master_clock_due = True


def update_vcpu_clocks(vm: VmState, vcpu: VcpuState) -> None:
    """At guest entry, when due: write the pvclock structures in vcpu_info and VCPU_TIME_INFO.

    The model's TSC counts ns from the VM's creation (`kvm_guest_time_update`).
    """
    if vcpu.master_clock_due:
        vcpu.master_clock_due = False
        for other in vm.vcpus:
            other.clock_update_due = True
    if not vcpu.clock_update_due:
        return
    vcpu.clock_update_due = False
    info, time_info = vcpu.vcpu_info.refresh(vm.memory), vcpu.time_info.refresh(vm.memory)
    stopped = 0
    if info is not None:
        stopped = _write_clock(vm, info, VCPU_INFO_TIME, 0)
        vcpu.vcpu_info.mark_dirty()
    if time_info is not None:
        _write_clock(vm, time_info, 0, stopped if vm.profile.guest_stopped_bleeds else 0)
        vcpu.time_info.mark_dirty()


def _write_clock(vm: VmState, area: memoryview, place: int, stopped: int) -> int:
    """Write one pvclock structure; its PVCLOCK_GUEST_STOPPED, or `stopped`, stays set, and is returned."""
    found = VCPU_TIME_INFO.unpack_from(area, place)[-1]
    stopped |= found & PVCLOCK_GUEST_STOPPED
    stable = 0 if vm.config.flags & XenHvmFlag.PVCLOCK_TSC_UNSTABLE else PVCLOCK_TSC_STABLE
    clock = (_next_even_version(area, place), 0, vm.now, vm.now, _TSC_MUL_1GHZ, _TSC_SHIFT_1GHZ)
    VCPU_TIME_INFO.pack_into(area, place, *clock, stable | stopped)
    return stopped


def _next_even_version(area: memoryview, place: int) -> int:
    version: int = U32.unpack_from(area, place)[0]
    return (version + 1 | 1) + 1 & U32_MAX
