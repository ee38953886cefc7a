"""KVM_XEN_VCPU_SET_ATTR and KVM_XEN_VCPU_GET_ATTR: a table row an attribute.

Source: `kvm_xen_vcpu_set_attr`, `kvm_xen_vcpu_get_attr`. Unless a row says otherwise, a refused SET
changes nothing. Types that are not in the table: -ENOENT.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from errno import EINVAL, ENOENT, ENXIO, EOPNOTSUPP
from typing import Any, Final

from attrs import field, frozen

from pytest_xenkvm.abi.layout import VCPU_INFO_SIZE, VCPU_TIME_INFO_SIZE
from pytest_xenkvm.abi.numbers import (
    INVALID_GPA,
    KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL,
    VcpuAttr,
)
from pytest_xenkvm.core import runstate, timer
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.evtchn import check_priority
from pytest_xenkvm.core.state import VcpuState, VmState
from pytest_xenkvm.core.vm_attrs import check_vector


@frozen(kw_only=True)
class TimerSetting:
    """The TIMER attribute: event channel port, priority, and absolute guest time (ns; 0: not armed)."""

    port: int
    priority: int = KVM_IRQ_ROUTING_XEN_EVTCHN_PRIO_2LEVEL
    expires_ns: int = 0


def set_attr(vm: VmState, vcpu: VcpuState, type_: int, value: Any) -> None:
    """Set vCPU attribute `type_`; raises KvmError."""
    row = _row(vm, type_)
    row.set(vm, vcpu, value)


def get_attr(vm: VmState, vcpu: VcpuState, type_: int) -> Any:
    """Read vCPU attribute `type_`; raises KvmError -ENOENT or -EINVAL for those that can't be read."""
    return _row(vm, type_).get(vm, vcpu)


def _set_vcpu_info(vm: VmState, vcpu: VcpuState, gpa: int) -> None:
    if gpa == INVALID_GPA:
        vcpu.vcpu_info.deactivate()
        return
    _check_vcpu_info_alignment(vm, gpa)
    vcpu.vcpu_info.activate_gpa(vm.memory, gpa, VCPU_INFO_SIZE)
    vcpu.clock_update_due = True


def _set_vcpu_info_hva(vm: VmState, vcpu: VcpuState, hva: int) -> None:
    if hva == 0:
        vcpu.vcpu_info.deactivate()
        return
    _check_vcpu_info_alignment(vm, hva)
    vcpu.vcpu_info.activate_hva(vm.memory, hva, VCPU_INFO_SIZE)
    vcpu.clock_update_due = True


def _check_vcpu_info_alignment(vm: VmState, address: int) -> None:
    """6.12 late stable: 4-byte aligned or -ENXIO; 7.2 and later don't ask."""
    if address % vm.profile.vcpu_info_alignment:
        raise KvmError(ENXIO)


def _set_time_info(vm: VmState, vcpu: VcpuState, gpa: int) -> None:
    if gpa == INVALID_GPA:
        vcpu.time_info.deactivate()
        return
    vcpu.time_info.activate_gpa(vm.memory, gpa, VCPU_TIME_INFO_SIZE)
    vcpu.clock_update_due = True


def _get_runstate_addr(_vm: VmState, vcpu: VcpuState) -> int:
    if not vcpu.runstate_head.active:
        raise KvmError(ENOENT)
    return vcpu.runstate_head.gpa


def _set_runstate_current(vm: VmState, vcpu: VcpuState, values: Sequence[int]) -> None:
    runstate.set_current(vm, vcpu, values[0])


def _get_runstate_current(_vm: VmState, vcpu: VcpuState) -> Sequence[int]:
    """Only the state; what the caller passed in the other fields stays."""
    return (vcpu.runstate.state,)


def _get_runstate_data(_vm: VmState, vcpu: VcpuState) -> Sequence[int]:
    account = vcpu.runstate
    return (account.state, account.entry_time, *account.times)


def _write_only(_vm: VmState, _vcpu: VcpuState) -> Any:
    raise KvmError(EINVAL)


def _set_vcpu_id(vm: VmState, vcpu: VcpuState, xen_id: int) -> None:
    """0 ... KVM_MAX_VCPUS-1; -EINVAL else, so the sentinel can't be set."""
    if xen_id >= vm.limits.max_vcpus:
        raise KvmError(EINVAL)
    vcpu.xen_id = xen_id


def _set_timer(vm: VmState, vcpu: VcpuState, setting: TimerSetting) -> None:
    """Stops what runs, sets the port, arms if port and expiry are non-zero (without the workaround).

    The port's range is not checked, and neither is the priority with port 0.
    """
    if setting.port:
        check_priority(setting.priority)
    timer.stop(vcpu)
    vcpu.timer.port = setting.port
    if setting.port and setting.expires_ns:
        timer.start(vm, vcpu, setting.expires_ns)


def _get_timer(vm: VmState, vcpu: VcpuState) -> TimerSetting:
    timer.inject_pending(vm, vcpu)
    return TimerSetting(port=vcpu.timer.port, expires_ns=vcpu.timer.expires_ns)


def _set_upcall_vector(_vm: VmState, vcpu: VcpuState, vector: int) -> None:
    check_vector(vector)
    vcpu.upcall_vector = vector


@frozen
class _Row:
    set: Callable[[VmState, VcpuState, Any], None]
    get: Callable[[VmState, VcpuState], Any]
    needs_run_delay: bool = field(default=False, kw_only=True)
    """-EOPNOTSUPP on a host without scheduler run-delay figures."""


_ROWS: Final[dict[int, _Row]] = {
    VcpuAttr.VCPU_INFO: _Row(_set_vcpu_info, lambda _vm, vcpu: vcpu.vcpu_info.gpa),
    VcpuAttr.VCPU_TIME_INFO: _Row(_set_time_info, lambda _vm, vcpu: vcpu.time_info.gpa),
    VcpuAttr.RUNSTATE_ADDR: _Row(runstate.set_area, _get_runstate_addr, needs_run_delay=True),
    VcpuAttr.RUNSTATE_CURRENT: _Row(_set_runstate_current, _get_runstate_current, needs_run_delay=True),
    VcpuAttr.RUNSTATE_DATA: _Row(runstate.set_data, _get_runstate_data, needs_run_delay=True),
    VcpuAttr.RUNSTATE_ADJUST: _Row(runstate.adjust, _write_only, needs_run_delay=True),
    VcpuAttr.VCPU_ID: _Row(_set_vcpu_id, lambda _vm, vcpu: vcpu.xen_id),
    VcpuAttr.TIMER: _Row(_set_timer, _get_timer),
    VcpuAttr.UPCALL_VECTOR: _Row(_set_upcall_vector, lambda _vm, vcpu: vcpu.upcall_vector),
    VcpuAttr.VCPU_INFO_HVA: _Row(_set_vcpu_info_hva, lambda _vm, vcpu: vcpu.vcpu_info.hva),
}


def _row(vm: VmState, type_: int) -> _Row:
    row = _ROWS.get(type_)
    if row is None:
        raise KvmError(ENOENT)
    if row.needs_run_delay and not vm.limits.run_delay_info:
        raise KvmError(EOPNOTSUPP)
    return row
