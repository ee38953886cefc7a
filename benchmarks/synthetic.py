"""A trace as long as one likes with the mix of a real boot.

The bundled @linux-boot sets a VM up and then goes through its guest's life. What follows the set-up is 43 %
stores of hypercall arguments to memory, 32 % events that the VMM sends, 17 % singleshot timers, 5 % events
that the guest sends, and 3 % other hypercalls, nearly all of them forwarded. The long trace is the set-up
once and the life again and again, with a clock that goes on, and with the outcomes that the emulated host
shows: so it replays without a divergence. The same length gives the same events on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from attrs import evolve

from pytest_xenkvm.core.profile import profile_for_release
from pytest_xenkvm.replay.kernel import kernel_replay
from pytest_xenkvm.rules.run import emulated_host
from pytest_xenkvm.trace import open_trace, write_trace
from pytest_xenkvm.trace.events import Event, timed

SOURCE: Final = "@linux-boot"
SET_UP: Final = 4171
"""Events of the source up to its first KVM_XEN_HVM_EVTCHN_SEND; both vCPUs run by then."""


def write_long_trace(path: Path, length: int) -> None:
    """Write a trace of that many events."""
    header = open_trace(SOURCE).header
    host = emulated_host(header, profile_for_release(header.kernel))
    observations = kernel_replay(host, header, timed(islice(_events(), length)))
    write_trace(path, header, (observation.event for observation in observations))


def _events() -> Iterator[Event]:
    source = list(open_trace(SOURCE).events())
    yield from source[:SET_UP]
    life = source[SET_UP:]
    period = (life[-1].ts or 0) - (source[SET_UP - 1].ts or 0)
    shift = 0
    while True:
        for event in life:
            yield evolve(event, ts=(event.ts or 0) + shift)
        shift += period
