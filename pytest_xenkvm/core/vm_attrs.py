"""KVM_XEN_HVM_SET_ATTR, KVM_XEN_HVM_GET_ATTR and KVM_XEN_HVM_CONFIG: a table row an attribute.

Source: `kvm_xen_hvm_set_attr`, `kvm_xen_hvm_get_attr`, `kvm_xen_hvm_config`. Unless a row says otherwise,
a refused SET changes nothing. Types that are not in the table: -ENOENT.
"""

from __future__ import annotations

from collections.abc import Callable
from errno import EINVAL, ENOENT, EOPNOTSUPP
from typing import Any, Final

from attrs import frozen

from pytest_xenkvm.abi.numbers import (
    FIRST_VALID_VECTOR,
    INVALID_GFN,
    PAGE_SIZE,
    SETTABLE_HVM_FLAGS,
    U64_MAX,
    HvmAttr,
    XenHvmFlag,
)
from pytest_xenkvm.core.clockpage import write_wall_clock
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.hypercall_page import latch_long_mode
from pytest_xenkvm.core.outbound import set_outbound
from pytest_xenkvm.core.state import HvmConfig, VmState

XEN_DISABLE_DELAY_NS: Final = 1_000_000_000
"""How long the host goes on treating a VM as a Xen one after its last hypercall MSR."""


def configure(vm: VmState, config: HvmConfig) -> None:
    """KVM_XEN_HVM_CONFIG.

    Raises KvmError -EINVAL, changing nothing, for flags other than INTERCEPT_HCALL, EVTCHN_SEND and
    PVCLOCK_TSC_UNSTABLE, a blob together with INTERCEPT_HCALL, and (from Linux 7.2) a non-zero MSR outside
    0x40000000 ... 0x4fffffff.
    """
    has_blob = config.blob_addr_32 or config.blob_addr_64 or config.blob_size_32 or config.blob_size_64
    msr_range = vm.profile.hypercall_msr_range
    if (
        config.flags & ~SETTABLE_HVM_FLAGS
        or (config.flags & XenHvmFlag.INTERCEPT_HCALL and has_blob)
        or (config.msr and msr_range is not None and config.msr not in msr_range)
    ):
        raise KvmError(EINVAL)
    if vm.config.msr and not config.msr and vm.now >= vm.xen_enabled_until:
        vm.xen_enabled_until = vm.now + XEN_DISABLE_DELAY_NS
    changed_flags = vm.config.flags ^ config.flags
    vm.config = config
    if changed_flags & XenHvmFlag.PVCLOCK_TSC_UNSTABLE:
        for vcpu in vm.vcpus:
            vcpu.clock_update_due = True


def set_attr(vm: VmState, type_: int, value: Any) -> None:
    """Set VM attribute `type_`; raises KvmError."""
    _row(type_).set(vm, value)


def get_attr(vm: VmState, type_: int) -> Any:
    """Read VM attribute `type_`; raises KvmError -ENOENT for those that can't be read."""
    return _row(type_).get(vm)


def check_vector(vector: int) -> None:
    """Raise KvmError -EINVAL for a vector that belongs to an exception; 0 switches off."""
    if vector and vector < FIRST_VALID_VECTOR:
        raise KvmError(EINVAL)


def _set_long_mode(vm: VmState, value: int) -> None:
    """Any non-zero value is 1. With a refused shared_info: -EFAULT, yet it switches."""
    latch_long_mode(vm, long_mode=bool(value), only_if_changed=False)


def _set_shared_info(vm: VmState, gfn: int) -> None:
    """The frame number is shifted without a check: 2^52 is frame 0."""
    if gfn == INVALID_GFN:
        vm.shared_info.deactivate()
        return
    vm.shared_info.activate_gpa(vm.memory, gfn * PAGE_SIZE & U64_MAX, PAGE_SIZE)
    write_wall_clock(vm)


def _get_shared_info(vm: VmState) -> int:
    area = vm.shared_info
    return INVALID_GFN if not area.active or area.hva else area.gpa // PAGE_SIZE


def _set_shared_info_hva(vm: VmState, hva: int) -> None:
    if hva == 0:
        vm.shared_info.deactivate()
        return
    vm.shared_info.activate_hva(vm.memory, hva, PAGE_SIZE)
    write_wall_clock(vm)


def _set_upcall_vector(vm: VmState, vector: int) -> None:
    check_vector(vector)
    vm.upcall_vector = vector


def _set_xen_version(vm: VmState, version: int) -> None:
    vm.xen_version = version


def _set_runstate_update_flag(vm: VmState, value: int) -> None:
    _need_run_delay(vm)
    vm.runstate_update_flag = bool(value)


def _get_runstate_update_flag(vm: VmState) -> int:
    _need_run_delay(vm)
    return int(vm.runstate_update_flag)


def _need_run_delay(vm: VmState) -> None:
    if not vm.limits.run_delay_info:
        raise KvmError(EOPNOTSUPP)


def _unreadable(_vm: VmState) -> Any:
    raise KvmError(ENOENT)


@frozen
class _Row:
    set: Callable[[VmState, Any], None]
    get: Callable[[VmState], Any]


_ROWS: Final[dict[int, _Row]] = {
    HvmAttr.LONG_MODE: _Row(_set_long_mode, lambda vm: int(vm.long_mode)),
    HvmAttr.SHARED_INFO: _Row(_set_shared_info, _get_shared_info),
    HvmAttr.UPCALL_VECTOR: _Row(_set_upcall_vector, lambda vm: vm.upcall_vector),
    HvmAttr.EVTCHN: _Row(set_outbound, _unreadable),
    HvmAttr.XEN_VERSION: _Row(_set_xen_version, lambda vm: vm.xen_version),
    HvmAttr.RUNSTATE_UPDATE_FLAG: _Row(_set_runstate_update_flag, _get_runstate_update_flag),
    HvmAttr.SHARED_INFO_HVA: _Row(_set_shared_info_hva, lambda vm: vm.shared_info.hva),
}


def _row(type_: int) -> _Row:
    row = _ROWS.get(type_)
    if row is None:
        raise KvmError(ENOENT)
    return row
