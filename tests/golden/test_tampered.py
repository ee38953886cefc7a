"""A golden with a changed outcome is reported as a divergence of that kind, at that line and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from attrs import evolve, frozen
from golden_traces import divergences, load, replay

from pytest_xenkvm.replay.observation import Divergence
from pytest_xenkvm.trace.events import Event, EventfdRead, Hypercall, HypercallExit, Ioctl, Irq, Mem, Wrmsr


@frozen
class Tampering:
    """A kind of outcome, a golden that is full of it, and how it is changed (None: not such an event)."""

    kind: str
    golden: str
    change: Callable[[Any], Event | None]
    found: int
    """How many events of the golden are changed."""


def change_ret(event: Event) -> Event | None:
    """Another errno, or a failure instead of success; a value that was read goes with it."""
    return evolve(event, ret=-14 if event.ret != -14 else 0) if isinstance(event, Ioctl) else None


def change_out(event: Event) -> Event | None:
    """One more in a number that a GET stored."""
    if not isinstance(event, Ioctl) or not event.out or "gpa" not in event.out:
        return None
    return evolve(event, out={**event.out, "gpa": event.out["gpa"] ^ 1})


def change_nested_out(event: Event) -> Event | None:
    """A member inside a structure that a GET stored."""
    if not isinstance(event, Ioctl) or not event.out or "timer" not in event.out:
        return None
    return evolve(event, out={**event.out, "timer": {**event.out["timer"], "priority": 0}})


def change_handled(event: Event) -> Event | None:
    """In the kernel instead of by the VMM, or the other way."""
    if not isinstance(event, Hypercall):
        return None
    return evolve(event, handled="kernel" if event.handled == "userspace" else "userspace", exit=None)


def change_exit(**members: Any) -> Callable[[Event], Event | None]:
    """Another member in what KVM_EXIT_XEN delivered."""

    def change(event: Event) -> Event | None:
        if not isinstance(event, Hypercall) or event.exit is None:
            return None
        return evolve(event, exit=evolve(event.exit, **members))

    return change


def change_one_param(event: Event) -> Event | None:
    """One bit in the last parameter of the exit."""
    if not isinstance(event, Hypercall) or event.exit is None:
        return None
    *others, last = event.exit.params
    assert isinstance(last, int)
    return evolve(event, exit=evolve(event.exit, params=(*others, last ^ 1)))


def drop_exit(event: Event) -> Event | None:
    """A call that the kernel handled, and yet an exit."""
    if not isinstance(event, Hypercall) or event.handled != "kernel":
        return None
    params = (0, 0, 0, 0, 0, 0)
    return evolve(event, exit=HypercallExit(type=1, longmode=1, cpl=0, input=event.nr, params=params))


def change_rax(event: Event) -> Event | None:
    """The result of a call that the kernel handled."""
    if not isinstance(event, Hypercall) or event.handled != "kernel" or event.rax is None:
        return None
    return evolve(event, rax=event.rax ^ 1)


def fail_run(event: Event) -> Event | None:
    """KVM_RUN fails with -EFAULT."""
    return evolve(event, run_ret=-14) if isinstance(event, Hypercall) else None


def change_mem(event: Event) -> Event | None:
    """The lowest determined bit of a read."""
    if not isinstance(event, Mem) or event.op != "read":
        return None
    mask = int.from_bytes(event.mask or b"\xff" * len(event.data), "little")
    data = int.from_bytes(event.data, "little") ^ (mask & -mask)
    return evolve(event, data=data.to_bytes(len(event.data), "little")) if mask else None


def change_ok(event: Event) -> Event | None:
    """#GP or none."""
    return evolve(event, ok=not event.ok) if isinstance(event, Wrmsr) and event.run_ret is None else None


def change_run_ret(event: Event) -> Event | None:
    """KVM_RUN failed otherwise, or didn't."""
    return evolve(event, run_ret=-22) if isinstance(event, Wrmsr) else None


def change_vector(event: Event) -> Event | None:
    """Another interrupt vector."""
    return evolve(event, vector=event.vector ^ 1) if isinstance(event, Irq) else None


def change_eventfd_read(event: Event) -> Event | None:
    """One more in an eventfd."""
    return evolve(event, value=event.value + 1) if isinstance(event, EventfdRead) else None


def claim_sum_of_read(event: Event) -> Event | None:
    """Bytes that are no runstate are said to add up."""
    if not isinstance(event, Mem) or event.op != "read" or event.sum_ok:
        return None
    return evolve(event, sum_ok=True)


def claim_sum_of_get(event: Event) -> Event | None:
    """An attribute that is no runstate is said to add up."""
    if not isinstance(event, Ioctl) or event.ret or not event.out or "runstate" in event.out:
        return None
    return evolve(event, sum_ok=True)


