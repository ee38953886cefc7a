"""Family `timers`, as far as answers tell: how a VMM answers singleshot timer calls that KVM forwards."""

from __future__ import annotations

from errno import EINVAL, ENOENT, ENOSYS, ETIME
from typing import Final

from attrs import Factory, define, frozen

from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.abi.numbers import VcpuOp
from pytest_xenkvm.abi.xen_numbers import VCPU_SSHOTTMR_FUTURE
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.forwarded_calls import (
    FORWARDED_VCPU_OPS,
    ForwardedCall,
    ForwardedChecker,
    word_behind,
)
from pytest_xenkvm.rules.model import Judged, Level, Rule

XEN_SAYS: Final = "Xen's public/vcpu.h: VCPUOP_set_singleshot_timer; common/domain.c: do_vcpu_op"
"""Where Xen's semantics of these calls stand."""

_SINGLESHOT: Final = (VcpuOp.set_singleshot_timer, VcpuOp.stop_singleshot_timer)
_TIMEOUT_ARG: Final = 2
_TIMEOUT_SIZE: Final = 8
_NEAR_NS: Final = 1_000_000
"""A timeout that is nearer may have passed while the VMM was looking at it."""


@frozen
class Timeout:
    """What a singleshot timer was set to. `delta`: relative to the guest's clock then, None if unknown."""

    delta: int | None
    future: bool | None
    """VCPU_SSHOTTMR_future; None if the flags are unknown."""

    @property
    def past(self) -> bool:
        """It lies in the past for certain."""
        return self.delta is not None and self.delta < 0


def timeout_of(call: ForwardedCall) -> Timeout | None:
    """The timeout of a set_singleshot_timer as far as the trace shows it; an absolute 0 is long past."""
    behind = next((item for item in call.event.behind or () if item.arg == _TIMEOUT_ARG), None)
    if behind is None or len(behind.data) < _TIMEOUT_SIZE:
        return None
    delta = dict(behind.now_plus_at).get(0)
    if delta is None and not any(behind.data[:_TIMEOUT_SIZE]):
        delta = -1
    flags = word_behind(call.event, _TIMEOUT_ARG, _TIMEOUT_SIZE)
    return Timeout(delta, None if flags is None else bool(flags & VCPU_SSHOTTMR_FUTURE))


@define(eq=False)
class _OtherVcpuIsRefused(ForwardedChecker):
    """Knows a vCPU's number by its Xen ID, or by what the VMM accepted on it."""

    accepted: dict[int, int] = Factory(dict)

    def judge(self, observation: Observation, call: ForwardedCall) -> None:
        named, index = call.arg32(1), call.event.vcpu
        if not call.is_op(Nr.vcpu_op, *_SINGLESHOT) or call.event.cpl or named is None:
            return
        xen_id = self.context.setup.vcpu(index).xen_id
        own = self.accepted.get(index) if xen_id is None else xen_id
        if own is None:
            if call.answer == 0:
                self.accepted[index] = named
        elif own != named and call.answer in (-EINVAL, -ENOENT):
            self.hold()
        elif own != named and call.answer != -ENOSYS:
            knows = "its Xen ID is" if own == xen_id else "the VMM has served it as"
            self.violate(
                observation,
                f"{call.words}, though this is not vCPU {named}: {knows} {own}; Xen lets a vCPU set and stop "
                "no timer but its own and answers -EINVAL (-22): compare the number, as 32 bits, with that "
                "of the vCPU that made the call",
            )


@define(eq=False)
class _EtimeIsForPastFutures(ForwardedChecker):
    def judge(self, observation: Observation, call: ForwardedCall) -> None:
        if not call.is_op(Nr.vcpu_op, VcpuOp.set_singleshot_timer) or call.event.cpl:
            return
        timeout = timeout_of(call)
        if timeout is None or timeout.delta is None or call.answer not in (0, -ETIME):
            return
        if call.answer == -ETIME and (timeout.delta > _NEAR_NS or (timeout.past and timeout.future is False)):
            why = "comes without VCPU_SSHOTTMR_future" if timeout.past else "lies ahead"
            self.violate(
                observation,
                f"{call.words}, though the timeout {why}; only a timeout that has passed and carries this "
                "flag may be refused like that: any other one is set, or fires at once",
            )
        elif timeout.past:
            self.hold()


RULES: Final = (
    Rule(
        id="timers.other-vcpu-is-refused",
        title="The VMM refuses a forwarded singleshot timer call that names another vCPU than its caller.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation=f"{XEN_SAYS}; kvm_xen_hcall_vcpu_op",
        explanation=(
            "In Xen, a vCPU sets and stops its own singleshot timer only; for another vCPU the answer is "
            "-EINVAL, for one that isn't there -ENOENT. The kernel compares the number with the vCPU's Xen "
            "ID and answers the same, but not for calls that it forwards. A VMM that serves any number arms "
            "the wrong vCPU's timer, or hides a mistake that Xen would have shown."
        ),
        advice="Compare the lower 32 bits of the second argument with the caller's own Xen number first.",
        checker=_OtherVcpuIsRefused,
        sees=(FORWARDED_VCPU_OPS,),
        exercised_by=(
            "a forwarded singleshot timer call at CPL 0 that names another number than the vCPU's Xen ID or, "
            "without an ID, than the VMM has served on it before"
        ),
    ),
    Rule(
        id="timers.etime-is-for-the-past",
        title="-ETIME is the answer to a past timeout with VCPU_SSHOTTMR_future, and to nothing else.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation=(
            "Xen's public/vcpu.h: VCPU_SSHOTTMR_future; common/domain.c: do_vcpu_op, which ignores the flag "
            "from commit 19c6cbd90965 on; Linux commit 409f2e92a27a"
        ),
        explanation=(
            "With this flag a guest asks to be told, by -ETIME, that a timeout has passed, instead of "
            "getting an event at once. Newer Xen and KVM ignore the flag, and the timer fires at once; that "
            "is as good. But a guest that doesn't set the flag knows no -ETIME: Linux dies of it. And a "
            "timeout that lies ahead is never refused."
        ),
        advice="Answer -ETIME only if the flag is set and the timeout lies behind the VM's clock; or never.",
        checker=_EtimeIsForPastFutures,
        sees=(FORWARDED_VCPU_OPS,),
        exercised_by="a forwarded set_singleshot_timer at CPL 0, its timeout shown, and past or refused so",
    ),
)
