"""The emulated host: ioctls as bytes, eventfds by number, and a guest whose registers are handed in."""

from __future__ import annotations

from errno import EAGAIN, EBADF, EFAULT, EINVAL, ENOTTY
from struct import Struct
from typing import Any

import pytest
from attrs import evolve

from pytest_xenkvm.abi import ioctls, kvm
from pytest_xenkvm.abi.numbers import U32_MAX, U64_MAX, EvtchnOp, HvmAttr, Hypercall, VcpuAttr, VcpuOp
from pytest_xenkvm.core.profile import LINUX_7_3, PROFILES
from pytest_xenkvm.hosts.emulated import FIRST_FD, EmulatedHost, EmulatedVm
from pytest_xenkvm.hosts.protocol import CallOutcome, GuestCall, HostError, MsrOutcome
from pytest_xenkvm.trace.events import MemorySlot, VcpuShape, VmShape

PAGE = 4096
MSR = 0x4000_0000
PRIORITY = U32_MAX
SHAPE = VmShape(
    irqchip="full",
    memory=(MemorySlot(gpa=0, size=4 * PAGE), MemorySlot(gpa=5 * PAGE, size=PAGE)),
    vcpus=(VcpuShape(index=0, id=4), VcpuShape(index=1, id=2)),
)


@pytest.fixture
def vm() -> EmulatedVm:
    """A VM of Linux 7.3 with two vCPUs and a hole in its memory."""
    return EmulatedHost(profile=LINUX_7_3).create_vm(SHAPE)


def attribute(type_: int, union: bytes = b"") -> bytearray:
    """An attribute structure."""
    return bytearray(ioctls.ATTR_HEADER.pack(type_) + union.ljust(ioctls.ATTR_UNION_SIZE, b"\0"))


def configure(vm: EmulatedVm, flags: int = 0x22) -> None:
    """KVM_XEN_HVM_CONFIG."""
    assert vm.ioctl(ioctls.KVM_XEN_HVM_CONFIG, bytearray(ioctls.HVM_CONFIG.pack(flags, MSR, 0, 0, 0, 0))) == 0


def call(nr: int, *args: int, **members: Any) -> GuestCall:
    """A hypercall of 64-bit code at CPL 0."""
    a0, a1, a2, a3, a4, a5 = (*args, *(0,) * (6 - len(args)))
    return GuestCall(**{"longmode": True, "cpl": 0, **members}, nr=nr, args=(a0, a1, a2, a3, a4, a5))


@pytest.mark.parametrize("profile", PROFILES.values(), ids=PROFILES)
def test_a_host_is_named_after_its_profile(profile: Any) -> None:
    """Reports name the host by the kernel that it answers like."""
    assert EmulatedHost(profile=profile).name == f"emulated {profile.name}"


@pytest.mark.parametrize(("profile", "done"), [("linux-6.12", 1), ("linux-7.3", 0)])
def test_msrs_that_the_vmm_sets(profile: str, done: int) -> None:
    """KVM_SET_MSRS returns how many MSRs it set, and a list that the structure doesn't hold is -EFAULT."""
    vm = EmulatedHost(profile=PROFILES[profile]).create_vm(SHAPE)
    configure(vm)
    entries = kvm.MSR_ENTRY.pack(MSR, PAGE) + kvm.MSR_ENTRY.pack(MSR + 1, PAGE)
    argument = bytearray(kvm.MSRS_HEADER.pack(2) + entries)
    assert vm.ioctl(kvm.KVM_SET_MSRS, argument, vcpu=0) == done
    kvm.MSRS_HEADER.pack_into(argument, 0, U32_MAX)
    assert vm.ioctl(kvm.KVM_SET_MSRS, argument, vcpu=0) == -EFAULT


@pytest.mark.parametrize("size", [0, 1 << 62, 1 << 70])
def test_memory_that_cannot_be_had(size: int) -> None:
    """Guest memory that can't be mapped is a HostError that names its size."""
    shape = evolve(SHAPE, memory=(MemorySlot(gpa=0, size=size),))
    with pytest.raises(HostError, match=f"can't map {size} bytes of guest memory"):
        EmulatedHost(profile=LINUX_7_3).create_vm(shape)