TAMPERINGS = {
    "ret": Tampering("ret", "linux-7.3/directed/evtchn-send-ioctl", change_ret, 65),
    "ret of a GET": Tampering("ret", "linux-7.3/directed/vcpu-info", change_ret, 148),
    "out": Tampering("out", "linux-7.3/directed/time-info", change_out, 19),
    "member of out": Tampering("out", "linux-7.3/directed/timer-attr", change_nested_out, 35),
    "handled": Tampering("handled", "linux-7.3/directed/singleshot-id", change_handled, 320),
    "exit type": Tampering("exit", "linux-7.3/directed/unknown-hypercalls", change_exit(type=2), 134),
    "exit longmode": Tampering("exit", "linux-7.3/directed/compat-mode", change_exit(longmode=2), 2),
    "exit cpl": Tampering("exit", "linux-7.3/directed/cpl3", change_exit(cpl=4), 81),
    "exit input": Tampering("exit", "linux-7.3/directed/unknown-hypercalls", change_exit(input=999), 134),
    "exit params": Tampering("exit", "linux-7.3/directed/trunc32", change_one_param, 19),
    "exit of a handled call": Tampering("exit", "linux-7.3/directed/sched-op", drop_exit, 62),
    "rax": Tampering("rax", "linux-7.3/directed/singleshot-id", change_rax, 95),
    "run_ret of a hypercall": Tampering("run_ret", "linux-7.3/directed/xen-version", fail_run, 44),
    "mem": Tampering("mem", "linux-7.3/directed/shared-info", change_mem, 28),
    "mem of a runstate": Tampering("mem", "linux-7.3/directed/runstate-cross", change_mem, 55),
    "ok": Tampering("ok", "linux-7.3/directed/hypercall-page", change_ok, 22),
    "run_ret": Tampering("run_ret", "linux-7.3/directed/hypercall-page", change_run_ret, 25),
    "irq": Tampering("irq", "linux-7.3/directed/upcall-vector", change_vector, 54),
    "eventfd_read": Tampering(
        "eventfd_read", "linux-7.3/directed/evtchn-send-hcall", change_eventfd_read, 13
    ),
    "sum_ok of a read": Tampering("sum_ok", "linux-7.3/directed/vcpu-info", claim_sum_of_read, 24),
    "sum_ok of a GET": Tampering("sum_ok", "linux-7.3/directed/vcpu-info", claim_sum_of_get, 70),
}


@pytest.mark.parametrize("tampering", TAMPERINGS.values(), ids=TAMPERINGS)
def test_a_changed_outcome_is_reported_where_it_is(tampering: Tampering) -> None:
    """Every changed outcome is one divergence of its kind at its line; unchanged ones are none."""
    header, events = load(tampering.golden)
    changed = [tampering.change(event) for event in events]
    tampered = [old if new is None else new for old, new in zip(events, changed, strict=True)]
    found = divergences(replay(header, tampered))
    lines = [number for number, new in enumerate(changed, start=2) if new is not None]
    assert [(d.place.line, d.kind) for d in found] == [(line, tampering.kind) for line in lines]
    assert len(lines) == tampering.found


def irqs(events: list[Event]) -> list[int]:
    """Indices of the interrupts."""
    return [index for index, event in enumerate(events) if isinstance(event, Irq)]


def lines_and_kinds(found: list[Divergence]) -> list[tuple[int, str, Any, Any]]:
    """What a divergence says, without the events."""
    return [(d.place.line, d.kind, d.expected, d.observed) for d in found]


@pytest.mark.parametrize("topic", ["deferred", "evtchn-send-ioctl", "gsi-routing", "set-timer-op"])
def test_a_missing_interrupt_is_reported(topic: str) -> None:
    """An interrupt that the guest takes though the golden has none is a divergence of the event before it."""
    header, events = load(f"linux-7.3/directed/{topic}")
    for index in irqs(events):
        irq = events[index]
        assert isinstance(irq, Irq)
        found = divergences(replay(header, events[:index] + events[index + 1 :]))
        taken = {"vcpu": irq.vcpu, "vector": irq.vector}
        assert lines_and_kinds(found) == [(index + 1, "irq", None, taken)]


@pytest.mark.parametrize("topic", ["evtchn-send-ioctl", "gsi-routing", "set-timer-op"])
def test_an_extra_interrupt_is_reported(topic: str) -> None:
    """An interrupt in the golden that the guest doesn't take is a divergence at its line."""
    header, events = load(f"linux-7.3/directed/{topic}")
    for index in irqs(events):
        irq = events[index]
        assert isinstance(irq, Irq)
        found = divergences(replay(header, [*events[: index + 1], irq, *events[index + 1 :]]))
        assert lines_and_kinds(found) == [(index + 3, "irq", irq.vector, None)]
