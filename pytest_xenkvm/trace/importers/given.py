"""What the caller knows beside what a recording shows: either completes the other, none may contradict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from pytest_xenkvm.abi.numbers import PAGE_SIZE
from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Event, Header, Hypercall
from pytest_xenkvm.trace.importers.model import Given

T = TypeVar("T")


def settled(path: str, what: str, given: T | None, recorded: T | None) -> T | None:
    """Return what is given or recorded; raises `Malformed` if both are and differ."""
    if given is not None and recorded is not None and given != recorded:
        raise contradiction(path, f"{what} {given}", f"{what} {recorded}")
    return given if recorded is None else recorded


def contradiction(path: str, given: str, recorded: str) -> Malformed:
    """Return the error for what was given although the recording shows otherwise."""
    return Malformed(f"shows {recorded}, but {given} was given: leave that out or correct it", path)


def check_memory(path: str, given: Given, end: int) -> None:
    """Raise `Malformed` if the guest used memory up to `end` (bytes) and less than that was given."""
    if given.memory is not None and end > given.memory:
        shown = f"guest memory at {end - PAGE_SIZE:#x}"
        raise contradiction(path, f"memory of {given.memory:#x} bytes", shown)


def check_vcpus(path: str, header: Header, events: Iterable[Event]) -> None:
    """Raise `Malformed` if there are more vCPUs than the host's KVM_MAX_VCPUS, given or recorded."""
    seen = max((event.vcpu + 1 for event in events if isinstance(event, Hypercall)), default=0)
    vcpus = max(seen, len(header.vm.vcpus) if header.vm is not None else 0)
    if header.max_vcpus is not None and vcpus > header.max_vcpus:
        raise contradiction(path, f"max_vcpus {header.max_vcpus}", f"{vcpus} vCPUs")