def test_memory_and_its_host_addresses(vm: EmulatedVm) -> None:
    """Guest memory is read, written and found in the host slot by slot."""
    assert vm.write_memory(5 * PAGE, b"abc")
    assert vm.read_memory(5 * PAGE + 1, 2) == b"bc"
    assert not vm.write_memory(4 * PAGE, b"abc")
    assert vm.read_memory(4 * PAGE, 1) is None
    hva = vm.gpa_to_hva(5 * PAGE + 1)
    assert hva is not None
    assert vm.hva_to_gpa(hva) == 5 * PAGE + 1
    assert (vm.gpa_to_hva(4 * PAGE), vm.hva_to_gpa(1)) == (None, None)


@pytest.mark.parametrize(
    ("request_", "vcpu"),
    [
        (0x5401, None),
        (0x5401, 0),
        (ioctls.KVM_XEN_VCPU_GET_ATTR, None),
        (ioctls.KVM_XEN_VCPU_SET_ATTR, None),
        (ioctls.KVM_XEN_HVM_GET_ATTR, 0),
        (ioctls.KVM_XEN_HVM_CONFIG, 0),
        (ioctls.KVM_IRQ_LINE, 1),
    ],
)
def test_an_ioctl_of_another_kind_of_file(vm: EmulatedVm, request_: int, vcpu: int | None) -> None:
    """Unknown requests, and those of a VM on a vCPU or the other way, are -ENOTTY."""
    assert vm.ioctl(request_, bytearray(128), vcpu=vcpu) == -ENOTTY


@pytest.mark.parametrize("name", sorted(set(ioctls.IOCTLS) - {"KVM_CHECK_EXTENSION"}))
def test_a_structure_that_is_too_short(vm: EmulatedVm, name: str) -> None:
    """A structure that ends early is -EFAULT, for every ioctl that takes one."""
    request = ioctls.IOCTLS[name]
    vcpu = 0 if name in ioctls.VCPU_IOCTLS else None
    assert vm.ioctl(request, bytearray(ioctls.argument_size(request) - 1), vcpu=vcpu) == -EFAULT


@pytest.mark.parametrize("name", sorted(set(ioctls.IOCTLS) - ioctls.VCPU_IOCTLS - {"KVM_CHECK_EXTENSION"}))
def test_a_number_is_no_structure(vm: EmulatedVm, name: str) -> None:
    """A number where a structure belongs points at nothing: -EFAULT."""
    assert vm.ioctl(ioctls.IOCTLS[name], 8) == -EFAULT


def test_capabilities_are_asked_for_by_number(vm: EmulatedVm) -> None:
    """KVM_CHECK_EXTENSION takes the capability's number itself."""
    assert vm.ioctl(ioctls.KVM_CHECK_EXTENSION, 38) == 0x1FF
    assert vm.ioctl(ioctls.KVM_CHECK_EXTENSION, bytearray(4)) == -EINVAL


def test_vm_attributes_travel_as_bytes(vm: EmulatedVm) -> None:
    """A value that is set through the structure is read back through it."""
    for attr, union in ((HvmAttr.XEN_VERSION, b"\1\2\3\4"), (HvmAttr.UPCALL_VECTOR, b"\xf3")):
        assert vm.ioctl(ioctls.KVM_XEN_HVM_SET_ATTR, attribute(attr, union)) == 0
        found = attribute(attr)
        assert vm.ioctl(ioctls.KVM_XEN_HVM_GET_ATTR, found) == 0
        assert found == attribute(attr, union)


@pytest.mark.parametrize(
    ("attr", "union"),
    [
        (VcpuAttr.VCPU_ID, Struct("<I").pack(4095)),
        (VcpuAttr.VCPU_INFO, Struct("<Q").pack(PAGE)),
        (VcpuAttr.UPCALL_VECTOR, b"\x55"),
        (VcpuAttr.TIMER, ioctls.ATTR_TIMER.pack(5, PRIORITY, 1 << 60)),
        (VcpuAttr.RUNSTATE_DATA, ioctls.ATTR_RUNSTATE.pack(2, 1000, 100, 200, 300, 400)),
    ],
)
def test_vcpu_attributes_travel_as_bytes(vm: EmulatedVm, attr: VcpuAttr, union: bytes) -> None:
    """A value that is set on one vCPU is read back from it, and not from the other."""
    vm.pass_time(ns=5000)
    assert vm.ioctl(ioctls.KVM_XEN_VCPU_SET_ATTR, attribute(attr, union), vcpu=1) == 0
    found, other = attribute(attr), attribute(attr)
    assert vm.ioctl(ioctls.KVM_XEN_VCPU_GET_ATTR, found, vcpu=1) == 0
    assert vm.ioctl(ioctls.KVM_XEN_VCPU_GET_ATTR, other, vcpu=0) == 0
    assert found == attribute(attr, union) != other


