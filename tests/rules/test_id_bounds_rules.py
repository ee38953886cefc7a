"""The rules of the family vcpu-id-bounds, on tiny traces that hold, violate and don't exercise them."""

from __future__ import annotations

from typing import Final

import pytest
from attrs import evolve
from rule_traces import (
    EINVAL,
    RULES,
    UNSET,
    HandTrace,
    Item,
    arm,
    check,
    get_id,
    header,
    set_id,
    verdict,
)

from pytest_xenkvm.abi.numbers import KVM_MAX_VCPUS_ALLOWED
from pytest_xenkvm.rules.model import State
from pytest_xenkvm.rules.run import ReplayOptions, run_trace
from pytest_xenkvm.trace.events import VcpuRun

ACCEPTED: Final = "vcpu-id-bounds.valid-is-accepted"
REFUSED: Final = "vcpu-id-bounds.invalid-is-refused"
BACK: Final = "vcpu-id-bounds.set-reads-back"
NOTHING: Final = "vcpu-id-bounds.refused-changes-nothing"
STATIC: Final = "vcpu-id-bounds.sentinel-is-no-id"
HOST_RULES: Final = [ACCEPTED, REFUSED, BACK, NOTHING, STATIC]

BEYOND: Final = (4096, 4097, (1 << 31) - 1, 1 << 31, UNSET)


@pytest.mark.parametrize(
    ("rule", "items", "state"),
    [
        (ACCEPTED, [set_id(0, 0), set_id(1, 4095)], "held"),
        (ACCEPTED, [set_id(0, 4096, EINVAL)], "not-exercised"),
        (ACCEPTED, [evolve(set_id(0, 0), inferred=True)], "not-exercised"),
        (REFUSED, [set_id(0, beyond, EINVAL) for beyond in BEYOND], "held"),
        (REFUSED, [set_id(0, 4095)], "not-exercised"),
        (BACK, [set_id(0, 4095), set_id(1, 0), get_id(1, 0), get_id(0, 4095)], "held"),
        (BACK, [set_id(0, 1), set_id(0, 2), get_id(0, 2)], "held"),
        (BACK, [get_id(0, UNSET), set_id(0, 1)], "not-exercised"),
        (BACK, [set_id(0, 1, EINVAL), get_id(0, UNSET)], "not-exercised"),
        (BACK, [set_id(0, 1), evolve(set_id(0, 2), inferred=True), get_id(0, 2)], "not-exercised"),
        (BACK, [set_id(0, 1), evolve(get_id(0, 0), out=None)], "not-exercised"),
        (NOTHING, [set_id(0, 7), set_id(0, 4096, EINVAL), get_id(0, 7)], "held"),
        (NOTHING, [get_id(0, UNSET), set_id(0, UNSET, EINVAL), get_id(0, UNSET)], "held"),
        (NOTHING, [get_id(0, 0), set_id(0, UNSET, EINVAL), get_id(0, 0)], "held"),
        (NOTHING, [set_id(0, 4096, EINVAL), get_id(0, UNSET)], "not-exercised"),
        (NOTHING, [set_id(0, 7), set_id(0, 4096, EINVAL), set_id(0, 8), get_id(0, 8)], "not-exercised"),
        (NOTHING, [set_id(0, 7), set_id(1, 4096, EINVAL), get_id(0, 7)], "not-exercised"),
        (STATIC, [set_id(0, 0), set_id(0, 1)], "held"),
        (STATIC, [VcpuRun(vcpu=0), arm(0, 0)], "not-exercised"),
    ],
)
def test_held_or_not_exercised(rule: str, items: list[Item], state: str) -> None:
    """A rule holds where what it demands happened, and says what it takes where nothing was to judge."""
    check(verdict(rule, *items), state)


