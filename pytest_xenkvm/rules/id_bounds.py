"""Family `vcpu-id-bounds`: which Xen IDs the VCPU_ID attribute takes: 0 ... KVM_MAX_VCPUS-1 and no other."""

from __future__ import annotations

from errno import EINVAL
from typing import Final

from attrs import Factory, define

from pytest_xenkvm.abi.numbers import XEN_VCPU_ID_INVALID
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.id_checker import ID_IOCTLS, SINCE, UNSET, IdChecker, get_words, set_words
from pytest_xenkvm.rules.model import Checker, Judged, Level, Rule
from pytest_xenkvm.trace.decode_values import vcpu_id
from pytest_xenkvm.trace.events import Ioctl

_ASK_FOR_THE_BOUND: Final = "ask the host for the bound with KVM_CHECK_EXTENSION(KVM_CAP_MAX_VCPUS)"


@define(eq=False)
class _ValidIsAccepted(IdChecker):
    def written(self, observation: Observation, event: Ioctl, xen_id: int) -> None:
        bound = self.context.max_vcpus
        if xen_id >= bound:
            return
        if event.ret == 0:
            self.hold()
            return
        self.violate(
            observation,
            f"{set_words(event, xen_id)}; IDs below KVM_MAX_VCPUS ({bound}) must be accepted. "
            f"Is the host's limit what the trace says? A VMM can {_ASK_FOR_THE_BOUND}",
        )


@define(eq=False)
class _InvalidIsRefused(IdChecker):
    def written(self, observation: Observation, event: Ioctl, xen_id: int) -> None:
        bound = self.context.max_vcpus
        if xen_id < bound:
            return
        if event.ret == -EINVAL:
            self.hold()
            return
        self.violate(
            observation,
            f"{set_words(event, xen_id)}; IDs from KVM_MAX_VCPUS ({bound}) on must be refused with -EINVAL "
            f"(-22). Don't use IDs that large: {_ASK_FOR_THE_BOUND}",
        )


@define(eq=False)
class _SetReadsBack(IdChecker):
    """Judges the first GET after an accepted SET; the SET may have had any value."""

    accepted: dict[int | None, int] = Factory(dict)

    def written(self, observation: Observation, event: Ioctl, xen_id: int) -> None:
        del observation
        if event.ret >= 0:
            self.accepted[event.vcpu] = xen_id

    def read(self, observation: Observation, event: Ioctl, xen_id: int) -> None:
        expected = self.accepted.pop(event.vcpu, None)
        if expected is None or self.vcpu(event).xen_id != expected:
            return
        if xen_id == expected:
            self.hold()
            return
        self.violate(
            observation,
            f"{get_words(event, xen_id)}, though the VMM had set {vcpu_id(expected)}; an ID that was "
            "accepted must read back. Compare the two before the guest runs",
        )


@define(eq=False)
class _RefusedChangesNothing(IdChecker):
    """Judges the first GET after refused SETs, if it is known what the ID was before them."""

    refused: dict[int | None, int] = Factory(dict)
    """The value that was refused last."""

    def written(self, observation: Observation, event: Ioctl, xen_id: int) -> None:
        del observation
        if event.ret < 0:
            self.refused[event.vcpu] = xen_id
        else:
            self.refused.pop(event.vcpu, None)

    def read(self, observation: Observation, event: Ioctl, xen_id: int) -> None:
        refused, before = self.refused.pop(event.vcpu, None), self.vcpu(event).known_id
        if refused is None or before is None:
            return
        if xen_id == before:
            self.hold()
            return
        self.violate(
            observation,
            f"{get_words(event, xen_id)} after KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id={vcpu_id(refused)}) "
            f"was refused; it must still be {vcpu_id(before)}. Set the right ID again",
        )


@define(eq=False)
class _SentinelIsNoId(Checker):
    """Judges the host's limit once, at the first ioctl."""

    def observe(self, observation: Observation) -> None:
        if self.exercised or self.context.header.max_vcpus is None:
            return
        bound = self.context.max_vcpus
        if bound <= XEN_VCPU_ID_INVALID:
            self.hold()
            return
        self.violate(
            observation,
            f"the host's KVM_MAX_VCPUS is {bound:#x}, so vCPU ID {XEN_VCPU_ID_INVALID:#x} would be a valid "
            f"ID and {UNSET} at once; KVM_MAX_VCPUS must not exceed it. Build the kernel with "
            "CONFIG_KVM_MAX_NR_VCPUS in 1024 ... 4096",
        )


