"""The rules about live migration, which every replay ends with."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from errno import EPERM
from typing import Any, Final

import pytest
from attrs import evolve, frozen

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import HvmAttr, VcpuAttr
from pytest_xenkvm.core.profile import LINUX_7_3, PROFILES
from pytest_xenkvm.hosts.attribute_codec import attribute_type
from pytest_xenkvm.hosts.emulated import EmulatedHost, EmulatedVm
from pytest_xenkvm.replay.migration import Migration, Migrator
from pytest_xenkvm.replay.observation import Observation, Place
from pytest_xenkvm.rules.judge import Judge
from pytest_xenkvm.rules.migration import RULES
from pytest_xenkvm.rules.model import Context, Finding, Verdict
from pytest_xenkvm.rules.run import ReplayOptions, ReplayResult, run_trace
from pytest_xenkvm.trace.events import Event, Header, Ioctl, MemorySlot, VcpuRun, VcpuShape, VmShape, Wait
from pytest_xenkvm.vmm import Vm, Vmm
from pytest_xenkvm.vmm.snapshot import Backing

UNSET_ID: Final = "migration.unset-id-refused"
SURVIVE: Final = "migration.attributes-survive"
SHAPE: Final = VmShape(
    irqchip="full",
    memory=(MemorySlot(gpa=0, size=0x10_0000),),
    vcpus=(VcpuShape(index=0, id=0), VcpuShape(index=1, id=1)),
)
HEADER: Final = Header(max_vcpus=1024, recorder="kvm-oracle", vm=SHAPE)
SENTINEL: Final = 2**32 - 1


@frozen
class TraceInMemory:
    """A trace that was never in a file."""

    header: Header
    of: Sequence[Event]
    name: str = "in-memory"

    def events(self) -> Iterator[Event]:
        """Its events."""
        return iter(self.of)


def set_id(vcpu: int, xen_id: int, ret: int = 0, **rest: Any) -> Ioctl:
    """The VMM sets a Xen ID."""
    arg = {"type": int(VcpuAttr.VCPU_ID), "vcpu_id": xen_id}
    return Ioctl(name="KVM_XEN_VCPU_SET_ATTR", vcpu=vcpu, arg=arg, ret=ret, **rest)


def judged(events: Sequence[Event], profile: str = "linux-7.3", behaviour: Vmm | None = None) -> ReplayResult:
    """The result of replaying these events under the migration rules alone."""
    options = ReplayOptions(profile=profile, behaviour=behaviour)
    return run_trace(TraceInMemory(HEADER, events), RULES, options)


def verdict(result: ReplayResult, rule: str) -> Verdict:
    """The verdict on one rule."""
    return next(found for found in result.verdicts if found.rule.id == rule)


def state(result: ReplayResult, rule: str) -> tuple[str, int, int]:
    """State, how often exercised, violations."""
    found = verdict(result, rule)
    return found.state.value, found.exercised, found.violations


def test_an_unset_id_is_refused_from_7_3() -> None:
    """On Linux 7.3 both vCPUs without an ID exercise the rule, and it holds."""
    assert state(judged([]), UNSET_ID) == ("held", 2, 0)


@pytest.mark.parametrize("profile", ["linux-6.12", "linux-7.2"])
def test_an_unset_id_passes_for_a_set_one_before(profile: str) -> None:
    """On older kernels the rule is violated: the finding shows the SET behind the last event that passed."""
    result = judged([set_id(0, 5), VcpuRun(vcpu=1)], profile)
    assert state(result, UNSET_ID) == ("violated", 1, 1)
    (finding,) = verdict(result, UNSET_ID).findings
    assert finding == Finding(
        place=Place(1, after=True),
        event=set_id(1, 0),
        message=(
            "nobody set vCPU 1's Xen ID: it reads 0, and the VM that it is migrated to takes that for a set "
            "ID; expected 0xffffffff, refused with -EINVAL"
        ),
    )
    assert not result.ok


@pytest.mark.parametrize("profile", PROFILES)
def test_a_vmm_that_sets_all_ids_never_meets_the_rule(profile: str) -> None:
    """With every ID set, by events that were seen or inferred, no kernel is judged for what is unset."""
    result = judged([set_id(0, 0), set_id(1, 1, inferred=True)], profile)
    found = verdict(result, UNSET_ID)
    assert found.state.value == "not-exercised"
    assert found.reason.endswith("takes a vCPU whose Xen ID nobody has set when the trace is over")
    assert state(result, SURVIVE) == ("held", 3, 0)
    assert result.ok


def test_a_refused_set_sets_nothing() -> None:
    """A VCPU_ID that the kernel refused leaves the vCPU unset."""
    events = [set_id(0, 0), set_id(1, SENTINEL, ret=-22)]
    assert state(judged(events), UNSET_ID) == ("held", 1, 0)
    assert state(judged(events, "linux-7.2"), UNSET_ID) == ("violated", 1, 1)


class SetsIds(Vmm):
    """A VMM that sets the ID of the first `count` vCPUs."""

    def __init__(self, count: int) -> None:
        self.count = count

    def configure(self, vm: Vm) -> None:
        """Set them."""
        for vcpu in vm.vcpus[: self.count]:
            vcpu.set_vcpu_id(vcpu.index)


@pytest.mark.parametrize(("count", "expected"), [(0, ("held", 2, 0)), (2, ("not-exercised", 0, 0))])
def test_a_vmm_under_test_is_migrated_too(count: int, expected: tuple[str, int, int]) -> None:
    """After a VMM replay the VM is the one that the VMM under test has configured."""
    result = judged([set_id(0, 0), VcpuRun(vcpu=0)], "linux-7.3", SetsIds(count))
    assert state(result, UNSET_ID) == expected
    assert state(result, SURVIVE) == ("held", 3, 0)


def test_an_emulated_older_kernel_is_not_judged_beside_a_vmm() -> None:
    """In a VMM replay the VMM is under test: what an older kernel is known to do is not held against it."""
    result = judged([VcpuRun(vcpu=0)], "linux-7.2", SetsIds(0))
    found = verdict(result, UNSET_ID)
    assert found.state.value == "not-exercised"
    assert "linux-7.2 is emulated" in found.reason


class BentVm(EmulatedVm):
    """A fresh VM whose kernel has a bug."""

    lost: int | None = None
    """vCPU attribute that SET accepts and forgets."""
    sentinel_answer: int | None = None
    """Answer to the sentinel as an ID."""
    skipped_ns: int = 0
    """Time that passes when the clock is set."""

    def ioctl(self, request: int, argument: int | bytearray, *, vcpu: int | None = None) -> int:
        """Answer with the bug."""
        if request == ioctls.KVM_XEN_VCPU_SET_ATTR and isinstance(argument, bytearray):
            if attribute_type(argument) == self.lost:
                return 0
            if self.sentinel_answer is not None and argument[8:12] == b"\xff" * 4:
                return self.sentinel_answer
        ret = super().ioctl(request, argument, vcpu=vcpu)
        if request == ioctls.KVM_SET_CLOCK:
            self.pass_time(ns=self.skipped_ns)
        return ret


class BentHost:
    """A host with that bug in every VM but the first."""

    name = "bent"

    def __init__(self, **bug: int | None) -> None:
        self.bug = bug
        self.vms: list[EmulatedVm] = []

    def create_vm(self, shape: VmShape, *, cpu_vendor: str) -> EmulatedVm:
        """A VM."""
        vm = EmulatedHost(profile=LINUX_7_3).create_vm(shape, cpu_vendor=cpu_vendor)
        if self.vms:
            vm = BentVm(vm.machine)
            for name, value in self.bug.items():
                setattr(vm, name, value)
        self.vms.append(vm)
        return vm


def busy(host: BentHost) -> Migration:
    """The migration of a VM whose vCPU 1 has an ID, an upcall vector, a runstate and a timer."""
    migrator = Migrator(host)
    host_vm = migrator.create_vm(SHAPE, cpu_vendor="amd")
    host_vm.pass_time(ns=1000)
    vm = Vm.on(host_vm, SHAPE)
    vm.set_shared_info(1)
    vcpu = vm.vcpus[1]
    vcpu.set_vcpu_id(1)
    vcpu.set_upcall_vector(0xF3)
    vcpu.set_runstate_current(2)
    vcpu.set_timer(7, expires_ns=5000)
    return migrator.migrate(Place(3))


def judge_migration(migration: Migration) -> dict[str, Verdict]:
    """The verdicts on one migration, in which vCPU 1's ID was set."""
    judge = Judge(RULES, Context(header=HEADER, max_vcpus=1024, vmm_under_test=False))
    judge.observe(Observation(place=Place(0), event=set_id(1, 1)))
    judge.observe_migration(migration)
    return {found.rule.id: found for found in judge.verdicts()}


