"""Whatever a VMM sets on a VM survives its migration."""

from __future__ import annotations

from errno import EFAULT
from typing import Any, Final

from emulated_vms import HIGH_MEMORY, make_vm
from hypothesis import given
from hypothesis import strategies as st

from pytest_xenkvm.abi.numbers import HvmAttr, VcpuAttr
from pytest_xenkvm.core.profile import PROFILES, Profile
from pytest_xenkvm.vmm import KvmError, RunstateInfo, TimerSetting, restore_snapshot, take_snapshot

HOLE: Final = 0x20_0000
"""A guest address without memory."""
NOW: Final = 5_000_000

_ADDRESSES: Final = st.sampled_from([0x1000, 0x1FE0, 0x2000, 0x3FC1, HIGH_MEMORY, HOLE, 2**64 - 1])
_BYTES: Final = st.sampled_from([0, 1, 16, 0xF3])
_TIMES: Final = st.sampled_from([0, 1, NOW, NOW + 1, 2**63, 2**64 - 1])
_VM_VALUES: Final[dict[int, st.SearchStrategy[Any]]] = {
    HvmAttr.LONG_MODE: _BYTES,
    HvmAttr.SHARED_INFO: _ADDRESSES.map(lambda gpa: gpa if gpa > 2**63 else gpa >> 12) | st.just(2**52),
    HvmAttr.UPCALL_VECTOR: _BYTES,
    HvmAttr.XEN_VERSION: st.integers(0, 2**32 - 1),
    HvmAttr.RUNSTATE_UPDATE_FLAG: _BYTES,
    HvmAttr.SHARED_INFO_HVA: _ADDRESSES.map(lambda gpa: 0x7E00_0000_0000 + gpa % 2**40),
}
_VCPU_VALUES: Final[dict[int, st.SearchStrategy[Any]]] = {
    VcpuAttr.VCPU_INFO: _ADDRESSES,
    VcpuAttr.VCPU_TIME_INFO: _ADDRESSES,
    VcpuAttr.RUNSTATE_ADDR: _ADDRESSES,
    VcpuAttr.RUNSTATE_CURRENT: st.integers(0, 4).map(RunstateInfo),
    VcpuAttr.RUNSTATE_DATA: st.tuples(st.integers(0, 3), _TIMES, _TIMES).map(
        lambda drawn: RunstateInfo(drawn[0], drawn[1], drawn[2], (drawn[1] - drawn[2]) % 2**64)
    ),
    VcpuAttr.VCPU_ID: st.sampled_from([0, 1, 4095, 4096, 2**32 - 1]),
    VcpuAttr.TIMER: st.builds(TimerSetting, port=st.sampled_from([0, 1, 5000]), expires_ns=_TIMES),
    VcpuAttr.UPCALL_VECTOR: _BYTES,
    VcpuAttr.VCPU_INFO_HVA: _ADDRESSES.map(lambda gpa: 0x7E00_0000_0000 + gpa % 2**40),
}


def _settings(values: dict[int, st.SearchStrategy[Any]]) -> st.SearchStrategy[tuple[int, Any]]:
    return st.sampled_from(sorted(values)).flatmap(lambda type_: st.tuples(st.just(type_), values[type_]))


@given(
    st.sampled_from(list(PROFILES.values())),
    st.lists(st.tuples(st.none(), _settings(_VM_VALUES)) | st.tuples(st.just(1), _settings(_VCPU_VALUES))),
)
def test_whatever_is_set_survives(
    profile: Profile, settings: list[tuple[int | None, tuple[int, Any]]]
) -> None:
    """Whatever was set before: what the fresh VM takes over reads the same there; the rest is -EFAULT."""
    vm, host_vm = make_vm(profile)
    host_vm.pass_time(ns=NOW)
    for vcpu, (type_, value) in settings:
        try:
            (vm if vcpu is None else vm.vcpus[vcpu]).set_attr(type_, value)
        except KvmError:
            host_vm.run(1)
    snapshot = take_snapshot(vm)
    fresh, _fresh_host = make_vm(profile)
    refused = restore_snapshot(snapshot, fresh)
    assert {item.errno for item in refused} <= {EFAULT}
    lost = {(item.vcpu, item.attribute) for item in refused}
    here, there = (
        {(vcpu, key): value for vcpu, key, value in found.items() if (vcpu, key) not in lost}
        for found in (snapshot, take_snapshot(fresh))
    )
    assert there == here
