"""What a trace's header says of the host, and what must be there for a recording."""

from __future__ import annotations

from typing import Final

from attrs import frozen

from pytest_xenkvm.hosts.devkvm.host import DevKvmHost
from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.record.errors import RecordError
from pytest_xenkvm.record.tracefs import Instance

HYPERCALL: Final = "kvm/kvm_xen_hypercall"
_OTHERWISE: Final = ", or the emulated host"
EXIT: Final = "kvm/kvm_userspace_exit"


@frozen(kw_only=True)
class HostFacts:
    """The kernel's release, its KVM_MAX_VCPUS, the CPU's vendor ("amd" or "intel")."""

    kernel: str
    max_vcpus: int
    cpu_vendor: str


def host_facts() -> HostFacts:
    """Ask the host; raises RecordError if its KVM can't emulate Xen, or isn't there."""
    try:
        found = DevKvmHost.open()
    except HostError as error:
        raise RecordError(str(error).removesuffix(_OTHERWISE)) from None
    return HostFacts(kernel=found.release, max_vcpus=found.limits.max_vcpus, cpu_vendor=found.cpu_vendor)


def check_events(instance: Instance) -> None:
    """Raise RecordError if the kernel doesn't have the events without which nothing can be recorded."""
    if not instance.has("kvm"):
        raise RecordError(
            f"{instance.tracefs.root}/events has no folder kvm: load KVM with `modprobe kvm_amd` or"
            " `modprobe kvm_intel`"
        )
    if not instance.has(HYPERCALL):
        raise RecordError(
            f"this kernel has no event {HYPERCALL}: its KVM was built without CONFIG_KVM_XEN, which recording"
            " needs"
        )
