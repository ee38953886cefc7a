"""Which kernel the core answers like: one frozen value a kernel, one named switch a behaviour.

A behaviour that all supported kernels share has no switch. `SWITCHES` documents each one for people; the
core asks only the fields of `Profile`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from attrs import evolve, field, frozen

from pytest_xenkvm.abi.numbers import XEN_VCPU_ID_INVALID


@frozen(kw_only=True)
class Profile:
    """A kernel's answers where kernels differ."""

    name: str
    """For example "linux-7.3"."""
    summary: str
    """Releases that answer like this."""

    unset_vcpu_id: int
    """Xen vCPU ID of a vCPU on which VCPU_ID was never set (`kvm_xen_init_vcpu`)."""
    forwards_singleshot_while_id_unset: bool
    """set/stop_singleshot_timer go to the VMM while the ID is unset (`kvm_xen_hcall_vcpu_op`)."""
    vcpu_info_alignment: int
    """Bytes that VCPU_INFO and VCPU_INFO_HVA must be aligned to, else -ENXIO (1: not checked)."""
    hypercall_msr_range: range | None
    """MSR indices that KVM_XEN_HVM_CONFIG takes besides 0, else -EINVAL (None: any)."""
    vmm_requests_hypercall_page: bool
    """KVM_SET_MSRS of the hypercall MSR writes the page as the guest's write does (`kvm_set_msr_common`)."""
    guest_stopped_bleeds: bool
    """The guest's PVCLOCK_GUEST_STOPPED in vcpu_info's clock also goes into VCPU_TIME_INFO's."""
    shared_info_updates_clocks: bool
    """Writing the wall clock (SHARED_INFO, LONG_MODE, a latch) also renews every vCPU's pvclock structures
    (`kvm_xen_shared_info_init`)."""
    runstate_ignores_backward_clock: bool
    """A runstate change whose clock went backwards accounts no time and leaves the entry time alone, and
    stolen time never exceeds the elapsed time (`kvm_xen_update_runstate`)."""


@frozen(kw_only=True)
class HostLimits:
    """What the host's kernel was built with.

    Raises ValueError for a KVM_MAX_VCPUS above the sentinel: the kernel doesn't compile then either, since
    a valid ID could be mistaken for "not set" (`XEN_VCPU_ID_INVALID >= KVM_MAX_VCPUS`, Linux 7.3).
    """

    max_vcpus: int = field(default=4096)
    """KVM_MAX_VCPUS, the exclusive bound of vCPU IDs."""
    run_delay_info: bool = True
    """The host keeps scheduler run-delay figures; without them there is no runstate (-EOPNOTSUPP)."""

    @max_vcpus.validator
    def _check_max_vcpus(self, _attribute: object, value: int) -> None:
        if not 1 <= value <= XEN_VCPU_ID_INVALID:
            raise ValueError(
                f"KVM_MAX_VCPUS must be 1 ... {XEN_VCPU_ID_INVALID:#x} "
                f"so that XEN_VCPU_ID_INVALID is no valid ID, not {value}"
            )


LINUX_6_12: Final = Profile(
    name="linux-6.12",
    summary="Linux 6.12 stable (6.12.117) and kernels like it",
    unset_vcpu_id=0,
    forwards_singleshot_while_id_unset=False,
    vcpu_info_alignment=4,
    hypercall_msr_range=None,
    vmm_requests_hypercall_page=True,
    guest_stopped_bleeds=True,
    shared_info_updates_clocks=True,
    runstate_ignores_backward_clock=False,
)

LINUX_7_2: Final = evolve(
    LINUX_6_12,
    name="linux-7.2",
    summary="Linux 7.2 (7.2.13)",
    vcpu_info_alignment=1,
    hypercall_msr_range=range(0x4000_0000, 0x5000_0000),
    vmm_requests_hypercall_page=False,
    guest_stopped_bleeds=False,
)

LINUX_7_3: Final = evolve(
    LINUX_7_2,
    name="linux-7.3",
    summary="Linux 7.3 (7.3-rc7): the ABI that the rules demand",
    unset_vcpu_id=XEN_VCPU_ID_INVALID,
    forwards_singleshot_while_id_unset=True,
    shared_info_updates_clocks=False,
    runstate_ignores_backward_clock=True,
)

PROFILES: Final[Mapping[str, Profile]] = MappingProxyType(
    {profile.name: profile for profile in (LINUX_6_12, LINUX_7_2, LINUX_7_3)}
)
"""The bundled profiles by name, oldest first."""

_VERSION: Final = re.compile(r"(\d+)\.(\d+)")


def is_release(release: str) -> bool:
    """Whether that may be a kernel's release, as `uname -r` says it: it begins with a version, as 6.12."""
    return _VERSION.match(release) is not None


def profile_for_release(release: str | None) -> Profile:
    """The profile for a kernel release such as "7.2.13+deb14-cloud-amd64".

    The newest profile that is not newer than the release; releases older than all profiles get the oldest
    one, unknown ones (None or no version in it) the newest: Linux 7.3's is the ABI that rules demand.
    """
    match = _VERSION.match(release or "")
    if match is None:
        return LINUX_7_3
    version = (int(match[1]), int(match[2]))
    chosen = LINUX_6_12
    for profile in PROFILES.values():
        major, minor = profile.name.removeprefix("linux-").split(".")
        if (int(major), int(minor)) <= version:
            chosen = profile
    return chosen