def test_fewer_routes_than_announced(vm: EmulatedVm) -> None:
    """KVM_SET_GSI_ROUTING with fewer entries than its count is -EFAULT; more are not looked at."""
    entry = ioctls.GSI_ROUTING_ENTRY.pack(24, 5, 0, 0, 5, 4, PRIORITY)
    for count, errno in ((0, 0), (1, 0), (2, EFAULT), (U32_MAX, EFAULT)):
        argument = bytearray(ioctls.GSI_ROUTING_HEADER.pack(count, 0) + entry)
        assert vm.ioctl(ioctls.KVM_SET_GSI_ROUTING, argument) == -errno
    assert vm.machine.state.routes.keys() == {24}


def test_a_line_an_irqfd_and_an_ioctl_raise_events(vm: EmulatedVm) -> None:
    """KVM_IRQ_LINE, a written irqfd and KVM_XEN_HVM_EVTCHN_SEND all set their pending bit."""
    shared_info = Struct("<Q").pack(1)
    assert vm.ioctl(ioctls.KVM_XEN_HVM_SET_ATTR, attribute(HvmAttr.SHARED_INFO, shared_info)) == 0
    entries = b"".join(ioctls.GSI_ROUTING_ENTRY.pack(24 + n, 5, 0, 0, 5 + n, 4, PRIORITY) for n in (0, 1))
    assert (
        vm.ioctl(ioctls.KVM_SET_GSI_ROUTING, bytearray(ioctls.GSI_ROUTING_HEADER.pack(2, 0) + entries)) == 0
    )
    fd = vm.open_eventfd()
    assert vm.ioctl(ioctls.KVM_IRQFD, bytearray(ioctls.IRQFD.pack(fd, 25, 0, 0))) == 0
    assert vm.ioctl(ioctls.KVM_IRQ_LINE, bytearray(ioctls.IRQ_LINE.pack(24, 1))) == 0
    assert vm.write_eventfd(fd, 1) == 0
    assert vm.ioctl(ioctls.KVM_XEN_HVM_EVTCHN_SEND, bytearray(ioctls.XEN_EVTCHN.pack(7, 4, PRIORITY))) == 0
    assert (
        vm.ioctl(ioctls.KVM_XEN_HVM_EVTCHN_SEND, bytearray(ioctls.XEN_EVTCHN.pack(0, 4, PRIORITY))) == -EINVAL
    )
    assert vm.read_memory(PAGE + 0x800, 2) == bytes([0b1110_0000, 0])


def test_eventfds_by_number(vm: EmulatedVm) -> None:
    """Numbers are given out in order; a full eventfd refuses more, an unknown number everything."""
    assert (vm.open_eventfd(), vm.open_eventfd()) == (FIRST_FD, FIRST_FD + 1)
    assert vm.write_eventfd(FIRST_FD, U64_MAX - 1) == 0
    assert vm.write_eventfd(FIRST_FD, 1) == -EAGAIN
    assert vm.read_eventfd(FIRST_FD) == U64_MAX - 1
    assert vm.read_eventfd(FIRST_FD) == 0
    assert (vm.write_eventfd(9, 1), vm.read_eventfd(9)) == (-EBADF, -EBADF)


def test_time_passes_by_duration_or_up_to_a_moment(vm: EmulatedVm) -> None:
    """At least the duration passes, and the clock reaches the moment; all vCPUs share it."""
    vm.pass_time(ns=100)
    vm.pass_time(until=70)
    assert vm.guest_clock(0) == vm.real_time() == 100
    vm.pass_time(ns=10, until=500)
    assert vm.guest_clock(1) == 500


def test_the_clock_is_read_and_set(vm: EmulatedVm) -> None:
    """KVM_GET_CLOCK and KVM_SET_CLOCK carry the VM's clock; unknown flags are -EINVAL and set nothing."""
    for flags, errno in ((0, 0), (1 << 1 | 1 << 2 | 1 << 3, 0), (1, EINVAL), (1 << 4, EINVAL)):
        vm.pass_time(until=5000)
        assert vm.ioctl(ioctls.KVM_SET_CLOCK, bytearray(ioctls.CLOCK_DATA.pack(70, flags, 0, 0))) == -errno
        found = bytearray(ioctls.CLOCK_DATA.size)
        assert vm.ioctl(ioctls.KVM_GET_CLOCK, found) == 0
        assert found == ioctls.CLOCK_DATA.pack(5000 if errno else 70, 0, 0, 0)


