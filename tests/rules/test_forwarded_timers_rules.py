"""The rules of the family forwarded-timers, on tiny traces that hold, violate and don't exercise them."""

from __future__ import annotations

from typing import Any, Final

import pytest
from attrs import evolve
from rule_traces import (
    EFAULT,
    EINVAL,
    ENOSYS,
    KERNEL,
    VMM,
    Item,
    arm,
    check,
    config,
    happened,
    hypercall,
    set_id,
    set_port,
    set_timer_op,
    stop,
    verdict,
)

from pytest_xenkvm.trace.events import Event, Hypercall, NowPlus

EXIT: Final = "forwarded-timers.exit-is-intact"
ANSWER: Final = "forwarded-timers.answer-reaches-guest"
OWN: Final = "forwarded-timers.own-id-in-kernel"
OTHER: Final = "forwarded-timers.other-id-is-refused"
BITS: Final = "forwarded-timers.numbers-are-32-bit"
NO_PORT: Final = "forwarded-timers.no-port-forwards"
SET_TIMER: Final = "forwarded-timers.set-timer-ignores-id"
CPL: Final = "forwarded-timers.above-cpl0-forwards"

PORT: Final[tuple[Item, ...]] = (config(), set_port(1, 9))
READY: Final[tuple[Item, ...]] = (*PORT, set_id(1, 1))
"""vCPU 1 has a timer port and ID 1."""
HIGH: Final = 1 << 32
ALL_REGISTERS: Final = (8, 1 << 40, 0x1234_5678_9ABC, 1 << 63, (1 << 64) - 1, 5)


def spoiled(call: Event, **exit_fields: Any) -> Hypercall:
    """A forwarded call whose exit differs."""
    assert isinstance(call, Hypercall)
    assert call.exit is not None
    return evolve(call, exit=evolve(call.exit, **exit_fields))


def without_answer(call: Event, **more: Any) -> Item:
    """A forwarded call that nobody is known to have answered."""
    return happened(call, **{"answer": None, **more})


