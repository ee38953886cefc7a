"""A forwarded hypercall whose vCPU the VMM moves elsewhere before it answers."""

from __future__ import annotations

from pytest_xenkvm.abi.numbers import U32_MAX, U64_MAX
from pytest_xenkvm.trace import events
from pytest_xenkvm.trace.decode import event_words

from .calls import VMM_ANSWER
from .demands import FORWARDED, answer_words
from .setting import Mode
from .vcpu import ProbeVcpu


def forwarded_then_moved(vcpu: ProbeVcpu, nr: int, *, mode: Mode) -> None:
    """Make a hypercall that must be forwarded, set RIP to other code (KVM_SET_REGS), and answer it.

    The guest must go on there, and RAX must still hold the hypercall's number.
    """
    __tracebackhide__ = True
    event = events.Hypercall(
        vcpu=vcpu.index,
        longmode=mode.longmode,
        compat=mode is Mode.COMPAT,
        cpl=0,
        nr=nr,
        args=(0,) * 6,
    )
    made = vcpu.vm.do_hypercall(event, VMM_ANSWER, moved=True)
    if made.exit is None:
        vcpu.vm.fail(answer_words(FORWARDED), event_words(made), vcpu.index)
    if made.rax != nr & (U64_MAX if mode.longmode else U32_MAX):
        vcpu.vm.fail(f"the guest's RAX is still {nr:#x}", f"it is {made.rax:#x}", vcpu.index)
