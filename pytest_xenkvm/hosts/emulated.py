# ruff: noqa: D102 - `HostVm` documents what the methods do
"""The emulated host: the core behind the host protocol, with registers handed in instead of a CPU."""

from __future__ import annotations

import mmap
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from attrs import Factory, define, field, frozen

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import U32_MAX, U64_MAX
from pytest_xenkvm.core import evtchn, lapic, timer
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.hypercall_page import MsrWrite
from pytest_xenkvm.core.hypercalls import Call, UnseenMemory
from pytest_xenkvm.core.machine import XenVm
from pytest_xenkvm.core.memory import GuestMemory
from pytest_xenkvm.core.profile import HostLimits, Profile
from pytest_xenkvm.hosts.call_memory import CallMemory
from pytest_xenkvm.hosts.guest_pointers import GuestPointers
from pytest_xenkvm.hosts.ioctl_table import answer_ioctl
from pytest_xenkvm.hosts.protocol import CallOutcome, GuestCall, HostError, MsrOutcome
from pytest_xenkvm.trace.events import MemorySlot, VmShape

FIRST_FD: Final = 3

_DONE: Final = CallOutcome(rax=0)

_MAP_NORESERVE: Final = 0x4000
_MAP_FLAGS: Final = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _MAP_NORESERVE
"""Guest memory takes host memory only where it is written."""


@frozen(kw_only=True)
class EmulatedHost:
    """Answers like the kernel that `profile` names."""

    profile: Profile
    limits: HostLimits = Factory(HostLimits)
    cpu_vendor: str = field(default="amd", init=False)
    """Unless `create_vm` is asked for another."""

    @property
    def name(self) -> str:
        """For reports."""
        return f"emulated {self.profile.name}"

    def create_vm(self, shape: VmShape, *, cpu_vendor: str = "amd") -> EmulatedVm:
        """A VM of that shape, its clock at 0; raises HostError if its memory can't be mapped."""
        slots = map_slots(shape.memory)
        return EmulatedVm(create_machine(self.profile, self.limits, shape, slots, cpu_vendor=cpu_vendor))


def map_slots(slots: Sequence[MemorySlot]) -> list[tuple[int, mmap.mmap]]:
    """Zeroed memory for each slot, with its guest address; raises HostError."""
    try:
        return [(slot.gpa, mmap.mmap(-1, slot.size, flags=_MAP_FLAGS)) for slot in slots]
    except (OSError, ValueError, OverflowError) as error:
        total = sum(slot.size for slot in slots)
        raise HostError(f"can't map {total} bytes of guest memory: {error}") from error


def create_machine(
    profile: Profile,
    limits: HostLimits,
    shape: VmShape,
    slots: Sequence[tuple[int, mmap.mmap]],
    *,
    cpu_vendor: str,
) -> XenVm:
    """The core of a VM of that shape with its vCPUs."""
    machine = XenVm.create(
        profile, GuestMemory(slots), limits=limits, irqchip=shape.irqchip, cpu_vendor=cpu_vendor
    )
    for vcpu in shape.vcpus:
        machine.create_vcpu(vcpu.id)
    return machine


