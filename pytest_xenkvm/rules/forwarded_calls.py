"""What the rules about forwarded hypercalls share: seeing one that a VMM answered, and words for it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from attrs import define, frozen

from pytest_xenkvm.abi.numbers import U32_MAX, U64_MAX, EvtchnOp, Hypercall
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.model import Checker, Context, Hypercalls
from pytest_xenkvm.rules.tracking import registers
from pytest_xenkvm.trace import events
from pytest_xenkvm.trace.decode import action_words
from pytest_xenkvm.trace.decode_values import errno, number, signed_rax

FORWARDED: Final = Hypercalls(forwarded=True)
FORWARDED_VCPU_OPS: Final = Hypercalls(frozenset({int(Hypercall.vcpu_op)}), forwarded=True)
"""What a rule judged by a `ForwardedChecker` wants to see."""


@frozen(kw_only=True)
class ForwardedCall:
    """A Xen hypercall that KVM forwarded and the VMM answered, where the answer was seen."""

    event: events.Hypercall
    nr: int
    args: Sequence[int | None]
    """As wide as the caller's registers; None for one that nobody saw."""
    answer: int
    """The result that the guest gets, signed."""

    def arg32(self, index: int) -> int | None:
        """The lower 32 bits of an argument: Xen takes sub-operations and vCPU numbers as 32-bit numbers."""
        value = self.args[index]
        return None if value is None else value & U32_MAX

    def is_op(self, nr: Hypercall, *sub_ops: int) -> bool:
        """Whether this is one of the sub-operations of a hypercall that tells them apart by 32 bits."""
        return self.nr == nr and self.arg32(0) in sub_ops

    @property
    def words(self) -> str:
        """The vCPU, the call as the guest meant it, and the answer, as the subject of a finding."""
        return f"vCPU {self.event.vcpu}: {action_words(self.event)} was answered {answer_words(self.answer)}"


@define(eq=False)
class ForwardedChecker(Checker):
    """Is shown hypercalls and judges those that a VMM answered; derive and implement `judge`."""

    def observe(self, observation: Observation) -> None:
        """Dismiss what was not forwarded or whose answer nobody saw."""
        call = forwarded_call(observation, self.context)
        if call is not None:
            self.judge(observation, call)

    def judge(self, observation: Observation, call: ForwardedCall) -> None:
        """Judge the answer to a forwarded hypercall."""
        raise NotImplementedError


def forwarded_call(observation: Observation, context: Context) -> ForwardedCall | None:
    """The observation as a forwarded hypercall with an answer that was seen; None for anything else."""
    event = observation.event
    if not isinstance(event, events.Hypercall) or event.handled != "userspace" or observation.answer is None:
        return None
    if observation.unjudged or event.run_ret is not None or not context.setup.intercepts:
        return None
    nr, args = registers(event)
    kept = observation.answer & (U64_MAX if event.longmode else U32_MAX)
    return ForwardedCall(event=event, nr=nr, args=args, answer=signed_rax(kept, longmode=event.longmode))


def answer_words(answer: int) -> str:
    """A signed result: an errno by its name."""
    return errno(answer) or number(answer)


def bytes_behind(event: events.Hypercall, arg: int) -> bytes | None:
    """What the trace shows behind pointer argument number `arg`; None if it doesn't."""
    return next((item.data for item in event.behind or () if item.arg == arg), None)


def word_behind(event: events.Hypercall, arg: int, offset: int) -> int | None:
    """A u32 behind pointer argument number `arg`; None if the trace doesn't show it."""
    data = bytes_behind(event, arg)
    word = None if data is None else data[offset : offset + 4]
    return int.from_bytes(word, "little") if word is not None and len(word) == 4 else None  # noqa: PLR2004


def vcpu_exists(context: Context, xen_number: int) -> bool | None:
    """Whether the VM has a vCPU that its guest knows by that number; None if that can't be told."""
    if xen_number in context.setup.holders:
        return True
    shape = context.header.vm
    if shape is None:
        return None if xen_number < context.max_vcpus else False
    return xen_number < len(shape.vcpus)


def vcpu_index(context: Context, xen_number: int) -> int:
    """The index of the vCPU that the guest knows by that number: the number itself where no ID says more."""
    holders = context.setup.holders.get(xen_number)
    return holders[0] if holders else xen_number


def binds_virq(call: ForwardedCall, virq: int) -> bool:
    """Whether this is a successful EVTCHNOP_bind_virq of that VIRQ, as far as the trace shows."""
    if call.nr != Hypercall.event_channel_op or call.args[0] != EvtchnOp.bind_virq or call.answer:
        return False
    return word_behind(call.event, 1, 0) == virq
