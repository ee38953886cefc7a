"""The VMM's side of a VM that runs: whatever concerns a behaviour is handed to it, in the order of time.

Whoever plays the guest says when time passes (`pass_time`), when a hypercall is forwarded (`answer`) and when
the guest has done something (`react`). Timers of the VMM's own fire as soon as the VM's clock has reached
them: at their time if time passes, else when the behaviour's method that ran has returned. A kernel's timer
that expires at the same time comes first.
"""

from __future__ import annotations

from typing import Final

from attrs import define, field

from pytest_xenkvm.abi.numbers import U64_MAX
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.hosts.protocol import HostVm
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.vmm.behaviour import behaviour_name
from pytest_xenkvm.vmm.calling import Calls
from pytest_xenkvm.vmm.handles import Vm

MAX_FIRINGS_AT_ONCE: Final = 10_000
"""VMM timers that may expire while the VM's clock stands still."""
MAX_FIRINGS: Final = 1_000_000
"""VMM timers that may expire while the guest does nothing."""


@define(eq=False)
class VmmSide:
    """Calls the behaviour about one VM. Its methods raise what the behaviour raises, and ReplayError."""

    vm: Vm
    host_vm: HostVm
    calls: Calls
    _firings: int = field(default=0, init=False)
    """VMM timers that expired since `guest_acts`."""
    _at_once: int = field(default=0, init=False)
    _fired_at: int = field(default=-1, init=False)

    @property
    def now(self) -> int:
        """The VM's clock (ns)."""
        return self.host_vm.guest_clock(0)

    def configure(self) -> None:
        """Before the guest runs."""
        self.calls.call(self.calls.behaviour.configure, self.vm)
        self._fire()

    def answer(self, vcpu: int, xen_exit: XenExit) -> int | None:
        """A hypercall of the vCPU with that index was forwarded: the answer as u64; None if there is none."""
        result: object = self.calls.call(self.calls.behaviour.on_hypercall, self.vm.vcpus[vcpu], xen_exit)
        if result is not None and not (isinstance(result, int) and -(1 << 63) <= result <= U64_MAX):
            raise ReplayError(
                f"the VMM behaviour's on_hypercall returned {result!r} for hypercall {xen_exit.input}, "
                "expected an int that fits RAX (-ENOSYS is an answer)"
            )
        self._fire()
        return None if result is None else result & U64_MAX

    def guest_acts(self) -> None:
        """The guest is about to do something."""
        self._firings, self._at_once = 0, 0

    @property
    def fired(self) -> bool:
        """Whether a VMM timer has expired since then."""
        return self._firings > 0

    def react(self) -> None:
        """The guest has done something: hand over what it signalled."""
        on_event_channel = self.calls.find_own("on_event_channel")
        if on_event_channel is not None:
            for fd in sorted(self.vm.outbound_eventfds):
                count = self.host_vm.read_eventfd(fd)
                if count > 0:
                    self.calls.call(on_event_channel, self.vm, fd, count)
        self._fire()

    def pass_time(self, *, ns: int = 0, until: int = 0) -> None:
        """Let at least `ns` pass, and the VM's clock reach `until` (ns)."""
        until = max(self.now + ns, until)
        while (expiry := self.next_timer()) is not None and expiry <= until:
            self.host_vm.pass_time(until=expiry)
            self._fire()
        self.host_vm.pass_time(until=until)

    def next_timer(self) -> int | None:
        """When the next VMM timer expires (the VM's clock, ns); None if none runs."""
        return self.vm.vmm_timers.next_expiry()

    def migrate(self, target: Vm) -> None:
        """Let the behaviour move the VM, if it has a say in that."""
        on_migrate = self.calls.find("on_migrate")
        if on_migrate is not None:
            self.calls.call(on_migrate, self.vm, target)

    def _fire(self) -> None:
        """Fire the VMM timers that are due."""
        while (due := self.vm.vmm_timers.take_due(self.now)) is not None:
            self._count()
            on_timer = self.calls.find_own("on_timer")
            if on_timer is None:
                name = behaviour_name(self.calls.behaviour)
                raise ReplayError(f"the VMM behaviour {name} started a VMM timer but has no on_timer")
            self.calls.call(on_timer, self.vm.vcpus[due.vcpu], due.expires_ns)

    def _count(self) -> None:
        """Raise ReplayError if it goes on for ever."""
        now = self.now
        self._at_once = self._at_once + 1 if now == self._fired_at else 1
        self._fired_at, self._firings = now, self._firings + 1
        if self._at_once > MAX_FIRINGS_AT_ONCE:
            raise ReplayError(
                f"the VMM behaviour's timers expired {MAX_FIRINGS_AT_ONCE:,} times at {now} ns of the VM's "
                "clock: on_timer must start them for a time that is still to come"
            )
        if self._firings > MAX_FIRINGS:
            raise ReplayError(
                f"the VMM behaviour's timers expired {MAX_FIRINGS:,} times while the guest did nothing: "
                "on_timer starts them for times too near"
            )
