"""Family `vcpu-id`: a vCPU has no Xen ID until its VMM gives it one, and the VMM must give it one in time."""

from __future__ import annotations

from errno import EINVAL, ENOSYS
from typing import Final

from attrs import Factory, define

from pytest_xenkvm.abi.numbers import XEN_VCPU_ID_INVALID
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.id_checker import (
    ID_IOCTLS,
    SET_THE_ID,
    SINCE,
    UNSET,
    IdChecker,
    get_words,
    set_words,
)
from pytest_xenkvm.rules.model import Judged, Level, Rule
from pytest_xenkvm.rules.timer_checker import TIMER_CALLS, TimerChecker, call_words, outcome_words
from pytest_xenkvm.rules.tracking import TimerCall
from pytest_xenkvm.trace.decode_values import signed_rax
from pytest_xenkvm.trace.events import Ioctl

_OLD_DEFAULT: Final = "up to Linux 7.2 every vCPU, not only the first, starts with ID 0"


@define(eq=False)
class _NewIsUnset(IdChecker):
    def read(self, observation: Observation, event: Ioctl, xen_id: int) -> None:
        if self.vcpu(event).xen_id is not None:
            return
        if xen_id == XEN_VCPU_ID_INVALID:
            self.hold()
            return
        self.violate(
            observation,
            f"{get_words(event, xen_id)} before the VMM gave it an ID; it must be {UNSET} until then. "
            f"On this kernel nobody can tell an ID that was set from one that wasn't ({_OLD_DEFAULT}): "
            f"{SET_THE_ID}",
        )


@define(eq=False)
class _RefusedSetLeavesUnset(IdChecker):
    def read(self, observation: Observation, event: Ioctl, xen_id: int) -> None:
        vcpu = self.vcpu(event)
        if vcpu.xen_id is not None or not vcpu.refused_ids:
            return
        if xen_id == XEN_VCPU_ID_INVALID:
            self.hold()
            return
        self.violate(
            observation,
            f"{get_words(event, xen_id)}, though every KVM_XEN_VCPU_SET_ATTR(VCPU_ID) on it was refused; it "
            f"must still be {UNSET}. Don't take what is read for an ID that the VMM gave: {SET_THE_ID}",
        )


@define(eq=False)
class _SentinelIsRefused(IdChecker):
    def written(self, observation: Observation, event: Ioctl, xen_id: int) -> None:
        if xen_id != XEN_VCPU_ID_INVALID:
            return
        if event.ret == -EINVAL:
            self.hold()
            return
        self.violate(
            observation,
            f"{set_words(event, xen_id)}; the value of an unset ID must be refused with -EINVAL (-22). "
            "When saving or restoring a vCPU, leave an ID that was read as unset out",
        )


@define(eq=False)
class _UnsetIsNotRestored(IdChecker):
    def written(self, observation: Observation, event: Ioctl, xen_id: int) -> None:
        if xen_id != XEN_VCPU_ID_INVALID:
            self.hold()
            return
        read = "as the VMM had read it from there; " if self.vcpu(event).known_id == xen_id else ""
        self.violate(
            observation,
            f"{set_words(event, xen_id)}, {read}an unset ID can't be written. When saving or restoring a "
            f"vCPU, leave a VCPU_ID of {XEN_VCPU_ID_INVALID:#x} out: a new vCPU has it anyway",
        )


