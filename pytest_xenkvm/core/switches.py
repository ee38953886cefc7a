"""How the kernels differ, for people: a row for each field of `Profile` that is not the same in all.

The rows are facts about the ABI; `report.profiles` makes tables of them. What the core does follows
`Profile` alone.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

from attrs import frozen

from pytest_xenkvm.abi.numbers import XEN_VCPU_ID_INVALID
from pytest_xenkvm.core.profile import Profile


@frozen(kw_only=True)
class Switch:
    """A behaviour that differs between kernels."""

    field: str
    """Name of the field of `Profile`."""
    title: str
    source: str
    """Kernel function, and the commit and version that changed it, as far as known."""
    shows: str
    """What a VMM or guest sees of it."""
    advice: str
    """What a VMM author must do so that it works on all of these kernels."""
    word: Callable[[Any], str]
    """The field's value in words."""

    def value(self, profile: Profile) -> str:
        """How `profile` behaves, in words."""
        return self.word(getattr(profile, self.field))


def _vcpu_id(value: int) -> str:
    return f"XEN_VCPU_ID_INVALID ({value:#x})" if value == XEN_VCPU_ID_INVALID else str(value)


def _alignment(value: int) -> str:
    return "any" if value == 1 else f"{value} bytes, else -ENXIO"


def _msr_range(value: range | None) -> str:
    return "any" if value is None else f"{value.start:#x} ... {value.stop - 1:#x}, else -EINVAL"


def _yes_no(value: bool) -> str:  # noqa: FBT001 - a value of the profile
    return "yes" if value else "no"


SWITCHES: Final[tuple[Switch, ...]] = (
    Switch(
        field="unset_vcpu_id",
        title="Xen vCPU ID of a vCPU on which it was never set",
        source="kvm_xen_init_vcpu; commit c10bd49bdcc9, Linux 7.3",
        shows=(
            "KVM_XEN_VCPU_GET_ATTR(VCPU_ID) on a new vCPU. Up to 7.2 it is 0 on every vCPU, not the vCPU's "
            "index; from 7.3 it is a value that can't be set."
        ),
        advice=(
            "Set VCPU_ID on every vCPU before the guest runs, whatever the kernel. Don't write back an ID "
            "that reads 0xffffffff: it was never set."
        ),
        word=_vcpu_id,
    ),
    Switch(
        field="forwards_singleshot_while_id_unset",
        title="set/stop_singleshot_timer go to the VMM while the Xen vCPU ID is unset",
        source="kvm_xen_hcall_vcpu_op; commit c10bd49bdcc9, Linux 7.3",
        shows=(
            "VCPUOP_set_singleshot_timer and VCPUOP_stop_singleshot_timer with a timer port set and no ID. "
            "Up to 7.2 the kernel compares with ID 0: it works on vCPU 0 and fails with -EINVAL on others."
        ),
        advice=(
            "Set VCPU_ID on every vCPU: up to 7.2 nothing else helps. From 7.3 a VMM may instead serve these "
            "two hypercalls when they are forwarded."
        ),
        word=_yes_no,
    ),
    Switch(
        field="vcpu_info_alignment",
        title="Alignment that VCPU_INFO and VCPU_INFO_HVA must have",
        source="kvm_xen_vcpu_set_attr; asked for by late 6.12 stable releases, not by 7.2.13 and 7.3-rc7",
        shows="KVM_XEN_VCPU_SET_ATTR(VCPU_INFO) at an address that is no multiple of 4.",
        advice="Align vcpu_info to 4 bytes; a guest that registers it elsewhere is refused by some kernels.",
        word=_alignment,
    ),
    Switch(
        field="hypercall_msr_range",
        title="MSR indices that KVM_XEN_HVM_CONFIG takes, besides 0",
        source="kvm_xen_hvm_config; between Linux 6.12 and 7.2",
        shows="KVM_XEN_HVM_CONFIG with an MSR outside the range that hypervisors use.",
        advice="Use an index of 0x40000000 ... 0x4fffffff, such as 0x40000000.",
        word=_msr_range,
    ),
    Switch(
        field="vmm_requests_hypercall_page",
        title="KVM_SET_MSRS of the hypercall MSR writes the hypercall page",
        source="kvm_set_msr_common; seen on 6.12.117, not on 7.2.13 and 7.3-rc7",
        shows=(
            "The VMM's own write of the MSR, as in a migration. Later kernels treat it as an MSR that there "
            "isn't: KVM_SET_MSRS stops there."
        ),
        advice="Leave the hypercall MSR out of what KVM_SET_MSRS writes: the guest's memory has the page.",
        word=_yes_no,
    ),
    Switch(
        field="guest_stopped_bleeds",
        title="PVCLOCK_GUEST_STOPPED in vcpu_info's clock also goes into VCPU_TIME_INFO's",
        source="kvm_guest_time_update; seen on 6.12.117, not on 7.2.13 and 7.3-rc7",
        shows="The flag, set by the guest in one of its pvclock structures, after the next update of both.",
        advice="Nothing: each structure keeps its own flag on all kernels.",
        word=_yes_no,
    ),
    Switch(
        field="shared_info_updates_clocks",
        title="Writing the wall clock also renews every vCPU's pvclock structures",
        source="kvm_xen_shared_info_init; seen on 6.12.117 and 7.2.13, not on 7.3-rc7",
        shows=(
            "The version in vcpu_info's clock and VCPU_TIME_INFO after SHARED_INFO or LONG_MODE was set, or "
            "latched anew."
        ),
        advice="Don't count on it: setting VCPU_INFO or VCPU_TIME_INFO renews a vCPU's clocks everywhere.",
        word=_yes_no,
    ),
    Switch(
        field="runstate_ignores_backward_clock",
        title="A clock set back leaves all runstate times alone; stolen time never exceeds the elapsed time",
        source="kvm_xen_update_runstate; Linux 7.3",
        shows=(
            "Runstate times after KVM_SET_CLOCK set the VM's clock back. Up to 7.2 the difference wraps and "
            "the times jump."
        ),
        advice="Set the clock before RUNSTATE_DATA when a VM is restored, and never set it back later.",
        word=_yes_no,
    ),
)