VALID_IS_ACCEPTED: Final = Rule(
    id="vcpu-id-bounds.valid-is-accepted",
    title="VCPU_ID takes every Xen ID from 0 to KVM_MAX_VCPUS-1.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation="kvm_xen_vcpu_set_attr; KVM_CAP_MAX_VCPUS",
    explanation=(
        "KVM_MAX_VCPUS is a build option of the host's kernel: 1024 by default, 4096 with MAXSMP. Every ID "
        "below it is valid, whether or not the VM has that many vCPUs and whatever the KVM vCPU id (APIC "
        "id) is."
    ),
    advice=f"Don't hard-code the bound: {_ASK_FOR_THE_BOUND}.",
    checker=_ValidIsAccepted,
    sees=(ID_IOCTLS,),
    exercised_by="a KVM_XEN_VCPU_SET_ATTR(VCPU_ID) with an ID below KVM_MAX_VCPUS",
)

INVALID_IS_REFUSED: Final = Rule(
    id="vcpu-id-bounds.invalid-is-refused",
    title="VCPU_ID refuses every Xen ID from KVM_MAX_VCPUS on: -EINVAL.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation="kvm_xen_vcpu_set_attr; KVM_CAP_MAX_VCPUS",
    explanation=(
        "The bound keeps valid IDs apart from XEN_VCPU_ID_INVALID (0xffffffff), the value of an ID that was "
        "never set. KVM_MAX_VCPUS itself is the first number that is refused."
    ),
    advice=f"Use IDs below the bound, and {_ASK_FOR_THE_BOUND}.",
    checker=_InvalidIsRefused,
    sees=(ID_IOCTLS,),
    exercised_by="a KVM_XEN_VCPU_SET_ATTR(VCPU_ID) with an ID of KVM_MAX_VCPUS or more",
)

SET_READS_BACK: Final = Rule(
    id="vcpu-id-bounds.set-reads-back",
    title="A Xen ID that VCPU_ID accepted reads back.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation="kvm_xen_vcpu_set_attr, kvm_xen_vcpu_get_attr",
    explanation=(
        "The ID is a 32-bit number that KVM keeps as it is; what was accepted is what a GET returns and what "
        "the vCPU number of a singleshot timer call is compared with."
    ),
    advice="Compare what is read with what was set before the guest runs.",
    checker=_SetReadsBack,
    sees=(ID_IOCTLS,),
    exercised_by="a KVM_XEN_VCPU_GET_ATTR(VCPU_ID) after an accepted SET on that vCPU",
)

REFUSED_CHANGES_NOTHING: Final = Rule(
    id="vcpu-id-bounds.refused-changes-nothing",
    title="A VCPU_ID that was refused leaves the Xen ID as it was.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation="kvm_xen_vcpu_set_attr",
    explanation="The bound is checked before anything is stored: the vCPU keeps the ID that it had, or none.",
    advice="Check the result of KVM_XEN_VCPU_SET_ATTR; the ID that was set before is still in force.",
    checker=_RefusedChangesNothing,
    sees=(ID_IOCTLS,),
    exercised_by=(
        "a KVM_XEN_VCPU_GET_ATTR(VCPU_ID) after a refused SET, on a vCPU whose ID was set or read before"
    ),
)

SENTINEL_IS_NO_ID: Final = Rule(
    id="vcpu-id-bounds.sentinel-is-no-id",
    title="XEN_VCPU_ID_INVALID is no valid Xen ID, whatever KVM_MAX_VCPUS the host was built with.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation=f"XEN_VCPU_ID_INVALID >= KVM_MAX_VCPUS, asserted when the kernel is built ({SINCE})",
    explanation=(
        "Valid IDs lie below KVM_MAX_VCPUS, which can be built as 1024 ... 4096; the sentinel is "
        "0xffffffff. A host on which the two met would mistake a vCPU with that ID for one without."
    ),
    advice="Build the kernel with CONFIG_KVM_MAX_NR_VCPUS in 1024 ... 4096.",
    checker=_SentinelIsNoId,
    sees=(ID_IOCTLS,),
    exercised_by="a trace whose header has KVM_MAX_VCPUS, and any ioctl in it",
)
