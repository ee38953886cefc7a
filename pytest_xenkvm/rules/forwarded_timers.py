"""Family `forwarded-timers`: which timer hypercalls KVM serves, which it forwards, and how.

The checks that the demands follow, in KVM's order (`kvm_xen_hypercall`, `kvm_xen_hcall_vcpu_op`):
CPL > 0 forwards · no timer port forwards · from Linux 7.3, no Xen ID forwards · another vCPU named -EINVAL ·
argument unreadable -EFAULT · done, 0. All of it only with INTERCEPT_HCALL and a hypercall MSR configured.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL
from typing import Final

from pytest_xenkvm.abi.numbers import KVM_EXIT_XEN_HCALL, VcpuOp
from pytest_xenkvm.rules.id_checker import SET_THE_ID, SINCE
from pytest_xenkvm.rules.model import Judged, Level, Rule
from pytest_xenkvm.rules.timer_checker import TIMER_CALLS, Demand
from pytest_xenkvm.rules.tracking import TimerCall, registers
from pytest_xenkvm.trace.decode_values import argument, register_result, signed_rax
from pytest_xenkvm.trace.events import NowPlus

_PUBLIC_VCPU_H: Final = "Xen's public/vcpu.h: VCPUOP_set_singleshot_timer"


def _forwarded(call: TimerCall) -> str | None:
    return None if call.forwarded else "it must be forwarded to the VMM"


def _served(call: TimerCall) -> str | None:
    """0; setting a timer may also find its argument unreadable."""
    fine = (0, -EFAULT) if call.op is VcpuOp.set_singleshot_timer else (0,)
    if not call.forwarded and _result(call) in fine:
        return None
    or_fault = " (or -EFAULT (-14) if the guest's argument can't be read)" if -EFAULT in fine else ""
    return f"the kernel must serve it: 0{or_fault}"


def _refused(call: TimerCall) -> str | None:
    if not call.forwarded and _result(call) == -EINVAL:
        return None
    return "the kernel must refuse it: -EINVAL (-22)"


def _served_or_refused(call: TimerCall) -> str | None:
    """As if the numbers had 32 bits."""
    return _served(call) if call.named == call.vcpu.xen_id else _refused(call)


def _exit_intact(call: TimerCall) -> str | None:
    """Arguments whose number nobody knows are not compared."""
    event, exit_ = call.event, call.event.exit
    nr, args = registers(event)
    if exit_ is None or len(exit_.params) != len(args):
        return "KVM_EXIT_XEN must say what the guest asked for, with six parameters"
    facts: list[tuple[str, int | None, int | NowPlus]] = [
        ("type", KVM_EXIT_XEN_HCALL, exit_.type),
        ("longmode", int(event.longmode), exit_.longmode),
        ("cpl", event.cpl, exit_.cpl),
        ("input", nr, exit_.input),
        *((f"params[{index}]", args[index], param) for index, param in enumerate(exit_.params)),
    ]
    wrong = [
        f"{name} {argument(shown)} for {passed:#x}"
        for name, passed, shown in facts
        if passed is not None and shown != passed
    ]
    return (
        f"KVM_EXIT_XEN had {', '.join(wrong)}: it must show the call as the guest made it" if wrong else None
    )


def _answer_kept(call: TimerCall) -> str | None:
    expected = (call.answer or 0) & call.rax_mask
    if call.event.rax == expected:
        return None
    words = register_result(expected, longmode=call.event.longmode)
    return f"the guest must get exactly the VMM's answer, {words}"


def _result(call: TimerCall) -> int:
    return signed_rax(call.event.rax or 0, longmode=call.event.longmode)


def _has_id(call: TimerCall) -> bool:
    """A singleshot call at CPL 0 on a vCPU with port and ID, whose numbers fit in 32 bits."""
    known = call.named is not None and call.vcpu.xen_id is not None
    return call.op is not None and call.on_kernel_timer and known and not call.wide


UNSET_FORWARDS: Final = Rule(
    id="vcpu-id.unset-forwards",
    title="Singleshot timer calls on a vCPU without a Xen ID are forwarded, whatever vCPU the guest names.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation=f"kvm_xen_hcall_vcpu_op ({SINCE}; checks reordered by e4ffb0ceb9f4 and 32d7943e5179)",
    explanation=(
        "Without an ID, KVM can't know whether the vCPU that the guest names is this one, so it asks the "
        "VMM. A guest that names 0xffffffff is forwarded too: the number is never compared with the "
        "sentinel. Up to Linux 7.2 an unset ID is 0, so calls that name vCPU 0 work and all others fail "
        "with -EINVAL."
    ),
    advice=f"On every kernel, {SET_THE_ID}; or answer the forwarded call in the VMM.",
    checker=Demand(
        concerns=lambda call: call.op is not None and call.on_kernel_timer and call.vcpu.xen_id is None,
        wrong=_forwarded,
        advice=f"On this kernel the VMM must {SET_THE_ID}: an unset ID counts as 0 on every vCPU",
    ).checker,
    sees=(TIMER_CALLS,),
    exercised_by=(
        "a singleshot timer call at CPL 0 on a vCPU with a timer port and no Xen ID, with INTERCEPT_HCALL "
        "configured"
    ),
)

EXIT_IS_INTACT: Final = Rule(
    id="forwarded-timers.exit-is-intact",
    title="KVM_EXIT_XEN shows number, six parameters, mode and CPL of a forwarded timer call unchanged.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation="kvm_xen_hypercall; struct kvm_xen_exit in linux/kvm.h",
    explanation=(
        "The VMM serves the call from the exit alone. In 64-bit mode the parameters are the full registers, "
        "also where KVM itself looks at 32 bits only; in 32-bit mode they are the registers cut to 32 bits."
    ),
    advice="Take number, mode and CPL from the exit, and cut sub-op and vCPU number to 32 bits as KVM does.",
    checker=Demand(
        concerns=lambda call: call.forwarded,
        wrong=_exit_intact,
        advice="A VMM can't serve what it isn't shown: report it to the host",
    ).checker,
    sees=(TIMER_CALLS,),
    exercised_by="a timer call that was forwarded",
)

ANSWER_REACHES_GUEST: Final = Rule(
    id="forwarded-timers.answer-reaches-guest",
    title="The guest's RAX after a forwarded timer call is the VMM's answer.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation="kvm_xen_hypercall_complete_userspace, kvm_xen_hypercall_set_result",
    explanation=(
        "KVM stores kvm_run's xen.u.hcall.result into RAX (EAX in 32-bit mode) when the vCPU is entered "
        "again, as long as its RIP is still that of the hypercall. It doesn't interpret the value."
    ),
    advice="Answer in kvm_run before KVM_RUN, and don't move RIP; -ENOSYS is an answer too.",
    checker=Demand(
        concerns=lambda call: call.forwarded and call.answer is not None,
        wrong=_answer_kept,
        advice="Check that nothing changes RIP or RAX between the exit and KVM_RUN",
    ).checker,
    sees=(TIMER_CALLS,),
    exercised_by="a timer call that was forwarded and answered",
)

OWN_ID_IN_KERNEL: Final = Rule(
    id="forwarded-timers.own-id-in-kernel",
    title="The kernel serves singleshot timer calls that name the vCPU's own Xen ID.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation=f"kvm_xen_hcall_vcpu_op; {_PUBLIC_VCPU_H}",
    explanation=(
        "This is the fast path: with an ID and a timer port set, the VMM is not asked. A "
        "set_singleshot_timer whose argument can't be read is -EFAULT; the flags in the argument are "
        "ignored."
    ),
    advice="To keep timers in the VMM, leave the vCPU's TIMER attribute unset.",
    checker=Demand(
        concerns=lambda call: _has_id(call) and call.named == call.vcpu.xen_id,
        wrong=_served,
        advice="Read VCPU_ID and TIMER back to see what the kernel goes by",
    ).checker,
    sees=(TIMER_CALLS,),
    exercised_by="a singleshot timer call at CPL 0 on a vCPU with ID and timer port that names this ID",
)

OTHER_ID_IS_REFUSED: Final = Rule(
    id="forwarded-timers.other-id-is-refused",
    title="The kernel refuses singleshot timer calls that name another vCPU: -EINVAL.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation=f"kvm_xen_hcall_vcpu_op; {_PUBLIC_VCPU_H}",
    explanation=(
        "A vCPU may set its own timer only. The ID is compared before the argument is read, so a bad pointer "
        "makes no difference; the result is -22 in the width of the caller's mode."
    ),
    advice="If the guest means its own vCPU, the VMM gave it the wrong ID: use the guest's own number.",
    checker=Demand(
        concerns=lambda call: _has_id(call) and call.named != call.vcpu.xen_id,
        wrong=_refused,
        advice="Read VCPU_ID back to see what the kernel compares with",
    ).checker,
    sees=(TIMER_CALLS,),
    exercised_by="a singleshot timer call at CPL 0 on a vCPU with ID and timer port that names another ID",
)

NUMBERS_ARE_32_BIT: Final = Rule(
    id="forwarded-timers.numbers-are-32-bit",
    title="Sub-op and vCPU number of a singleshot timer call are compared in 32 bits.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation="kvm_xen_hypercall, kvm_xen_hcall_vcpu_op (int parameters); vcpu_op in Xen's public headers",
    explanation=(
        "KVM passes both on as 32-bit integers: 0x1_0000_0001 names vCPU 1, and sub-op 0x1_0000_0008 is "
        "set_singleshot_timer. The exit of a forwarded call still has all 64 bits."
    ),
    advice="Guests should clear the upper halves; a VMM that serves the call must cut the numbers likewise.",
    checker=Demand(
        concerns=lambda call: (
            call.wide and call.on_kernel_timer and call.named is not None and call.vcpu.xen_id is not None
        ),
        wrong=_served_or_refused,
        advice="Sub-op and vCPU number lose bits 32 to 63",
    ).checker,
    sees=(TIMER_CALLS,),
    exercised_by=(
        "a 64-bit singleshot timer call at CPL 0 with a sub-op or vCPU number beyond 32 bits, on a vCPU "
        "with a Xen ID and a timer port"
    ),
)

NO_PORT_FORWARDS: Final = Rule(
    id="forwarded-timers.no-port-forwards",
    title="Timer calls on a vCPU without a timer port are forwarded.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation="kvm_xen_hcall_vcpu_op, kvm_xen_hcall_set_timer_op",
    explanation=(
        "The TIMER attribute's port is where the kernel delivers an expiry. While there is none, neither "
        "singleshot calls nor set_timer_op can be served there, whatever the Xen ID."
    ),
    advice="Set KVM_XEN_VCPU_ATTR_TYPE_TIMER when the guest binds VIRQ_TIMER, or serve timers in the VMM.",
    checker=Demand(
        concerns=lambda call: call.event.cpl == 0 and not call.vcpu.timer_port,
        wrong=_forwarded,
        advice="Read TIMER back to see whether a port is set",
    ).checker,
    sees=(TIMER_CALLS,),
    exercised_by="a timer call at CPL 0 on a vCPU without a timer port, with INTERCEPT_HCALL configured",
)

SET_TIMER_IGNORES_ID: Final = Rule(
    id="forwarded-timers.set-timer-ignores-id",
    title="set_timer_op is served by the kernel whenever a timer port is set, with or without a Xen ID.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation=f"kvm_xen_hcall_set_timer_op (unchanged by {SINCE})",
    explanation="set_timer_op carries no vCPU number, so there is nothing to compare the vCPU's Xen ID with.",
    advice="A VMM that serves timers itself must leave the TIMER attribute unset.",
    checker=Demand(
        concerns=lambda call: call.op is None and call.on_kernel_timer,
        wrong=_served,
        advice="Read TIMER back to see whether a port is set",
    ).checker,
    sees=(TIMER_CALLS,),
    exercised_by="a set_timer_op at CPL 0 on a vCPU with a timer port, with INTERCEPT_HCALL configured",
)

ABOVE_CPL0_FORWARDS: Final = Rule(
    id="forwarded-timers.above-cpl0-forwards",
    title="Timer calls from CPL 1 to 3 are forwarded, whatever is set up.",
    level=Level.MUST,
    judges=Judged.HOST,
    citation="kvm_xen_hypercall",
    explanation="KVM accelerates hypercalls of the guest's kernel only: user mode must not set its timers.",
    advice="In the VMM, look at the exit's cpl and refuse what only the guest's kernel may do with -EPERM.",
    checker=Demand(
        concerns=lambda call: call.event.cpl > 0,
        wrong=_forwarded,
        advice="A guest's user mode can set its kernel's timer on this host",
    ).checker,
    sees=(TIMER_CALLS,),
    exercised_by="a timer call above CPL 0, with INTERCEPT_HCALL configured",
)
