"""How an event reaches its vCPU: pending, mask and selector bits, by KVM_XEN_HVM_EVTCHN_SEND."""

from __future__ import annotations

from errno import EFAULT, EINVAL

import pytest

from pytest_xenkvm.abi.layout import EVTCHN_PENDING
from pytest_xenkvm.abi.numbers import INVALID_GFN, INVALID_GPA, PAGE_SIZE, U32_MAX, HvmAttr, VcpuAttr

from .kit.hosts import Builder
from .kit.setting import NOWHERE, SHARED_INFO, VCPU_INFO

pytestmark = pytest.mark.source(
    "kvm_xen_hvm_evtchn_send, kvm_xen_set_evtchn_fast; Xen's public/event_channel.h"
)

LAYOUTS = pytest.mark.parametrize("long_mode", [True, False], ids=["64-bit", "32-bit"])


def ports(long_mode: bool) -> list[int]:  # noqa: FBT001 - a parameter of probes
    """Ports at the bounds of a layout's words."""
    return [1, 31, 32, 63, 64, 1022, 1023, *([1024, 2048, 4095] if long_mode else [])]


@LAYOUTS
def test_delivered(new_vm: Builder, *, long_mode: bool) -> None:
    """An event sets its port's pending bit, its word's selector bit and evtchn_upcall_pending, no more."""
    vm = new_vm.ready(long_mode=long_mode)
    for port in ports(long_mode):
        vm.send(port)
        vm.pending(port)
        vm.vcpus[0].upcall(port // vm.layout.word_bits)
        vm.clear_events()


@LAYOUTS
def test_ports_add_up(new_vm: Builder, *, long_mode: bool) -> None:
    """Events add to those that are pending."""
    vm = new_vm.ready(long_mode=long_mode)
    for port in ports(long_mode):
        vm.send(port)
    vm.pending(*ports(long_mode))
    vm.vcpus[0].upcall(*{port // vm.layout.word_bits for port in ports(long_mode)})


@LAYOUTS
def test_ports_out_of_range(new_vm: Builder, *, long_mode: bool) -> None:
    """Port 0 and ports from the layout's limit on (4096, or 1024 in 32 bits) are -EINVAL."""
    vm = new_vm.ready(long_mode=long_mode)
    for port in (0, 1024, 1025, 4096, 0x7FFF_FFFF, 0x8000_0000, U32_MAX):
        valid = 0 < port < (4096 if long_mode else 1024)
        vm.send(port, ret=0 if valid else -EINVAL)
        vm.pending(*([port] if valid else []))
        vm.clear_events()


def test_priority(new_vm: Builder) -> None:
    """A priority other than 2LEVEL is -EINVAL."""
    vm = new_vm.ready()
    for priority in (0, 1, 0x7FFF_FFFF, 0xFFFF_FFFE):
        vm.send(5, priority=priority, ret=-EINVAL)
        vm.pending()


def test_target_is_a_kvm_id(new_vm: Builder) -> None:
    """The target is a KVM vCPU id, neither an index nor a Xen ID; another number is -EINVAL."""
    vm = new_vm.ready(ids=(3, 0, 7))
    vm.vcpus[0].set(VcpuAttr.VCPU_ID, 1)
    for vcpu in vm.vcpus:
        vm.send(5, vcpu.id)
        vcpu.upcall(0)
        for other in vm.vcpus:
            if other is not vcpu:
                other.quiet()
        vm.clear_events()
    for unknown in (1, 2, 4, 99, 4096, 0x8000_0000, U32_MAX):
        vm.send(5, unknown, ret=-EINVAL)
    vm.pending()


@LAYOUTS
def test_coalesced(new_vm: Builder, *, long_mode: bool) -> None:
    """An event whose port is pending already is accepted and changes nothing."""
    vm = new_vm.ready(long_mode=long_mode)
    vm.send(5)
    vm.store(VCPU_INFO, bytes(16))
    vm.send(5)
    vm.pending(5)
    vm.vcpus[0].quiet()


@LAYOUTS
def test_masked(new_vm: Builder, *, long_mode: bool) -> None:
    """An event of a masked port is accepted and becomes pending, but isn't announced, nor is a second one."""
    vm = new_vm.ready(long_mode=long_mode)
    for port in ports(long_mode):
        vm.mask(port)
        vm.send(port)
        vm.send(port)
        vm.pending(port)
        vm.vcpus[0].quiet()
        vm.clear_events()


@LAYOUTS
def test_mask_is_the_ports_own(new_vm: Builder, *, long_mode: bool) -> None:
    """Only the mask bit of the event's own port counts, where its layout has it."""
    vm = new_vm.ready(long_mode=long_mode)
    for port in ports(long_mode):
        vm.mask(*(other for other in range(1, vm.layout.max_ports) if other != port))
        vm.send(port)
        vm.vcpus[0].upcall(port // vm.layout.word_bits)
        vm.clear_events()


@LAYOUTS
def test_announced_once(new_vm: Builder, *, long_mode: bool) -> None:
    """If the word's selector bit is set already, evtchn_upcall_pending is left as the guest has it."""
    vm = new_vm.ready(long_mode=long_mode)
    vm.send(5)
    vm.store(VCPU_INFO, b"\0")
    vm.send(6)
    vm.pending(5, 6)
    vm.vcpus[0].upcall(0, pending=0)
    vm.send(vm.layout.word_bits)
    vm.vcpus[0].upcall(0, 1)


def test_upcall_mask_is_the_guests(new_vm: Builder) -> None:
    """evtchn_upcall_mask doesn't keep events from being announced, and is left alone."""
    vm = new_vm.ready()
    vm.store(VCPU_INFO + 1, b"\1")
    vm.send(5)
    vm.vcpus[0].upcall(0)
    vm.holds(VCPU_INFO, b"\1\1" + bytes(6), "vcpu_info")


def test_without_shared_info(new_vm: Builder) -> None:
    """Without shared_info a send is -EINVAL, with one that was refused -EFAULT."""
    vm = new_vm()
    vm.send(5, ret=-EINVAL)
    vm.config()
    vm.send(5, ret=-EINVAL)
    vm.set(HvmAttr.SHARED_INFO, NOWHERE // PAGE_SIZE, ret=-EFAULT)
    vm.send(5, ret=-EFAULT)
    vm.set(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE_SIZE)
    vm.send(5)
    vm.pending(5)
    vm.set(HvmAttr.SHARED_INFO, INVALID_GFN)
    vm.send(6, ret=-EINVAL)


def test_without_config(new_vm: Builder) -> None:
    """Events are delivered without KVM_XEN_HVM_CONFIG, too."""
    vm = new_vm()
    vm.set(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE_SIZE)
    vm.vcpus[0].place_vcpu_info()
    vm.send(5)
    vm.pending(5)
    vm.vcpus[0].upcall(0)


def test_irqchip_makes_no_difference(new_vm: Builder) -> None:
    """Events reach memory whatever interrupt controllers the VM has."""
    for irqchip in ("none", "split", "full"):
        vm = new_vm.ready(irqchip=irqchip)
        vm.send(5)
        vm.pending(5)
        vm.vcpus[0].upcall(0)


# ---- events that wait for their vCPU's vcpu_info


@LAYOUTS
def test_deferred(new_vm: Builder, *, long_mode: bool) -> None:
    """Without vcpu_info selector bits are kept, and announced when the vCPU enters the guest with one."""
    vm = new_vm.ready(long_mode=long_mode)
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_INFO, INVALID_GPA)
    for port in ports(long_mode):
        vm.send(port)
    vm.pending(*ports(long_mode))
    vcpu.run()
    vcpu.place_vcpu_info()
    vcpu.quiet()
    vcpu.run()
    vcpu.upcall(*{port // vm.layout.word_bits for port in ports(long_mode)})
    vm.store(VCPU_INFO, bytes(16))
    vcpu.run()
    vcpu.quiet()


def test_deferred_adds_to_the_guests(new_vm: Builder) -> None:
    """Kept selector bits add to those that vcpu_info holds."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_INFO, INVALID_GPA)
    vm.send(64)
    vm.store(VCPU_INFO + vm.layout.pending_sel, b"\x80")
    vcpu.place_vcpu_info()
    vcpu.run()
    vcpu.upcall(1, 7)


def test_deferred_masked(new_vm: Builder) -> None:
    """Of a masked port nothing is kept."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_INFO, INVALID_GPA)
    vm.mask(5)
    vm.send(5)
    vcpu.place_vcpu_info()
    vcpu.run()
    vcpu.quiet()
    vm.pending(5)


def test_deferred_needs_the_msr(new_vm: Builder) -> None:
    """Kept selector bits are announced only in a VM with a hypercall MSR, whether or not it intercepts."""
    vm = new_vm.alone()
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE_SIZE)
    vm.send(5)
    vcpu.place_vcpu_info()
    vcpu.run()
    vcpu.quiet()
    vm.config(flags=0)
    vcpu.run()
    vcpu.upcall(0)


def test_deferred_is_the_vcpus_own(new_vm: Builder) -> None:
    """Kept selector bits stay with their vCPU."""
    vm = new_vm.ready(vcpus=2)
    first, second = vm.vcpus
    for vcpu in vm.vcpus:
        vcpu.set(VcpuAttr.VCPU_INFO, INVALID_GPA)
    vm.send(5, 1)
    for vcpu in vm.vcpus:
        vcpu.place_vcpu_info()
        vcpu.run()
    first.quiet()
    second.upcall(0)


def test_deferred_beyond_32_bits(new_vm: Builder) -> None:
    """A kept selector bit above 31 never leaves in the 32-bit layout, and announces itself at each entry."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_INFO, INVALID_GPA)
    vm.send(64 * 40)
    vm.send(64 * 3)
    vm.set(HvmAttr.LONG_MODE, 0)
    vcpu.place_vcpu_info()
    vcpu.run()
    vcpu.upcall(3)
    vm.store(VCPU_INFO, bytes(16))
    vcpu.run()
    vcpu.upcall()
    vm.set(HvmAttr.LONG_MODE, 1)
    vm.store(VCPU_INFO, bytes(16))
    vcpu.run()
    vcpu.upcall(40)


def test_vcpu_info_elsewhere(new_vm: Builder) -> None:
    """Events go to where shared_info and vcpu_info are now, not to where they were."""
    vm = new_vm.ready()
    vm.send(5)
    vm.clear_events()
    vm.set(HvmAttr.SHARED_INFO, SHARED_INFO // PAGE_SIZE + 1)
    vm.shared_info = SHARED_INFO + PAGE_SIZE
    vm.vcpus[0].set(VcpuAttr.VCPU_INFO, VCPU_INFO + 0x100)
    vm.send(6)
    vm.pending(6)
    vm.vcpus[0].upcall(0)
    vm.holds(SHARED_INFO + EVTCHN_PENDING, bytes(512), "the old shared_info")
    vm.holds(VCPU_INFO, bytes(16), "the old vcpu_info")


def test_outbound_ports_dont_matter(new_vm: Builder) -> None:
    """KVM_XEN_HVM_EVTCHN_SEND doesn't look at outbound ports."""
    vm = new_vm.ready()
    fd = vm.eventfd()
    vm.outbound(5, fd=fd)
    vm.send(5)
    vm.pending(5)
    vm.eventfd_holds(fd, 0)
