"""Values for the operations on a VM: at the bounds of what is accepted, beside them, and far out."""

from __future__ import annotations

from typing import Any, Final

from hypothesis import strategies as st
from xen_vms import MSR, PAGE, PRIORITY

from pytest_xenkvm.abi.numbers import (
    INVALID_GPA,
    U32_MAX,
    U64_MAX,
    EvtchnOp,
    HvmAttr,
    Hypercall,
    SchedOp,
    VcpuAttr,
    VcpuOp,
)
from pytest_xenkvm.core.memory import HVA_BASE, HVA_LIMIT
from pytest_xenkvm.core.outbound import OutboundRequest
from pytest_xenkvm.core.routing import GsiRoute
from pytest_xenkvm.core.state import HvmConfig
from pytest_xenkvm.core.vcpu_attrs import TimerSetting


def bounds(*numbers: int) -> list[int]:
    """The numbers, and those beside them, that are u64."""
    near = {number + delta for number in numbers for delta in (-1, 0, 1)}
    return sorted(number for number in near if 0 <= number <= U64_MAX)


u8: Final = st.sampled_from([0, 1, 15, 16, 31, 32, 85, 255])
u32: Final = st.sampled_from([n for n in bounds(0, 1 << 16, 1 << 31, U32_MAX) if n <= U32_MAX])
u64: Final = st.sampled_from(bounds(0, 1 << 31, 1 << 32, 1 << 50, 1 << 52, 1 << 63, U64_MAX)) | st.integers(
    0, U64_MAX
)
ports: Final = st.sampled_from([*bounds(1, 32, 64, 1024, 2048, 4096), U32_MAX])
vcpu_ids: Final = st.sampled_from([0, 1, 2, 7, 8, U32_MAX])
xen_ids: Final = st.sampled_from([n for n in bounds(0, 4, 1024, 4096, 1 << 31, U32_MAX) if n <= U32_MAX])
offsets: Final = st.sampled_from(
    [0, 0, 0, 1, 2, 4, 8, 64, 256] + [PAGE - n for n in (64, 63, 48, 44, 32, 31, 12, 4, 1)]
)
addresses: Final = st.builds(
    lambda page, offset: page * PAGE + offset, st.integers(0, 10), offsets
) | st.sampled_from([INVALID_GPA, INVALID_GPA - 47, 1 << 32, 1 << 52])
frames: Final = st.integers(0, 10) | st.sampled_from([1 << 52, (1 << 52) + 1, U64_MAX - 1, U64_MAX])
host_addresses: Final = st.builds(
    lambda base, offset: base + offset,
    st.sampled_from([HVA_BASE, HVA_LIMIT - PAGE]),
    addresses.filter(lambda a: a < 1 << 32),
) | st.sampled_from([0, 1, PAGE, HVA_LIMIT, U64_MAX])
priorities: Final = st.sampled_from([PRIORITY, PRIORITY, PRIORITY, 0, 1])
durations: Final = st.sampled_from([0, 1, 10, 1000, 10**9, 1 << 50])
deltas: Final = st.sampled_from([1, 10, 1000, 10**9, 1 << 50, (1 << 63) - 1, 0, -1, -1000, -(1 << 63)])
msr_values: Final = addresses | st.integers(0, 10).map(lambda page: page * PAGE)
numbers_of_calls: Final = st.sampled_from(
    [
        *(Hypercall.set_timer_op, Hypercall.xen_version, Hypercall.vcpu_op, Hypercall.vcpu_op),
        *(Hypercall.sched_op, Hypercall.sched_op, Hypercall.event_channel_op, Hypercall.event_channel_op),
        *(0, 1, 34, 127, 1 << 32, 1 << 32 | Hypercall.vcpu_op, U64_MAX),
    ]
)
sub_ops: Final = st.sampled_from(
    [
        *(VcpuOp.set_singleshot_timer, VcpuOp.set_singleshot_timer, VcpuOp.stop_singleshot_timer),
        *(SchedOp.yield_, SchedOp.poll, SchedOp.poll, EvtchnOp.send, EvtchnOp.send),
        *(1, 1 << 32 | VcpuOp.set_singleshot_timer, 1 << 32 | EvtchnOp.send, U64_MAX),
    ]
)
flags: Final = st.sampled_from([0x22, 0x22, 0x02, 0x20, 0xA2, 0x80, 0, 1, 0x100, U32_MAX])
msrs: Final = st.sampled_from([MSR, MSR, 0, 1, 0x3FFF_FFFF, 0x4FFF_FFFF, 0x5000_0000])
modes: Final = st.tuples(st.booleans(), st.sampled_from([0, 0, 0, 0, 3]))
"""Long mode or not, and CPL."""
runstates = st.tuples(u64 | st.integers(0, 3), st.integers(0, 2000), *[st.integers(0, 500)] * 3)
timers = st.builds(TimerSetting, port=ports, priority=priorities, expires_ns=u64 | durations)
configs = st.builds(HvmConfig, flags=flags, msr=msrs) | st.builds(
    HvmConfig,
    flags=st.sampled_from([0, 2, 0x20]),
    msr=msrs,
    blob_addr_32=host_addresses,
    blob_addr_64=host_addresses,
    blob_size_32=u8,
    blob_size_64=u8,
)
outbound = st.builds(
    OutboundRequest,
    send_port=ports,
    type=st.sampled_from([2, 2, 5, 0, 1]),
    flags=st.sampled_from([0, 0, 0, 1, 2, 4, 3]),
    port=ports | st.just(0),
    vcpu=vcpu_ids | st.integers(3, 6),
    priority=priorities,
)
gsis = st.sampled_from([0, 1, 24, 4095, 4096, U32_MAX])
routes = st.builds(
    GsiRoute,
    gsi=gsis,
    type=st.sampled_from([5, 5, 5, 1]),
    port=ports,
    vcpu_id=vcpu_ids,
    priority=priorities,
)
fds = st.integers(3, 6)

VM_VALUES: Final[dict[int, st.SearchStrategy[Any]]] = {
    HvmAttr.LONG_MODE: u8,
    HvmAttr.SHARED_INFO: frames,
    HvmAttr.UPCALL_VECTOR: u8,
    HvmAttr.EVTCHN: outbound,
    HvmAttr.XEN_VERSION: u32,
    HvmAttr.RUNSTATE_UPDATE_FLAG: u8,
    HvmAttr.SHARED_INFO_HVA: host_addresses,
    7: st.none(),
}
VCPU_VALUES: Final[dict[int, st.SearchStrategy[Any]]] = {
    VcpuAttr.VCPU_INFO: addresses,
    VcpuAttr.VCPU_TIME_INFO: addresses,
    VcpuAttr.RUNSTATE_ADDR: addresses,
    VcpuAttr.RUNSTATE_CURRENT: st.tuples(u64 | st.integers(0, 3), *[u64] * 5),
    VcpuAttr.RUNSTATE_DATA: runstates.map(lambda v: (v[0], sum(v[1:]) & U64_MAX, *v[1:])),
    VcpuAttr.RUNSTATE_ADJUST: runstates.map(lambda v: (v[0], sum(v[1:]) & U64_MAX, *v[1:])),
    VcpuAttr.VCPU_ID: xen_ids,
    VcpuAttr.TIMER: timers,
    VcpuAttr.UPCALL_VECTOR: u8,
    VcpuAttr.VCPU_INFO_HVA: host_addresses,
    10: st.none(),
}
