# ruff: noqa: D102 - `HostVm` documents what the methods do
"""The emulated host with a CPU: the guest's hypercalls, MSR writes and interrupts are executed on Unicorn.

The core answers as it does without a CPU. What differs is where a hypercall comes from: the registers are
read from a CPU that stopped at VMCALL or VMMCALL, pointers are looked up in the guest's page tables, results
are written to RAX and RIP moves on, and what a replay observes is read back from the guest.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from mmap import mmap
from typing import ParamSpec, TypeVar

from attrs import Factory, define, field, frozen

from pytest_xenkvm.abi.numbers import U64_MAX
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.hypercall_page import MsrWrite
from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.core.profile import HostLimits, Profile
from pytest_xenkvm.cpu.engine import EngineError
from pytest_xenkvm.cpu.unicorn_api import UnicornError
from pytest_xenkvm.hosts.call_memory import CallMemory
from pytest_xenkvm.hosts.emulated import EmulatedVm, create_machine, map_slots
from pytest_xenkvm.hosts.guest_image import Mode
from pytest_xenkvm.hosts.guest_pointers import GuestPointers
from pytest_xenkvm.hosts.hypercall_pages import HypercallPages
from pytest_xenkvm.hosts.protocol import CallOutcome, GuestCall, HostError, MsrOutcome
from pytest_xenkvm.hosts.replay_cpu import Parked, ReplayCpu
from pytest_xenkvm.trace.events import VmShape

_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")


def _in_host_words(method: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """What the engine can't do, the host can't: HostError."""

    @wraps(method)
    def run(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        try:
            return method(*args, **kwargs)
        except (EngineError, UnicornError) as error:
            raise HostError(f"the Unicorn engine failed: {error}") from error

    return run


@frozen(kw_only=True)
class UnicornHost:
    """Answers like the kernel that `profile` names, to a guest that runs on Unicorn."""

    profile: Profile
    limits: HostLimits = Factory(HostLimits)
    cpu_vendor: str = field(default="amd", init=False)
    """Unless `create_vm` is asked for another."""

    @property
    def name(self) -> str:
        """For reports."""
        return f"emulated {self.profile.name}, guest on Unicorn"

    def create_vm(self, shape: VmShape, *, cpu_vendor: str = "amd") -> UnicornVm:
        """A VM of that shape, its clock at 0; raises HostError if its memory can't be had."""
        slots = map_slots(shape.memory)
        machine = create_machine(self.profile, self.limits, shape, slots, cpu_vendor=cpu_vendor)
        try:
            cpu = ReplayCpu(slots, machine.state.memory, cpu_vendor)
        except UnicornError as error:
            raise HostError(f"the guest's memory can't be given to Unicorn: {error}") from error
        return UnicornVm(machine, cpu=cpu)


@define(eq=False)
class UnicornVm(EmulatedVm):
    """A VM whose guest side is executed; see `HostVm` for what the methods do."""

    cpu: ReplayCpu = field(kw_only=True)
    hypercall_pages: HypercallPages = field(factory=HypercallPages, init=False)
    _stubs: dict[int, bytes] = field(factory=dict, init=False)
    """The stubs of the hypercall page as they were executed last, by address."""

    @_in_host_words
    def hypercall(self, vcpu: int, call: GuestCall) -> CallOutcome:
        state = self.machine.state.vcpus[vcpu]
        self.machine.enter(state)
        mode = Mode.of(longmode=call.longmode, compat=call.compat)
        stub = self._page_stub(call) if call.via_page else None
        registers, rip = self.cpu.call(Parked(vcpu, mode, call.cpl), call.nr, call.args, stub)
        pointers = GuestPointers(self.machine.state.memory, call, self.cpu.translate)
        try:
            outcome = self.machine.hypercall(
                state, registers, pointers.read, linear_rip=rip, block_until=call.over_by
            )
        except UnseenMemory:
            return CallOutcome()
        if isinstance(outcome, int):
            return CallOutcome(rax=self.cpu.answer(outcome, rip))
        self.cpu.wait(vcpu)
        self._forwarded[vcpu] = CallMemory(pointers)
        return CallOutcome(exit=outcome)

    def prepared_hypercall(self, vcpu: int, call: GuestCall) -> Callable[[], CallOutcome]:
        return partial(self.hypercall, vcpu, call)

    @_in_host_words
    def share(self, gpa: int, buffer: mmap) -> None:
        self.cpu.share(gpa, buffer)

    @_in_host_words
    def unshare(self, gpa: int) -> None:
        self.cpu.unshare(gpa)

    @_in_host_words
    def complete(self, vcpu: int, result: int, *, moved: bool = False) -> int:
        self.cpu.continue_waiting(vcpu)
        self._forwarded.pop(vcpu)
        if moved:
            self.cpu.move()
        rip = self.cpu.rip
        completes = self.machine.complete_hypercall(self.machine.state.vcpus[vcpu], linear_rip=rip)
        return self.cpu.answer(result & U64_MAX, rip) if completes else self.cpu.go_on(rip)

    @_in_host_words
    def wrmsr(self, vcpu: int, msr: int, value: int, *, longmode: bool, compat: bool = False) -> MsrOutcome:
        state = self.machine.state.vcpus[vcpu]
        self.machine.enter(state)
        write = self.cpu.write_msr(Parked(vcpu, Mode.of(longmode=longmode, compat=compat), 0), msr, value)
        try:
            outcome = self.machine.wrmsr(
                state, write.msr, write.value, long_mode_active=write.long_mode_active
            )
        except KvmError as error:
            return MsrOutcome(ok=False, run_ret=-error.errno)
        if outcome is MsrWrite.OK:
            self.hypercall_pages.remember(write.value)
            self.cpu.skip_msr_write()
            return MsrOutcome(ok=True)
        return MsrOutcome(ok=not self.cpu.fault_msr_write())

    @_in_host_words
    def take_interrupt(self, vcpu: int) -> int | None:
        vector = self.machine.take_vector(self.machine.state.vcpus[vcpu])
        return None if vector is None else self.cpu.interrupt(vcpu, vector)

    def _page_stub(self, call: GuestCall) -> int | None:
        """Where the newest hypercall page that has a stub for a call has it; None if there is none."""
        found = self.hypercall_pages.stub(call, self.machine.state.memory.read)
        if found is None:
            return None
        address, content = found
        if self._stubs.get(address) != content:
            self.cpu.flush_code()
            self._stubs[address] = content
        return address
