"""Creating a VM on /dev/kvm: memory, interrupt controllers, vCPUs that are ready to run."""

from __future__ import annotations

import os
from functools import cache
from mmap import mmap
from typing import Final
from weakref import finalize

from attrs import frozen

from pytest_xenkvm.abi import kvm
from pytest_xenkvm.core.memory import GuestMemory
from pytest_xenkvm.hosts.devkvm import guest_code
from pytest_xenkvm.hosts.devkvm.kernel import Kernel, address_of, guest_memory
from pytest_xenkvm.hosts.devkvm.vcpu import Vcpu
from pytest_xenkvm.hosts.devkvm.vm import DevKvmVm
from pytest_xenkvm.hosts.devkvm.xen_switch import SwitchUse
from pytest_xenkvm.hosts.guest_image import IMAGE_SIZE, GuestImage
from pytest_xenkvm.hosts.hypercall_pages import INSTRUCTIONS
from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.trace.events import VmShape

_HIGHEST_WINDOW: Final = 0xF3A0_0000
"""The guest's own 2 MiB lie there or below: where PCs have no memory, and no round number."""
_IOAPIC_PINS: Final = 24


@frozen
class VmCreator:
    """Creates VMs."""

    kernel: Kernel
    device: int
    """An open /dev/kvm."""
    cpu_vendor: str

    def create(self, shape: VmShape) -> DevKvmVm:
        """A VM of that shape; raises HostError. Its files are closed when nobody holds it any more."""
        opened: list[int] = []
        maps: list[mmap] = []
        switch = SwitchUse()
        try:
            made = self._create(shape, switch, opened, maps)
        except BaseException:
            _close(self.kernel, switch, opened, maps)
            raise
        finalize(made, _close, self.kernel, switch, opened, maps)
        return made

    def _create(self, shape: VmShape, switch: SwitchUse, opened: list[int], maps: list[mmap]) -> DevKvmVm:
        fd = self._must("KVM_CREATE_VM", self.device, kvm.KVM_CREATE_VM)
        opened.append(fd)
        memory, image = self._memory(fd, shape)
        if shape.irqchip == "full":
            self._must("KVM_CREATE_IRQCHIP", fd, kvm.KVM_CREATE_IRQCHIP)
        elif shape.irqchip == "split":
            argument = kvm.ENABLE_CAP.pack(kvm.KVM_CAP_SPLIT_IRQCHIP, 0, _IOAPIC_PINS)
            self._must("KVM_CAP_SPLIT_IRQCHIP", fd, kvm.KVM_ENABLE_CAP, argument)
        run_size = self._must("KVM_GET_VCPU_MMAP_SIZE", self.device, kvm.KVM_GET_VCPU_MMAP_SIZE)
        cpuid = self._cpuid()
        vcpus = []
        for vcpu in shape.vcpus:
            vcpu_fd = self._vcpu(fd, vcpu.id, len(shape.vcpus))
            opened.append(vcpu_fd)
            maps.append(self.kernel.map_file(vcpu_fd, run_size))
            self._must("KVM_SET_CPUID2", vcpu_fd, kvm.KVM_SET_CPUID2, cpuid)
            if shape.irqchip != "none":
                self._enable_local_apic(vcpu_fd)
            runnable = kvm.MP_STATE.pack(kvm.MP_STATE_RUNNABLE)
            self._must("KVM_SET_MP_STATE", vcpu_fd, kvm.KVM_SET_MP_STATE, runnable)
            apic_base = self._apic_base(vcpu_fd)
            vcpus.append(Vcpu(self.kernel, vcpu_fd, maps[-1], image, vcpu.index, apic_base, self.cpu_vendor))
        return DevKvmVm(self.kernel, fd, memory, vcpus, switch, opened)

    def _memory(self, fd: int, shape: VmShape) -> tuple[GuestMemory, GuestImage]:
        """The trace's slots, and behind them one with the host's own guest code."""
        try:
            buffers = [(slot.gpa, guest_memory(slot.size)) for slot in shape.memory]
        except (OSError, ValueError, OverflowError) as error:
            total = sum(slot.size for slot in shape.memory)
            raise HostError(f"can't map {total} bytes of guest memory: {error}") from error
        memory = GuestMemory(buffers, [address_of(buffer) for _gpa, buffer in buffers])
        code = _guest_code(INSTRUCTIONS[self.cpu_vendor], has_local_apic=shape.irqchip != "none")
        image = GuestImage.build(memory.slots, code, highest=_HIGHEST_WINDOW)
        slots = [(slot.gpa, slot.end - slot.gpa, slot.hva) for slot in memory.slots]
        own = (image.physical, IMAGE_SIZE, address_of(image.memory))
        for number, (gpa, size, hva) in enumerate((*slots, own)):
            argument = kvm.USER_MEMORY_REGION.pack(number, 0, gpa, size, hva)
            self._must(
                f"a memory slot of {size} bytes at {gpa:#x}", fd, kvm.KVM_SET_USER_MEMORY_REGION, argument
            )
        return memory, image

    def _cpuid(self) -> bytes:
        """What this KVM can offer to a guest."""
        argument = bytearray(kvm.CPUID_HEADER.size + kvm.MAX_CPUID_ENTRIES * kvm.CPUID_ENTRY.size)
        kvm.CPUID_HEADER.pack_into(argument, 0, kvm.MAX_CPUID_ENTRIES)
        self._must("KVM_GET_SUPPORTED_CPUID", self.device, kvm.KVM_GET_SUPPORTED_CPUID, argument)
        count: int = kvm.CPUID_HEADER.unpack_from(argument)[0]
        return bytes(argument[: kvm.CPUID_HEADER.size + count * kvm.CPUID_ENTRY.size])

    def _vcpu(self, fd: int, vcpu_id: int, count: int) -> int:
        result = self.kernel.ioctl(fd, kvm.KVM_CREATE_VCPU, vcpu_id)
        if result < 0:
            raise HostError(
                f"the vCPU with id {vcpu_id}, one of {count}, can't be created (errno {-result}, "
                f"{os.strerror(-result)}): this kernel's limit may be lower"
            )
        return result

    def _enable_local_apic(self, vcpu_fd: int) -> None:
        registers = bytearray(kvm.LAPIC_SIZE)
        self._must("KVM_GET_LAPIC", vcpu_fd, kvm.KVM_GET_LAPIC, registers)
        at = guest_code.SPURIOUS_VECTOR_AT
        registers[at : at + 4] = guest_code.APIC_ENABLED.to_bytes(4, "little")
        self._must("KVM_SET_LAPIC", vcpu_fd, kvm.KVM_SET_LAPIC, registers)

    def _apic_base(self, vcpu_fd: int) -> int:
        sregs = bytearray(kvm.SREGS_SIZE)
        self._must("KVM_GET_SREGS", vcpu_fd, kvm.KVM_GET_SREGS, sregs)
        return int.from_bytes(sregs[kvm.APIC_BASE_AT : kvm.APIC_BASE_AT + 8], "little")

    def _must(self, what: str, fd: int, request: int, argument: int | bytes | bytearray = 0) -> int:
        result = self.kernel.ioctl(fd, request, argument)
        if result < 0:
            raise HostError(
                f"/dev/kvm refused {what} with errno {-result} ({os.strerror(-result)}) when a VM was created"
            )
        return result


@cache
def _guest_code(instruction: bytes, *, has_local_apic: bool) -> tuple[tuple[int, bytes], ...]:
    """Made once, as VMs come by the hundred."""
    return tuple(guest_code.code(instruction, has_local_apic=has_local_apic))


def _close(kernel: Kernel, switch: SwitchUse, opened: list[int], maps: list[mmap]) -> None:
    """A mapping keeps a vCPU, and so the VM, alive."""
    for mapping in maps:
        mapping.close()
    for fd in reversed(opened):
        kernel.close(fd)
    switch.configured(0)
