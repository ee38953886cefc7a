"""What else a PVHVM guest asks of `qemu`: version and features, memory, HVM parameters, PIRQs, grants."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from errno import EBUSY, EINVAL, ENOENT, ENOSPC, ENOSYS, EPERM, ESRCH
from struct import Struct
from typing import Final

from pytest_xenkvm.abi.numbers import GrantTableOp, HvmOp, MemoryOp, PhysdevOp, SchedOp, XenVer
from pytest_xenkvm.abi.xen_numbers import (
    FEATURES,
    IRQSTAT_NEEDS_EOI,
    MAP_PIRQ_TYPE_GSI,
    OWN_DOMAINS,
    CallbackVia,
    HvmParam,
    MapSpace,
    Shutdown,
)
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.vmm.bundled.calls import WORD, Call
from pytest_xenkvm.vmm.bundled.state import State, as_answer

XENSTORE_PORT: Final = 1
XENSTORE_GFN: Final = 0xFEFF9
"""QEMU's page of the store, in an area that it reserves below 4 GiB."""

_FEATURE_INFO: Final = Struct("<II")
_PHYSMAP_64: Final = Struct("<HxxIQQ")
_PHYSMAP_32: Final = Struct("<HxxIII")
_PARAM: Final = Struct("<HxxIQ")
UPCALL_VECTOR: Final = Struct("<IB")
"""A vCPU and its upcall vector."""
_MAP_PIRQ: Final = Struct("<Hxxiii")
_UNMAP_PIRQ: Final = Struct("<Hxxi")
_IRQ_STATUS: Final = Struct("<II")
_GRANT_SIZE: Final = Struct("<HxxIIh")
_GRANT_VERSION: Final = Struct("<Hxx")

_FIRST_VECTOR: Final = 0x10
_GSIS: Final = 24
_FIRST_PIRQ: Final = 16
"""Xen gives out none of the legacy interrupts."""
_PIRQS: Final = 256
_GRANT_FRAMES: Final = 64
_GRANT_VERSION_1: Final = 1

Handler = Callable[[State, Call], int]


def xen_version(_state: State, call: Call) -> int:
    """The features; the kernel serves XENVER_version, and there is nothing else."""
    if call.op != XenVer.get_features:
        return -ENOSYS
    index, _submap = call.read(1, _FEATURE_INFO)
    call.write(1, 4, WORD.pack(0 if index else FEATURES))
    return 0


def memory_op(state: State, call: Call) -> int:
    """XENMEM_add_to_physmap of the shared page and the grant table."""
    if call.op != MemoryOp.add_to_physmap:
        return -ENOSYS
    domain, space, index, gfn = call.read(1, _PHYSMAP_64 if call.xen_exit.longmode else _PHYSMAP_32)
    if domain not in OWN_DOMAINS:
        return -ESRCH
    if space == MapSpace.GRANT_TABLE:
        return 0 if index < _GRANT_FRAMES else -EINVAL
    if space != MapSpace.SHARED_INFO or index:
        return -EINVAL
    state.mapped_unseen = gfn is None
    if gfn is not None:
        state.map_shared_info(gfn)
    return 0


def hvm_op(state: State, call: Call) -> int:
    """HVM parameters and the upcall vectors of vCPUs."""
    handler = _HVM.get(call.op)
    return -ENOSYS if handler is None else handler(state, call)


def _set_param(state: State, call: Call) -> int:
    domain, index, value = call.read(1, _PARAM)
    if domain not in OWN_DOMAINS:
        return -ESRCH
    if index != HvmParam.CALLBACK_IRQ:
        return -ENOSYS
    via = value >> 56
    if via > CallbackVia.VECTOR:
        return -ENOSYS
    with as_answer():
        state.vm.set_upcall_vector(value & 0xFF if via == CallbackVia.VECTOR else 0)
    with suppress(KvmError):  # it switches even if the shared page is gone
        state.vm.set_long_mode(on=bool(call.xen_exit.longmode))
    return 0


def _get_param(_state: State, call: Call) -> int:
    domain, index, _value = call.read(1, _PARAM)
    if domain not in OWN_DOMAINS:
        return -ESRCH
    if index in (HvmParam.CONSOLE_PFN, HvmParam.CONSOLE_EVTCHN):
        return -EINVAL  # the VM has no Xen console
    values = {HvmParam.STORE_PFN: XENSTORE_GFN, HvmParam.STORE_EVTCHN: XENSTORE_PORT}
    if index not in values:
        return -ENOSYS
    call.write(1, 8, values[index].to_bytes(8, "little"))
    return 0


