"""Family `hypercalls`, as far as the VMM answers them: what a guest may expect of any answer."""

from __future__ import annotations

from errno import ENOSYS, EPERM
from typing import ClassVar, Final

from attrs import define

from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.abi.numbers import XenVer
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.forwarded_calls import FORWARDED, ForwardedCall, ForwardedChecker
from pytest_xenkvm.rules.model import Checker, Hypercalls, Judged, Level, Rule
from pytest_xenkvm.trace.decode import action_words
from pytest_xenkvm.trace.decode_values import register_result, signed_rax
from pytest_xenkvm.trace.events import Hypercall

FIRST_UNKNOWN_NUMBER: Final = 64
"""Xen's table of hypercalls ends there."""


@define(eq=False)
class _AreAnswered(Checker):
    alike: ClassVar[bool] = True
    alike_args: ClassVar[bool] = False

    def observe(self, observation: Observation) -> None:
        """Look at whether a forwarded hypercall got a result."""
        event = observation.event
        if not isinstance(event, Hypercall) or event.handled != "userspace":
            return
        if not self.context.setup.intercepts or observation.unjudged:
            return
        if not observation.unanswered:
            self.hold()
            return
        self.violate(
            observation,
            f"vCPU {event.vcpu}: {action_words(event)} was forwarded to the VMM, which gave no result; the "
            "guest goes on with whatever is left in its registers: store a result for every forwarded "
            "hypercall, -ENOSYS (-38) for one that the VMM doesn't implement",
        )


@define(eq=False)
class _UserModeIsRefused(ForwardedChecker):
    alike: ClassVar[bool] = True
    alike_args: ClassVar[bool] = False

    def judge(self, observation: Observation, call: ForwardedCall) -> None:
        if not call.event.cpl:
            return
        if call.answer == -EPERM:
            self.hold()
            return
        self.violate(
            observation,
            f"{call.words}; Xen refuses hypercalls above CPL 0 with -EPERM (-1): look at the CPL of "
            "KVM_EXIT_XEN before anything else, as KVM forwards such calls unjudged",
        )


@define(eq=False)
class _UnknownIsEnosys(ForwardedChecker):
    alike: ClassVar[bool] = True
    alike_args: ClassVar[bool] = False

    def judge(self, observation: Observation, call: ForwardedCall) -> None:
        if call.event.cpl or call.nr < FIRST_UNKNOWN_NUMBER:
            return
        if call.answer == -ENOSYS:
            self.hold()
            return
        self.violate(
            observation,
            f"{call.words}; Xen has no hypercall of this number and answers -ENOSYS (-38): answer that to "
            "every number that the VMM doesn't know, and compare all bits of it",
        )


@define(eq=False)
class _VersionIsTold(Checker):
    alike: ClassVar[bool] = True

    def observe(self, observation: Observation) -> None:
        """Look at the result of XENVER_version, whoever served it."""
        event = observation.event
        if not isinstance(event, Hypercall) or event.nr != Nr.xen_version or event.args[0] != XenVer.version:
            return
        if not self.context.setup.intercepts or event.cpl or event.rax is None or observation.unjudged:
            return
        if observation.unanswered:
            return
        if signed_rax(event.rax, longmode=event.longmode) > 0:
            self.hold()
            return
        self.violate(
            observation,
            f"vCPU {event.vcpu}: {action_words(event)} ended with "
            f"{register_result(event.rax, longmode=event.longmode)}; Xen answers its version, major << 16 | "
            "minor: set KVM_XEN_ATTR_TYPE_XEN_VERSION so that the kernel does, or answer it in the VMM",
        )


RULES: Final = (
    Rule(
        id="hypercalls.are-answered",
        title="Every hypercall that KVM forwards gets a result from the VMM.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation="Linux's Documentation/virt/kvm/api.rst: KVM_EXIT_XEN; kvm_xen_hypercall_complete_userspace",
        explanation=(
            "KVM takes the guest's RAX from the result in kvm_run when the vCPU is entered again, whatever "
            "stands there. A VMM that leaves a call alone makes its guest go on with something that nobody "
            "answered. -ENOSYS is an answer."
        ),
        advice="End the VMM's table of hypercalls with a default that answers -ENOSYS.",
        checker=_AreAnswered,
        sees=(FORWARDED,),
        exercised_by="a forwarded hypercall with INTERCEPT_HCALL configured, whose answer was seen",
    ),
    Rule(
        id="hypercalls.user-mode-is-refused",
        title="The VMM answers -EPERM to every hypercall from above CPL 0.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation="Xen's arch/x86/hvm/hypercall.c: hvm_hypercall; kvm_xen_hypercall",
        explanation=(
            "VMCALL and VMMCALL work at every privilege level. Xen looks at the level first and refuses "
            "with -EPERM. KVM serves no such call itself but forwards all of them, with the CPL beside the "
            "arguments. A VMM that doesn't look at it lets any process of the guest act for its kernel: "
            "stop its timers, close its event channels, move its shared pages."
        ),
        advice="Check the exit's `cpl` before its number.",
        checker=_UserModeIsRefused,
        sees=(FORWARDED,),
        exercised_by="a hypercall from above CPL 0 with INTERCEPT_HCALL configured, whose answer was seen",
    ),
    Rule(
        id="hypercalls.unknown-is-enosys",
        title="The VMM answers -ENOSYS to a hypercall number that Xen doesn't have.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation="Xen's arch/x86/hvm/hypercall.c: hvm_hypercall; public/xen.h: __HYPERVISOR_*",
        explanation=(
            "Guests find out what a Xen offers by calling it: -ENOSYS says that there is no such hypercall, "
            "anything else that there is. KVM forwards every number, also one beyond Xen's table of "
            f"{FIRST_UNKNOWN_NUMBER}, with all 64 bits of it."
        ),
        advice="Make -ENOSYS the default, and don't cut the number to fewer bits.",
        checker=_UnknownIsEnosys,
        sees=(FORWARDED,),
        exercised_by=f"a forwarded hypercall at CPL 0 with a number of {FIRST_UNKNOWN_NUMBER} or more",
    ),
    Rule(
        id="hypercalls.version-is-told",
        title="XENVER_version is answered with Xen's version.",
        level=Level.SHOULD,
        judges=Judged.VMM,
        citation="Xen's public/version.h: XENVER_version; kvm_xen_hypercall",
        explanation=(
            "A guest looks at the version before it uses what came later than the oldest Xen. The call can't "
            "fail in Xen. KVM serves it if the VMM has set XEN_VERSION and forwards it otherwise."
        ),
        advice="Set XEN_VERSION to major << 16 | minor before the guest runs.",
        checker=_VersionIsTold,
        sees=(Hypercalls(frozenset({int(Nr.xen_version)})),),
        exercised_by="an XENVER_version at CPL 0 with INTERCEPT_HCALL configured, whose outcome is known",
    ),
)
