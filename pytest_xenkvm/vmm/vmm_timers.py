"""Timers of a VMM's own: one a vCPU, for what the kernel's timers don't serve.

They hold times alone: whoever moves the VM's clock asks what is due and calls the behaviour's `on_timer`.
"""

from __future__ import annotations

from typing import NamedTuple

from attrs import Factory, define


class DueTimer(NamedTuple):
    """A timer that is due: the index of its vCPU, and the VM's clock (ns) that it was started for."""

    vcpu: int
    expires_ns: int


@define(eq=False)
class VmmTimers:
    """The timers that run, by vCPU index."""

    _running: dict[int, int] = Factory(dict)

    def start(self, vcpu: int, expires_ns: int) -> None:
        """Start the timer of a vCPU for that time of the VM's clock (ns), in place of the one that runs.

        Raises TypeError for a time that is no int.
        """
        if not isinstance(expires_ns, int):
            raise TypeError(f"expires_ns is {expires_ns!r}, expected the VM's clock in ns as an int")
        self._running[vcpu] = expires_ns

    def stop(self, vcpu: int) -> None:
        """Stop the timer of a vCPU; fine if none runs."""
        self._running.pop(vcpu, None)

    def next_expiry(self) -> int | None:
        """The time (ns) of the timer that is due next; None if none runs."""
        return min(self._running.values(), default=None)

    def take_due(self, now: int) -> DueTimer | None:
        """Take out the timer that expired first, up to `now` (ns); of several at once, the lowest vCPU's."""
        due = min(((expires, vcpu) for vcpu, expires in self._running.items()), default=None)
        if due is None or due[0] > now:
            return None
        del self._running[due[1]]
        return DueTimer(due[1], due[0])
