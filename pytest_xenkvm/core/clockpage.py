"""Clocks in guest memory: the wall clock in shared_info and the pvclock structures of each vCPU."""

from __future__ import annotations

from typing import Final

from pytest_xenkvm.abi.layout import (
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
    base = vm.shared_info.usable()
    place = base + vm.layout.wall_clock
    seconds, ns = divmod(vm.boot_time_ns, _NS_PER_S)
    version = _next_even_version(vm, place)
    vm.memory.write(place, WALL_CLOCK.pack(version, seconds & U32_MAX, ns))
    vm.memory.write(base + vm.layout.wall_clock_sec_hi, U32.pack(seconds >> 32 & U32_MAX))


def update_vcpu_clocks(vm: VmState, vcpu: VcpuState) -> None:
    """At guest entry, when due: write the pvclock structures in vcpu_info and VCPU_TIME_INFO.

    The model's TSC counts ns from the VM's creation (`kvm_guest_time_update`).
    """
    if not vcpu.clock_update_due:
        return
    vcpu.clock_update_due = False
    places = [vcpu.time_info.backing]
    if vcpu.vcpu_info.backing is not None:
        places.append(vcpu.vcpu_info.backing + VCPU_INFO_TIME)
    flags = 0 if vm.config.flags & XenHvmFlag.PVCLOCK_TSC_UNSTABLE else PVCLOCK_TSC_STABLE
    for place in places:
        if place is not None:
            vm.memory.write(
                place,
                VCPU_TIME_INFO.pack(
                    _next_even_version(vm, place), 0, vm.now, vm.now, _TSC_MUL_1GHZ, _TSC_SHIFT_1GHZ, flags
                ),
            )


def _next_even_version(vm: VmState, place: int) -> int:
    version: int = U32.unpack(vm.memory.read_backed(place, U32.size))[0]
    return (version + 1 | 1) + 1 & U32_MAX
