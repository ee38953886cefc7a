"""What a VMM owes its guest: Xen hypercalls at all, vCPUs by the guest's own numbers, and timers that run."""

from __future__ import annotations

from errno import EINVAL, ENOSYS
from typing import ClassVar, Final

from attrs import Factory, define

from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.model import PROBES, Checker, Judged, Level, Rule
from pytest_xenkvm.rules.timer_checker import TIMER_CALLS, TimerChecker, call_words, outcome_words
from pytest_xenkvm.rules.tracking import TimerCall
from pytest_xenkvm.trace.decode import action_words
from pytest_xenkvm.trace.decode_values import register_result, signed_rax, vcpu_id
from pytest_xenkvm.trace.events import Hypercall


@define(eq=False)
class _IdsAreTheGuests(TimerChecker):
    """Judges singleshot calls that the kernel's timer may serve; a vCPU is reported once."""

    named: dict[int, int] = Factory(dict)
    """The Xen ID that the guest has named on each vCPU, when it was that vCPU's own."""
    reported: set[int] = Factory(set)

    def judge(self, observation: Observation, call: TimerCall) -> None:
        index, xen_id = call.event.vcpu, call.vcpu.xen_id
        if call.op is None or call.event.cpl or xen_id is None or call.named is None:
            return
        if self.context.header.recorder in PROBES:  # its guest names other vCPUs on purpose
            return
        if call.named == xen_id:
            self.named[index] = xen_id
            if call.on_kernel_timer and index not in self.reported:
                self.hold()
        elif self._is_refused(call) and self.named.get(index) != xen_id and index not in self.reported:
            self.reported.add(index)
            self.violate(
                observation,
                f"vCPU {index} has Xen ID {vcpu_id(xen_id)} when its guest calls {call_words(call)} on it, "
                f"which was {outcome_words(call)}; a guest can set the timer of no vCPU but the one that it "
                f"runs on, so it knows this one as {vcpu_id(call.named)}: set KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID "
                f"of vCPU {index} to {vcpu_id(call.named)}",
            )

    def _is_refused(self, call: TimerCall) -> bool:
        """By the kernel, because of a number that the VMM could have given the vCPU."""
        if call.forwarded or call.event.rax is None or not call.on_kernel_timer:
            return False
        refused = signed_rax(call.event.rax, longmode=call.event.longmode) == -EINVAL
        return refused and call.named is not None and call.named < self.context.max_vcpus


@define(eq=False)
class _HypercallsAreIntercepted(Checker):
    """Judges the first hypercall with interception and the first one without: the rest say the same."""

    alike: ClassVar[bool] = True
    alike_args: ClassVar[bool] = False
    judged: set[bool] = Factory(set)

    def observe(self, observation: Observation) -> None:
        """Look at whether hypercalls are intercepted now."""
        intercepts = self.context.setup.intercepts
        if intercepts in self.judged or not isinstance(observation.event, Hypercall):
            return
        self.judged.add(intercepts)
        if intercepts:
            self.hold()
            return
        event = observation.event
        got = register_result(event.rax, longmode=event.longmode)
        self.violate(
            observation,
            f"vCPU {event.vcpu}: the guest calls {action_words(event)} while Xen hypercalls are not "
            f"intercepted, so KVM's own hypercall ABI answered: {got}. Before the guest runs, call "
            "KVM_XEN_HVM_CONFIG with INTERCEPT_HCALL in its flags and a hypercall MSR that is not 0",
        )


@define(eq=False)
class _TimersAreServed(TimerChecker):
    """Judges who served each singleshot call; a vCPU is reported once."""

    reported: set[int] = Factory(set)

    def judge(self, observation: Observation, call: TimerCall) -> None:
        if call.op is None or call.event.cpl or call.event.vcpu in self.reported:
            return
        if not call.forwarded:
            if not call.event.rax:
                self.hold()
            return
        if call.answer is None or not call.answer_seen:
            return
        if signed_rax(call.answer & call.rax_mask, longmode=call.event.longmode) != -ENOSYS:
            self.hold()
            return
        index = call.event.vcpu
        self.reported.add(index)
        self.violate(
            observation,
            f"vCPU {index}: the guest calls {call_words(call)}, which was {outcome_words(call)}; that leaves "
            f"the vCPU without a timer: {_how_to_serve(call)}, or serve it in the VMM's on_hypercall",
        )