def _set_upcall_vector(state: State, call: Call) -> int:
    number, vector = call.read(1, UPCALL_VECTOR)
    if vector < _FIRST_VECTOR:
        return -EINVAL
    target = state.vcpu(number, EINVAL)
    with as_answer():
        target.set_upcall_vector(vector)
    return 0


def sched_op(_state: State, call: Call) -> int:
    """Shutdown, which a replay only notes; the kernel serves yield and poll."""
    if call.op != SchedOp.shutdown:
        return -ENOSYS
    (reason,) = call.read(1, WORD)
    served = (Shutdown.POWEROFF, Shutdown.REBOOT, Shutdown.CRASH, Shutdown.SOFT_RESET)
    return 0 if reason in served else -EINVAL


def grant_table_op(_state: State, call: Call) -> int:
    """Size and version of the grant table."""
    if call.op == GrantTableOp.set_version:
        (version,) = call.read(1, WORD)
        return 0 if version == _GRANT_VERSION_1 else -ENOSYS if version == _GRANT_VERSION_1 + 1 else -EINVAL
    if call.op == GrantTableOp.query_size:
        domain, *_ = call.read(1, _GRANT_SIZE)
        own = domain in OWN_DOMAINS
        answer = (_GRANT_FRAMES, _GRANT_FRAMES, 0) if own else (0, 0, -ESRCH)
        call.write(1, 4, Struct("<IIh").pack(*answer))
        return 0
    if call.op == GrantTableOp.get_version:
        (domain,) = call.read(1, _GRANT_VERSION)
        if domain not in OWN_DOMAINS:
            return -ESRCH
        call.write(1, 4, WORD.pack(_GRANT_VERSION_1))
        return 0
    return -ENOSYS


def physdev_op(state: State, call: Call) -> int:
    """PIRQs: interrupts of GSIs that the guest gets as events."""
    handler = _PHYSDEV.get(call.op)
    return -ENOSYS if handler is None else handler(state, call)


def _map_pirq(state: State, call: Call) -> int:
    domain, kind, gsi, pirq = call.read(1, _MAP_PIRQ)
    if domain not in OWN_DOMAINS:
        return -EPERM
    if kind != MAP_PIRQ_TYPE_GSI or not 0 <= gsi < _GSIS or pirq >= _PIRQS:
        return -EINVAL
    if pirq < 0:
        free = (number for number in range(_FIRST_PIRQ, _PIRQS) if number not in state.pirqs)
        pirq = next(free, -ENOSPC)
        if pirq < 0:
            return -ENOSPC
    elif pirq in state.pirqs:
        return -EBUSY
    state.pirqs[pirq] = gsi
    call.write(1, 12, pirq.to_bytes(4, "little"))
    return 0


def _unmap_pirq(state: State, call: Call) -> int:
    domain, pirq = call.read(1, _UNMAP_PIRQ)
    if domain not in OWN_DOMAINS:
        return -EPERM
    if not 0 <= pirq < _PIRQS:
        return -EINVAL
    return -ENOENT if state.pirqs.pop(pirq, None) is None else 0


def _eoi(state: State, call: Call) -> int:
    (pirq,) = call.read(1, WORD)
    return 0 if pirq in state.pirqs else -ENOENT


def _irq_status_query(state: State, call: Call) -> int:
    pirq, _flags = call.read(1, _IRQ_STATUS)
    if pirq not in state.pirqs:
        return -ENOENT
    call.write(1, 4, WORD.pack(IRQSTAT_NEEDS_EOI))
    return 0


_HVM: Final[dict[int, Handler]] = {
    HvmOp.set_param: _set_param,
    HvmOp.get_param: _get_param,
    HvmOp.set_evtchn_upcall_vector: _set_upcall_vector,
}
_PHYSDEV: Final[dict[int, Handler]] = {
    PhysdevOp.map_pirq: _map_pirq,
    PhysdevOp.unmap_pirq: _unmap_pirq,
    PhysdevOp.eoi: _eoi,
    PhysdevOp.irq_status_query: _irq_status_query,
}
