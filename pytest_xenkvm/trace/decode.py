"""Events in the words of the field: Xen's and KVM's own names, numbers with units, results with errno.

Pure and total: any event that a trace can hold has words, and finding them never raises. An event has an
action (what was done) and, often, an outcome (what came of it); `event_words` gives both in one line.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from pytest_xenkvm.abi import names
from pytest_xenkvm.abi.numbers import U32_MAX, SchedOp, VcpuOp, XenVer
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.trace import events
from pytest_xenkvm.trace.decode_ioctl import ioctl_action, ioctl_outcome
from pytest_xenkvm.trace.decode_pointed import Pointers, ReadMemory, structure_words
from pytest_xenkvm.trace.decode_values import (
    absolute,
    argument,
    data,
    duration,
    enough,
    errno,
    hexadecimal,
    named,
    number,
    register_result,
    relative,
    result,
    signed_rax,
    text,
    truncated,
    truncated_vcpu_id,
)
from pytest_xenkvm.trace.events import Event, Hypercall, NowPlus

_NO_ARGUMENT: Final = frozenset(
    {
        (Nr.vcpu_op, VcpuOp.up),
        (Nr.vcpu_op, VcpuOp.down),
        (Nr.vcpu_op, VcpuOp.is_up),
        (Nr.vcpu_op, VcpuOp.stop_periodic_timer),
        (Nr.vcpu_op, VcpuOp.stop_singleshot_timer),
        (Nr.vcpu_op, VcpuOp.send_nmi),
        (Nr.sched_op, SchedOp.yield_),
        (Nr.sched_op, SchedOp.block),
        (Nr.xen_version, XenVer.version),
        (Nr.xen_version, XenVer.pagesize),
    }
)
"""Sub-operations that look at nothing but their number (and, in vcpu_op, the vCPU)."""


# ---- hypercalls


def hypercall_name(nr: int, op: int | NowPlus | None = None) -> str:
    """`VCPUOP_up`, or `vcpu_op` without a known sub-operation, or `hypercall 1000` for a number unknown.

    `op` is the first argument as the guest passed it: KVM's truncation to 32 bits is applied here.
    """
    sub_ops = names.SUB_OPS.get(nr)
    if sub_ops and isinstance(op, int):
        name = sub_ops.name(_kept_op(sub_ops, op))
        if name:
            return name
    return Nr(nr).name if nr in _KNOWN else f"hypercall {number(nr)}"


_KNOWN: Final = frozenset(Nr)


def _kept_op(sub_ops: names.SubOps, op: int) -> int:
    return op & U32_MAX if sub_ops.truncated else op


def hypercall_words(event: Hypercall, read: ReadMemory | None = None, now: int | None = None) -> str:
    """The call as the guest meant it: `VCPUOP_set_singleshot_timer(vcpu=1, timeout=+1 ms)`.

    What lies behind a pointer comes from the trace, else from `read` (guest virtual address and size in
    bytes -> bytes or None), else the pointer itself is shown as `arg=`. `now` is the guest's clock in ns,
    to which absolute times are then put in relation.
    """
    op = _argument(event, 0)
    pointers = Pointers(event=event, read=read, now=now)
    return f"{hypercall_name(event.nr, op)}({enough(_call_arguments(pointers, op))})"


def _argument(event: Hypercall, index: int) -> int | NowPlus | None:
    """Argument number `index`, None if the recorder didn't see it."""
    unseen = event.extra.get("unseen_args")
    if index >= len(event.args) or (isinstance(unseen, list) and index in unseen):
        return None
    return event.args[index]


def _call_arguments(pointers: Pointers, op: int | NowPlus | None) -> Iterator[str]:
    event = pointers.event
    sub_ops = names.SUB_OPS.get(event.nr)
    if sub_ops:
        kept = _kept_op(sub_ops, op) if isinstance(op, int) else None
        if kept is None or kept != op or sub_ops.name(kept) is None:
            yield f"op={argument(op, truncated if sub_ops.truncated else number)}"
        yield from _OPERANDS.get(event.nr, _pointer_operand)(pointers, kept)
    elif event.nr == Nr.set_timer_op:
        yield f"timeout={_timer_timeout(pointers)}"
    else:
        yield from (f"a{index}={argument(_argument(event, index))}" for index in range(len(event.args)))


def _pointed(pointers: Pointers, op: int | None, arg: int) -> Iterator[str]:
    """The structure behind argument `arg`, or the pointer if nobody saw the structure."""
    if op is None:
        yield f"arg={argument(_argument(pointers.event, arg))}"
    elif (pointers.event.nr, op) not in _NO_ARGUMENT:
        words = structure_words(pointers, op, arg)
        yield from words or [f"arg={argument(_argument(pointers.event, arg))}"]


def _pointer_operand(pointers: Pointers, op: int | None) -> Iterator[str]:
    yield from _pointed(pointers, op, 1)


def _vcpu_operands(pointers: Pointers, op: int | None) -> Iterator[str]:
    yield f"vcpu={argument(_argument(pointers.event, 1), truncated_vcpu_id)}"
    yield from _pointed(pointers, op, 2)


def _grant_operands(pointers: Pointers, op: int | None) -> Iterator[str]:
    yield from _pointed(pointers, op, 1)
    yield f"count={argument(_argument(pointers.event, 2), number)}"


def _console_operands(pointers: Pointers, op: int | None) -> Iterator[str]:
    del op
    yield f"count={argument(_argument(pointers.event, 1), number)}"
    yield f"arg={argument(_argument(pointers.event, 2))}"