def _how_to_serve(call: TimerCall) -> str:
    """What is missing for the kernel to serve the call."""
    missing = [
        *(["KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID"] if call.vcpu.xen_id is None else []),
        *(["the port of KVM_XEN_VCPU_ATTR_TYPE_TIMER"] if not call.vcpu.timer_port else []),
    ]
    return f"set {' and '.join(missing)} on vCPU {call.event.vcpu} so that the kernel serves it"


ID_IS_THE_GUESTS: Final = Rule(
    id="vcpu-id.is-the-guests",
    title="The Xen ID that the VMM gives a vCPU is the number by which its guest knows it.",
    level=Level.MUST,
    judges=Judged.VMM,
    citation="Xen's public/vcpu.h: VCPUOP_set_singleshot_timer; kvm_xen_hcall_vcpu_op",
    explanation=(
        "In Xen a vCPU sets and stops its own singleshot timer only: a guest that names another vCPU gets "
        "-EINVAL. So the number that it names is its own for the vCPU that it runs on, and KVM compares it "
        "with the vCPU's Xen ID. With another ID, as when those of two vCPUs are swapped, the kernel refuses "
        "every timer call of that vCPU. A guest that has named the ID before and then names another number "
        "does so on purpose; that is not held against the VMM, nor is what the guest of a test program names."
    ),
    advice=(
        "Give each vCPU the number that its guest knows it by, with KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID. Linux "
        "takes it from Xen's CPUID leaf 4 or the ACPI processor ID, which the VMM made too."
    ),
    checker=_IdsAreTheGuests,
    sees=(TIMER_CALLS,),
    exercised_by=(
        "a singleshot timer call at CPL 0 on a vCPU with a Xen ID and a timer port that names this ID, or "
        "that the kernel refuses before any call has named it; the guest must not be a test program's"
    ),
)

HYPERCALLS_ARE_INTERCEPTED: Final = Rule(
    id="hypercalls.are-intercepted",
    title="The VMM configures INTERCEPT_HCALL and a hypercall MSR before its guest makes Xen hypercalls.",
    level=Level.MUST,
    judges=Judged.VMM,
    citation="kvm_xen_hvm_config, kvm_xen_hypercall, kvm_emulate_hypercall",
    explanation=(
        "VMCALL and VMMCALL are Xen hypercalls only while KVM_XEN_HVM_CONFIG has INTERCEPT_HCALL among its "
        "flags and an MSR other than 0. Without either, KVM takes them for hypercalls of its own and answers "
        "-1000 (-KVM_ENOSYS) to most of them. Neither the kernel's Xen code nor the VMM gets to see any."
    ),
    advice="Call KVM_XEN_HVM_CONFIG with both before the guest runs, and check its result.",
    checker=_HypercallsAreIntercepted,
    sees=(Hypercall,),
    exercised_by="a hypercall",
)

TIMERS_ARE_SERVED: Final = Rule(
    id="timers.are-served",
    title="No singleshot timer call of the guest's kernel ends with -ENOSYS from the VMM.",
    level=Level.SHOULD,
    judges=Judged.VMM,
    citation="Xen's public/vcpu.h: VCPUOP_set_singleshot_timer; kvm_xen_hcall_vcpu_op, kvm_xen_hypercall",
    explanation=(
        "A guest that sets a vCPU's singleshot timer takes that vCPU's clock events from it. The kernel "
        "serves the calls of a vCPU that has a Xen ID and a timer port, and forwards all others. A VMM that "
        "then answers -ENOSYS, as if Xen had no such call, leaves the guest waiting for an interrupt that "
        "never comes."
    ),
    advice=(
        "Set Xen ID and TIMER port when the guest binds VIRQ_TIMER, so that the kernel serves the calls, or "
        "serve those that are forwarded."
    ),
    checker=_TimersAreServed,
    sees=(TIMER_CALLS,),
    exercised_by=(
        "a singleshot timer call at CPL 0 that the kernel serves, or that is forwarded and whose answer was "
        "seen, with INTERCEPT_HCALL configured"
    ),
)

RULES: Final = (ID_IS_THE_GUESTS, HYPERCALLS_ARE_INTERCEPTED, TIMERS_ARE_SERVED)
