"""Recordings of one scenario, made comparable."""

from __future__ import annotations

from attrs import evolve

from pytest_xenkvm.trace.events import Event, Ioctl, Mem


def comparable(event: Event) -> Event:
    """An event without what differs from one recording to the next: times, and undetermined values."""
    if isinstance(event, Ioctl):
        event = evolve(event, undetermined=event.undetermined and {})
    elif isinstance(event, Mem) and event.mask is not None:
        masked = bytes(byte & bits for byte, bits in zip(event.data, event.mask, strict=True))
        event = evolve(event, data=masked)
    return evolve(event, ts=None)
