"""Tiny traces written by hand, and what the rules make of them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from attrs import evolve, frozen

from pytest_xenkvm.abi.numbers import U32_MAX, VcpuAttr, VcpuOp, XenHvmFlag
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.rules.judge import Judge
from pytest_xenkvm.rules.model import Context, Rule, State, Verdict
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.trace.events import (
    Event,
    Header,
    Hypercall,
    HypercallExit,
    Ioctl,
    MemorySlot,
    VcpuShape,
    VmShape,
)
from pytest_xenkvm.trace.files import Trace

RULES: Final[dict[str, Rule]] = {rule.id: rule for rule in BUNDLED}
UNSET: Final = U32_MAX
MSR: Final = 0x4000_0000
POINTER: Final = 0x20_0000
EINVAL: Final = -22
EFAULT: Final = -14
ENOSYS: Final = -38
KERNEL: Final = "kernel"
VMM: Final = "userspace"

GOLDENS: Final = Path(__file__).parents[2] / "traces" / "golden"
SUFFIXES: Final = (".jsonl.gz", ".xkt")

Item = Event | Observation


def golden_names() -> list[str]:
    """All goldens, for example "linux-7.3/directed/singleshot-id"."""
    found = {
        path.relative_to(GOLDENS).as_posix().removesuffix(suffix)
        for suffix in SUFFIXES
        for path in GOLDENS.rglob(f"*{suffix}")
    }
    return sorted(found)


def golden(name: str) -> Trace:
    """A golden; a missing one is an error."""
    paths = [path for suffix in SUFFIXES if (path := GOLDENS / f"{name}{suffix}").is_file()]
    assert paths, f"there is no golden {name}"
    return open_trace(paths[0])


def header(vcpus: int = 2, **more: Any) -> Header:
    """The header of a trace that a VMM (no test program) recorded."""
    shape = VmShape(
        irqchip="split",
        memory=(MemorySlot(gpa=0, size=4 << 20),),
        vcpus=tuple(VcpuShape(index=index, id=index) for index in range(vcpus)),
    )
    return Header(**{"kernel": "7.3", "max_vcpus": 4096, "vm": shape, "recorder": "ftrace", **more})


@frozen(kw_only=True)
class HandTrace:
    """A trace that is not in a file."""

    header: Header
    items: tuple[Event, ...]
    name: str = "by hand"

    def events(self) -> Iterator[Event]:
        """Its events."""
        return iter(self.items)


def config(flags: int = XenHvmFlag.INTERCEPT_HCALL, msr: int = MSR, ret: int = 0) -> Ioctl:
    """KVM_XEN_HVM_CONFIG without a blob."""
    blob = dict.fromkeys(("blob_addr_32", "blob_addr_64", "blob_size_32", "blob_size_64"), 0)
    return Ioctl(name="KVM_XEN_HVM_CONFIG", arg={"flags": int(flags), "msr": msr, **blob}, ret=ret)


def set_id(vcpu: int, xen_id: int, ret: int = 0) -> Ioctl:
    """KVM_XEN_VCPU_SET_ATTR(VCPU_ID)."""
    arg = {"type": int(VcpuAttr.VCPU_ID), "vcpu_id": xen_id}
    return Ioctl(name="KVM_XEN_VCPU_SET_ATTR", vcpu=vcpu, arg=arg, ret=ret)


def get_id(vcpu: int, xen_id: int) -> Ioctl:
    """KVM_XEN_VCPU_GET_ATTR(VCPU_ID)."""
    out = {"type": int(VcpuAttr.VCPU_ID), "vcpu_id": xen_id}
    return Ioctl(name="KVM_XEN_VCPU_GET_ATTR", vcpu=vcpu, arg={"type": int(VcpuAttr.VCPU_ID)}, ret=0, out=out)


def set_port(vcpu: int, port: int, ret: int = 0) -> Ioctl:
    """KVM_XEN_VCPU_SET_ATTR(TIMER), not armed."""
    timer = {"port": port, "priority": U32_MAX, "expires_ns": 0}
    arg = {"type": int(VcpuAttr.TIMER), "timer": timer}
    return Ioctl(name="KVM_XEN_VCPU_SET_ATTR", vcpu=vcpu, arg=arg, ret=ret)


def hypercall(vcpu: int, nr: int, *args: int, handled: str | None, result: int = 0, **more: Any) -> Hypercall:
    """A hypercall with its outcome; a forwarded one has a proper exit. `result` may be negative."""
    longmode, cpl = more.pop("longmode", True), more.pop("cpl", 0)
    six = (*args, *(0,) * (6 - len(args)))
    exit_ = HypercallExit(type=1, longmode=int(longmode), cpl=cpl, input=nr, params=six)
    return Hypercall(
        vcpu=vcpu,
        longmode=longmode,
        cpl=cpl,
        nr=nr,
        args=six,
        handled=handled,
        rax=result % (1 << (64 if longmode else 32)),
        **{"exit": exit_ if handled == VMM else None, **more},
    )


def arm(vcpu: int, named: int, handled: str | None = KERNEL, result: int = 0, **more: Any) -> Hypercall:
    """VCPUOP_set_singleshot_timer."""
    sub_op = more.pop("sub_op", VcpuOp.set_singleshot_timer)
    return hypercall(vcpu, Nr.vcpu_op, int(sub_op), named, POINTER, handled=handled, result=result, **more)


def stop(vcpu: int, named: int, handled: str | None = KERNEL, result: int = 0, **more: Any) -> Hypercall:
    """VCPUOP_stop_singleshot_timer."""
    return arm(vcpu, named, handled, result, sub_op=VcpuOp.stop_singleshot_timer, **more)


def set_timer_op(vcpu: int, time: int, handled: str = KERNEL, result: int = 0, **more: Any) -> Hypercall:
    """set_timer_op."""
    return hypercall(vcpu, Nr.set_timer_op, time, handled=handled, result=result, **more)


def happened(event: Event, **more: Any) -> Observation:
    """An event as it happened; the VMM's answer is what the guest got, unless `more` says otherwise."""
    forwarded = isinstance(event, Hypercall) and event.handled == VMM
    answer = event.rax if isinstance(event, Hypercall) and forwarded else None
    return Observation(**{"place": Place(0), "event": event, "answer": answer, **more})


