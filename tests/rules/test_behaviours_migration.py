"""What a VMM behaviour does when it migrates the replay's VM, and whom that concerns."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attrs import evolve, frozen
from rule_traces import RULES

from pytest_xenkvm.abi.numbers import VcpuAttr
from pytest_xenkvm.replay.migration import Migration
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.model import Checker, Judged, Rule
from pytest_xenkvm.rules.run import ReplayOptions, run_trace
from pytest_xenkvm.trace.events import Event, Header, Ioctl, MemorySlot, VcpuShape, VmShape
from pytest_xenkvm.vmm import Vm, Vmm

SHAPE: Final = VmShape(
    irqchip="split", memory=(MemorySlot(gpa=0, size=0x1000),), vcpus=(VcpuShape(index=0, id=0),)
)


@frozen
class EmptyTrace:
    """Only a VM."""

    header: Header
    name: str = "empty"

    def events(self) -> Iterator[Event]:
        """None."""
        return iter(())


class Migrates(Vmm):
    """Sets the ID to 3, and to 4 on the VM that it migrates to."""

    def configure(self, vm: Vm) -> None:
        """Before the guest runs."""
        vm.vcpus[0].set_vcpu_id(3)

    def on_migrate(self, source: Vm, target: Vm) -> None:
        """Write another ID."""
        assert source.vcpus[0].get_vcpu_id() == 3
        target.vcpus[0].set_vcpu_id(4)


class _Seen(Checker):
    """Notes the IDs that are written, those that the setups have, and the one that is migrated."""

    log: list[object]

    def observe(self, observation: Observation) -> None:
        """Note."""
        event = observation.event
        assert isinstance(event, Ioctl)
        setup, source = self.context.setup, self.context.source
        before = None if source is None else source.vcpu(0).xen_id
        self.log.append((event.arg["vcpu_id"], observation.place.after, setup.vcpu(0).xen_id, before))

    def observe_migration(self, migration: Migration) -> None:
        """Note."""
        self.log.append((migration.before.vcpus[0][VcpuAttr.VCPU_ID], self.context.setup.vcpu(0).xen_id))


def seen_by(judges: Judged) -> list[object]:
    """What a rule sees that judges the kernel or the VMM."""
    noted: list[object] = []

    class Notes(_Seen):
        log = noted

    any_rule = RULES["vcpu-id.sentinel-is-refused"]
    rule: Rule = evolve(any_rule, id="any.rule", judges=judges, checker=Notes, sees=(Ioctl, Migration))
    run_trace(EmptyTrace(Header(vm=SHAPE)), [rule], ReplayOptions(behaviour=Migrates()))
    return noted


def test_rules_about_the_vmm_see_what_it_does_to_the_fresh_vm() -> None:
    """They see it at the place behind the trace, with the setup of either VM; then the first one's again."""
    assert seen_by(Judged.VMM) == [(3, False, None, None), (4, True, None, 3), (3, 3)]


def test_rules_about_the_kernel_see_the_replays_vm_alone() -> None:
    """They don't see what the behaviour does to a second VM, and judge the migration of the first."""
    assert seen_by(Judged.HOST) == [(3, False, None, None), (3, 3)]
