"""Polls whose duration a probe looks at."""

from __future__ import annotations

from typing import Final

from pytest_xenkvm.trace.events import NowPlus

from .setting import MS, SECOND
from .vcpu import ProbeVcpu

LONG: Final = 3 * SECOND
"""A timeout (ns) that nobody waits for."""
SHORT: Final = 40 * MS
PORT: Final = 20
"""The timer port that `timers` gives vCPU 0."""


def blocked_for(vcpu: ProbeVcpu, *ports: int, timeout: int, **how: object) -> int:
    """How long a poll took by the guest's clock (ns)."""
    before = vcpu.vm.clock()
    vcpu.poll(ports, timeout, **how)  # type: ignore[arg-type]
    return vcpu.vm.clock() - before


def at_once(vcpu: ProbeVcpu, *ports: int, **how: object) -> None:
    """A poll must come back before its timeout."""
    __tracebackhide__ = True
    took = blocked_for(vcpu, *ports, timeout=LONG, **how)
    if took > LONG - SECOND // 2:
        vcpu.vm.fail("the poll comes back before its timeout", f"it took {took // MS} ms", vcpu.index)


def until_timeout(vcpu: ProbeVcpu, *ports: int, **how: object) -> None:
    """A poll must block until its timeout has passed."""
    __tracebackhide__ = True
    took = blocked_for(vcpu, *ports, timeout=SHORT, **how)
    if took < SHORT * 3 // 4:
        vcpu.vm.fail(f"the poll blocks for its timeout, {SHORT // MS} ms", f"it took {took} ns", vcpu.index)


def wakes(vcpu: ProbeVcpu, *ports: int) -> None:
    """The event of the vCPU's timer must end a poll before its timeout.

    The timer may fire before a slow host gets to the poll, so that it has several tries.
    """
    __tracebackhide__ = True
    for delay in (100 * MS, 500 * MS, 2 * SECOND):
        vcpu.vm.clear_events()
        vcpu.set_timer(PORT, NowPlus(delay))
        if blocked_for(vcpu, *ports, timeout=LONG) <= LONG - SECOND // 2:
            vcpu.vm.pending(PORT)
            return
    vcpu.vm.fail("the event ends the poll before its timeout", "it took all of its timeout", vcpu.index)