def test_a_sound_host_is_held_to_be_one() -> None:
    """Without a bug, the VM and both vCPUs survive."""
    found = judge_migration(busy(BentHost()))
    assert (found[SURVIVE].state.value, found[SURVIVE].exercised) == ("held", 3)
    assert (found[UNSET_ID].state.value, found[UNSET_ID].exercised) == ("held", 1)


@pytest.mark.parametrize(
    ("lost", "words"),
    [
        (VcpuAttr.UPCALL_VECTOR, "UPCALL_VECTOR reads 0 on the VM that it was migrated to, expected 0xf3"),
        (
            VcpuAttr.TIMER,
            (
                "TIMER reads port 0, expires_ns 0 on the VM that it was migrated to, "
                "expected port 7, expires_ns 5000"
            ),
        ),
        (
            VcpuAttr.RUNSTATE_DATA,
            (
                "RUNSTATE_DATA reads state 0, state_entry_time 0, time_running 0, time_runnable 0, "
                "time_blocked 0, time_offline 0 on the VM that it was migrated to, expected state 2, "
                "state_entry_time 1000, time_running 0, time_runnable 0, time_blocked 0, time_offline 1000"
            ),
        ),
        (
            VcpuAttr.VCPU_ID,
            "VCPU_ID reads 0xffffffff on the VM that it was migrated to, expected 1",
        ),
    ],
)
def test_a_lost_attribute_is_named(lost: VcpuAttr, words: str) -> None:
    """An attribute that doesn't read back violates the rule; its vCPU, name and both values are told."""
    found = judge_migration(busy(BentHost(lost=lost)))[SURVIVE]
    assert (found.state.value, found.exercised, found.violations) == ("violated", 3, 1)
    (finding,) = found.findings
    assert finding.message == f"vCPU 1's {words} as before"
    assert finding.place == Place(3)
    assert isinstance(finding.event, Ioctl)
    assert (finding.event.name, finding.event.vcpu, finding.event.arg) == (
        "KVM_XEN_VCPU_GET_ATTR",
        1,
        {"type": lost},
    )


