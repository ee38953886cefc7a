"""What a timeline has to remember of a VM to say where an event went and when a timer expired.

Only accepted ioctls count, and hypercalls that the kernel handled with success, as they happened in the
replay.
"""

from __future__ import annotations

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final

from attrs import Factory, define, frozen

from pytest_xenkvm.abi.layout import U32
from pytest_xenkvm.abi.numbers import U32_MAX, EvtchnFlag, EvtchnOp, HvmAttr, VcpuAttr, VcpuOp
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.trace.events import Header, Hypercall, Ioctl, JsonObject, Mem, NowPlus

_ACKNOWLEDGED_BYTES: Final = 16
"""Bytes of vcpu_info that hold evtchn_upcall_pending, its mask and evtchn_pending_sel, in both layouts."""

FAR_AHEAD: Final = 1 << 62
"""An expiry that is this far ahead (ns) is not waited for."""


@frozen
class Target:
    """Where an event goes: a port, and the vCPU's index."""

    port: int
    vcpu: int


@frozen
class Arming:
    """A timer was armed, for that many ns ahead (negative: in the past); None: nobody knows."""

    ahead: int | None


@frozen(order=True)
class Expiry:
    """When (ns) the timer of a vCPU expires, and the index of the event that armed it."""

    time: int
    vcpu: int
    event: int


@define
class VmState:
    """Timers, ports and vcpu_info areas of a VM, as far as a replay shows them."""

    indexes: dict[int, int]
    """vCPUs' indexes by their KVM vCPU ids; where there are none, ids are taken for indexes."""
    assigned: dict[int, Target] = Factory(dict)
    """Where outbound ports lead that lead to a vCPU."""
    _vcpu_infos: dict[int, int] = Factory(dict)
    """Guest addresses of vcpu_info, by vCPU."""
    _running: dict[int, Expiry] = Factory(dict)
    """Timers that run, by vCPU."""
    _expiries: list[Expiry] = Factory(list)
    """A heap of expiries; those that aren't in `_running` any more don't count."""

    @classmethod
    def of(cls, header: Header) -> VmState:
        """That of a new VM."""
        return cls({vcpu.id: vcpu.index for vcpu in header.vm.vcpus} if header.vm else {})

    def id_of(self, index: int) -> int:
        """The KVM vCPU id."""
        return next((id_ for id_, known in self.indexes.items() if known == index), index)

    def hypercall(self, event: Hypercall, index: int, now: int) -> Arming | None:
        """What a hypercall does to its vCPU's timer: arm it, or else (stopped, too) None."""
        if event.handled != "kernel" or event.rax != 0 or not event.args:
            return None
        op = event.args[0]
        if event.nr == Nr.set_timer_op:
            return self._set(
                event.vcpu, op if isinstance(op, NowPlus) else _set_timer_timeout(event), index, now
            )
        if event.nr != Nr.vcpu_op or not isinstance(op, int):
            return None
        if op & U32_MAX == VcpuOp.stop_singleshot_timer:
            return self._set(event.vcpu, 0, index, now)
        if op & U32_MAX == VcpuOp.set_singleshot_timer:
            return self._set(event.vcpu, _singleshot(event), index, now)
        return None

    def ioctl(self, event: Ioctl, index: int, now: int) -> Arming | None:
        """Follow an ioctl; what it does to the timer of its vCPU, as for a hypercall."""
        if event.ret < 0:
            return None
        type_ = event.arg.get("type")
        if event.name == "KVM_XEN_HVM_SET_ATTR" and type_ == HvmAttr.EVTCHN:
            self._assign(event.arg["evtchn"])
        elif event.name == "KVM_XEN_VCPU_SET_ATTR" and event.vcpu is not None:
            if type_ == VcpuAttr.VCPU_INFO:
                self._vcpu_infos[event.vcpu] = event.arg["gpa"]
            elif type_ == VcpuAttr.VCPU_INFO_HVA:
                self._vcpu_infos.pop(event.vcpu, None)
            elif type_ == VcpuAttr.TIMER:
                expires = event.arg["timer"]["expires_ns"]
                relative = NowPlus(expires["now_plus"]) if isinstance(expires, dict) else expires
                return self._set(event.vcpu, relative, index, now)
        return None

    def sent_to(self, event: Ioctl) -> Target | None:
        """Where the VMM sent an event with KVM_XEN_HVM_EVTCHN_SEND; None if it is not that, or in vain."""
        if event.name != "KVM_XEN_HVM_EVTCHN_SEND" or event.ret < 0:
            return None
        return self._target(event.arg)

    def acknowledged_by(self, event: Mem) -> int | None:
        """The vCPU whose evtchn_upcall_pending or evtchn_pending_sel a store clears."""
        if not any(event.data) and len(event.data) <= _ACKNOWLEDGED_BYTES:
            for vcpu, gpa in self._vcpu_infos.items():
                if 0 <= event.gpa - gpa < _ACKNOWLEDGED_BYTES:
                    return vcpu
        return None

    def expired(self, now: int) -> Iterator[Expiry]:
        """The timers that expire until `now` (ns), in order."""
        while self._expiries and self._expiries[0].time <= now:
            expiry = heappop(self._expiries)
            if self._running.get(expiry.vcpu) is expiry:
                del self._running[expiry.vcpu]
                yield expiry

    def _set(self, vcpu: int, timeout: int | NowPlus | None, index: int, now: int) -> Arming | None:
        """A timer was stopped (0), or armed for a time: relative, absolute, or (None) unknown."""
        self._running.pop(vcpu, None)
        if timeout == 0:
            return None
        if not isinstance(timeout, NowPlus):
            return Arming(None)
        if timeout.delta < FAR_AHEAD:
            expiry = Expiry(now + max(timeout.delta, 0), vcpu, index)
            self._running[vcpu] = expiry
            heappush(self._expiries, expiry)
        return Arming(timeout.delta)

    def _assign(self, evtchn: JsonObject) -> None:
        port, flags, deliver = evtchn["send_port"], evtchn["flags"], evtchn["deliver"]
        if flags == EvtchnFlag.RESET:
            self.assigned.clear()
        elif flags == EvtchnFlag.DEASSIGN or "port" not in deliver:
            self.assigned.pop(port, None)
        else:
            self.assigned[port] = self._target(deliver["port"])

    def _target(self, wire: JsonObject) -> Target:
        vcpu_id: int = wire["vcpu"]
        return Target(wire["port"], self.indexes.get(vcpu_id, vcpu_id))


def send_port(event: Hypercall) -> int | None:
    """The port of an EVTCHNOP_send that the kernel handled, if it was seen."""
    if event.nr != Nr.event_channel_op or event.handled != "kernel" or event.rax != 0:
        return None
    if event.args[0] != EvtchnOp.send:
        return None
    for item in event.behind or ():
        if item.arg == 1 and len(item.data) >= U32.size:
            port: int = U32.unpack_from(item.data)[0]
            return port
    return None


def _singleshot(event: Hypercall) -> NowPlus | None:
    """The timeout of VCPUOP_set_singleshot_timer, if it was seen relative to the guest's clock."""
    for item in event.behind or ():
        for offset, delta in item.now_plus_at:
            if item.arg == 2 and offset == 0:  # noqa: PLR2004 - the third argument points to the structure
                return NowPlus(delta)
    return None


def _set_timer_timeout(event: Hypercall) -> int | None:
    """Whether set_timer_op stops the timer: 0, else None for an absolute time."""
    words = event.args[:1] if event.longmode else event.args[:2]
    return None if any(words) else 0