@define(eq=False)
class _IdsAreSet(TimerChecker):
    """Judges each singleshot call; a vCPU is reported once."""

    reported: set[int] = Factory(set)

    def judge(self, observation: Observation, call: TimerCall) -> None:
        if call.op is None or call.event.cpl or call.event.vcpu in self.reported:
            return
        if call.vcpu.xen_id is not None:
            self.hold()
            return
        others = self.context.setup.holders
        if call.forwarded and not call.vcpu.timer_port and not others:
            self._judge_answer(observation, call)
        elif call.forwarded and call.vcpu.timer_port:
            why = (
                f"port {call.vcpu.timer_port} makes set_timer_op use the kernel's timer, so the VMM would "
                "have to keep a second one for this call"
            )
            self._unset(observation, call, why)
        elif call.forwarded:
            holder = next(iter(others.values()))[0]
            self._unset(
                observation, call, f"vCPU {holder} has an ID, so the VMM serves only some of the timers"
            )
        else:
            self._unset(observation, call, f"{_OLD_DEFAULT}, and from Linux 7.3 on the call is forwarded")

    def _judge_answer(self, observation: Observation, call: TimerCall) -> None:
        """Judge a VMM that leaves all timers to itself."""
        if call.answer is None or not call.answer_seen:
            return
        if signed_rax(call.answer & call.rax_mask, longmode=call.event.longmode) == -ENOSYS:
            self._unset(observation, call, "the guest is left without a timer")
        else:
            self.hold()

    def _unset(self, observation: Observation, call: TimerCall, why: str) -> None:
        self.reported.add(call.event.vcpu)
        self.violate(
            observation,
            f"vCPU {call.event.vcpu} has no Xen ID when its guest calls {call_words(call)}, which was "
            f"{outcome_words(call)} ({why}): {SET_THE_ID}, or answer the timer hypercalls of all vCPUs in "
            "the VMM",
        )


@define(eq=False)
class _IdsAreUnique(TimerChecker):
    """Looks at the IDs of all vCPUs at each singleshot call; the same clash is reported once."""

    reported: set[tuple[int, ...]] = Factory(set)

    def judge(self, observation: Observation, call: TimerCall) -> None:
        if call.op is None or call.event.cpl:
            return
        setup = self.context.setup
        if not setup.clashes and len(setup.holders) > 1:
            self.hold()
        for xen_id, holders in setup.clashes.items():
            clash = (xen_id, *holders)
            if clash in self.reported:
                continue
            self.reported.add(clash)
            named = " and ".join(f"vCPU {index}" for index in holders)
            self.violate(
                observation,
                f"{named} have the same Xen ID {xen_id} when the guest calls {call_words(call)} on vCPU "
                f"{call.event.vcpu}, which was {outcome_words(call)}: give every vCPU of the VM an ID of its "
                "own with KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID, the number that its guest knows it by",
            )


NEW_IS_UNSET: Final = Rule(
    id="vcpu-id.new-is-unset",
    title="A vCPU's Xen ID reads XEN_VCPU_ID_INVALID until the VMM sets it.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation=f"kvm_xen_init_vcpu, kvm_xen_vcpu_get_attr ({SINCE})",
    explanation=(
        "Up to Linux 7.2, KVM initialised the ID with the vCPU's index at a point where the index was "
        "still 0, so every vCPU got ID 0 and nobody could tell an ID that was set from one that wasn't. "
        "From Linux 7.3 an ID that was never set is 0xffffffff, which no valid ID can be."
    ),
    advice=f"Don't rely on a default: {SET_THE_ID}.",
    checker=_NewIsUnset,
    sees=(ID_IOCTLS,),
    exercised_by="a KVM_XEN_VCPU_GET_ATTR(VCPU_ID) before any ID was accepted on that vCPU",
)

REFUSED_SET_LEAVES_UNSET: Final = Rule(
    id="vcpu-id.refused-set-leaves-unset",
    title="A refused VCPU_ID leaves an unset Xen ID unset.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation=f"kvm_xen_vcpu_set_attr ({SINCE})",
    explanation=(
        "Only an accepted KVM_XEN_VCPU_SET_ATTR(VCPU_ID) gives a vCPU an ID. A VMM that passes a number "
        "out of range must find the vCPU as it was, with its singleshot timer hypercalls still forwarded."
    ),
    advice=f"Check the result of KVM_XEN_VCPU_SET_ATTR, and {SET_THE_ID}.",
    checker=_RefusedSetLeavesUnset,
    sees=(ID_IOCTLS,),
    exercised_by="a KVM_XEN_VCPU_GET_ATTR(VCPU_ID) on a vCPU after refused SETs and no accepted one",
)