@pytest.mark.parametrize(("longmode", "rax"), [(True, U64_MAX - 37), (False, U32_MAX - 37)])
def test_a_forwarded_call_is_answered(*, vm: EmulatedVm, longmode: bool, rax: int) -> None:
    """The guest gets the VMM's answer in a register as wide as its mode."""
    configure(vm)
    outcome = vm.hypercall(1, call(34, 6, longmode=longmode))
    assert outcome.rax is None
    assert outcome.exit is not None
    assert (outcome.exit.input, outcome.exit.params, outcome.exit.longmode) == (
        34,
        (6, 0, 0, 0, 0, 0),
        longmode,
    )
    assert vm.complete(1, U64_MAX - 37) == rax


def test_a_handled_call_returns_a_result(vm: EmulatedVm) -> None:
    """A call that stays in the kernel has a result and no exit."""
    configure(vm)
    assert vm.hypercall(0, call(Hypercall.sched_op)) == CallOutcome(rax=0)


def test_a_call_that_depends_on_unseen_memory_has_no_outcome(vm: EmulatedVm) -> None:
    """Where the recorder saw no memory, what a pointer leads to is taken from the call or unknown."""
    configure(vm)
    vm.ioctl(ioctls.KVM_XEN_VCPU_SET_ATTR, attribute(VcpuAttr.VCPU_ID), vcpu=0)
    timer = ioctls.ATTR_TIMER.pack(5, PRIORITY, 0)
    vm.ioctl(ioctls.KVM_XEN_VCPU_SET_ATTR, attribute(VcpuAttr.TIMER, timer), vcpu=0)
    unseen = call(Hypercall.vcpu_op, VcpuOp.set_singleshot_timer, 0, 0xFFFF_8000, unseen_memory=True)
    assert vm.hypercall(0, unseen) == CallOutcome()
    for data, outcome in ((bytes(8), CallOutcome(rax=0)), (bytes(7), CallOutcome())):
        assert vm.hypercall(0, evolve(unseen, behind=((2, data),))) == outcome


def test_a_wrmsr_ends_in_one_of_three_ways(vm: EmulatedVm) -> None:
    """A WRMSR passes, takes #GP, or fails the run with an errno."""
    configure(vm)
    assert vm.wrmsr(0, MSR, PAGE, longmode=True) == MsrOutcome(ok=True)
    assert vm.wrmsr(0, MSR, PAGE + 1, longmode=True) == MsrOutcome(ok=False)
    blob = bytearray(ioctls.HVM_CONFIG.pack(0, MSR, 0, PAGE, 0, 1))
    assert vm.ioctl(ioctls.KVM_XEN_HVM_CONFIG, blob) == 0
    assert vm.wrmsr(0, MSR, PAGE, longmode=True) == MsrOutcome(ok=False, run_ret=-EFAULT)


def test_the_guest_takes_interrupts(vm: EmulatedVm) -> None:
    """A vCPU's own vector is taken once, by that vCPU."""
    configure(vm)
    one = Struct("<Q").pack
    assert vm.ioctl(ioctls.KVM_XEN_HVM_SET_ATTR, attribute(HvmAttr.SHARED_INFO, one(1))) == 0
    assert vm.ioctl(ioctls.KVM_XEN_VCPU_SET_ATTR, attribute(VcpuAttr.UPCALL_VECTOR, b"\x55"), vcpu=1) == 0
    assert vm.ioctl(ioctls.KVM_XEN_HVM_EVTCHN_SEND, bytearray(ioctls.XEN_EVTCHN.pack(7, 2, PRIORITY))) == 0
    assert vm.ioctl(ioctls.KVM_XEN_VCPU_SET_ATTR, attribute(VcpuAttr.VCPU_INFO, one(2 * PAGE)), vcpu=1) == 0
    assert vm.take_interrupt(1) is None
    vm.run(1)
    assert [vm.take_interrupt(0), vm.take_interrupt(1), vm.take_interrupt(1)] == [None, 0x55, None]