def test_a_lost_attribute_of_the_vm_is_named() -> None:
    """The same for an attribute of the VM and for areas: what is off is called so."""
    migration = busy(BentHost())
    before = evolve(
        migration.before,
        vm={**migration.before.vm, HvmAttr.SHARED_INFO: 0x80, HvmAttr.SHARED_INFO_HVA: Backing(0x1000)},
    )
    found = judge_migration(evolve(migration, before=before))[SURVIVE]
    assert [finding.message for finding in found.findings] == [
        "the VM's SHARED_INFO reads 1 on the VM that it was migrated to, expected 0x80 as before",
        (
            "the VM's SHARED_INFO_HVA reads as off on the VM that it was migrated to, "
            "expected the host address of guest address 0x1000 as before"
        ),
    ]
    assert {finding.event.name for finding in found.findings if isinstance(finding.event, Ioctl)} == {
        "KVM_XEN_HVM_GET_ATTR"
    }


def test_a_timer_may_come_due_on_the_way() -> None:
    """A timer that expired while the VM was moved reads as delivered, which is no loss."""
    assert judge_migration(busy(BentHost(skipped_ns=4000)))[SURVIVE].state.value == "held"
    assert judge_migration(busy(BentHost(skipped_ns=3999)))[SURVIVE].state.value == "held"


