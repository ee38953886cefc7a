"""The switches of the profiles: a golden of one kernel diverges on another's profile where they differ."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, Final

import pytest
from attrs import evolve, fields
from golden_traces import divergences, load, replay

from pytest_xenkvm.abi.numbers import XEN_VCPU_ID_INVALID, Hypercall, VcpuAttr, VcpuOp
from pytest_xenkvm.core.profile import LINUX_6_12, LINUX_7_2, LINUX_7_3, PROFILES, Profile
from pytest_xenkvm.replay.observation import Divergence
from pytest_xenkvm.trace.events import Hypercall as HypercallEvent
from pytest_xenkvm.trace.events import Ioctl

DEFAULT_ID_CALLS = (
    "44 46-47 49-50 52-53 55-56 58-59 61-62 64-65 67-68 70-71 73-74 76-77 79-80 82-83 85-86 88-89 91-92 "
    "94-95 97-98 100-101 103-104 106-111 113-117 119-123"
)

ID_SWITCHES = {
    "vcpu-id-default": {
        "VCPU_ID": "3-5 14-16 20-22 41-43",
        "TIMER": "45 66 87 118 124",
        "handled": DEFAULT_ID_CALLS,
    },
    "vcpu-id-bounds": {"VCPU_ID": "2 37 39 41 43 45 47 49 51 53"},
    "singleshot-id": {"VCPU_ID": "11 154 301", "handled": "157-174 193-204 217 219 221 223 298-300"},
}
"""7.3 against the kernels before: GETs of the unset ID, calls while it is unset, and the timers they arm."""

OTHER_SWITCHES = {
    "vcpu-info": {
        "ret": "30 36 38 40 42 46 50 54 59 68 71 74 77 83 89 95 108 148 164",
        "VCPU_INFO": "39 41 43 47 51 55",
        "VCPU_INFO_HVA": "72 75 78 84 90 96",
        "mem": "111 114 119",
    },
    "hvm-config-msr": {"ret": "4 16 28 40", "ok": "5 17 29 41", "mem": "6 18 30 42", "LONG_MODE": "8"},
}
"""6.12 against the kernels after: unaligned VCPU_INFOs, and MSRs out of range with the pages they give."""


def numbers(ranges: str) -> list[int]:
    """Line numbers written like "3-5 14"."""
    bounds = [[int(number) for number in part.split("-")] for part in ranges.split()]
    return [line for first, *last in bounds for line in range(first, (last or [first])[0] + 1)]


def label(found: Divergence) -> str:
    """The kind of a divergence, or the attribute that a GET read."""
    if found.kind != "out":
        return found.kind
    if found.expected.keys() <= {"type", "long_mode"}:
        return "LONG_MODE"
    return VcpuAttr(found.expected["type"]).name


def lines_by_label(found: list[Divergence]) -> dict[str, list[int]]:
    """The lines of divergences by label."""
    lines = defaultdict(list)
    for divergence in found:
        lines[label(divergence)].append(divergence.place.line)
    return dict(lines)


@pytest.mark.parametrize("topic", ID_SWITCHES)
@pytest.mark.parametrize(
    ("recorded", "profile"),
    [
        ("linux-6.12", LINUX_7_3),
        ("linux-7.2", LINUX_7_3),
        ("linux-7.3", LINUX_6_12),
        ("linux-7.3", LINUX_7_2),
    ],
    ids=lambda value: value.name if isinstance(value, Profile) else value,
)
def test_the_unset_vcpu_id_tells_7_3_from_older_kernels(topic: str, recorded: str, profile: Profile) -> None:
    """Exactly the outcomes that depend on an unset ID differ between Linux 7.3 and the kernels before it."""
    found = divergences(replay(*load(f"{recorded}/directed/{topic}"), profile))
    expected = {name: numbers(ranges) for name, ranges in ID_SWITCHES[topic].items()}
    assert lines_by_label(found) == expected


@pytest.mark.parametrize("topic", OTHER_SWITCHES)
@pytest.mark.parametrize(
    ("recorded", "profile"),
    [
        ("linux-6.12", LINUX_7_2),
        ("linux-6.12", LINUX_7_3),
        ("linux-7.2", LINUX_6_12),
        ("linux-7.3", LINUX_6_12),
        ("linux-7.3-max1024", LINUX_6_12),
    ],
    ids=lambda value: value.name if isinstance(value, Profile) else value,
)
def test_alignment_and_msr_range_tell_6_12_from_newer_kernels(
    topic: str, recorded: str, profile: Profile
) -> None:
    """Exactly the unaligned VCPU_INFOs and the MSRs out of range differ between 6.12 and later kernels."""
    found = divergences(replay(*load(f"{recorded}/directed/{topic}"), profile))
    expected = {name: numbers(ranges) for name, ranges in OTHER_SWITCHES[topic].items()}
    assert lines_by_label(found) == expected


def test_kvm_max_vcpus_is_taken_from_the_header() -> None:
    """The build with KVM_MAX_VCPUS 1024 has its own bounds, and the same unset ID."""
    found = divergences(replay(*load("linux-7.3-max1024/directed/vcpu-id-bounds"), LINUX_7_2))
    assert lines_by_label(found) == {"VCPU_ID": numbers("2 37 39 41 43 45 47 49 51 53 55 57 59 61")}
    header, events = load("linux-7.3-max1024/directed/vcpu-id-bounds")
    found = divergences(replay(evolve(header, max_vcpus=4096), events))
    assert {"ret", "out"} <= {divergence.kind for divergence in found}


def test_what_differs_is_the_default_id_and_who_handles_the_call() -> None:
    """7.3 shows the sentinel for 0 and forwards singleshot calls that older kernels handled, no more."""
    for found in divergences(replay(*load("linux-7.2/directed/singleshot-id"), LINUX_7_3)):
        recorded = found.recorded
        if isinstance(recorded, Ioctl):
            assert found.expected == {"type": VcpuAttr.VCPU_ID, "vcpu_id": 0}
            assert found.observed == {"type": VcpuAttr.VCPU_ID, "vcpu_id": XEN_VCPU_ID_INVALID}
        else:
            assert isinstance(recorded, HypercallEvent)
            assert (recorded.nr, found.expected["handled"]) == (Hypercall.vcpu_op, "kernel")
            assert recorded.args[0] in (
                VcpuOp.set_singleshot_timer,
                VcpuOp.stop_singleshot_timer,
                1 << 32 | 8,
            )
            assert found.observed["handled"] == "userspace"


FLIPPED: Final[dict[str, tuple[Any, str]]] = {
    "unset_vcpu_id": (1, "linux-7.2/directed/vcpu-id-default"),
    "forwards_singleshot_while_id_unset": (False, "linux-7.3/directed/vcpu-id-default"),
    "vcpu_info_alignment": (2, "linux-6.12/directed/vcpu-info"),
    "hypercall_msr_range": (range(0x4000_0000, 0x4FFF_FFFF), "linux-7.2/directed/hvm-config"),
    "guest_stopped_bleeds": (True, "linux-7.3/lab/stopped"),
    "shared_info_updates_clocks": (True, "linux-7.3/lab/pvclock"),
}
"""A wrong value for a switch, and a golden that shows it."""
WITHOUT_GOLDEN = {"runstate_ignores_backward_clock", "vmm_requests_hypercall_page"}
"""No recorder can turn a host's clock back, and a trace holds no KVM_SET_MSRS: see the tests of both."""


@pytest.mark.parametrize("switch", FLIPPED)
def test_each_switch_alone_is_noticed(switch: str) -> None:
    """A profile that is wrong in one switch only diverges from its kernel's goldens."""
    value, name = FLIPPED[switch]
    own = PROFILES[name.partition("/")[0]]
    assert divergences(replay(*load(name), own)) == []
    wrong: dict[str, Any] = {switch: value}
    assert divergences(replay(*load(name), evolve(own, **wrong)))


def test_every_switch_is_tried() -> None:
    """A new switch needs a golden that shows it, or a reason why there is none."""
    names = {field.name for field in fields(Profile)}
    assert names - {"name", "summary"} == FLIPPED.keys() | WITHOUT_GOLDEN
