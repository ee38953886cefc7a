"""What a VM of a test's own is made of, checked before a host is asked for it."""

from __future__ import annotations

from pytest_xenkvm.abi.numbers import PAGE_SIZE
from pytest_xenkvm.trace.events import IRQCHIPS, VENDORS, Header, MemorySlot, VcpuShape, VmShape
from pytest_xenkvm.trace.header import MAX_MEMORY, decode_header, encode_header
from pytest_xenkvm.trace.values import Unfit


def plain_shape(*, vcpus: int, memory: int, irqchip: str, max_vcpus: int) -> VmShape:
    """A VM with `memory` bytes at guest address 0, and vCPUs whose KVM ids count from 0.

    Raises ValueError for what can be no VM; `max_vcpus` is the host's KVM_MAX_VCPUS.
    """
    if type(vcpus) is not int or not 1 <= vcpus <= max_vcpus:
        raise ValueError(f"vcpus is {vcpus!r}, expected 1 to {max_vcpus}, the host's KVM_MAX_VCPUS")
    if type(memory) is not int or memory % PAGE_SIZE or not 0 < memory <= MAX_MEMORY:
        raise ValueError(f"memory is {memory!r}, expected bytes in whole pages of {PAGE_SIZE}, up to 1 TiB")
    if irqchip not in IRQCHIPS:
        raise ValueError(f"irqchip is {irqchip!r}, expected {', '.join(IRQCHIPS)}")
    return VmShape(
        irqchip=irqchip,
        memory=(MemorySlot(gpa=0, size=memory),),
        vcpus=tuple(VcpuShape(index=index, id=index) for index in range(vcpus)),
    )


def check_shape(shape: VmShape) -> None:
    """Raise ValueError for a VM that no trace's header could tell of, TypeError for what is none."""
    if not isinstance(shape, VmShape):
        raise TypeError(f"shape is {shape!r}, expected a VmShape such as a trace's header.vm")
    try:
        decode_header(encode_header(Header(vm=shape)))
    except Unfit as unfit:
        raise ValueError(f"shape can be no VM: {str(unfit).removeprefix('header: ')}") from None


def check_vendor(cpu_vendor: str) -> None:
    """Raise ValueError for a CPU that there isn't."""
    if cpu_vendor not in VENDORS:
        raise ValueError(f"cpu_vendor is {cpu_vendor!r}, expected {', '.join(VENDORS)}")