@pytest.mark.parametrize(
    ("rule", "items", "state"),
    [
        (EXIT, [*PORT, hypercall(1, 24, *ALL_REGISTERS, handled=VMM)], "held"),
        (EXIT, [*PORT, arm(1, 1, VMM, longmode=False), set_timer_op(1, 7, VMM, cpl=3)], "held"),
        (EXIT, [*READY, arm(1, 1)], "not-exercised"),
        (EXIT, [*PORT, spoiled(hypercall(1, 17, 0, handled=VMM), input=18)], "not-exercised"),
        (EXIT, [spoiled(arm(1, 1, VMM), cpl=3)], "not-exercised"),
        (ANSWER, [*PORT, arm(1, 1, VMM, ENOSYS), set_timer_op(0, 7, VMM, 5)], "held"),
        (ANSWER, [*PORT, happened(arm(1, 1, VMM, ENOSYS, longmode=False), answer=2**64 - 38)], "held"),
        (ANSWER, [*READY, arm(1, 1)], "not-exercised"),
        (ANSWER, [*PORT, without_answer(arm(1, 1, VMM))], "not-exercised"),
        (OWN, [*READY, arm(1, 1), stop(1, 1), arm(1, 1, longmode=False)], "held"),
        (OWN, [*READY, arm(1, 1, KERNEL, EFAULT)], "held"),
        (OWN, [*READY, arm(1, 1, KERNEL, EFAULT, longmode=False)], "held"),
        (OWN, [*READY, arm(1, 0, KERNEL, EINVAL)], "not-exercised"),
        (OWN, [*PORT, arm(1, 0)], "not-exercised"),
        (OWN, [*READY, arm(1, 1, VMM, cpl=1)], "not-exercised"),
        (OWN, [*READY, set_port(1, 0), arm(1, 1, VMM)], "not-exercised"),
        (OWN, [*READY, arm(1, 1 + HIGH)], "not-exercised"),
        (OWN, [*READY, evolve(arm(1, 1, VMM), extra={"unseen_args": [1]})], "not-exercised"),
        (OWN, [*READY, evolve(arm(1, 1, VMM), extra={"unseen_args": [0]})], "not-exercised"),
        (OTHER, [*READY, arm(1, 0, KERNEL, EINVAL), stop(1, 2, KERNEL, EINVAL, longmode=False)], "held"),
        (OTHER, [*READY, arm(1, 1)], "not-exercised"),
        (OTHER, [*PORT, arm(1, 1, KERNEL, EINVAL)], "not-exercised"),
        (OTHER, [*READY, arm(1, 0, VMM, cpl=1)], "not-exercised"),
        (BITS, [*READY, arm(1, 1 + HIGH), arm(1, 2 + HIGH, KERNEL, EINVAL)], "held"),
        (BITS, [*READY, arm(1, 1, sub_op=8 + HIGH), stop(1, 1 + HIGH)], "held"),
        (BITS, [*READY, arm(1, 1), stop(1, 1)], "not-exercised"),
        (BITS, [*PORT, arm(1, 1 + HIGH, VMM)], "not-exercised"),
        (BITS, [*READY, arm(1, 1 + HIGH, VMM, cpl=3)], "not-exercised"),
        (NO_PORT, [config(), set_id(1, 1), arm(1, 1, VMM), stop(0, 0, VMM), set_timer_op(1, 7, VMM)], "held"),
        (NO_PORT, [config(), set_port(1, 9, EINVAL), arm(1, 1, VMM)], "held"),
        (NO_PORT, [*READY, arm(1, 1), set_timer_op(1, 7)], "not-exercised"),
        (NO_PORT, [config(), arm(1, 1, VMM, cpl=3)], "not-exercised"),
        (NO_PORT, [arm(1, 1, KERNEL, -1000)], "not-exercised"),
        (SET_TIMER, [*PORT, set_timer_op(1, 7), set_id(1, 4), set_timer_op(1, 0)], "held"),
        (SET_TIMER, [*PORT, set_timer_op(1, 7, longmode=False)], "held"),
        (SET_TIMER, [config(), set_timer_op(1, 7, VMM)], "not-exercised"),
        (SET_TIMER, [*PORT, set_timer_op(1, 7, VMM, cpl=3), arm(1, 1, VMM)], "not-exercised"),
        (CPL, [*READY, arm(1, 1, VMM, cpl=3), set_timer_op(1, 7, VMM, cpl=1)], "held"),
        (CPL, [config(), stop(0, 0, VMM, cpl=2)], "held"),
        (CPL, [*READY, arm(1, 1)], "not-exercised"),
        (CPL, [arm(1, 1, KERNEL, -1, cpl=3)], "not-exercised"),
        (CPL, [*READY, hypercall(1, 29, 0, handled=VMM, cpl=3)], "not-exercised"),
    ],
)
def test_held_or_not_exercised(rule: str, items: list[Item], state: str) -> None:
    """A rule holds where what it demands happened, and says what it takes where nothing was to judge."""
    check(verdict(rule, *items), state)


