# ruff: noqa: D102 - `HostVm` documents what the methods do
"""A VM on a real /dev/kvm behind the host protocol. Ioctls go to the kernel as they are."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from contextlib import nullcontext
from errno import EFAULT, EINTR
from typing import Final

from attrs import define, field

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import U32_MAX, U64_MAX, HvmAttr
from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.core.memory import GuestMemory
from pytest_xenkvm.hosts.call_memory import CallMemory
from pytest_xenkvm.hosts.devkvm import competition, guest_code, hyper_v
from pytest_xenkvm.hosts.devkvm.behind import shown
from pytest_xenkvm.hosts.devkvm.bounded import at_most
from pytest_xenkvm.hosts.devkvm.kernel import Kernel
from pytest_xenkvm.hosts.devkvm.slots import AddedSlots
from pytest_xenkvm.hosts.devkvm.vcpu import Vcpu
from pytest_xenkvm.hosts.devkvm.xen_switch import SwitchUse
from pytest_xenkvm.hosts.guest_image import Mode
from pytest_xenkvm.hosts.guest_pointers import GuestPointers
from pytest_xenkvm.hosts.hypercall_pages import HypercallPages
from pytest_xenkvm.hosts.protocol import CallOutcome, GuestCall, HostError, MsrOutcome

_SCHED_OP: Final = 29
_BAD_ADDRESS: Final = -EFAULT
_UNKNOWN_BLOCK_S: Final = 10.0
"""How long a hypercall may block of which nobody knows how long it should."""
_SLACK_S: Final = 1.0
_SHORTEST_SLEEP_NS: Final = 50_000


@define(eq=False)
class DevKvmVm:
    """A VM whose kernel and CPU are real; see `HostVm` for what the methods do."""

    kernel: Kernel
    fd: int
    memory: GuestMemory
    vcpus: Sequence[Vcpu]
    _switch: SwitchUse
    _opened: list[int]
    """Files to close when the VM is gone."""
    _forwarded: dict[int, CallMemory] = field(factory=dict, init=False)
    """The forwarded hypercall that each vCPU waits with."""
    added: AddedSlots = field(init=False)
    """Memory slots added since."""
    hypercall_pages: HypercallPages = field(factory=HypercallPages, init=False)
    """Where the guest asked for hypercall pages."""
    _created_ns: int = field(factory=time.monotonic_ns, init=False)
    _until_ns: int = field(default=0, init=False)
    """What the VM's clock was last asked to reach."""

    def __attrs_post_init__(self) -> None:
        self.added = AddedSlots(self.kernel, self.fd, self.memory)

    def ioctl(self, request: int, argument: int | bytearray, *, vcpu: int | None = None) -> int:
        result = self.kernel.ioctl(self.fd if vcpu is None else self.vcpus[vcpu].fd, request, argument)
        if result == 0 and isinstance(argument, bytearray):
            if request == ioctls.KVM_XEN_HVM_CONFIG:
                flags, msr, *_blobs = ioctls.HVM_CONFIG.unpack_from(argument)
                self._switch.configured(msr)
                self._switch.listens |= flags != 0
            elif request == ioctls.KVM_XEN_HVM_SET_ATTR:
                self._switch.listens |= argument[0] == HvmAttr.UPCALL_VECTOR
        return result

    def read_memory(self, gpa: int, size: int) -> bytes | None:
        return self.memory.read(gpa, size)

    def write_memory(self, gpa: int, data: bytes) -> bool:
        return self.memory.write(gpa, data)

    def add_memory(self, gpa: int, size: int, *, log_dirty: bool = False) -> None:
        self.added.add(gpa, size, log_dirty=log_dirty)

    def remove_memory(self, gpa: int) -> None:
        self.added.remove(gpa)

    def dirty_log(self, gpa: int) -> frozenset[int]:
        return self.added.dirty_log(gpa)

    def enable_hyper_v(self) -> None:
        for cpu in self.vcpus:
            hyper_v.enable(self.kernel, cpu.fd)

    def gpa_to_hva(self, gpa: int) -> int | None:
        return self.memory.gpa_to_hva(gpa)

    def hva_to_gpa(self, hva: int) -> int | None:
        return self.memory.hva_to_gpa(hva, 1)

    def open_eventfd(self) -> int:
        fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._opened.append(fd)
        return fd

    def write_eventfd(self, fd: int, value: int) -> int:
        try:
            os.eventfd_write(fd, value)
        except OSError as error:
            return -(error.errno or 0)
        return 0

    def read_eventfd(self, fd: int) -> int:
        try:
            return os.eventfd_read(fd)
        except BlockingIOError:
            return 0
        except OSError as error:
            return -(error.errno or 0)

    def guest_clock(self, vcpu: int) -> int:  # noqa: ARG002 - all vCPUs share the VM's clock
        """By KVM_GET_CLOCK, which is what a guest's pvclock structures show and timers go by."""
        data = bytearray(ioctls.CLOCK_DATA.size)
        result = self.kernel.ioctl(self.fd, ioctls.KVM_GET_CLOCK, data)
        if result < 0:
            raise HostError(f"KVM_GET_CLOCK failed with errno {-result}")
        clock: int = ioctls.CLOCK_DATA.unpack_from(data)[0]
        return clock

    def real_time(self) -> int:
        return time.time_ns()

    def pass_time(self, *, ns: int = 0, until: int = 0) -> None:
        self._until_ns = max(self._until_ns, until)
        now = time.monotonic_ns()
        target = max(now + ns, self._created_ns + until)
        while target - now >= _SHORTEST_SLEEP_NS:  # below that, the work of the host takes longer
            time.sleep((target - now) / 1e9)
            now = time.monotonic_ns()

    def wait_for_cpu(self, ns: int) -> int:
        return competition.wait_for_cpu(ns)

    def run(self, vcpu: int) -> None:
        self._switch.before_entry()
        self.vcpus[vcpu].settle()

    def enable_local_apic(self, vcpu: int, *, enabled: bool) -> None:
        self.run(vcpu)
        self.vcpus[vcpu].write_spurious_vector(guest_code.APIC_ENABLED if enabled else 0xFF)

    def take_interrupt(self, vcpu: int) -> int | None:
        self._switch.before_entry()
        return self.vcpus[vcpu].interrupt()

    def hypercall(self, vcpu: int, call: GuestCall) -> CallOutcome:
        cpu = self.vcpus[vcpu]
        self.run(vcpu)
        stub = self.hypercall_pages.stub(call, self.memory.read) if call.via_page else None
        address = None if stub is None else stub[0]
        number = call.nr & (U64_MAX if call.longmode else U32_MAX)
        with shown(cpu.image, call) if call.behind else nullcontext():
            if address is None and (number != _SCHED_OP or call.cpl):
                result = cpu.hypercall(call, None, interruptible=False)
            else:
                result = self._call_that_may_block(cpu, call, address)
        if result < 0:
            raise HostError(f"KVM_RUN failed with errno {-result} in a hypercall of vCPU {vcpu}")
        exit_ = cpu.xen_exit()
        if exit_ is not None:
            self._forwarded[vcpu] = CallMemory(GuestPointers(self.memory, call))
            return CallOutcome(exit=exit_)
        vector = cpu.handler()
        if vector is None:
            cpu.expect_parked()
        elif vector < guest_code.FIRST_INTERRUPT:
            raise cpu.lost()
        else:
            cpu.taken.append(vector)
        if call.unseen_memory and cpu.rax == _BAD_ADDRESS & (U64_MAX if call.longmode else U32_MAX):
            return CallOutcome()  # the host doesn't have what the recorded guest had there
        return CallOutcome(rax=cpu.rax)

    def complete(self, vcpu: int, result: int, *, moved: bool = False) -> int:
        cpu = self.vcpus[vcpu]
        self._forwarded.pop(vcpu)
        cpu.answer(result, moved=moved)
        rax = cpu.rax
        cpu.settle()
        return rax

    def wrmsr(self, vcpu: int, msr: int, value: int, *, longmode: bool, compat: bool = False) -> MsrOutcome:
        cpu = self.vcpus[vcpu]
        self.run(vcpu)
        result = cpu.write_msr(Mode.of(longmode=longmode, compat=compat), msr, value)
        if result < 0:
            return MsrOutcome(ok=False, run_ret=result)
        vector = cpu.handler()
        if vector is None:
            cpu.expect_parked()
            self.hypercall_pages.remember(value)
        elif vector != guest_code.GENERAL_PROTECTION:
            raise cpu.lost()
        return MsrOutcome(ok=vector is None)

    def read_virtual(self, vcpu: int, gva: int, size: int) -> bytes | None:
        return self._virtual(vcpu).read(gva, size)

    def write_virtual(self, vcpu: int, gva: int, data: bytes) -> bool:
        return vcpu not in self._forwarded or self._forwarded[vcpu].write(gva, data)

    def translate(self, vcpu: int, gva: int) -> int | None:
        return self._virtual(vcpu).translate(gva)

    def _virtual(self, vcpu: int) -> CallMemory:
        if vcpu not in self._forwarded:
            raise UnseenMemory(f"vCPU {vcpu} waits for no answer: only then is its virtual memory known")
        return self._forwarded[vcpu]

    def _call_that_may_block(self, cpu: Vcpu, call: GuestCall, stub: int | None) -> int:
        """Make the hypercall for no longer than the recorded one took; 0 or -errno; raises HostError."""
        seconds = _UNKNOWN_BLOCK_S
        if call.over_by is not None:
            seconds = max(0, call.over_by - self._until_ns) / 1e9 + _SLACK_S
        with at_most(seconds, cpu):
            result = cpu.hypercall(call, stub, interruptible=True)
            vector = None if result < 0 else cpu.handler()
            if vector is not None and not cpu.was_interrupted_after_call():
                result = cpu.hypercall(call, stub, interruptible=False)
        if result == -EINTR and call.over_by is not None:  # the signal ended the call
            with at_most(_SLACK_S, cpu):
                result = cpu.go_on()
        if result == -EINTR:
            raise HostError(
                f"hypercall {call.nr} of vCPU {cpu.index} didn't come back within {seconds:.1f} s: "
                "nothing wakes it, or the guest's hypercall page doesn't return"
            )
        return result