def test_sends_go_through_guest_pointers(vm: EmulatedVm) -> None:
    """A pointer of a guest whose memory is known is followed there; nowhere is -EFAULT."""
    configure(vm)
    send = call(Hypercall.event_channel_op, EvtchnOp.send, 4 * PAGE)
    assert vm.hypercall(0, send) == CallOutcome(rax=U64_MAX + 1 - EFAULT)
    assert vm.hypercall(0, evolve(send, args=(EvtchnOp.send, PAGE, 0, 0, 0, 0))).exit is not None


@pytest.mark.parametrize(("gpa", "size"), [(0, PAGE), (3 * PAGE, 2 * PAGE), (4 * PAGE, 8 * PAGE)])
def test_memory_that_is_there_already(vm: EmulatedVm, gpa: int, size: int) -> None:
    """A new slot that overlaps another is a HostError that names it, and changes nothing."""
    with pytest.raises(HostError, match=f"{size} bytes at {gpa:#x} overlaps"):
        vm.add_memory(gpa, size)
    assert vm.read_memory(4 * PAGE, 1) is None


def test_more_memory(vm: EmulatedVm) -> None:
    """A new slot is zeroed memory with host addresses of its own."""
    vm.add_memory(4 * PAGE, PAGE)
    assert vm.read_memory(4 * PAGE, PAGE) == bytes(PAGE)
    assert vm.write_memory(4 * PAGE, b"\1")
    hva = vm.gpa_to_hva(4 * PAGE)
    assert hva is not None
    assert vm.hva_to_gpa(hva) == 4 * PAGE


def test_a_slot_that_goes(vm: EmulatedVm) -> None:
    """A slot can be taken away, and one put in its place; where there is none it is a HostError."""
    vm.add_memory(4 * PAGE, PAGE)
    vm.remove_memory(4 * PAGE)
    assert vm.read_memory(4 * PAGE, 1) is None
    with pytest.raises(HostError, match=f"no memory slot at {4 * PAGE:#x}"):
        vm.remove_memory(4 * PAGE)
    vm.add_memory(4 * PAGE, PAGE)
    assert vm.read_memory(4 * PAGE, 1) == b"\0"


def test_dirty_pages(vm: EmulatedVm) -> None:
    """The log has what the kernel wrote since it was last read, and nothing that the VMM stored."""
    vm.add_memory(8 * PAGE, 2 * PAGE, log_dirty=True)
    vm.write_memory(8 * PAGE, b"\1")
    info = attribute(VcpuAttr.VCPU_INFO, (9 * PAGE).to_bytes(8, "little"))
    assert vm.ioctl(ioctls.KVM_XEN_VCPU_SET_ATTR, info, vcpu=0) == 0
    assert vm.dirty_log(8 * PAGE) == set()
    vm.run(0)
    assert vm.dirty_log(8 * PAGE) == {9 * PAGE}
    assert vm.dirty_log(8 * PAGE) == set()
    for gpa in (0, 20 * PAGE):
        with pytest.raises(HostError, match=f"at {gpa:#x} keeps no log"):
            vm.dirty_log(gpa)


@pytest.mark.parametrize(("longmode", "rax"), [(True, 1 << 32 | 34), (False, 34)])
def test_an_answer_after_rip_was_moved(*, vm: EmulatedVm, longmode: bool, rax: int) -> None:
    """A guest that the VMM moved elsewhere doesn't get the answer: its RAX is still the call's number."""
    configure(vm)
    vm.hypercall(1, call(1 << 32 | 34, 6, longmode=longmode))
    assert vm.complete(1, 7, moved=True) == rax


def test_time_that_is_stolen(vm: EmulatedVm) -> None:
    """Waiting for the CPU takes time that a running vCPU's account shows as runnable."""
    configure(vm)
    vm.pass_time(ns=1)  # an account that never began is of an offline vCPU
    vm.run(0)
    before = vm.guest_clock(0)
    assert vm.wait_for_cpu(1000) == 1000
    assert vm.guest_clock(0) == before + 1000
    vm.run(0)
    data = attribute(VcpuAttr.RUNSTATE_DATA)
    assert vm.ioctl(ioctls.KVM_XEN_VCPU_GET_ATTR, data, vcpu=0) == 0
    _state, _entry, _running, runnable, *_rest = ioctls.ATTR_RUNSTATE.unpack_from(data, 8)
    assert runnable == 1000
