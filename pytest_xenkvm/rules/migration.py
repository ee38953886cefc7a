"""Live migration: what is read from the replay's VM when all is over must hold on a fresh one."""

from __future__ import annotations

from errno import EINVAL
from typing import Any, Final

from pytest_xenkvm.abi.numbers import XEN_VCPU_ID_INVALID, VcpuAttr
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.vcpu_attrs import TimerSetting
from pytest_xenkvm.replay.migration import Migration
from pytest_xenkvm.rules.model import Checker, Judged, Level, Rule
from pytest_xenkvm.vmm.handles import RunstateInfo
from pytest_xenkvm.vmm.snapshot import Attribute, Backing, XenSnapshot

_UNITS: Final = 10
"""Numbers below it need no hexadecimal form."""


class _AttributesSurvive(Checker):
    """Exercised by the VM and by each vCPU that is as before, and by each attribute that isn't."""

    def observe_migration(self, migration: Migration) -> None:
        refused = {(item.vcpu, item.attribute) for item in migration.refused}
        before, after = _values(migration.before), _values(migration.after)
        intact: set[int | None] = {None, *range(len(migration.before.vcpus))}
        for vcpu, attribute in [key for key in before | after if key not in refused]:
            old, new = before.get((vcpu, attribute)), after.get((vcpu, attribute))
            if old == new or _fired_since(old, new, migration):
                continue
            intact.discard(vcpu)
            self.violate(
                migration.read_back(vcpu, attribute),
                f"{_whose(vcpu)} {attribute.name} reads {_in_words(new)} on the VM that it was migrated to, "
                f"expected {_in_words(old)} as before",
            )
        for _ in intact:
            self.hold()


def _values(snapshot: XenSnapshot) -> dict[tuple[int | None, Attribute], Any]:
    return {(vcpu, attribute): value for vcpu, attribute, value in snapshot.items()}


def _fired_since(old: Any, new: Any, migration: Migration) -> bool:
    """A timer that came due while the VM was on its way has delivered its event, as it must."""
    return (
        isinstance(old, TimerSetting)
        and isinstance(new, TimerSetting)
        and old.port == new.port
        and new.expires_ns == 0
        and old.expires_ns <= migration.after.clock_ns
    )


class _UnsetIdRefused(Checker):
    """Exercised by each vCPU that never got a Xen ID."""

    def observe_migration(self, migration: Migration) -> None:
        errors = {item.vcpu: item.errno for item in migration.refused if item.attribute is VcpuAttr.VCPU_ID}
        for vcpu, values in enumerate(migration.before.vcpus):
            if self.context.setup.vcpu(vcpu).xen_id is not None:
                continue
            xen_id, errno = values[VcpuAttr.VCPU_ID], errors.get(vcpu)
            if (xen_id, errno) == (XEN_VCPU_ID_INVALID, EINVAL):
                self.hold()
                continue
            answer = "takes that for a set ID" if errno is None else f"answers {KvmError(errno)} to that"
            self.violate(
                migration.written(vcpu, VcpuAttr.VCPU_ID),
                f"nobody set vCPU {vcpu}'s Xen ID: it reads {_in_words(xen_id)}, and the VM that it is "
                f"migrated to {answer}; expected {XEN_VCPU_ID_INVALID:#x}, refused with -EINVAL",
            )


def _whose(vcpu: int | None) -> str:
    return "the VM's" if vcpu is None else f"vCPU {vcpu}'s"


def _in_words(value: Any) -> str:
    match value:
        case None:
            return "as off"
        case Backing(gpa):
            return f"the host address of guest address {gpa:#x}"
        case TimerSetting():
            return f"port {value.port}, expires_ns {value.expires_ns}"
        case RunstateInfo():
            return ", ".join(f"{name} {member}" for name, member in value._asdict().items())
    return str(value) if value < _UNITS else f"{value:#x}"


RULES: Final[tuple[Rule, ...]] = (
    Rule(
        id="migration.attributes-survive",
        title="Xen attributes that are read from one VM and written to a fresh one read back the same.",
        level=Level.MUST,
        judges=Judged.HOST,
        citation="kvm_xen_hvm_get_attr, kvm_xen_vcpu_get_attr; all supported kernels",
        explanation=(
            "A live migration moves a VM's Xen state by reading every attribute on one host and writing it "
            "on another. When the trace is over, its VM is migrated like that to a fresh VM of the same "
            "shape, the clock first and the timers last. What the fresh VM refuses is left out: an area "
            "that had no memory behind it before has none now."
        ),
        advice=(
            "Compare the order of writes with restore_snapshot's. Attributes that can't be read, and "
            "KVM_XEN_HVM_CONFIG, are the VMM's to remember."
        ),
        checker=_AttributesSurvive,
        sees=(Migration,),
        exercised_by="a replay that reaches its end",
    ),
    Rule(
        id="migration.unset-id-refused",
        title="A Xen vCPU ID that was never set reads as a value that can't be written to another VM.",
        level=Level.MUST,
        judges=Judged.HOST,
        citation="kvm_xen_init_vcpu, kvm_xen_vcpu_set_attr; commit c10bd49bdcc9, Linux 7.3",
        explanation=(
            "From Linux 7.3 an unset ID reads XEN_VCPU_ID_INVALID (0xffffffff), and writing that is "
            "-EINVAL. Up to 7.2 it reads 0 on every vCPU and the 0 can be written, so that after a "
            "migration it counts as set: on a 7.3 host the guest's singleshot timer hypercalls then fail "
            "with -EINVAL on every vCPU but 0, instead of reaching the VMM. Judged only by vCPUs whose ID "
            "is still unset when the trace is over; a VMM that sets all IDs never meets this."
        ),
        advice=(
            "Set VCPU_ID on every vCPU before its guest runs. When saving a VM, don't save an ID that reads "
            "0xffffffff, and never one that you didn't set."
        ),
        checker=_UnsetIdRefused,
        sees=(Migration,),
        exercised_by="a vCPU whose Xen ID nobody has set when the trace is over",
    ),
)
