"""Rules about the VM that a VMM under test migrates to, which is not the one that it comes from."""

from __future__ import annotations

from typing import Final

import pytest
from attrs import evolve
from rule_traces import RULES, Item, check, config, get_id, happened, header, set_id, verdict
from vmm_events import migrated, outbound, shared_info, timer

from pytest_xenkvm.replay.observation import Place
from pytest_xenkvm.rules.judge import Judge
from pytest_xenkvm.rules.model import Checker, Context, Judged, Level, Rule
from pytest_xenkvm.trace.events import Ioctl

IDS: Final = "migration.ids-before-timers"
AREAS: Final = "migration.areas-before-timers"
UNSET: Final = "vcpu-id.unset-is-not-restored"
SENTINEL: Final = 0xFFFF_FFFF
EINVAL: Final = -22

RUNS: Final = timer(9, 1, expires_ns=5)


# ---- migration.ids-before-timers


def test_an_id_before_its_timer() -> None:
    """With the ID that it had, a vCPU may have its timer."""
    check(migrated(IDS, [set_id(1, 1)], [set_id(1, 1), timer(9, 1)]), "held")


@pytest.mark.parametrize(
    ("target", "has"),
    [
        ([timer(9, 1), set_id(1, 1)], "no Xen ID"),
        ([timer(9, 1)], "no Xen ID"),
        ([set_id(1, 1, EINVAL), timer(9, 1)], "no Xen ID"),
        ([set_id(0, 1), timer(9, 1)], "no Xen ID"),
        ([set_id(1, 0), timer(9, 1)], "Xen ID 0"),
    ],
    ids=["behind", "never", "refused", "other-vcpu", "other-id"],
)
def test_a_timer_before_its_id(target: list[Item], has: str) -> None:
    """An ID that comes later, never or as another one is a violation, whatever the source has."""
    found = migrated(IDS, [set_id(1, 1), timer(9, 1)], target)
    check(
        found,
        "violated",
        f"vCPU 1 gets its timer (port 9) on the VM that it is migrated to while it has {has} there, "
        "expected 1 as before: restore KVM_XEN_VCPU_ATTR_TYPE_VCPU_ID before KVM_XEN_VCPU_ATTR_TYPE_TIMER",
    )
    assert found.findings[0].place == Place(9, after=True)


def test_what_needs_no_id() -> None:
    """A vCPU that had no ID, a timer without a port or refused, and what is done on the source."""
    check(migrated(IDS, [set_id(0, 0)], [timer(9, 1)]), "not-exercised")
    check(migrated(IDS, [set_id(1, 1)], [timer(0, 1), timer(9, 1, EINVAL), outbound(9)]), "not-exercised")
    check(verdict(IDS, config(), timer(9, 1), set_id(1, 1)), "not-exercised")


# ---- migration.areas-before-timers


def test_a_page_before_running_timers() -> None:
    """With shared_info in place, a timer may fire at once."""
    check(migrated(AREAS, [shared_info()], [shared_info(2), RUNS]), "held")


def test_running_timers_before_the_page() -> None:
    """Without it, the event of a timer that has come due is lost."""
    for target in ([RUNS], [RUNS, shared_info()], [shared_info(ret=EINVAL), RUNS]):
        check(
            migrated(AREAS, [shared_info()], target),
            "violated",
            "vCPU 1 gets its running timer (port 9) on the VM that it is migrated to while the kernel has no "
            "shared_info page there",
        )


def test_what_needs_no_page() -> None:
    """A timer that doesn't run, and a guest that never mapped the page."""
    check(migrated(AREAS, [shared_info()], [timer(9, 1)]), "not-exercised")
    check(migrated(AREAS, [], [RUNS]), "not-exercised")
    check(verdict(AREAS, config(), shared_info(), RUNS), "not-exercised")


# ---- the two VMs


def test_an_unset_id_on_the_target() -> None:
    """Writing the value of an unset ID to the target is found there; the right one is held."""
    check(
        migrated(UNSET, [], [set_id(0, SENTINEL, EINVAL)]), "violated", "answered -EINVAL (-22), an unset ID"
    )
    check(migrated(UNSET, [get_id(0, SENTINEL)], [set_id(0, 0)]), "held")


def test_each_vm_has_a_setup_of_its_own() -> None:
    """A rule sees the target as set up so far, beside the source as it was left; then the source again."""
    seen: list[tuple[int | None, int | None]] = []

    class Looks(Checker):
        """Notes the ID of vCPU 0 on both VMs."""

        def observe(self, observation: object) -> None:
            """Before each ioctl."""
            del observation
            source = self.context.source
            before = None if source is None else source.vcpu(0).xen_id
            seen.append((before, self.context.setup.vcpu(0).xen_id))

    rule = Rule(
        id="test.looks",
        title="Looks.",
        level=Level.MUST,
        judges=Judged.VMM,
        citation="",
        explanation="",
        advice="",
        checker=Looks,
        sees=(Ioctl,),
    )
    judge = Judge((rule, RULES[IDS]), Context(header=header(), max_vcpus=4096, vmm_under_test=True))
    for item in (set_id(0, 3), timer(9, 0)):
        judge.observe(happened(item))
    for item in (set_id(0, 4), timer(9, 0)):
        judge.observe(evolve(happened(item), place=Place(1, after=True), by_vmm=True))
    assert seen == [(None, None), (None, 3), (3, None), (3, 4)]
    assert judge.context.source is not None
    assert judge.context.source.vcpu(0).timer_port == 9