@define(eq=False)
class EmulatedVm:
    """A VM on the emulated host; see `HostVm` for what the methods do."""

    machine: XenVm
    _forwarded: dict[int, CallMemory] = field(factory=dict, init=False)
    """The forwarded hypercall that each vCPU waits with."""

    def ioctl(self, request: int, argument: int | bytearray, *, vcpu: int | None = None) -> int:
        return answer_ioctl(self.machine, request, argument, vcpu)

    def read_memory(self, gpa: int, size: int) -> bytes | None:
        return self.machine.state.memory.read(gpa, size)

    def write_memory(self, gpa: int, data: bytes) -> bool:
        return self.machine.state.memory.write(gpa, data)

    def prepared_clock(self) -> Callable[[int], int]:
        return partial(timer.advance, self.machine.state)

    def prepared_hypercall(self, vcpu: int, call: GuestCall) -> Callable[[], CallOutcome]:
        machine, state = self.machine, self.machine.state.vcpus[vcpu]
        enter, execute = machine.enter, machine.execute
        pointers = GuestPointers(machine.state.memory, call)
        seen = Call(machine.state, state, call, pointers.read)

        def make() -> CallOutcome:
            enter(state)
            seen.block_until = call.over_by
            if not call.longmode:
                seen.regs = call.seen_by_kernel()
            try:
                outcome = execute(seen)
            except UnseenMemory:
                return CallOutcome()
            if isinstance(outcome, int):
                return CallOutcome(rax=outcome) if outcome else _DONE
            self._forwarded[vcpu] = CallMemory(pointers)
            return CallOutcome(exit=outcome)

        return make

    def prepared_store(self, gpa: int, data: bytes) -> Callable[[], None]:
        return self.machine.state.memory.storing(gpa, data)

    def prepared_ioctl(self, request: int, argument: int | bytearray) -> Callable[[], int]:
        if request != ioctls.KVM_XEN_HVM_EVTCHN_SEND or isinstance(argument, int):
            return partial(self.ioctl, request, argument)
        state, (port, vcpu_id, priority) = self.machine.state, ioctls.XEN_EVTCHN.unpack_from(argument)

        def send() -> int:
            try:
                evtchn.send_from_vmm(state, port=port, vcpu_id=vcpu_id, priority=priority)
            except KvmError as error:
                return -error.errno
            return 0

        return send

    def read_virtual(self, vcpu: int, gva: int, size: int) -> bytes | None:
        if vcpu not in self._forwarded:
            raise UnseenMemory(f"vCPU {vcpu} waits for no answer: only then is its virtual memory known")
        return self._forwarded[vcpu].read(gva, size)

    def write_virtual(self, vcpu: int, gva: int, data: bytes) -> bool:
        return vcpu not in self._forwarded or self._forwarded[vcpu].write(gva, data)

    def translate(self, vcpu: int, gva: int) -> int | None:
        if vcpu not in self._forwarded:
            raise UnseenMemory(f"vCPU {vcpu} waits for no answer: only then are its page tables known")
        return self._forwarded[vcpu].translate(gva)

    def add_memory(self, gpa: int, size: int, *, log_dirty: bool = False) -> None:
        if self.machine.state.memory.overlaps(gpa, size):
            raise HostError(f"a memory slot of {size} bytes at {gpa:#x} overlaps memory that the VM has")
        ((_gpa, buffer),) = map_slots([MemorySlot(gpa=gpa, size=size)])
        self.share(gpa, buffer)
        self.machine.add_memory(gpa, buffer, log_dirty=log_dirty)

    def remove_memory(self, gpa: int) -> None:
        try:
            self.machine.remove_memory(gpa)
        except KvmError as error:
            raise HostError(f"there is no memory slot at {gpa:#x} to take away") from error
        self.unshare(gpa)

    def dirty_log(self, gpa: int) -> frozenset[int]:
        try:
            return self.machine.dirty_log(gpa)
        except KvmError as error:
            raise HostError(f"the memory at {gpa:#x} keeps no log of dirty pages") from error

    def share(self, gpa: int, buffer: mmap.mmap) -> None:
        """Let the guest's CPU have new memory, where there is one."""

    def unshare(self, gpa: int) -> None:
        """Take memory from the guest's CPU, where there is one."""

    def enable_hyper_v(self) -> None:
        self.machine.enable_hyper_v()

    def gpa_to_hva(self, gpa: int) -> int | None:
        return self.machine.state.memory.gpa_to_hva(gpa)

    def hva_to_gpa(self, hva: int) -> int | None:
        return self.machine.state.memory.hva_to_gpa(hva, 1)

    def open_eventfd(self) -> int:
        fd = FIRST_FD + len(self.machine.state.files)
        self.machine.open_eventfd(fd)
        return fd

    def write_eventfd(self, fd: int, value: int) -> int:
        try:
            self.machine.eventfd(fd).write(value)
        except KvmError as error:
            return -error.errno
        return 0

    def read_eventfd(self, fd: int) -> int:
        try:
            return self.machine.eventfd(fd).drain()
        except KvmError as error:
            return -error.errno

    def guest_clock(self, vcpu: int) -> int:  # noqa: ARG002 - all vCPUs share the VM's clock here
        return self.machine.state.now

    def real_time(self) -> int:
        return self.machine.state.boot_time_ns + self.machine.state.now

    def run(self, vcpu: int) -> None:
        self.machine.enter(self.machine.state.vcpus[vcpu])

    def hypercall(self, vcpu: int, call: GuestCall) -> CallOutcome:
        return EmulatedVm.prepared_hypercall(self, vcpu, call)()

    def complete(self, vcpu: int, result: int, *, moved: bool = False) -> int:
        call = self._forwarded.pop(vcpu).pointers.call
        completes = self.machine.complete_hypercall(self.machine.state.vcpus[vcpu], linear_rip=int(moved))
        return (result if completes else call.nr) & (U64_MAX if call.longmode else U32_MAX)

    def wrmsr(self, vcpu: int, msr: int, value: int, *, longmode: bool, compat: bool = False) -> MsrOutcome:  # noqa: ARG002 - EFER.LMA alone decides
        state = self.machine.state.vcpus[vcpu]
        self.machine.enter(state)
        try:
            outcome = self.machine.wrmsr(state, msr, value, long_mode_active=longmode)
        except KvmError as error:
            return MsrOutcome(ok=False, run_ret=-error.errno)
        return MsrOutcome(ok=outcome is MsrWrite.OK)

    def enable_local_apic(self, vcpu: int, *, enabled: bool) -> None:
        self.run(vcpu)
        self.machine.enable_local_apic(self.machine.state.vcpus[vcpu], enabled=enabled)

    def take_interrupt(self, vcpu: int) -> int | None:
        state = self.machine.state
        return lapic.take_vector(state, state.vcpus[vcpu])

    def pass_time(self, *, ns: int = 0, until: int = 0) -> None:
        state = self.machine.state
        timer.advance(state, max(state.now + ns, until) if ns else until)

    def wait_for_cpu(self, ns: int) -> int:
        self.pass_time(ns=ns)
        for vcpu in self.machine.state.vcpus:
            vcpu.run_delay += ns
        return ns
