"""The Xen state of a VM and its vCPUs: plain data, changed only by the modules beside this one.

Defaults are the state right after KVM_CREATE_VM and KVM_CREATE_VCPU. Times in ns of the VM's clock.
"""

from __future__ import annotations

from typing import Final

from attrs import Factory, define, field, frozen

from pytest_xenkvm.abi.layout import LAYOUT_32, LAYOUT_64, GuestLayout
from pytest_xenkvm.abi.numbers import Runstate, XenHvmFlag
from pytest_xenkvm.core.area import MemoryArea
from pytest_xenkvm.core.eventfd import Eventfd
from pytest_xenkvm.core.memory import GuestMemory
from pytest_xenkvm.core.profile import HostLimits, Profile

_INTERCEPT_HCALL: Final = int(XenHvmFlag.INTERCEPT_HCALL)
"""A plain number: this is asked at every guest entry."""

ANY_PORT: Final = -1
"""A poll of any number of ports but one wakes for every masked event of its vCPU."""


@frozen(kw_only=True)
class HvmConfig:
    """The argument of KVM_XEN_HVM_CONFIG. Blob addresses are host addresses, sizes count pages."""

    flags: int = 0
    msr: int = 0
    blob_addr_32: int = 0
    blob_addr_64: int = 0
    blob_size_32: int = 0
    blob_size_64: int = 0
    intercepts: bool = field(init=False)
    """VMCALL and VMMCALL are Xen hypercalls while this is the configuration."""

    @intercepts.default
    def _intercepts(self) -> bool:
        return self.flags & _INTERCEPT_HCALL != 0 and self.msr != 0


@frozen(kw_only=True)
class EvtchnDelivery:
    """Where an event goes: a port and a KVM vCPU id, which need not exist yet."""

    port: int
    vcpu_id: int


@frozen(kw_only=True)
class OutboundPort:
    """An outbound event channel: delivered to a local port, or to an eventfd."""

    type: int
    target: EvtchnDelivery | Eventfd


@define
class Timer:
    """A vCPU's timer. `expires_ns` is what a GET shows; `deadline` is set while it runs."""

    port: int = 0
    expires_ns: int = 0
    deadline: int | None = None
    pending: bool = False
    """Fired, but the event could not be delivered yet."""


@define
class RunstateAccount:
    """Where a vCPU's time went: `times` in the order of `Runstate`."""

    state: int = Runstate.RUNNING
    entry_time: int = 0
    times: list[int] = Factory(lambda: [0, 0, 0, 0])
    seen_run_delay: int = 0
    """The host's run-delay figure at the last change (ns)."""


@define(eq=False)
class VcpuState:
    """The Xen state of a vCPU."""

    index: int
    id: int
    """KVM vCPU id (APIC id)."""
    xen_id: int
    vcpu_info: MemoryArea = Factory(MemoryArea)
    time_info: MemoryArea = Factory(MemoryArea)
    runstate_head: MemoryArea = Factory(MemoryArea)
    """The runstate area up to the end of its first page."""
    runstate_tail: MemoryArea = Factory(MemoryArea)
    """What of it lies on the next page."""
    runstate: RunstateAccount = Factory(RunstateAccount)
    run_delay: int = 0
    """The host scheduler's run-delay figure (ns), a value handed in."""
    upcall_vector: int = 0
    deferred_sel: int = 0
    """Selector bits that wait for a usable vcpu_info."""
    timer: Timer = Factory(Timer)
    clock_update_due: bool = False
    """Write the pvclock structures at the next guest entry."""
    master_clock_due: bool = False
    """Renew the pvclock structures of all vCPUs at the next guest entry."""
    irr: int = 0
    """Local APIC: requested vectors, a bit each."""
    apic_enabled: bool = True
    """Local APIC: enabled by software, in its spurious-interrupt vector register."""
    polling: int | None = None
    """The port that a blocked SCHEDOP_poll watches, or ANY_PORT; None while the vCPU doesn't poll."""
    kicked: bool = False
    """An event arrived since the vCPU blocked."""
    hypercall_rip: int | None = None
    """Linear RIP of the forwarded hypercall that waits for the VMM's result."""


@define(eq=False)
class VmState:
    """The Xen state of a VM."""

    profile: Profile
    limits: HostLimits
    memory: GuestMemory
    irqchip: str
    """In-kernel interrupt controllers: "none", "split" (local APIC only) or "full"."""
    has_local_apic: bool = field(init=False)
    """The local APICs are in the kernel."""
    cpu_vendor: str
    boot_time_ns: int = 0
    """Wall-clock time at which the VM's clock was 0 (ns since 1970), a value handed in."""
    now: int = 0
    """The VM's clock (ns since creation); moved only by `timer.advance` and `timer.set_clock`."""
    config: HvmConfig = Factory(HvmConfig)
    xen_enabled_until: int = 0
    """Until then (ns of the VM's clock) a VM that gave up its hypercall MSR is treated as one that has it."""
    layout: GuestLayout = LAYOUT_32
    """Layout of the shared structures; follows LONG_MODE, not the caller's mode."""
    shared_info: MemoryArea = Factory(MemoryArea)
    upcall_vector: int = 0
    xen_version: int = 0
    hyper_v: bool = False
    """The vCPUs have Hyper-V's CPUID leaves and its guest OS identity is set (`kvm_hv_hypercall_enabled`)."""
    runstate_update_flag: bool = False
    outbound: dict[int, OutboundPort] = Factory(dict)
    routes: dict[int, EvtchnDelivery] = Factory(dict)
    irqfds: dict[Eventfd, int] = Factory(dict)
    """The GSI that each eventfd raises."""
    files: dict[int, Eventfd | None] = Factory(dict)
    """The VMM's open files by number; None is a file that is no eventfd."""
    vcpus: list[VcpuState] = Factory(list)
    vcpus_by_id: dict[int, VcpuState] = Factory(dict)
    """By KVM vCPU id."""
    deadlines: list[tuple[int, int]] = Factory(list)
    """Heap of (deadline, vCPU index) of the running timers, and of some that run no more."""

    @has_local_apic.default
    def _has_local_apic(self) -> bool:
        return self.irqchip != "none"

    @property
    def long_mode(self) -> bool:
        """The attribute LONG_MODE, which is kept as the layout that it means."""
        return self.layout is LAYOUT_64

    @long_mode.setter
    def long_mode(self, value: bool) -> None:
        self.layout = LAYOUT_64 if value else LAYOUT_32

    @property
    def xen_enabled(self) -> bool:
        """A hypercall MSR is configured, or was until a second ago: the kernel looks after Xen events.

        The host's switch for that (the static key `kvm_xen_enabled`) goes off a second late.
        """
        return self.config.msr != 0 or self.now < self.xen_enabled_until

    @property
    def intercepts_hypercalls(self) -> bool:
        """VMCALL and VMMCALL are Xen hypercalls."""
        return self.config.intercepts or (self.config.flags & _INTERCEPT_HCALL != 0 and self.xen_enabled)

    @property
    def areas(self) -> list[MemoryArea]:
        """All memory areas, also those that are off."""
        parts = (
            (vcpu.vcpu_info, vcpu.time_info, vcpu.runstate_head, vcpu.runstate_tail) for vcpu in self.vcpus
        )
        return [self.shared_info, *(area for vcpu in parts for area in vcpu)]