def _assist_operands(pointers: Pointers, op: int | None) -> Iterator[str]:
    del op
    yield f"type={argument(_argument(pointers.event, 1), named(names.VM_ASSIST_TYPES))}"


_OPERANDS: Final[Mapping[int, Callable[[Pointers, int | None], Iterator[str]]]] = {
    Nr.vcpu_op: _vcpu_operands,
    Nr.grant_table_op: _grant_operands,
    Nr.console_io: _console_operands,
    Nr.vm_assist: _assist_operands,
}
"""Operands after the sub-operation; hypercalls that are not listed take one pointer."""


def _timer_timeout(pointers: Pointers) -> str:
    """In 32-bit mode the timeout is spread over two arguments."""
    low, high = (_argument(pointers.event, index) for index in (0, 1))
    if low is None or isinstance(low, NowPlus):
        return argument(low)
    if not pointers.event.longmode:
        if not isinstance(high, int):
            return "?"
        low |= high << 32
    return absolute(low, pointers.now) if low else "0 (stop)"


def _hypercall_action(event: Hypercall, read: ReadMemory | None, now: int | None) -> str:
    circumstances = [
        *(["32-bit"] if not event.longmode else []),
        *(["compatibility mode"] if event.compat else []),
        *([f"CPL {event.cpl}"] if event.cpl else []),
        *([f"via {text(event.via)}"] if event.via else []),
    ]
    words = hypercall_words(event, read, now)
    return f"{words} [{', '.join(circumstances)}]" if circumstances else words


def hypercall_outcome(handled: str | None, rax: int | None, *, longmode: bool) -> str:
    """Who answered and what: `handled in the kernel: 0`, `forwarded to the VMM, which answered 1`.

    `handled` is "kernel", "userspace" or None, `rax` the guest's RAX (EAX) afterwards or None; None is
    unknown.
    """
    answer = register_result(rax, longmode=longmode)
    if handled == "kernel":
        return f"handled in the kernel: {answer}"
    if handled == "userspace":
        return f"forwarded to the VMM, which answered {answer}" if rax is not None else "forwarded to the VMM"
    return answer


def _hypercall_outcome(event: Hypercall) -> str:
    if event.run_ret is not None:
        return f"KVM_RUN failed: {result(event.run_ret)}"
    return hypercall_outcome(event.handled, event.rax, longmode=event.longmode)


# ---- the other kinds


def _mem_action(event: events.Mem) -> str:
    times = [f"now{relative(delta) if delta else ''} at offset {at}" for at, delta in event.now_plus_at]
    shown = f"mem {text(event.op)} {event.gpa:#x}: {data(event.data)}"
    return f"{shown} with {enough(times)}" if times else shown


def _wrmsr_outcome(event: events.Wrmsr) -> str:
    if event.run_ret is not None:
        return f"KVM_RUN failed: {result(event.run_ret)}"
    return "" if event.ok else "#GP"


_ACTIONS: Final[Mapping[str, Callable[[Any], str]]] = {
    events.Ioctl.kind: ioctl_action,
    events.Eventfd.kind: lambda event: f"eventfd {number(event.fd)} created",
    events.EventfdRead.kind: lambda event: f"eventfd {number(event.fd)} read",
    events.EventfdWrite.kind: lambda event: f"eventfd {number(event.fd)} written: {number(event.value)}",
    events.Mem.kind: _mem_action,
    events.Wrmsr.kind: lambda event: f"wrmsr {hexadecimal(event.msr)} = {hexadecimal(event.value)}",
    events.Wait.kind: lambda event: f"wait {duration(event.ns)}",
    events.Irq.kind: lambda event: f"irq vector {hexadecimal(event.vector)}",
    events.VcpuRun.kind: lambda _event: "vcpu_run",
}

_OUTCOMES: Final[Mapping[str, Callable[[Any], str]]] = {
    events.Ioctl.kind: ioctl_outcome,
    events.EventfdRead.kind: lambda event: number(event.value),
    events.Hypercall.kind: _hypercall_outcome,
    events.Wrmsr.kind: _wrmsr_outcome,
}

_LINKS: Final[Mapping[str, str]] = {
    events.Ioctl.kind: "{action} = {outcome}",
    events.EventfdRead.kind: "{action}: {outcome}",
    events.Hypercall.kind: "{action} -> {outcome}",
    events.Wrmsr.kind: "{action} ({outcome})",
}


def action_words(event: Event, read: ReadMemory | None = None, now: int | None = None) -> str:
    """What was done; `read` and `now` as in `hypercall_words`."""
    if isinstance(event, Hypercall):
        return _hypercall_action(event, read, now)
    return _ACTIONS[event.kind](event)


def outcome_words(event: Event) -> str:
    """What came of it: the result of an ioctl, who answered a hypercall; empty where there is none."""
    words = _OUTCOMES.get(event.kind)
    return words(event) if words else ""


def event_words(event: Event, read: ReadMemory | None = None, now: int | None = None) -> str:
    """The whole event in one line: its action and, if it has one, its outcome."""
    action, outcome = action_words(event, read, now), outcome_words(event)
    return _LINKS[event.kind].format(action=action, outcome=outcome) if outcome else action


def has_failed(event: Event) -> bool:
    """Whether the recorded outcome is an error: a negative errno, #GP, a KVM_RUN that failed."""
    match event:
        case events.Ioctl():
            return event.ret < 0
        case events.Wrmsr():
            return not event.ok or event.run_ret is not None
        case events.Hypercall():
            if event.run_ret is not None:
                return True
            return event.rax is not None and errno(signed_rax(event.rax, longmode=event.longmode)) is not None
    return False
