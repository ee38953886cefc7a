"""What the caller knows beside what a recording shows: either completes the other, none may contradict."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from pytest_xenkvm.abi.numbers import PAGE_SIZE
from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import Event, Header, Hypercall, MemorySlot, VcpuShape, VmShape
from pytest_xenkvm.trace.header import decode_header, encode_header
from pytest_xenkvm.trace.importers.model import Given
from pytest_xenkvm.trace.values import Unfit

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


def given_shape(path: str, given: Given, events: Iterable[Event]) -> VmShape | None:
    """Return the VM as it was given beside a recording that shows its vCPUs at most.

    None if nothing was given. Raises `Malformed` if half of it was. The KVM vCPU ids are taken to be the
    indexes.
    """
    if given.memory is None and given.irqchip is None:
        return None
    if given.memory is None or given.irqchip is None:
        missing = "memory" if given.memory is None else "irqchip"
        what = f"shows nothing of the VM: {missing} is missing, memory and irqchip must be given together"
        raise Malformed(what, path)
    vcpus = tuple(VcpuShape(index=index, id=index) for index in range(_vcpus(events)))
    return VmShape(irqchip=given.irqchip, memory=(MemorySlot(gpa=0, size=given.memory),), vcpus=vcpus)


def _vcpus(events: Iterable[Event]) -> int:
    return max((event.vcpu + 1 for event in events if isinstance(event, Hypercall)), default=0)


def check_header(path: str, header: Header, events: Iterable[Event]) -> None:
    """Raise `Malformed` for a header that no trace can have, and for more vCPUs than KVM_MAX_VCPUS."""
    try:
        decode_header(encode_header(header))
    except Unfit as unfit:
        raise Malformed(f"shows a VM that can't be: {unfit}; is it damaged, or of two VMs?", path) from None
    vcpus = max(_vcpus(events), len(header.vm.vcpus) if header.vm is not None else 0)
    if header.max_vcpus is not None and vcpus > header.max_vcpus:
        raise contradiction(path, f"max_vcpus {header.max_vcpus}", f"{vcpus} vCPUs")