@pytest.mark.parametrize(
    ("rule", "items", "says"),
    [
        (
            ACCEPTED,
            [set_id(1, 4095, EINVAL)],
            [
                "vCPU 1: KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id=4095) answered -EINVAL (-22)",
                "IDs below KVM_MAX_VCPUS (4096) must be accepted",
                "KVM_CHECK_EXTENSION(KVM_CAP_MAX_VCPUS)",
            ],
        ),
        *(
            (
                REFUSED,
                [set_id(1, beyond)],
                [
                    "vCPU 1: KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id=",
                    "answered 0; IDs from KVM_MAX_VCPUS (4096)",
                ],
            )
            for beyond in BEYOND
        ),
        (REFUSED, [set_id(1, 4096, -1)], ["answered -EPERM (-1); ", "must be refused with -EINVAL (-22)"]),
        (
            BACK,
            [set_id(1, 7), get_id(1, 0)],
            ["vCPU 1: KVM_XEN_VCPU_GET_ATTR(VCPU_ID) read 0, though the VMM had set 7", "Compare"],
        ),
        (BACK, [set_id(0, 7), get_id(0, UNSET)], ["read XEN_VCPU_ID_INVALID (0xffffffff), though"]),
        (
            NOTHING,
            [set_id(1, 7), set_id(1, 4096, EINVAL), get_id(1, 0)],
            [
                (
                    "vCPU 1: KVM_XEN_VCPU_GET_ATTR(VCPU_ID) read 0 after "
                    "KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id=4096) was refused; it must still be 7"
                ),
                "Set the right ID again",
            ],
        ),
        (
            NOTHING,
            [get_id(0, UNSET), set_id(0, 4096, EINVAL), get_id(0, 4096)],
            ["it must still be XEN_VCPU_ID_INVALID (0xffffffff)"],
        ),
    ],
)
def test_violated(rule: str, items: list[Item], says: list[str]) -> None:
    """A finding names the vCPU, what was asked, what came of it, and what to do."""
    found = verdict(rule, *items)
    check(found, "violated", *says)
    assert found.findings[0].place.index == len(items) - 1


def test_the_bound_is_the_hosts() -> None:
    """What is valid depends on KVM_MAX_VCPUS of the replay's host, and on nothing else."""
    check(verdict(ACCEPTED, set_id(0, 1024), max_vcpus=1025), "held")
    check(verdict(REFUSED, set_id(0, 1024, EINVAL), max_vcpus=1024), "held")
    check(verdict(REFUSED, set_id(0, 1024), max_vcpus=1024), "violated", "KVM_MAX_VCPUS (1024)")


def test_a_host_whose_ids_meet_the_sentinel_is_found() -> None:
    """KVM_MAX_VCPUS must leave 0xffffffff out: one more is a violation, found once."""
    check(verdict(STATIC, set_id(0, 0), max_vcpus=UNSET), "held")
    found = verdict(STATIC, set_id(0, 0), set_id(0, 1), max_vcpus=UNSET + 1)
    check(found, "violated", "KVM_MAX_VCPUS is 0x100000000", "CONFIG_KVM_MAX_NR_VCPUS in 1024 ... 4096")
    assert found.violations == 1


def test_a_trace_that_hides_the_limit_does_not_exercise_it() -> None:
    """Without KVM_MAX_VCPUS in the header there is nothing to compare the sentinel with."""
    check(verdict(STATIC, set_id(0, 0), of=header(max_vcpus=None)), "not-exercised")


def test_every_limit_that_a_kernel_can_be_built_with() -> None:
    """For each KVM_MAX_VCPUS from 1024 to 4096 the sentinel is no ID, and the bound lies where it says."""
    assert (KVM_MAX_VCPUS_ALLOWED[0], KVM_MAX_VCPUS_ALLOWED[-1]) == (1024, 4096)
    for bound in KVM_MAX_VCPUS_ALLOWED:
        items = (
            *(set_id(0, 0), get_id(0, 0), set_id(0, bound - 1), get_id(0, bound - 1)),
            *(set_id(0, bound, EINVAL), set_id(0, UNSET, EINVAL), get_id(0, bound - 1)),
        )
        trace = HandTrace(header=header(vcpus=1, max_vcpus=bound), items=items)
        result = run_trace(trace, [RULES[rule] for rule in HOST_RULES], ReplayOptions(profile="linux-7.3"))
        assert result.divergence_count == 0
        assert {found.state for found in result.verdicts} == {State.HELD}