@pytest.mark.parametrize(
    ("rule", "items", "says"),
    [
        (
            EXIT,
            [*PORT, spoiled(arm(1, 1, VMM, ENOSYS), cpl=3, params=(8, 0, 1, 0, 0, 0))],
            [
                (
                    "vCPU 1 (no Xen ID, timer port 9, CPL 0): VCPUOP_set_singleshot_timer(vcpu=1, "
                    "arg=0x200000) was forwarded to the VMM, which answered -ENOSYS (-38)"
                ),
                "KVM_EXIT_XEN had cpl 0x3 for 0x0, params[1] 0x0 for 0x1, params[2] 0x1 for 0x200000",
                "report it to the host",
            ],
        ),
        (EXIT, [*PORT, spoiled(arm(1, 1, VMM), longmode=0)], ["longmode 0x0 for 0x1"]),
        (EXIT, [*PORT, spoiled(arm(1, 1, VMM), input=15)], ["input 0xf for 0x18"]),
        (EXIT, [*PORT, spoiled(arm(1, 1, VMM), type=2)], ["type 0x2 for 0x1"]),
        (EXIT, [*PORT, spoiled(arm(1, 1, VMM), params=(8, NowPlus(5), *ALL_REGISTERS[2:]))], ["params[1] "]),
        (EXIT, [*PORT, spoiled(arm(1, 1, VMM), params=())], ["six parameters"]),
        (EXIT, [*PORT, evolve(arm(1, 1, VMM), exit=None)], ["must say what the guest asked for"]),
        (
            ANSWER,
            [*PORT, happened(arm(1, 1, VMM, 0), answer=2**64 - 38)],
            [
                "VCPUOP_set_singleshot_timer(vcpu=1",
                "the guest must get exactly the VMM's answer, -ENOSYS (-38)",
            ],
        ),
        (
            ANSWER,
            [*PORT, happened(arm(1, 1, VMM, 0, longmode=False), answer=2**64 - 38)],
            ["[32-bit]", "exactly the VMM's answer, -ENOSYS (-38)"],
        ),
        (
            OWN,
            [*READY, arm(1, 1, VMM, ENOSYS)],
            [
                (
                    "vCPU 1 (Xen ID 1, timer port 9, CPL 0): VCPUOP_set_singleshot_timer(vcpu=1, "
                    "arg=0x200000) was forwarded to the VMM, which answered -ENOSYS (-38); the kernel must "
                    "serve it: 0 (or -EFAULT"
                ),
                "Read VCPU_ID and TIMER back",
            ],
        ),
        (OWN, [*READY, arm(1, 1, KERNEL, EINVAL)], ["was handled in the kernel: -EINVAL (-22)"]),
        (OWN, [*READY, stop(1, 1, KERNEL, EFAULT)], ["-EFAULT (-14); the kernel must serve it: 0. "]),
        (
            OTHER,
            [*READY, arm(1, 2, KERNEL)],
            ["(vcpu=2, arg=0x200000) was handled in the kernel: 0; the kernel must refuse it: -EINVAL (-22)"],
        ),
        (
            OTHER,
            [*READY, arm(1, 2, VMM, EINVAL)],
            ["was forwarded to the VMM, which answered -EINVAL (-22);"],
        ),
        (OTHER, [*READY, arm(1, 2, KERNEL, EFAULT, longmode=False)], ["[32-bit] was handled in the kernel"]),
        (
            BITS,
            [*READY, arm(1, 1 + HIGH, KERNEL, EINVAL)],
            ["(vcpu=0x100000001 (1), ", "the kernel must serve it: 0", "lose bits 32 to 63"],
        ),
        (BITS, [*READY, arm(1, 1, VMM, sub_op=8 + HIGH)], ["must serve it: 0"]),
        (BITS, [*READY, arm(1, 2 + HIGH, VMM)], ["must refuse it: -EINVAL (-22)"]),
        (
            NO_PORT,
            [config(), set_id(1, 1), arm(1, 1)],
            ["vCPU 1 (Xen ID 1, no timer port, CPL 0): VCPUOP_set", "must be forwarded", "Read TIMER back"],
        ),
        (NO_PORT, [*PORT, set_port(1, 0), set_timer_op(1, 7)], ["set_timer_op(timeout=@7 ns) was handled"]),
        (
            SET_TIMER,
            [*PORT, set_timer_op(1, 7, VMM)],
            [
                "vCPU 1 (no Xen ID, timer port 9, CPL 0): set_timer_op(timeout=@7 ns) was forwarded",
                "serve it: 0.",
            ],
        ),
        (
            SET_TIMER,
            [*PORT, set_timer_op(1, 0, KERNEL, EINVAL)],
            ["set_timer_op(timeout=0 (stop)) was handled"],
        ),
        (
            CPL,
            [*READY, arm(1, 1, cpl=3)],
            [
                "vCPU 1 (Xen ID 1, timer port 9, CPL 3): VCPUOP_set",
                "it must be forwarded to the VMM. A guest's",
            ],
        ),
        (CPL, [config(), set_timer_op(0, 7, KERNEL, EINVAL, cpl=1)], ["no timer port, CPL 1"]),
    ],
)
def test_violated(rule: str, items: list[Item], says: list[str]) -> None:
    """A finding names the vCPU, how it is set up, the call, what came of it, and what to do."""
    found = verdict(rule, *items)
    check(found, "violated", *says)
    assert found.violations == 1
    assert found.findings[0].place.index == len(items) - 1


def test_a_time_relative_to_the_clock_is_not_compared() -> None:
    """An argument that the trace gives relative to the guest's clock has no number to hold the exit to."""
    call = set_timer_op(1, 0, VMM)
    later = evolve(call, args=(NowPlus(1000), *call.args[1:]))
    check(verdict(EXIT, config(), spoiled(later, params=(123_456, *call.args[1:]))), "held")


def test_a_32_bit_exit_has_32_bits() -> None:
    """In 32-bit mode the exit must have the lower halves of the registers, whatever the upper ones hold."""
    raw = {"nr": 24 + HIGH, "args": [8 + HIGH, 1, 0x20_0000, 0, 0, HIGH]}
    call = evolve(arm(1, 1, VMM, longmode=False), raw=raw)
    check(verdict(EXIT, *PORT, call), "held")
    check(verdict(EXIT, *PORT, spoiled(call, input=24 + HIGH)), "violated", "input 0x100000018 for 0x18")
