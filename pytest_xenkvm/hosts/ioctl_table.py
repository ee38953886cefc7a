"""The core's ioctls: what each takes out of its argument, and what it stores there."""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT, EINVAL, ENOTTY
from typing import Final

from pytest_xenkvm.abi import ioctls, kvm
from pytest_xenkvm.abi.numbers import KVM_CLOCK_VALID_FLAGS, U32_MAX
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.machine import XenVm
from pytest_xenkvm.hosts import attribute_codec as codec


def answer_ioctl(machine: XenVm, request: int, argument: int | bytearray, vcpu: int | None) -> int:
    """Do an ioctl of a VM's file, or of that of the vCPU with the index `vcpu`: its result, or -errno.

    Unknown requests, and those of the other kind of file, are -ENOTTY; short structures -EFAULT.
    """
    if request not in (_VM_IOCTLS if vcpu is None else _VCPU_IOCTLS):
        return -ENOTTY
    if isinstance(argument, bytearray) and len(argument) < ioctls.argument_size(request):
        return -EFAULT
    try:
        if vcpu is None:
            return _VM_IOCTLS[request](machine, argument)
        if isinstance(argument, int):
            return -EFAULT
        return _VCPU_IOCTLS[request](machine, vcpu, argument) or 0
    except KvmError as error:
        return -error.errno


def _check_extension(machine: XenVm, argument: int | bytearray) -> int:
    return machine.check_extension(argument) if isinstance(argument, int) else -EINVAL


def _with_bytes(handler: Callable[[XenVm, bytearray], None]) -> Callable[[XenVm, int | bytearray], int]:
    def handle(machine: XenVm, argument: int | bytearray) -> int:
        if isinstance(argument, int):
            return -EFAULT
        handler(machine, argument)
        return 0

    return handle


def _get_attr(machine: XenVm, argument: bytearray) -> None:
    type_ = codec.attribute_type(argument)
    codec.store_vm_value(argument, type_, machine.get_attr(type_))


def _set_attr(machine: XenVm, argument: bytearray) -> None:
    type_ = codec.attribute_type(argument)
    machine.set_attr(type_, codec.load_vm_value(argument, type_))


def _get_vcpu_attr(machine: XenVm, vcpu: int, argument: bytearray) -> None:
    type_ = codec.attribute_type(argument)
    codec.store_vcpu_value(argument, type_, machine.get_vcpu_attr(machine.state.vcpus[vcpu], type_))


def _set_vcpu_attr(machine: XenVm, vcpu: int, argument: bytearray) -> None:
    type_ = codec.attribute_type(argument)
    machine.set_vcpu_attr(machine.state.vcpus[vcpu], type_, codec.load_vcpu_value(argument, type_))


def _set_msrs(machine: XenVm, _vcpu: int, argument: bytearray) -> int:
    """The number of MSRs that were set; those of the CPU aren't modelled, and set none."""
    count: int = kvm.MSRS_HEADER.unpack_from(argument)[0]
    if len(argument) < kvm.MSRS_HEADER.size + count * kvm.MSR_ENTRY.size:
        raise KvmError(EFAULT)
    for number in range(count):
        msr, value = kvm.MSR_ENTRY.unpack_from(argument, kvm.MSRS_HEADER.size + number * kvm.MSR_ENTRY.size)
        if not machine.set_msr(msr, value):
            return number
    return count


def _configure(machine: XenVm, argument: bytearray) -> None:
    machine.configure(codec.load_config(argument))


def _evtchn_send(machine: XenVm, argument: bytearray) -> None:
    port, vcpu_id, priority = ioctls.XEN_EVTCHN.unpack_from(argument)
    machine.evtchn_send(port=port, vcpu_id=vcpu_id, priority=priority)


def _set_gsi_routing(machine: XenVm, argument: bytearray) -> None:
    machine.set_gsi_routing(codec.load_routes(argument))


def _irqfd(machine: XenVm, argument: bytearray) -> None:
    fd, gsi, flags, _resamplefd = ioctls.IRQFD.unpack_from(argument)
    machine.set_irqfd(fd=fd, gsi=gsi, flags=flags)


def _irq_line(machine: XenVm, argument: bytearray) -> None:
    gsi, level = ioctls.IRQ_LINE.unpack_from(argument)
    machine.set_irq_line(gsi=gsi, level=level)


def _irq_line_status(machine: XenVm, argument: bytearray) -> None:
    gsi, level = ioctls.IRQ_LINE.unpack_from(argument)
    ioctls.IRQ_LINE.pack_into(argument, 0, machine.set_irq_line(gsi=gsi, level=level) & U32_MAX, level)


def _get_clock(machine: XenVm, argument: bytearray) -> None:
    """Without flags: neither real time nor a host TSC stands beside the model's clock."""
    ioctls.CLOCK_DATA.pack_into(argument, 0, machine.state.now, 0, 0, 0)


def _set_clock(machine: XenVm, argument: bytearray) -> None:
    """KVM_CLOCK_REALTIME adds the real time since the reading, and none passes here."""
    clock, flags, _realtime, _host_tsc = ioctls.CLOCK_DATA.unpack_from(argument)
    if flags & ~KVM_CLOCK_VALID_FLAGS:
        raise KvmError(EINVAL)
    machine.set_clock(clock)


_VM_IOCTLS: Final[dict[int, Callable[[XenVm, int | bytearray], int]]] = {
    ioctls.KVM_CHECK_EXTENSION: _check_extension,
    ioctls.KVM_GET_CLOCK: _with_bytes(_get_clock),
    ioctls.KVM_SET_CLOCK: _with_bytes(_set_clock),
    ioctls.KVM_XEN_HVM_CONFIG: _with_bytes(_configure),
    ioctls.KVM_XEN_HVM_GET_ATTR: _with_bytes(_get_attr),
    ioctls.KVM_XEN_HVM_SET_ATTR: _with_bytes(_set_attr),
    ioctls.KVM_XEN_HVM_EVTCHN_SEND: _with_bytes(_evtchn_send),
    ioctls.KVM_SET_GSI_ROUTING: _with_bytes(_set_gsi_routing),
    ioctls.KVM_IRQFD: _with_bytes(_irqfd),
    ioctls.KVM_IRQ_LINE: _with_bytes(_irq_line),
    ioctls.KVM_IRQ_LINE_STATUS: _with_bytes(_irq_line_status),
}

_VCPU_IOCTLS: Final[dict[int, Callable[[XenVm, int, bytearray], int | None]]] = {
    ioctls.KVM_XEN_VCPU_GET_ATTR: _get_vcpu_attr,
    ioctls.KVM_XEN_VCPU_SET_ATTR: _set_vcpu_attr,
    kvm.KVM_SET_MSRS: _set_msrs,
}
