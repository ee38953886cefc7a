"""A trace as long as one likes with the mix of a real boot.

The bundled @linux-boot sets a VM up and then goes through its guest's life. What follows the set-up is 43 %
stores of hypercall arguments to memory, 32 % events that the VMM sends, 17 % singleshot timers, 5 % events
that the guest sends, and 3 % other hypercalls, nearly all of them forwarded. The long trace is the set-up
once and the life again and again, with a clock that goes on, and with the outcomes that the emulated host
shows: so it replays without a divergence. The same length gives the same events on every machine.
"""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Final

import msgpack  # type: ignore[import-untyped]
from attrs import evolve, frozen

from pytest_xenkvm.core.profile import profile_for_release
from pytest_xenkvm.replay.kernel import kernel_replay
from pytest_xenkvm.rules.hosts import emulated_host
from pytest_xenkvm.trace import blocks, open_trace
from pytest_xenkvm.trace.events import Event, Header, timed
from pytest_xenkvm.trace.rows import CODES
from pytest_xenkvm.trace.xkt import BLOCK_TARGET, XktWriter

SOURCE: Final = "@linux-boot"
SET_UP: Final = 4171
"""Events of the source up to its first KVM_XEN_HVM_EVTCHN_SEND; both vCPUs run by then."""


@frozen(kw_only=True)
class _Block:
    """Rows of the life that fill a block; they hold time steps, so that they are the same in every life."""

    rows: bytes
    counts: Counter[int]
    """Events by code."""
    lasts: int
    """ns."""


def write_long_trace(path: Path, length: int) -> None:
    """Write a trace of that many events.

    The host shows the same outcomes in every life. So the rows of one are written over and over, and only
    compressed anew.
    """
    source = open_trace(SOURCE)
    events = _outcomes(source.header, list(source.events()))
    set_up, life = events[:SET_UP], events[SET_UP:]
    with XktWriter(path, source.header) as writer:
        for event in islice(set_up, length):
            writer.write(event)
        if length > SET_UP:
            writer._end_block()
            repeated = _blocks(writer, life)
            while length - writer.written >= len(life):
                for block in repeated:
                    _write(writer, block)
            shift = writer._ts - (set_up[-1].ts or 0)
            for event in islice(life, length - writer.written):
                writer.write(evolve(event, ts=(event.ts or 0) + shift))


def _outcomes(header: Header, events: list[Event]) -> list[Event]:
    host = emulated_host(header, profile_for_release(header.kernel))
    return [seen.event for seen in kernel_replay(host, header, timed(events))]


def _blocks(writer: XktWriter, events: list[Event]) -> list[_Block]:
    """The blocks that the writer would write for these events; it forgets that it saw them."""
    found = []
    start = began = writer._ts
    rows, counts = bytearray(), Counter[int]()
    for event in events:
        rows += writer._packed(event)
        counts[CODES[event.kind]] += 1
        writer._ts = event.ts or writer._ts
        if len(rows) >= BLOCK_TARGET or event is events[-1]:
            found.append(_Block(rows=bytes(rows), counts=counts, lasts=writer._ts - began))
            rows, counts, began = bytearray(), Counter[int](), writer._ts
            writer._start_block()
    writer._ts = start
    writer._start_block()
    return found


def _write(writer: XktWriter, block: _Block) -> None:
    content = msgpack.packb((writer.written, writer._ts)) + block.rows
    blocks.write_block(writer._file, blocks.EVENTS, content)
    for code, count in block.counts.items():
        writer._counts[code] += count
    writer.written += sum(block.counts.values())
    writer._blocks += 1
    writer._ts += block.lasts
    writer._start_block()