def verdicts(
    rules: Iterable[Rule], items: Iterable[Item], *, of: Header | None = None, max_vcpus: int = 4096
) -> tuple[Verdict, ...]:
    """How `rules` judge events that happened like this, one after the other."""
    context = Context(header=of or header(), max_vcpus=max_vcpus, vmm_under_test=False)
    judge = Judge(tuple(rules), context)
    for index, item in enumerate(items):
        observation = item if isinstance(item, Observation) else happened(item)
        judge.observe(evolve(observation, place=Place(index)))
    return judge.verdicts()


def verdict(rule: str, *items: Item, of: Header | None = None, max_vcpus: int = 4096) -> Verdict:
    """How the rule with this id judges."""
    (found,) = verdicts([RULES[rule]], items, of=of, max_vcpus=max_vcpus)
    return found


def check(found: Verdict, state: str, *says: str) -> None:
    """Expect a state: "held", "violated" with each of `says` in its messages, or "not-exercised"."""
    assert found.state is State(state), [finding.message for finding in found.findings]
    if found.state is State.NOT_EXERCISED:
        assert found.exercised == found.violations == 0
        assert found.reason == f"nothing in the trace exercises it; that takes {found.rule.exercised_by}"
    elif found.state is State.HELD:
        assert found.exercised > 0
        assert (found.violations, found.findings) == (0, ())
    messages = "\n".join(finding.message for finding in found.findings)
    assert [words for words in says if words not in messages] == [], messages
    assert bool(says) == bool(messages)
