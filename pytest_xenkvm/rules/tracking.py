"""What the VMM has set up so far, and what a timer hypercall is in that light: shared by all rules.

Only accepted ioctls count, as the host answered them in this replay. Nothing here knows how a kernel
*should* answer.
"""

from __future__ import annotations

from typing import ClassVar, Final

from attrs import Factory, define, field, frozen

from pytest_xenkvm.abi.numbers import INVALID_GFN, U32_MAX, U64_MAX, Hypercall, VcpuAttr, VcpuOp, XenHvmFlag
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.trace import events
from pytest_xenkvm.trace.events import Ioctl, NowPlus

TIMER_NUMBERS: Final = frozenset({int(Hypercall.set_timer_op), int(Hypercall.vcpu_op)})
"""Hypercalls that may be about timers: a quick way to dismiss the others."""

_SET_TIMER_OP: Final = int(Hypercall.set_timer_op)
_VCPU_OP: Final = int(Hypercall.vcpu_op)
_NO_SHARED_INFO: Final = ({"gfn": INVALID_GFN}, {"hva": 0})
_SINGLESHOT_OPS: Final[dict[int, VcpuOp]] = {
    int(sub_op): sub_op for sub_op in (VcpuOp.set_singleshot_timer, VcpuOp.stop_singleshot_timer)
}


@define
class VcpuSetup:
    """A vCPU as set up. `xen_id`: the ID that it was given, None before; `timer_port` 0: no timer."""

    xen_id: int | None = None
    timer_port: int = 0
    known_id: int | None = None
    """What VCPU_ID holds by the last accepted SET or the last GET; None before either."""
    refused_ids: int = 0
    """Refused SETs of VCPU_ID."""


@frozen(kw_only=True)
class TimerCall:
    """A timer hypercall that reached KVM's Xen code, with an outcome that is known."""

    event: events.Hypercall
    op: VcpuOp | None
    """set_singleshot_timer or stop_singleshot_timer; None for set_timer_op."""
    named: int | None
    """The vCPU that the guest names, in 32 bits; None if nobody saw it, or for set_timer_op."""
    wide: bool
    """Sub-op or vCPU number have bits above 31, which KVM drops."""
    vcpu: VcpuSetup
    answer: int | None
    """What the VMM answered, None if not forwarded."""
    answer_seen: bool
    """The answer is the VMM's, not a stand-in for one that the recording could not see."""
    forwarded: bool
    """The VMM was asked."""
    on_kernel_timer: bool
    """CPL 0, on a vCPU with a timer port: the kernel's timer may serve it."""

    @property
    def rax_mask(self) -> int:
        """The bits of RAX that the caller's mode sees."""
        return U64_MAX if self.event.longmode else U32_MAX


