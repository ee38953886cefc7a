"""A VM's Xen state as a live migration moves it: read from one VM, written to a fresh one of the same shape.

What KVM can't be asked for, the VMM must keep and set again itself:

- KVM_XEN_HVM_CONFIG: there is no ioctl to read it;
- outbound ports: reading EVTCHN is -ENOENT;
- GSI routes and irqfds: they can only be set;
- interrupts that are requested but not taken: they are the local APIC's (KVM_GET_LAPIC);
- selector bits of events that came while a vCPU had no usable vcpu_info: no ioctl shows them. Give every
  vCPU its vcpu_info before events can come, or they are lost;
- a forwarded hypercall that waits for its answer: complete it first (KVM_RUN with `immediate_exit`);
- guest memory.

Stop all vCPUs before reading. Reading the TIMER attribute delivers the event of a timer that has fired but
could not deliver it yet, as it always does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from errno import ENOENT, EOPNOTSUPP
from types import MappingProxyType
from typing import Any, Final, TypeVar

from attrs import Factory, define, frozen

from pytest_xenkvm.abi.numbers import INVALID_GFN, INVALID_GPA, XEN_VCPU_ID_INVALID, HvmAttr, VcpuAttr
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.vmm.handles import RunstateInfo, Vm

Attribute = HvmAttr | VcpuAttr
_A = TypeVar("_A", HvmAttr, VcpuAttr)

VM_ORDER: Final = (
    HvmAttr.LONG_MODE,  # decides the layout and size of the areas
    HvmAttr.RUNSTATE_UPDATE_FLAG,  # decides how runstate areas are written
    HvmAttr.XEN_VERSION,
    HvmAttr.UPCALL_VECTOR,
    HvmAttr.SHARED_INFO,
    HvmAttr.SHARED_INFO_HVA,
)
"""The VM's attributes that can be read, in the order in which they are written."""

VCPU_ORDER: Final = (
    VcpuAttr.VCPU_ID,  # before TIMER: with a timer port the kernel serves timer hypercalls, by this ID
    VcpuAttr.UPCALL_VECTOR,  # before TIMER, which may raise it
    VcpuAttr.VCPU_INFO,
    VcpuAttr.VCPU_INFO_HVA,
    VcpuAttr.VCPU_TIME_INFO,
    VcpuAttr.RUNSTATE_DATA,  # before RUNSTATE_ADDR, which writes it to the guest
    VcpuAttr.RUNSTATE_ADDR,
)
"""Those of each vCPU, except for TIMER.

RUNSTATE_CURRENT is a part of RUNSTATE_DATA; RUNSTATE_ADJUST can't be read.
"""

_VM_OFF: Final[Mapping[HvmAttr, int]] = {HvmAttr.SHARED_INFO: INVALID_GFN, HvmAttr.SHARED_INFO_HVA: 0}
_VCPU_OFF: Final[Mapping[VcpuAttr, int]] = {
    VcpuAttr.VCPU_INFO: INVALID_GPA,
    VcpuAttr.VCPU_INFO_HVA: 0,
    VcpuAttr.VCPU_TIME_INFO: INVALID_GPA,
}
"""How an area reads that is off, or was given by the other kind of address. RUNSTATE_ADDR is -ENOENT."""

_UNAVAILABLE: Final = frozenset({ENOENT, EOPNOTSUPP})
"""The kernel doesn't know the attribute, or the host has no runstate, or there is nothing to be read."""


@frozen
class Backing:
    """The host address that backs guest address `gpa`, whatever number that is on a host."""

    gpa: int


@frozen(kw_only=True)
class XenSnapshot:
    """What KVM told of a VM's Xen state.

    `vm` and, by vCPU index, `vcpus` hold values as `Vm.get_attr` and `Vcpu.get_attr` return them: an int, a
    TimerSetting or a RunstateInfo; a host address is a Backing, or a number if it backs no guest memory.
    Areas that are off and attributes that this kernel doesn't know are left out. An area that the kernel
    refused with -EFAULT is in: it reads as the address that failed.
    """

    clock_ns: int
    """The guest's Xen clock, read last: no time in the snapshot lies ahead of it."""
    vm: Mapping[HvmAttr, Any]
    vcpus: tuple[Mapping[VcpuAttr, Any], ...]

    def items(self) -> Iterator[tuple[int | None, Attribute, Any]]:
        """Everything in it: vCPU index (None: the VM's own), attribute and value."""
        for hvm_attribute, value in self.vm.items():
            yield None, hvm_attribute, value
        for index, values in enumerate(self.vcpus):
            for attribute, value in values.items():
                yield index, attribute, value


