"""Rules about what a VMM answers, whatever the hypercall: at all, to user mode, to unknown numbers."""

from __future__ import annotations

from errno import ENOSYS, EPERM
from typing import Final

import pytest
from attrs import evolve
from rule_traces import KERNEL, Item, check, config, happened, hypercall, verdict
from vmm_events import forwarded, judged

from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.trace.events import Hypercall

ANSWERED: Final = "hypercalls.are-answered"
USER_MODE: Final = "hypercalls.user-mode-is-refused"
UNKNOWN: Final = "hypercalls.unknown-is-enosys"
VERSION: Final = "hypercalls.version-is-told"

CALL: Final = forwarded(Nr.memory_op, 7, result=-ENOSYS)


# ---- hypercalls.are-answered


def test_any_result_is_an_answer() -> None:
    """0, a value and -ENOSYS are answers."""
    for result in (0, 5, -ENOSYS):
        check(judged(ANSWERED, forwarded(Nr.memory_op, 7, result=result)), "held")


def test_no_result_is_none() -> None:
    """A call that the VMM leaves alone is a violation that names the call and what to store."""
    left = happened(forwarded(Nr.memory_op, 7, vcpu=1), answer=None, unanswered=True)
    check(
        judged(ANSWERED, left),
        "violated",
        "vCPU 1: XENMEM_add_to_physmap(arg=0x0) was forwarded to the VMM, which gave no result; the guest",
        "store a result for every forwarded hypercall, -ENOSYS (-38) for one that the VMM doesn't implement",
    )


@pytest.mark.parametrize(
    "item",
    [
        hypercall(0, Nr.xen_version, 0, handled=KERNEL, result=5),
        happened(CALL, unjudged=("rax",)),
        happened(CALL, unjudged=("unseen memory",)),
    ],
    ids=["kernel", "unseen-answer", "unseen-memory"],
)
def test_calls_that_say_nothing_about_answers(item: Item) -> None:
    """Only a forwarded call whose answer was seen tells."""
    check(judged(ANSWERED, item), "not-exercised")
    check(judged(USER_MODE, item), "not-exercised")
    check(verdict(ANSWERED, CALL), "not-exercised")


# ---- hypercalls.user-mode-is-refused


@pytest.mark.parametrize(("cpl", "longmode"), [(1, True), (2, True), (3, True), (3, False)])
def test_user_mode_gets_eperm(cpl: int, *, longmode: bool) -> None:
    """-EPERM holds at every level above 0 and in either width; anything else is a violation."""
    call = forwarded(Nr.sched_op, 1, result=-EPERM, cpl=cpl, longmode=longmode)
    check(judged(USER_MODE, call), "held")
    served = forwarded(Nr.sched_op, 1, result=0, cpl=cpl, longmode=longmode)
    check(
        judged(USER_MODE, served),
        "violated",
        f"vCPU 0: SCHEDOP_block() [{'' if longmode else '32-bit, '}CPL {cpl}] was answered 0; Xen refuses "
        "hypercalls above CPL 0 with -EPERM (-1): look at the CPL of KVM_EXIT_XEN before anything else",
    )


def test_enosys_is_no_refusal_of_user_mode() -> None:
    """-ENOSYS tells user mode what the VMM has, so it is no better."""
    check(judged(USER_MODE, forwarded(99, result=-ENOSYS, cpl=3)), "violated", "was answered -ENOSYS (-38)")


def test_the_kernel_of_the_guest_is_not_concerned() -> None:
    """At CPL 0 the rule says nothing."""
    check(judged(USER_MODE, CALL), "not-exercised")


# ---- hypercalls.unknown-is-enosys


@pytest.mark.parametrize("nr", [64, 1000, 1 << 32 | 24, (1 << 64) - 1])
def test_unknown_numbers_get_enosys(nr: int) -> None:
    """Numbers beyond Xen's table, in all their bits."""
    check(judged(UNKNOWN, forwarded(nr, 7, result=-ENOSYS)), "held")
    check(
        judged(UNKNOWN, forwarded(nr, 7, result=0)),
        "violated",
        "was answered 0; Xen has no hypercall of this number and answers -ENOSYS (-38): answer that to every",
    )


def test_what_is_no_unknown_number() -> None:
    """Numbers of Xen's table, also unassigned ones, and calls from user mode are not judged."""
    for call in (forwarded(63, result=0), forwarded(11, result=0), forwarded(1000, result=-EPERM, cpl=3)):
        check(judged(UNKNOWN, call), "not-exercised")


# ---- hypercalls.version-is-told


def version(handled: str, result: int, **more: object) -> Hypercall:
    """XENVER_version."""
    return hypercall(0, Nr.xen_version, 0, handled=handled, result=result, **more)


@pytest.mark.parametrize("handled", ["kernel", "userspace"])
def test_a_version_is_told(handled: str) -> None:
    """By whomever, if it is more than 0."""
    check(judged(VERSION, version(handled, 4 << 16 | 17)), "held")
    for result, words in ((0, "0"), (-ENOSYS, "-ENOSYS (-38)")):
        check(
            judged(VERSION, version(handled, result)),
            "violated",
            f"vCPU 0: XENVER_version() ended with {words}; Xen answers its version, major << 16 | minor: set "
            "KVM_XEN_ATTR_TYPE_XEN_VERSION so that the kernel does",
        )


def test_what_asks_for_no_version() -> None:
    """Other sub-operations, user mode, unknown outcomes, no answer and no interception."""
    asked = version("userspace", -ENOSYS)
    silent: list[Item] = [
        forwarded(Nr.xen_version, 1, result=-ENOSYS),
        forwarded(Nr.xen_version, 1 << 32, result=-ENOSYS),
        version("userspace", -EPERM, cpl=3),
        evolve(asked, rax=None, handled=None),
        happened(asked, unjudged=("rax",)),
        happened(asked, answer=None, unanswered=True),
    ]
    for item in silent:
        check(judged(VERSION, item), "not-exercised")
    check(verdict(VERSION, config(flags=0), asked), "not-exercised")