@define(eq=False)
class Setup:
    """A VM as set up by the ioctls that `learn` was told of."""

    LEARNS_FROM: ClassVar[frozenset[str]] = frozenset(
        {"KVM_XEN_HVM_CONFIG", "KVM_XEN_HVM_SET_ATTR", "KVM_XEN_VCPU_SET_ATTR", "KVM_XEN_VCPU_GET_ATTR"}
    )
    """Names of the ioctls that `learn` can learn from."""

    intercepts: bool = False
    """VMCALL and VMMCALL are Xen hypercalls: INTERCEPT_HCALL and an MSR are configured."""
    shared_info: bool = False
    """The kernel has a shared_info page to deliver events by."""
    vcpus: dict[int, VcpuSetup] = Factory(dict)
    """Those vCPUs, by index, of which something is known."""
    holders: dict[int, list[int]] = Factory(dict)
    """The vCPUs (indices) that have each Xen ID."""
    clashes: dict[int, list[int]] = Factory(dict)
    """Those of `holders` with more than one vCPU."""
    _seen: Observation | None = field(default=None, init=False)
    _call: TimerCall | None = field(default=None, init=False)

    def vcpu(self, index: int | None) -> VcpuSetup:
        """The vCPU with this index."""
        found = self.vcpus.get(index or 0)
        if found is None:
            found = self.vcpus[index or 0] = VcpuSetup()
        return found

    def learn(self, event: Ioctl) -> None:
        """Take over what an ioctl has set."""
        match event.name, event.arg:
            case "KVM_XEN_HVM_CONFIG", {"flags": int(flags), "msr": int(msr)} if event.ret >= 0:
                self.intercepts = bool(msr and flags & XenHvmFlag.INTERCEPT_HCALL)
            case "KVM_XEN_VCPU_SET_ATTR", {"type": VcpuAttr.VCPU_ID, "vcpu_id": int(xen_id)}:
                if event.ret < 0:
                    self.vcpu(event.vcpu).refused_ids += 1
                else:
                    self._give(event.vcpu or 0, xen_id)
            case "KVM_XEN_VCPU_SET_ATTR", {"type": VcpuAttr.TIMER, "timer": {"port": int(port)}} if (
                event.ret >= 0
            ):
                self.vcpu(event.vcpu).timer_port = port
            case "KVM_XEN_HVM_SET_ATTR", {"shared_info": {**where}} if event.ret >= 0:
                self.shared_info = where not in _NO_SHARED_INFO
            case "KVM_XEN_VCPU_GET_ATTR", {"type": VcpuAttr.VCPU_ID}:
                read = id_read(event)
                if read is not None:
                    self.vcpu(event.vcpu).known_id = read

    def _give(self, index: int, xen_id: int) -> None:
        """The vCPU has this Xen ID from now on."""
        vcpu = self.vcpu(index)
        if vcpu.xen_id is not None:
            self._hold(vcpu.xen_id, [other for other in self.holders[vcpu.xen_id] if other != index])
        vcpu.xen_id = vcpu.known_id = xen_id
        self._hold(xen_id, [*self.holders.get(xen_id, ()), index])

    def _hold(self, xen_id: int, indices: list[int]) -> None:
        for table, least in ((self.holders, 1), (self.clashes, 2)):
            if len(indices) >= least:
                table[xen_id] = indices
            else:
                table.pop(xen_id, None)

    def timer_call(self, observation: Observation) -> TimerCall | None:
        """The observation as a timer hypercall; None if it is something else or its outcome is unknown."""
        if observation is not self._seen:
            self._seen, self._call = observation, self._timer_call(observation)
        return self._call

    def _timer_call(self, observation: Observation) -> TimerCall | None:
        event = observation.event
        if not isinstance(event, events.Hypercall) or not self.intercepts or not _outcome_known(observation):
            return None
        nr = _number(event)
        if nr == _SET_TIMER_OP:
            return self._call_of(observation, event, op=None)
        sub_op = _argument(event, 0) if nr == _VCPU_OP else None
        op = None if sub_op is None else _SINGLESHOT_OPS.get(sub_op & U32_MAX)
        if sub_op is None or op is None:
            return None
        named = _argument(event, 1)
        if named is None:
            return self._call_of(observation, event, op=op, wide=sub_op > U32_MAX)
        wide = sub_op > U32_MAX or named > U32_MAX
        return self._call_of(observation, event, op=op, named=named & U32_MAX, wide=wide)

    def _call_of(
        self,
        observation: Observation,
        event: events.Hypercall,
        *,
        op: VcpuOp | None,
        named: int | None = None,
        wide: bool = False,
    ) -> TimerCall:
        vcpu = self.vcpu(event.vcpu)
        return TimerCall(
            event=event,
            op=op,
            named=named,
            wide=wide,
            vcpu=vcpu,
            answer=observation.answer,
            answer_seen="rax" not in observation.unjudged,
            forwarded=event.handled == "userspace",
            on_kernel_timer=event.cpl == 0 and bool(vcpu.timer_port),
        )


def registers(event: events.Hypercall) -> tuple[int, list[int | None]]:
    """Number and arguments as KVM sees them in the caller's mode; None for one that nobody knows."""
    return _number(event), [_argument(event, index) for index in range(len(event.args))]


def _number(event: events.Hypercall) -> int:
    return event.nr & (U64_MAX if event.longmode else U32_MAX)


def _argument(event: events.Hypercall, index: int) -> int | None:
    arg = event.args[index]
    if isinstance(arg, NowPlus) or (event.extra and index in _unseen(event)):
        return None
    return arg & (U64_MAX if event.longmode else U32_MAX)


def _unseen(event: events.Hypercall) -> list[int]:
    """Arguments that the recorder could not see."""
    unseen = event.extra.get("unseen_args")
    return unseen if isinstance(unseen, list) else []


def _outcome_known(observation: Observation) -> bool:
    event = observation.event
    return (
        isinstance(event, events.Hypercall)
        and event.handled is not None
        and event.rax is not None
        and event.run_ret is None
        and "unseen memory" not in observation.unjudged
    )


def id_read(event: Ioctl) -> int | None:
    """The Xen ID that a KVM_XEN_VCPU_GET_ATTR(VCPU_ID) returned; None for every other ioctl."""
    if event.name != "KVM_XEN_VCPU_GET_ATTR" or event.arg.get("type") != VcpuAttr.VCPU_ID or event.ret < 0:
        return None
    read = (event.out or {}).get("vcpu_id")
    return read if isinstance(read, int) else None


def id_written(event: Ioctl) -> int | None:
    """The Xen ID that a KVM_XEN_VCPU_SET_ATTR(VCPU_ID) was made with; None for every other ioctl."""
    if event.name != "KVM_XEN_VCPU_SET_ATTR" or event.arg.get("type") != VcpuAttr.VCPU_ID:
        return None
    written = event.arg.get("vcpu_id")
    return written if isinstance(written, int) else None
