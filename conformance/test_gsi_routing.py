"""GSI routes to event channels: KVM_SET_GSI_ROUTING, KVM_IRQ_LINE and irqfds."""

from __future__ import annotations

from errno import EBADF, EBUSY, EINVAL, ENXIO

import pytest

from pytest_xenkvm.abi.numbers import (
    KVM_IRQFD_FLAG_DEASSIGN,
    KVM_IRQFD_FLAG_RESAMPLE,
    PAGE_SIZE,
    U32_MAX,
    HvmAttr,
    VcpuAttr,
)

from .kit.hosts import Builder
from .kit.setting import MS, OTHER_SHARED_INFO, VCPU_INFO

pytestmark = pytest.mark.source(
    "kvm_xen_setup_evtchn, evtchn_set_fn, kvm_set_irq_routing, kvm_irqfd, kvm_vm_ioctl_irq_line"
)

IRQCHIPS = pytest.mark.parametrize("irqchip", ["split", "full"])
DEASSIGN = KVM_IRQFD_FLAG_DEASSIGN
NO_SUCH_FD = 77


@IRQCHIPS
@pytest.mark.parametrize("long_mode", [True, False], ids=["64-bit", "32-bit"])
def test_line(new_vm: Builder, *, irqchip: str, long_mode: bool) -> None:
    """A GSI's line delivers the event that it is routed to, to a vCPU by its KVM id."""
    vm = new_vm.ready(ids=(5, 6), irqchip=irqchip, long_mode=long_mode)
    vm.route((5, 40, 6), (6, 1023, 5))
    vm.irq_line(5, 1)
    vm.pending(40)
    vm.vcpus[1].upcall(40 // vm.layout.word_bits)
    vm.vcpus[0].quiet()
    vm.irq_line(6, 1)
    vm.vcpus[0].upcall(1023 // vm.layout.word_bits)
    vm.pending(40, 1023)


@IRQCHIPS
def test_level(new_vm: Builder, irqchip: str) -> None:
    """Level 0 does nothing; each 1 is an event of its own."""
    vm = new_vm.ready(irqchip=irqchip)
    vm.route((5, 40, 0))
    vm.irq_line(5, 0)
    vm.pending()
    vm.irq_line(5, 1)
    vm.pending(40)
    vm.clear_events()
    vm.irq_line(5, 0)
    vm.pending()
    vm.irq_line(5, 1)
    vm.irq_line(5, 1)
    vm.pending(40)
    vm.vcpus[0].upcall(0)


@IRQCHIPS
def test_undeliverable(new_vm: Builder, irqchip: str) -> None:
    """Routes to ports and vCPUs that there aren't are accepted, port 0 is delivered; KVM_IRQ_LINE is 0."""
    vm = new_vm.ready(irqchip=irqchip)
    vm.route((0, 0, 0), (1, 4096, 0), (2, U32_MAX, 0), (3, 40, 99), (4, 41, U32_MAX))
    for gsi in (1, 2, 3, 4, 9, 4095):
        vm.irq_line(gsi, 1)
        vm.pending()
    vm.irq_line(0, 1)
    vm.pending(0)
    vm.vcpus[0].upcall(0)


def test_masked_and_coalesced(new_vm: Builder) -> None:
    """The event of a masked port becomes pending unannounced; KVM_IRQ_LINE is 0 all the same."""
    vm = new_vm.ready()
    vm.route((5, 41, 0))
    vm.mask(41)
    vm.irq_line(5, 1)
    vm.irq_line(5, 1)
    vm.pending(41)
    vm.vcpus[0].quiet()


def test_without_shared_info(new_vm: Builder) -> None:
    """Without shared_info the event is lost, and KVM_IRQ_LINE is 0."""
    vm = new_vm()
    vm.config()
    vm.route((5, 41, 0))
    vm.irq_line(5, 1)
    vm.set(HvmAttr.SHARED_INFO, OTHER_SHARED_INFO // PAGE_SIZE)
    vm.shared_info = OTHER_SHARED_INFO
    vm.vcpus[0].place_vcpu_info()
    vm.vcpus[0].run()
    vm.holds(OTHER_SHARED_INFO + 0x800, bytes(128), "the pending bits")


@IRQCHIPS
@pytest.mark.parametrize("priority", [0, 1, 0xFFFF_FFFE])
def test_priority(new_vm: Builder, irqchip: str, priority: int) -> None:
    """A priority other than 2LEVEL is -EINVAL, and the old routes stay."""
    vm = new_vm.ready(irqchip=irqchip)
    vm.route((5, 40, 0))
    vm.route((5, 41, 0), priority=priority, ret=-EINVAL)
    vm.irq_line(5, 1)
    vm.pending(40)


@IRQCHIPS
def test_replaced(new_vm: Builder, irqchip: str) -> None:
    """A table of routes replaces the one before; an empty one is fine."""
    vm = new_vm.ready(irqchip=irqchip)
    vm.route((5, 40, 0), (6, 41, 0))
    vm.route((5, 42, 0))
    vm.irq_line(5, 1)
    vm.irq_line(6, 1)
    vm.pending(42)
    vm.route()
    vm.clear_events()
    vm.irq_line(5, 1)
    vm.pending()


@IRQCHIPS
@pytest.mark.parametrize("gsi", [4096, 0x8000_0000, U32_MAX], ids=hex)
def test_gsi_out_of_range(new_vm: Builder, irqchip: str, gsi: int) -> None:
    """GSIs from 4096 on are -EINVAL, and the old routes stay; 4095 is fine."""
    vm = new_vm.ready(irqchip=irqchip)
    vm.route((4095, 40, 0))
    vm.route((5, 41, 0), (gsi, 42, 0), ret=-EINVAL)
    vm.irq_line(4095, 1)
    vm.irq_line(5, 1)
    vm.pending(40)


def test_two_routes_of_one_gsi(new_vm: Builder) -> None:
    """Two routes of one GSI are -EINVAL; two GSIs with one port are fine."""
    vm = new_vm.ready()
    vm.route((5, 40, 0), (5, 41, 0), ret=-EINVAL)
    vm.route((5, 40, 0), (6, 40, 0))
    vm.irq_line(6, 1)
    vm.pending(40)


def test_without_irqchip(new_vm: Builder) -> None:
    """Without an in-kernel irqchip routes are -EINVAL, lines -ENXIO and irqfds -EINVAL."""
    vm = new_vm.ready(irqchip="none")
    fd = vm.eventfd()
    vm.route((5, 40, 0), ret=-EINVAL)
    vm.irq_line(5, 1, ret=-ENXIO)
    vm.irqfd(fd, 5, ret=-EINVAL)


def test_upcall_vector(new_vm: Builder) -> None:
    """A routed event raises the upcall vector of its vCPU."""
    vm = new_vm.ready(vcpus=2)
    vm.vcpus[1].set(VcpuAttr.UPCALL_VECTOR, 0x61)
    vm.route((5, 40, 1))
    vm.irq_line(5, 1)
    vm.vcpus[1].run()
    vm.vcpus[1].took(0x61)


# ---- irqfds


@IRQCHIPS
def test_irqfd(new_vm: Builder, irqchip: str) -> None:
    """A write to an irqfd delivers the event of its GSI and drains the whole eventfd."""
    vm = new_vm.ready(irqchip=irqchip)
    vm.route((5, 40, 0))
    fd = vm.eventfd()
    vm.irqfd(fd, 5)
    for count in (1, 7):
        vm.eventfd_write(fd, count)
        vm.until_pending(40)
        vm.vcpus[0].upcall(0)
        vm.eventfd_holds(fd, 0)
        vm.clear_events()


def test_irqfd_routed_later(new_vm: Builder) -> None:
    """An irqfd follows the routes as they are when it is written."""
    vm = new_vm.ready()
    fd = vm.eventfd()
    vm.irqfd(fd, 5)
    vm.eventfd_write(fd, 1)
    vm.wait(MS)
    vm.pending()
    vm.route((5, 40, 0))
    vm.eventfd_write(fd, 1)
    vm.until_pending(40)
    vm.route((5, 41, 0))
    vm.eventfd_write(fd, 1)
    vm.until_pending(41)


def test_irqfd_with_a_count(new_vm: Builder) -> None:
    """Assigning an eventfd that was written delivers the event at once and leaves the count."""
    vm = new_vm.ready()
    vm.route((5, 40, 0))
    fd = vm.eventfd()
    vm.eventfd_write(fd, 3)
    vm.irqfd(fd, 5)
    vm.until_pending(40)
    vm.eventfd_holds(fd, 3)


def test_irqfd_taken_away(new_vm: Builder) -> None:
    """A deassigned irqfd delivers no more: its count stays with the VMM."""
    vm = new_vm.ready()
    vm.route((5, 40, 0))
    fd = vm.eventfd()
    vm.irqfd(fd, 5)
    vm.irqfd(fd, 5, DEASSIGN)
    vm.eventfd_write(fd, 2)
    vm.wait(MS)
    vm.pending()
    vm.eventfd_holds(fd, 2)


def test_irqfd_deassigned_wrongly(new_vm: Builder) -> None:
    """Deassigning an irqfd from another GSI, or one that wasn't assigned, is 0 and changes nothing."""
    vm = new_vm.ready()
    vm.route((5, 40, 0), (6, 41, 0))
    fd = vm.eventfd()
    vm.irqfd(fd, 5, DEASSIGN)
    vm.irqfd(fd, 5)
    vm.irqfd(fd, 6, DEASSIGN)
    vm.eventfd_write(fd, 1)
    vm.until_pending(40)


def test_irqfd_errors(new_vm: Builder) -> None:
    """An eventfd that isn't open is -EBADF, one that has an irqfd -EBUSY, other flags are -EINVAL."""
    vm = new_vm.ready(irqchip="split")
    fd = vm.eventfd()
    vm.irqfd(NO_SUCH_FD, 5, ret=-EBADF)
    vm.irqfd(NO_SUCH_FD, 5, DEASSIGN, ret=-EBADF)
    for flags in (4, 8, 0x8000_0000, U32_MAX):
        vm.irqfd(fd, 5, flags, ret=-EINVAL)
    vm.irqfd(fd, 5, KVM_IRQFD_FLAG_RESAMPLE, ret=-EINVAL)
    vm.irqfd(fd, 5)
    vm.irqfd(fd, 5, ret=-EBUSY)
    vm.irqfd(fd, 6, ret=-EBUSY)


def test_irqfd_masked(new_vm: Builder) -> None:
    """The event of a masked port becomes pending unannounced through an irqfd, too."""
    vm = new_vm.ready()
    vm.route((5, 40, 0))
    vm.mask(40)
    fd = vm.eventfd()
    vm.irqfd(fd, 5)
    vm.eventfd_write(fd, 1)
    vm.until_pending(40)
    vm.vcpus[0].quiet()
    vm.holds(VCPU_INFO, bytes(16), "vcpu_info")
