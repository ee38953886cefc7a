"""What a trace's header says of the host, and what must be there for a recording."""

from __future__ import annotations

import fcntl
import os
import platform
from pathlib import Path
from typing import Final

from attrs import frozen

from pytest_xenkvm.abi.ioctls import KVM_CHECK_EXTENSION
from pytest_xenkvm.abi.numbers import KVM_CAP_MAX_VCPUS, KVM_CAP_XEN_HVM
from pytest_xenkvm.record.errors import RecordError
from pytest_xenkvm.record.tracefs import Instance

HYPERCALL: Final = "kvm/kvm_xen_hypercall"
EXIT: Final = "kvm/kvm_userspace_exit"
_INTEL: Final = "GenuineIntel"


@frozen(kw_only=True)
class HostFacts:
    """The kernel's release, its KVM_MAX_VCPUS (None: unknown), the CPU's vendor ("amd" or "intel")."""

    kernel: str
    max_vcpus: int | None
    cpu_vendor: str


def host_facts(device: Path = Path("/dev/kvm"), cpuinfo: Path = Path("/proc/cpuinfo")) -> HostFacts:
    """Ask the host; raises RecordError if its KVM can't emulate Xen, or isn't there."""
    try:
        file = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        raise RecordError(
            f"there is no {device}: load the module with `modprobe kvm_amd` or `modprobe kvm_intel`, on a"
            " machine with virtualisation switched on"
        ) from None
    except OSError as error:
        raise RecordError(f"{device} can't be opened ({error.strerror}): run it as root") from None
    try:
        if not fcntl.ioctl(file, KVM_CHECK_EXTENSION, KVM_CAP_XEN_HVM):
            raise RecordError(
                "this kernel's KVM has no Xen support (KVM_CAP_XEN_HVM is 0): it takes one that was built"
                f" with CONFIG_KVM_XEN, and this is {platform.release()}"
            )
        max_vcpus = fcntl.ioctl(file, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS)
    except OSError as error:
        raise RecordError(f"{device} doesn't answer as KVM does ({error.strerror})") from None
    finally:
        os.close(file)
    vendor = "intel" if _INTEL in cpuinfo.read_text() else "amd"
    return HostFacts(kernel=platform.release(), max_vcpus=max_vcpus or None, cpu_vendor=vendor)


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
