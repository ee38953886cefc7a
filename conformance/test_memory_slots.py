"""Memory slots that the VMM adds after it registered areas: KVM must find its areas anew."""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT

import pytest

from pytest_xenkvm.abi.layout import U32
from pytest_xenkvm.abi.numbers import PAGE_SIZE, HvmAttr, VcpuAttr
from pytest_xenkvm.trace.events import NowPlus

from .kit.hosts import Builder
from .kit.polling import at_once, until_timeout
from .kit.setting import MS, NOWHERE, SECOND, SHARED_INFO, TIME_INFO, VCPU_INFO
from .kit.slots import slot_added
from .kit.vm import ProbeVm

pytestmark = pytest.mark.source(
    "kvm_gpc_check, kvm_gpc_refresh (virt/kvm/pfncache.c), called throughout arch/x86/kvm/xen.c"
)

PORT, GSI, VECTOR = 40, 5, 0x55
LAYOUTS = pytest.mark.parametrize("long_mode", [True, False], ids=["64-bit", "32-bit"])


def by_ioctl(vm: ProbeVm) -> None:
    """KVM_XEN_HVM_EVTCHN_SEND."""
    vm.send(PORT)


def by_line(vm: ProbeVm) -> None:
    """KVM_IRQ_LINE."""
    vm.irq_line(GSI, 1)


def by_irqfd(vm: ProbeVm) -> None:
    """A write to an eventfd, whose irqfd was assigned before."""
    vm.eventfd_write(1, 1)


def by_timer(vm: ProbeVm) -> None:
    """The one-shot timer, whose port was set before."""
    vm.vcpus[0].set_singleshot(10, NowPlus(5 * MS))


def by_hypercall(vm: ProbeVm) -> None:
    """EVTCHNOP_send."""
    vm.vcpus[0].evtchn_send(PORT)


WAYS = pytest.mark.parametrize(
    "sends",
    [by_ioctl, by_line, by_irqfd, by_timer, by_hypercall],
    ids=lambda way: way.__name__,
)


def listening(vm: ProbeVm) -> ProbeVm:
    """The VM with everything set up that makes PORT pending on vCPU 0."""
    vm.vcpus[0].set(VcpuAttr.VCPU_ID, 10)
    vm.vcpus[0].set_timer(PORT)
    vm.outbound(PORT, port=PORT)
    vm.route((GSI, PORT, 0))
    vm.irqfd(vm.eventfd(), GSI)
    return vm


# ---- events