SENTINEL_IS_REFUSED: Final = Rule(
    id="vcpu-id.sentinel-is-refused",
    title="XEN_VCPU_ID_INVALID can't be written to VCPU_ID: -EINVAL.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation=f"kvm_xen_vcpu_set_attr ({SINCE}; the bound itself is older)",
    explanation=(
        "0xffffffff is beyond every KVM_MAX_VCPUS, so it is refused like any other number out of range. A "
        "live migration that reads the ID of a vCPU on which none was set, and writes it to the new vCPU, "
        "meets this."
    ),
    advice="When saving or restoring a vCPU, leave an ID of 0xffffffff out; an ID can't be unset again.",
    checker=_SentinelIsRefused,
    sees=(ID_IOCTLS,),
    exercised_by="a KVM_XEN_VCPU_SET_ATTR(VCPU_ID) with 0xffffffff",
)

IDS_ARE_SET: Final = Rule(
    id="vcpu-id.set-before-timers",
    title="The VMM gives every vCPU a Xen ID before its guest uses singleshot timers.",
    level=Level.MUST,
    judges=Judged.VMM,
    citation=f"kvm_xen_hcall_vcpu_op ({SINCE}); Xen's public/vcpu.h: VCPUOP_set_singleshot_timer",
    explanation=(
        "A guest names the vCPU in VCPUOP_set_singleshot_timer and VCPUOP_stop_singleshot_timer, and KVM "
        "compares that number with the vCPU's Xen ID. Without an ID, kernels up to 7.2 serve vCPU 0 and "
        "refuse every other vCPU with -EINVAL; from 7.3 on the call goes to the VMM, where -ENOSYS leaves "
        "the guest without a timer. A VMM may keep all timers to itself instead: then no vCPU has an ID, "
        "none a kernel timer port, and the VMM serves the calls."
    ),
    advice=f"In the VMM, {SET_THE_ID}: the number that the guest knows the vCPU by.",
    checker=_IdsAreSet,
    sees=(TIMER_CALLS,),
    exercised_by="a set_singleshot_timer or stop_singleshot_timer at CPL 0 with INTERCEPT_HCALL configured",
)

IDS_ARE_UNIQUE: Final = Rule(
    id="vcpu-id.unique",
    title="No two vCPUs of a VM have the same Xen ID.",
    level=Level.MUST,
    judges=Judged.VMM,
    citation=f"kvm_xen_hcall_vcpu_op, kvm_xen_vcpu_set_attr ({SINCE}); Xen's public/vcpu.h",
    explanation=(
        "KVM doesn't compare the IDs of different vCPUs. Of two vCPUs with the same ID at most one is the "
        "vCPU that the guest means; the other's singleshot timer calls fail with -EINVAL."
    ),
    advice="Give every vCPU the number that its guest knows it by, with KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID.",
    checker=_IdsAreUnique,
    sees=(TIMER_CALLS,),
    exercised_by="a singleshot timer call at CPL 0 while two or more vCPUs have an ID",
)

UNSET_IS_NOT_RESTORED: Final = Rule(
    id="vcpu-id.unset-is-not-restored",
    title="The VMM never writes XEN_VCPU_ID_INVALID to VCPU_ID.",
    level=Level.MUST,
    judges=Judged.VMM,
    citation=f"kvm_xen_vcpu_set_attr ({SINCE})",
    explanation=(
        "A VMM that saves every attribute and writes each of them to a fresh VM fails with -EINVAL from "
        "Linux 7.3 on, if a vCPU's ID was never set: what is read then is the one value that can't be "
        "written."
    ),
    advice="When saving or restoring a vCPU, leave an ID of 0xffffffff out: a new vCPU has it anyway.",
    checker=_UnsetIsNotRestored,
    sees=(ID_IOCTLS,),
    exercised_by="a KVM_XEN_VCPU_SET_ATTR(VCPU_ID)",
)
