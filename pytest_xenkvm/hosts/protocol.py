"""What plays the kernel: one small protocol, shaped like KVM's own ioctls.

The emulated core and a real `/dev/kvm` are driven through it by the same code. Structures travel as the
bytes of the UAPI (`pytest_xenkvm.abi.ioctls`), results as 0, a positive value, or -errno.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, runtime_checkable

from attrs import define, frozen

from pytest_xenkvm.core.hypercalls import HypercallRegisters
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.core.profile import HostLimits
from pytest_xenkvm.trace.events import VmShape


@define(kw_only=True)
class GuestCall(HypercallRegisters):
    """A hypercall that the guest shall make.

    `behind`: what the guest's memory holds behind pointer arguments, by their numbers, where the page tables
    are unknown.
    `unseen_memory`: memory that neither `behind` nor the VM holds was not seen, rather than missing.
    """

    compat: bool = False
    via_page: bool = False
    behind: Sequence[tuple[int, bytes]] = ()
    unseen_memory: bool = False
    over_by: int | None = None
    """When the recorded call had returned (ns of the VM's clock); it blocked no longer than that."""


@frozen(kw_only=True)
class CallOutcome:
    """What became of a hypercall: handled (`rax`), forwarded (`exit`), or, with neither, unknowable."""

    rax: int | None = None
    exit: XenExit | None = None


@frozen(kw_only=True)
class MsrOutcome:
    """What became of a WRMSR: `ok` False is #GP; `run_ret`: KVM_RUN failed with that -errno."""

    ok: bool
    run_ret: int | None = None


class HostVm(Protocol):
    """A virtual machine on a host. `vcpu` arguments are indices in the order of creation."""

    def ioctl(self, request: int, argument: int | bytearray, *, vcpu: int | None = None) -> int:
        """Make an ioctl on the VM, or on a vCPU; an outgoing structure is stored into `argument`."""

    def read_memory(self, gpa: int, size: int) -> bytes | None:
        """Guest memory at [gpa, gpa + size); None where there is none."""

    def write_memory(self, gpa: int, data: bytes) -> bool:
        """Store to guest memory; False where there is none."""

    def read_virtual(self, vcpu: int, gva: int, size: int) -> bytes | None:
        """Guest memory at a virtual address of the vCPU; None where nothing is mapped.

        Where only a recording knows the guest's memory, it can be read while a forwarded hypercall of the
        vCPU waits, as far as the recording shows it. Raises UnseenMemory for the rest.
        """

    def write_virtual(self, vcpu: int, gva: int, data: bytes) -> bool:
        """Store there; False where nothing is mapped. What no recording shows is taken for mapped."""

    def translate(self, vcpu: int, gva: int) -> int | None:
        """The guest address behind a virtual one; None where nothing is mapped. Raises as `read_virtual`."""

    def add_memory(self, gpa: int, size: int, *, log_dirty: bool = False) -> None:
        """Give the VM one more slot of zeroed memory (bytes, whole pages); raises HostError if it can't be.

        KVM then finds its mappings of areas by guest address stale (`kvm_gpc_check`). `log_dirty`:
        KVM_MEM_LOG_DIRTY_PAGES, for `dirty_log`.
        """

    def remove_memory(self, gpa: int) -> None:
        """Take the slot away that `add_memory` added at `gpa`, for good; raises HostError.

        The host keeps its memory mapped: areas by host address go on being used.
        """

    def dirty_log(self, gpa: int) -> frozenset[int]:
        """KVM_GET_DIRTY_LOG of the slot that was added at `gpa`: the pages marked dirty since the last time.

        By their guest addresses. Only what guest and kernel write counts, `write_memory` doesn't. Raises
        HostError if the slot keeps no log.
        """

    def enable_hyper_v(self) -> None:
        """Let the guest make Hyper-V's hypercalls, too, whose numbers have bit 31 set (`kvm_hv_hypercall`).

        Before any vCPU has entered the guest. Raises HostError if the host can't.
        """

    def gpa_to_hva(self, gpa: int) -> int | None:
        """The host address that backs a guest address."""

    def hva_to_gpa(self, hva: int) -> int | None:
        """The guest address that a host address backs."""

    def open_eventfd(self) -> int:
        """Create an eventfd; its number."""

    def write_eventfd(self, fd: int, value: int) -> int:
        """Add to an eventfd; 0 or -errno."""

    def read_eventfd(self, fd: int) -> int:
        """Drain an eventfd; 0 if there was nothing."""

    def guest_clock(self, vcpu: int) -> int:
        """The guest's Xen clock now (ns)."""

    def real_time(self) -> int:
        """The host's real time now (ns since 1970), by which KVM sets the guest's wall clock."""

    def run(self, vcpu: int) -> None:
        """Let the vCPU enter the guest once, without a hypercall."""

    def hypercall(self, vcpu: int, call: GuestCall) -> CallOutcome:
        """Let the guest make a hypercall. A forwarded one waits for `complete`."""

    def complete(self, vcpu: int, result: int, *, moved: bool = False) -> int:
        """Answer the forwarded hypercall with `result` (u64); the guest's RAX (EAX in 32-bit mode) then.

        `moved`: the VMM sets RIP to other code first (KVM_SET_REGS).
        """

    def wrmsr(self, vcpu: int, msr: int, value: int, *, longmode: bool, compat: bool = False) -> MsrOutcome:
        """Let the guest write an MSR from 64-bit (or, `compat`, 32-bit) code with EFER.LMA = `longmode`."""

    def enable_local_apic(self, vcpu: int, *, enabled: bool) -> None:
        """Let the guest enable or disable its local APIC, which the kernel has, by software.

        That is bit 8 of the spurious-interrupt vector register; it is set at first.
        """

    def take_interrupt(self, vcpu: int) -> int | None:
        """The vector that the guest takes now, with interrupts enabled; None if there is none."""

    def pass_time(self, *, ns: int = 0, until: int = 0) -> None:
        """Let at least `ns` pass, and the VM's clock reach `until` (ns since creation)."""

    def wait_for_cpu(self, ns: int) -> int:
        """Keep the VMM's thread waiting for a CPU that another one has: how long it did, `ns` or more.

        KVM counts that as stolen from a running vCPU (`kvm_xen_update_runstate`). Raises HostError.
        """


@runtime_checkable
class PreparingVm(Protocol):
    """A VM that does the same thing again and again faster if it is told so beforehand."""

    def prepared_clock(self) -> Callable[[int], int]:
        """What does the same as `HostVm.pass_time(until=...)`.

        It returns the time (ns of the VM's clock) until which nothing happens in the VM by itself, nor when
        memory is written or events are sent.
        """

    def prepared_hypercall(self, vcpu: int, call: GuestCall) -> Callable[[], CallOutcome]:
        """What does the same as `HostVm.hypercall`.

        Of the call, arguments, `behind` and `over_by` may change in between.
        """

    def prepared_store(self, gpa: int, data: bytes) -> Callable[[], None]:
        """What does the same as `HostVm.write_memory`, but returns nothing."""

    def prepared_ioctl(self, request: int, argument: int | bytearray) -> Callable[[], int]:
        """What makes an ioctl on the VM that returns nothing in its argument, as `HostVm.ioctl`."""


class Host(Protocol):
    """Something that creates VMs."""

    @property
    def name(self) -> str:
        """For reports: "emulated linux-7.3", "kvm"."""

    def create_vm(self, shape: VmShape, *, cpu_vendor: str) -> HostVm:
        """KVM_CREATE_VM, memory, irqchip and vCPUs; raises HostError if it can't be had."""


class LimitedHost(Host, Protocol):
    """A host that says what its kernel was built with."""

    @property
    def limits(self) -> HostLimits:
        """KVM_MAX_VCPUS and the like."""

    @property
    def cpu_vendor(self) -> str:
        """Of its CPU, "amd" or "intel"; where a host plays both, the one that it plays unasked."""


class HostError(Exception):
    """The host can't do what it is asked; `str()` is one sentence for the user."""
