"""The host rules of the family vcpu-id, on tiny traces that hold, violate and don't exercise them."""

from __future__ import annotations

from typing import Final

import pytest
from attrs import evolve
from rule_traces import (
    EINVAL,
    ENOSYS,
    KERNEL,
    UNSET,
    VMM,
    Item,
    arm,
    check,
    config,
    get_id,
    happened,
    set_id,
    set_port,
    stop,
    verdict,
)

from pytest_xenkvm.trace.events import Behind

NEW: Final = "vcpu-id.new-is-unset"
REFUSED: Final = "vcpu-id.refused-set-leaves-unset"
SENTINEL: Final = "vcpu-id.sentinel-is-refused"
FORWARDS: Final = "vcpu-id.unset-forwards"
READY: Final[tuple[Item, ...]] = (config(), set_port(1, 9))
"""vCPU 1 has a timer port and no ID."""
SET_THE_ID: Final = "set KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID on every vCPU before the guest runs"


@pytest.mark.parametrize(
    ("rule", "items", "state"),
    [
        (NEW, [get_id(0, UNSET), get_id(1, UNSET)], "held"),
        (NEW, [set_id(0, 0), get_id(1, UNSET)], "held"),
        (NEW, [set_id(0, 4096, EINVAL), get_id(0, UNSET)], "held"),
        (NEW, [set_id(0, 5), get_id(0, 5)], "not-exercised"),
        (NEW, [evolve(get_id(0, 0), ret=EINVAL, out=None)], "not-exercised"),
        (NEW, [evolve(get_id(0, 0), inferred=True)], "not-exercised"),
        (NEW, [evolve(set_id(0, 5), inferred=True), get_id(0, 5)], "not-exercised"),
        (REFUSED, [set_id(1, 4096, EINVAL), get_id(1, UNSET), get_id(1, UNSET)], "held"),
        (REFUSED, [get_id(1, UNSET)], "not-exercised"),
        (REFUSED, [set_id(0, 4096, EINVAL), get_id(1, UNSET)], "not-exercised"),
        (REFUSED, [set_id(1, 4096, EINVAL), set_id(1, 0), get_id(1, 0)], "not-exercised"),
        (SENTINEL, [set_id(0, UNSET, EINVAL)], "held"),
        (SENTINEL, [set_id(0, 3), get_id(0, 3), set_id(0, UNSET, EINVAL)], "held"),
        (SENTINEL, [set_id(0, UNSET - 1, EINVAL)], "not-exercised"),
        (FORWARDS, [*READY, arm(1, 1, VMM, ENOSYS), stop(1, 0, VMM)], "held"),
        (FORWARDS, [*READY, arm(1, UNSET, VMM), arm(1, 1 << 32, VMM)], "held"),
        (FORWARDS, [*READY, arm(1, 1, VMM, longmode=False)], "held"),
        (FORWARDS, [*READY, set_id(0, 0), set_id(1, 4096, EINVAL), arm(1, 1, VMM)], "held"),
        (FORWARDS, [*READY, set_id(1, 1), arm(1, 1, KERNEL)], "not-exercised"),
        (FORWARDS, [*READY, arm(1, 1, VMM, cpl=3)], "not-exercised"),
        (FORWARDS, [*READY, arm(1, 1, VMM, sub_op=7)], "not-exercised"),
        (FORWARDS, [*READY, arm(0, 0, VMM)], "not-exercised"),
        (FORWARDS, [*READY, set_port(1, 0), arm(1, 1, VMM)], "not-exercised"),
        (FORWARDS, [set_port(1, 9), arm(1, 1, KERNEL, -1000)], "not-exercised"),
        (FORWARDS, [config(flags=0x20), set_port(1, 9), arm(1, 1, KERNEL, -1000)], "not-exercised"),
        (FORWARDS, [config(msr=0), set_port(1, 9), arm(1, 1, KERNEL, -1000)], "not-exercised"),
        (FORWARDS, [config(ret=EINVAL), set_port(1, 9), arm(1, 1, KERNEL, -1000)], "not-exercised"),
        (FORWARDS, [config(), set_port(1, 9, EINVAL), arm(1, 1, VMM)], "not-exercised"),
        (FORWARDS, [*READY, happened(arm(1, 1, KERNEL), unjudged=("unseen memory",))], "not-exercised"),
        (FORWARDS, [*READY, arm(1, 1, None)], "not-exercised"),
        (FORWARDS, [*READY, arm(1, 1, KERNEL, run_ret=EINVAL)], "not-exercised"),
    ],
)
def test_held_or_not_exercised(rule: str, items: list[Item], state: str) -> None:
    """A rule holds where what it demands happened, and says what it takes where nothing was to judge."""
    check(verdict(rule, *items), state)


@pytest.mark.parametrize(
    ("rule", "items", "says"),
    [
        (
            NEW,
            [get_id(0, UNSET), get_id(1, 0)],
            ["vCPU 1: KVM_XEN_VCPU_GET_ATTR(VCPU_ID) read 0 before the VMM gave it an ID", SET_THE_ID],
        ),
        (
            REFUSED,
            [set_id(1, 4096, EINVAL), get_id(1, 0)],
            ["vCPU 1: KVM_XEN_VCPU_GET_ATTR(VCPU_ID) read 0, though every", "refused", SET_THE_ID],
        ),
        (
            SENTINEL,
            [set_id(1, UNSET)],
            [
                (
                    "vCPU 1: KVM_XEN_VCPU_SET_ATTR(VCPU_ID, vcpu_id=XEN_VCPU_ID_INVALID (0xffffffff)) "
                    "answered 0;"
                ),
                "must be refused with -EINVAL (-22)",
                "leave an ID that was read as unset out",
            ],
        ),
        (SENTINEL, [set_id(1, UNSET, -2)], ["answered -ENOENT (-2);"]),
        (
            FORWARDS,
            [
                *READY,
                arm(
                    1,
                    1,
                    KERNEL,
                    EINVAL,
                    behind=(Behind(arg=2, data=bytes(16), now_plus_at=((0, 1_000_000),)),),
                ),
            ],
            [
                (
                    "vCPU 1 (no Xen ID, timer port 9, CPL 0): "
                    "VCPUOP_set_singleshot_timer(vcpu=1, timeout=+1 ms) was handled in the kernel: "
                    "-EINVAL (-22); it must be forwarded to the VMM"
                ),
                SET_THE_ID,
            ],
        ),
        (FORWARDS, [*READY, stop(1, UNSET)], ["VCPUOP_stop_singleshot_timer(vcpu=XEN_VCPU_ID_INVALID"]),
        (FORWARDS, [*READY, arm(1, 0, longmode=False)], ["[32-bit] was handled in the kernel: 0"]),
        (
            FORWARDS,
            [evolve(config(), inferred=True), evolve(set_port(1, 9), inferred=True), arm(1, 1)],
            ["timer port 9"],
        ),
    ],
)
def test_violated(rule: str, items: list[Item], says: list[str]) -> None:
    """A finding names the vCPU, what was done in words, what came of it, and what to do."""
    found = verdict(rule, *items)
    check(found, "violated", *says)
    assert found.violations == 1
    assert found.findings[0].place.index == len(items) - 1


def test_every_vcpu_counts() -> None:
    """Each new vCPU that reads back an ID is a violation of its own."""
    found = verdict(NEW, get_id(0, 0), get_id(1, 0), get_id(2, 0))
    check(found, "violated", "vCPU 0:", "vCPU 1:", "vCPU 2:")
    assert (found.exercised, found.violations) == (3, 3)