def test_a_timer_must_not_vanish_before_its_time() -> None:
    """A timer that reads as delivered before its expiry is lost."""
    migration = busy(BentHost(skipped_ns=4000))
    early = evolve(migration, after=evolve(migration.after, clock_ns=4999))
    assert judge_migration(early)[SURVIVE].violations == 1


@pytest.mark.parametrize(
    ("answer", "words"),
    [(0, "takes that for a set ID"), (-EPERM, "answers -EPERM (-1) to that")],
)
def test_another_answer_to_the_sentinel(answer: int, words: str) -> None:
    """A host that reads the sentinel but doesn't refuse it with -EINVAL violates the rule."""
    found = judge_migration(busy(BentHost(sentinel_answer=answer)))[UNSET_ID]
    assert [finding.message for finding in found.findings] == [
        (
            f"nobody set vCPU 0's Xen ID: it reads 0xffffffff, and the VM that it is migrated to {words}; "
            "expected 0xffffffff, refused with -EINVAL"
        )
    ]
    (finding,) = found.findings
    assert finding.event == set_id(0, SENTINEL, ret=answer)


def test_what_the_fresh_vm_refuses_is_left_out() -> None:
    """An area that had no memory before has none after: refused again, and not judged."""
    arg = {"type": int(HvmAttr.SHARED_INFO), "shared_info": {"gfn": 0x200}}
    result = judged([Ioctl(name="KVM_XEN_HVM_SET_ATTR", arg=arg, ret=-14), Wait(ns=5)])
    assert state(result, SURVIVE) == ("held", 3, 0)


def test_an_area_that_outgrew_its_memory_is_left_out() -> None:
    """A runstate area at the end of memory doesn't fit any more in the 64-bit layout: refused, not judged."""
    area = {"type": int(VcpuAttr.RUNSTATE_ADDR), "gpa": 0x10_0000 - 44}
    events = [
        Ioctl(name="KVM_XEN_VCPU_SET_ATTR", vcpu=0, arg=area, ret=0),
        Ioctl(name="KVM_XEN_HVM_SET_ATTR", arg={"type": int(HvmAttr.LONG_MODE), "long_mode": 1}, ret=0),
    ]
    result = judged(events)
    assert result.divergence_count == 0
    assert state(result, SURVIVE) == ("held", 3, 0)


def test_only_rules_that_ask_are_shown_the_migration() -> None:
    """Without a rule about it there is no migration; a rule that doesn't ask for it isn't shown it."""
    host = BentHost()
    rule = evolve(RULES[0], sees=(VcpuRun,), exercised_by="")
    judge = Judge((rule,), Context(header=HEADER, max_vcpus=1024, vmm_under_test=False))
    assert not judge.sees_migrations
    judge.observe_migration(busy(host))
    assert judge.verdicts()[0].reason == "nothing in the trace exercises it"
    assert Migrator(host).name == "bent"


def test_without_a_rule_nothing_is_migrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A replay makes a second VM only if a rule asks for the migration."""
    made: list[VmShape] = []
    create_vm = EmulatedHost.create_vm

    def counting(self: EmulatedHost, shape: VmShape, **rest: Any) -> EmulatedVm:
        made.append(shape)
        return create_vm(self, shape, **rest)

    monkeypatch.setattr(EmulatedHost, "create_vm", counting)
    run_trace(TraceInMemory(HEADER, []), (), ReplayOptions())
    assert made == [SHAPE]
    run_trace(TraceInMemory(HEADER, []), RULES, ReplayOptions())
    assert made == [SHAPE] * 3


def test_a_migration_has_its_place() -> None:
    """What is found in the migration is found after the last event, or after no event."""
    for events, index in (([], -1), ([VcpuRun(vcpu=0)] * 3, 2)):
        (first, _second) = verdict(judged(events, "linux-7.2"), UNSET_ID).findings
        assert first.place == Place(index, after=True)