@WAYS
@LAYOUTS
def test_event(new_vm: Builder, sends: Callable[[ProbeVm], None], *, long_mode: bool) -> None:
    """However an event is raised, it is delivered after a slot was added as it was before."""
    vm = listening(new_vm.ready(long_mode=long_mode))
    for _ in range(3):
        slot_added(vm)
        sends(vm)
        vm.until_pending(PORT)
        vm.vcpus[0].run()
        vm.pending(PORT)
        vm.vcpus[0].upcall(PORT // vm.layout.word_bits)
        vm.clear_events()


@WAYS
def test_event_by_host_address(new_vm: Builder, sends: Callable[[ProbeVm], None]) -> None:
    """Areas that were given by host address go on being used, too."""
    vm = listening(new_vm.ready())
    vm.set(HvmAttr.SHARED_INFO_HVA, {"gpa": SHARED_INFO})
    vm.vcpus[0].set(VcpuAttr.VCPU_INFO_HVA, {"gpa": VCPU_INFO})
    slot_added(vm)
    sends(vm)
    vm.until_pending(PORT)
    vm.vcpus[0].upcall(0)


@LAYOUTS
def test_selector_waits_for_the_entry(new_vm: Builder, *, long_mode: bool) -> None:
    """The selector bit of an event is kept until the vCPU enters the guest, which finds vcpu_info anew."""
    vm = new_vm.ready(long_mode=long_mode)
    vcpu = vm.vcpus[0]
    slot_added(vm)
    vm.send(PORT)
    vm.pending(PORT)
    vcpu.quiet()
    vcpu.run()
    vcpu.upcall(PORT // vm.layout.word_bits)
    vm.clear_events()
    vm.send(PORT)
    vcpu.upcall(PORT // vm.layout.word_bits)


def test_masked_and_pending(new_vm: Builder) -> None:
    """Mask and pending bits of a shared_info that was found anew count as ever."""
    vm = new_vm.ready()
    vm.send(PORT)
    vm.clear_events()
    vm.mask(PORT)
    slot_added(vm)
    vm.send(PORT)
    vm.pending(PORT)
    vm.mask()
    slot_added(vm)
    vm.send(PORT)
    vm.vcpus[0].run()
    vm.vcpus[0].quiet()


@pytest.mark.parametrize("kind", ["vm", "vcpu"])
def test_interrupt(new_vm: Builder, kind: str) -> None:
    """The interrupt of an event is injected though vcpu_info must be found anew first."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    if kind == "vm":
        vm.set(HvmAttr.UPCALL_VECTOR, VECTOR)
    else:
        vcpu.set(VcpuAttr.UPCALL_VECTOR, VECTOR)
    slot_added(vm)
    vm.send(PORT)
    vcpu.run()
    vcpu.took(VECTOR)
    vcpu.run()
    vcpu.took()


def test_interrupt_for_the_guests_own_byte(new_vm: Builder) -> None:
    """The VM-wide vector is injected for a byte that the guest itself stored, too."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.UPCALL_VECTOR, VECTOR)
    slot_added(vm)
    vm.store(VCPU_INFO, b"\1")
    vcpu.run()
    vcpu.took(VECTOR)


def test_poll(new_vm: Builder) -> None:
    """A poll doesn't look for shared_info anew, but comes back at once; the first event finds it."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    slot_added(vm)
    at_once(vcpu, 5)
    vm.mask(PORT)
    vm.send(PORT)
    until_timeout(vcpu, 5)
    vm.set(HvmAttr.SHARED_INFO_HVA, {"gpa": SHARED_INFO})
    slot_added(vm)
    until_timeout(vcpu, 5)


# ---- areas that had no memory before


@WAYS
def test_memory_for_a_refused_shared_info(new_vm: Builder, sends: Callable[[ProbeVm], None]) -> None:
    """A refused shared_info is used once the VMM adds memory there."""
    vm = listening(new_vm.ready())
    vm.set(HvmAttr.SHARED_INFO, NOWHERE // PAGE_SIZE, ret=-EFAULT)
    vm.add_memory(NOWHERE)
    vm.get(HvmAttr.SHARED_INFO, NOWHERE // PAGE_SIZE)
    vm.shared_info = NOWHERE
    sends(vm)
    vm.until_pending(PORT)
    vm.vcpus[0].run()
    vm.vcpus[0].upcall(0)


def test_memory_for_a_refused_vcpu_info(new_vm: Builder) -> None:
    """A refused vcpu_info gets the kept selector bits at the first entry after the VMM adds memory there."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    vcpu.set(VcpuAttr.VCPU_INFO, NOWHERE, ret=-EFAULT)
    vm.send(PORT)
    vcpu.run()
    vm.add_memory(NOWHERE)
    vcpu.vcpu_info = NOWHERE
    vcpu.quiet()
    vcpu.run()
    vcpu.upcall(0)


def test_timer_that_waited(new_vm: Builder) -> None:
    """The event of a timer that fired without shared_info is delivered once there is memory for that."""
    vm = listening(new_vm.ready())
    vcpu = vm.vcpus[0]
    vm.set(HvmAttr.SHARED_INFO, NOWHERE // PAGE_SIZE, ret=-EFAULT)
    vcpu.set_timer(PORT, 1)
    vm.add_memory(NOWHERE)
    vm.shared_info = NOWHERE
    vcpu.run()
    vm.pending(PORT)
    vcpu.timer_is(PORT)


# ---- clocks


@LAYOUTS
def test_wall_clock(new_vm: Builder, *, long_mode: bool) -> None:
    """LONG_MODE rewrites the wall clock of a shared_info that must be found anew."""
    vm = new_vm.ready(long_mode=long_mode)
    place = SHARED_INFO + (0xC00 if long_mode else 0x900)
    vm.store(place, U32.pack(2))
    slot_added(vm)
    vm.set(HvmAttr.LONG_MODE, int(long_mode))
    vm.holds(place, U32.pack(4), "the wall clock's version")


@pytest.mark.parametrize(
    ("attribute", "place"), [(VcpuAttr.VCPU_INFO, VCPU_INFO + 32), (VcpuAttr.VCPU_TIME_INFO, TIME_INFO)]
)
def test_pvclock(new_vm: Builder, attribute: int, place: int) -> None:
    """The guest's clock is written again, after KVM_SET_CLOCK, though its place must be found anew."""
    vm = new_vm.ready()
    vcpu = vm.vcpus[0]
    if attribute == VcpuAttr.VCPU_TIME_INFO:
        vcpu.set(attribute, place)
    vcpu.run()
    before = U32.unpack(vm.read(place, 4))[0]
    slot_added(vm)
    vm.set_clock(vm.clock() + SECOND)
    vcpu.run()
    after = U32.unpack(vm.read(place, 4))[0]
    if after == before or after % 2:
        vm.fail("the clock has another, even, version", f"{before}, then {after}", 0)
