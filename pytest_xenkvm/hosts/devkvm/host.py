"""The host kvm: VMs on the running kernel's own /dev/kvm."""

from __future__ import annotations

import os
from errno import EACCES, EPERM
from pathlib import Path
from typing import Final
from weakref import finalize

from attrs import field, frozen

from pytest_xenkvm.abi import ioctls, kvm
from pytest_xenkvm.abi.numbers import KVM_CAP_MAX_VCPUS, KVM_CAP_XEN_HVM, RUN_DELAY_HVM_FLAGS
from pytest_xenkvm.core.profile import HostLimits
from pytest_xenkvm.hosts.devkvm.creation import VmCreator
from pytest_xenkvm.hosts.devkvm.kernel import Kernel, LinuxKernel
from pytest_xenkvm.hosts.devkvm.vm import DevKvmVm
from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.trace.events import VmShape

DEVICE: Final = "/dev/kvm"
_INSTEAD: Final = "use a kernel built with CONFIG_KVM_XEN, or the emulated host"


@frozen(kw_only=True)
class DevKvmHost:
    """The running kernel, if its KVM has Xen support."""

    release: str
    """Of the running kernel, as uname has it."""
    cpu_vendor: str
    """Of the CPU: "amd" or "intel"."""
    limits: HostLimits
    _device: int = field(alias="device", repr=False)
    """An open /dev/kvm."""
    _kernel: Kernel = field(alias="kernel", repr=False)

    @property
    def name(self) -> str:
        """For reports: "kvm 6.12.117+deb12-cloud-amd64"."""
        return f"kvm {self.release}"

    @classmethod
    def open(cls, kernel: Kernel | None = None, *, cpuinfo: Path = Path("/proc/cpuinfo")) -> DevKvmHost:
        """The host of this machine; raises HostError, which says what is missing and what to do."""
        kernel = kernel or LinuxKernel()
        device = _open(kernel)
        try:
            host = cls(
                release=os.uname().release,
                cpu_vendor=_cpu_vendor(cpuinfo),
                limits=_limits(kernel, device),
                device=device,
                kernel=kernel,
            )
        except BaseException:
            kernel.close(device)
            raise
        finalize(host, kernel.close, device)
        return host

    def create_vm(self, shape: VmShape, *, cpu_vendor: str) -> DevKvmVm:
        """A VM of that shape; raises HostError, also for the other vendor's CPU."""
        if cpu_vendor != self.cpu_vendor:
            raise HostError(
                f"a VM with an {_VENDORS[cpu_vendor]} CPU is asked for and this one is an "
                f"{_VENDORS[self.cpu_vendor]}: hypercalls are made with another instruction there, "
                "replay it on the emulated host"
            )
        return VmCreator(self._kernel, self._device, self.cpu_vendor).create(shape)


_VENDORS: Final = {"amd": "AMD", "intel": "Intel"}


def _open(kernel: Kernel) -> int:
    try:
        return kernel.open(DEVICE)
    except FileNotFoundError:
        raise HostError(
            f"there is no {DEVICE}: load the kernel's module kvm_amd or kvm_intel on a machine with hardware "
            "virtualisation, or use the emulated host"
        ) from None
    except OSError as error:
        if error.errno in (EACCES, EPERM):
            raise HostError(
                f"{DEVICE} can't be opened, permission denied: run as root or join the group kvm"
            ) from None
        raise HostError(f"{DEVICE} can't be opened: {error.strerror}") from error


def _limits(kernel: Kernel, device: int) -> HostLimits:
    """What this KVM can do; raises HostError if it lacks what a VM needs here."""
    version = kernel.ioctl(device, kvm.KVM_GET_API_VERSION)
    if version != kvm.API_VERSION:
        raise HostError(f"{DEVICE} speaks version {version} of its interface, expected {kvm.API_VERSION}")
    xen, sync_regs, max_vcpus = (
        kernel.ioctl(device, ioctls.KVM_CHECK_EXTENSION, capability)
        for capability in (KVM_CAP_XEN_HVM, kvm.KVM_CAP_SYNC_REGS, KVM_CAP_MAX_VCPUS)
    )
    if xen <= 0:
        raise HostError(
            f"the KVM of this kernel ({os.uname().release}) has no Xen support (KVM_CAP_XEN_HVM is 0): "
            f"{_INSTEAD}"
        )
    if sync_regs <= 0:
        raise HostError(f"this kernel's KVM is too old: it has no KVM_CAP_SYNC_REGS, {_INSTEAD}")
    return HostLimits(max_vcpus=max_vcpus, run_delay_info=xen & RUN_DELAY_HVM_FLAGS != 0)


def _cpu_vendor(cpuinfo: Path) -> str:
    """By the first line that names it; raises HostError."""
    vendors = {"AuthenticAMD": "amd", "HygonGenuine": "amd", "GenuineIntel": "intel"}
    found = "none"
    for line in cpuinfo.read_text(encoding="ascii", errors="replace").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == "vendor_id":
            found = value.strip()
            break
    if found not in vendors:
        raise HostError(f"the CPU's vendor is {found}, expected AMD or Intel: use the emulated host")
    return vendors[found]