@frozen(kw_only=True)
class Refused:
    """A value that the kernel refused to take over with `-errno`; `vcpu` None: the VM's own attribute."""

    vcpu: int | None
    attribute: Attribute
    value: Any
    errno: int


def take_snapshot(vm: Vm) -> XenSnapshot:
    """Read everything that can be read. Raises KvmError if reading fails in an unforeseen way."""
    vm_values = {attribute: _read(vm, vm.get_attr, attribute) for attribute in VM_ORDER}
    vcpus = [
        {attribute: _read(vm, vcpu.get_attr, attribute) for attribute in (*VCPU_ORDER, VcpuAttr.TIMER)}
        for vcpu in vm.vcpus
    ]
    return XenSnapshot(
        vm=_present(vm_values, _VM_OFF),
        vcpus=tuple(_present(values, _VCPU_OFF) for values in vcpus),
        clock_ns=vm.get_clock(),
    )


def _read(vm: Vm, get_attr: Callable[[int], Any], attribute: Attribute) -> Any:
    """A value, a host address as Backing if it can be; None for what isn't there."""
    try:
        value = get_attr(attribute)
    except KvmError as error:
        if error.errno in _UNAVAILABLE:
            return None
        raise
    if attribute is HvmAttr.SHARED_INFO_HVA or attribute is VcpuAttr.VCPU_INFO_HVA:
        gpa = vm.hva_to_gpa(value)
        return value if gpa is None else Backing(gpa)
    return RunstateInfo(*value) if attribute is VcpuAttr.RUNSTATE_DATA else value


def _present(values: Mapping[_A, Any], off: Mapping[_A, int]) -> Mapping[_A, Any]:
    return MappingProxyType(
        {key: value for key, value in values.items() if value is not None and value != off.get(key)}
    )


def restore_snapshot(snapshot: XenSnapshot, vm: Vm, *, write_unset_ids: bool = False) -> tuple[Refused, ...]:
    """Write a snapshot to a fresh VM with the same vCPUs and memory; what the kernel refused, in order.

    The order, which matters: the clock (a RUNSTATE_DATA ahead of it is -EINVAL, and the wall clock in
    shared_info follows from it); the VM's attributes as in `VM_ORDER`; each vCPU's as in `VCPU_ORDER`; then
    all timers, which fire at once if they are due and need the areas for that.

    To be expected among the refusals: areas that were refused before, -EFAULT once more. They read back
    the same nevertheless. An address that backs no guest memory is written as the number that it was: in
    another process it means something else or nothing.

    A Xen ID that reads XEN_VCPU_ID_INVALID was never set and isn't written; Linux 7.3 would refuse it with
    -EINVAL, as `write_unset_ids` shows. Up to Linux 7.2 an unset ID reads 0 and can't be told from a set one.

    Raises ValueError if the number of vCPUs differs or memory is missing, KvmError if the clock can't be set.
    """
    if len(vm.vcpus) != len(snapshot.vcpus):
        raise ValueError(f"the snapshot has {len(snapshot.vcpus)} vCPUs, the VM {len(vm.vcpus)}")
    vm.set_clock(snapshot.clock_ns)
    writer = _Writer(vm)
    for hvm_attribute in VM_ORDER:
        writer.write(None, hvm_attribute, snapshot.vm.get(hvm_attribute))
    for index, values in enumerate(snapshot.vcpus):
        for attribute in VCPU_ORDER:
            unset = attribute is VcpuAttr.VCPU_ID and values.get(attribute) == XEN_VCPU_ID_INVALID
            if write_unset_ids or not unset:
                writer.write(index, attribute, values.get(attribute))
    for index, values in enumerate(snapshot.vcpus):
        writer.write(index, VcpuAttr.TIMER, values.get(VcpuAttr.TIMER))
    return tuple(writer.refused)


@define
class _Writer:
    vm: Vm
    refused: list[Refused] = Factory(list)

    def write(self, vcpu: int | None, attribute: Attribute, value: Any) -> None:
        """Set an attribute; None is one that the snapshot doesn't hold."""
        if value is None:
            return
        set_attr = self.vm.set_attr if vcpu is None else self.vm.vcpus[vcpu].set_attr
        try:
            set_attr(attribute, self._host_address(value) if isinstance(value, Backing) else value)
        except KvmError as error:
            self.refused.append(Refused(vcpu=vcpu, attribute=attribute, value=value, errno=error.errno))

    def _host_address(self, value: Backing) -> int:
        """Where this host has it."""
        hva = self.vm.gpa_to_hva(value.gpa)
        if hva is None:
            raise ValueError(f"the VM has no memory at guest address {value.gpa:#x}, as the snapshot's had")
        return hva
