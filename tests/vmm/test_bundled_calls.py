"""What else `qemu` answers: vcpu_op, timers, memory, HVM parameters, PIRQs, grants; how it is migrated."""

from __future__ import annotations

from errno import EBUSY, EFAULT, EINVAL, ENOENT, ENOSYS, EPERM, ESRCH, ETIME
from struct import pack
from typing import Final

import pytest
from calling_guest import LONG_MODE, NOWHERE, SHARED_INFO_GFN, CallingGuest
from duties_guest import HEADER, MS

from pytest_xenkvm.abi.numbers import (
    INVALID_GPA,
    EvtchnOp,
    GrantTableOp,
    HvmAttr,
    HvmOp,
    MemoryOp,
    PhysdevOp,
    SchedOp,
    VcpuAttr,
    VcpuOp,
    XenVer,
)
from pytest_xenkvm.abi.numbers import Hypercall as Nr
from pytest_xenkvm.abi.xen_numbers import DOMID_SELF, FEATURES, VCPU_SSHOTTMR_FUTURE, Virq
from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.vmm import Vm
from pytest_xenkvm.vmm.bundled.qemu import Qemu
from pytest_xenkvm.vmm.bundled.userspace_timers import UserspaceTimers

AREA: Final = 0x10_1000
OTHER_DOMAIN: Final = 5
Expected = list[tuple[int, bytes, int]]
"""Sub-operation, structure, answer."""


def ask(nr: int, expected: Expected, guest: CallingGuest | None = None) -> CallingGuest:
    """Make calls of one hypercall and check the answers."""
    guest = guest or CallingGuest()
    before = len(guest.addresses)
    for op, at, _answer in expected:
        guest.call(nr, op, at=at)
    assert guest.answers()[before:] == [answer for *_call, answer in expected]
    return guest


def bind_timer(guest: CallingGuest, vcpu: int = 0) -> CallingGuest:
    """VIRQ_TIMER has a port."""
    return guest.call(Nr.event_channel_op, EvtchnOp.bind_virq, at=pack("<III", Virq.TIMER, vcpu, 0))


# ---- vcpu_op


def test_areas() -> None:
    """Each is set where the guest's page tables lead, on the vCPU that is named."""
    guest = CallingGuest()
    guest.call(Nr.vcpu_op, VcpuOp.register_vcpu_info, 1, at=pack("<QII", AREA >> 12, 64, 0))
    guest.call(Nr.vcpu_op, VcpuOp.register_vcpu_time_memory_area, 1, at=pack("<Q", AREA + 128))
    guest.call(Nr.vcpu_op, VcpuOp.register_runstate_memory_area, 1, at=pack("<Q", AREA + 256))
    assert guest.answers() == [0, 0, 0]
    types = (VcpuAttr.VCPU_INFO, VcpuAttr.VCPU_TIME_INFO, VcpuAttr.RUNSTATE_ADDR)
    assert [guest.attribute(type_, 1) for type_ in types] == [AREA + 64, AREA + 128, AREA + 256]
    assert guest.attribute(VcpuAttr.VCPU_INFO, 0) == INVALID_GPA


@pytest.mark.parametrize(
    ("op", "at", "answer"),
    [
        (VcpuOp.register_vcpu_info, pack("<QII", AREA >> 12, 4033, 0), -EINVAL),
        (VcpuOp.register_vcpu_info, pack("<QII", NOWHERE >> 12, 0, 0), -EINVAL),
        (VcpuOp.register_vcpu_info, pack("<QII", (1 << 64) - 1, 0, 0), -EINVAL),
        (VcpuOp.register_vcpu_time_memory_area, pack("<Q", AREA + 4080), -EFAULT),
        (VcpuOp.register_vcpu_time_memory_area, pack("<Q", NOWHERE), -EFAULT),
        (VcpuOp.register_runstate_memory_area, pack("<Q", NOWHERE), -EFAULT),
        (VcpuOp.register_runstate_memory_area, pack("<Q", (2 << 20) - 8), -EINVAL),
        (VcpuOp.set_periodic_timer, pack("<Q", MS - 1), -EINVAL),
        (VcpuOp.set_periodic_timer, pack("<Q", 1 << 63), -EINVAL),
        (VcpuOp.is_up, b"", -ENOSYS),
    ],
)
def test_areas_and_operations_that_are_refused(op: int, at: bytes, answer: int) -> None:
    """What crosses a page, lies outside of memory or isn't there."""
    assert CallingGuest().call(Nr.vcpu_op, op, 0, at=at).answers() == [answer]
    assert CallingGuest().call(Nr.vcpu_op, op, 2, at=at).answers() == [-ENOENT]


def test_a_periodic_timer() -> None:
    """It fires again and again until it is stopped, beside a singleshot timer that the VMM runs."""
    guest = CallingGuest(vmm=UserspaceTimers()).add(LONG_MODE).maps_shared_info()
    bind_timer(guest).call(Nr.vcpu_op, VcpuOp.set_periodic_timer, 0, at=pack("<Q", 10 * MS))
    guest.script.singleshot(14 * MS)
    guest.script.wait(35)
    guest.call(Nr.vcpu_op, VcpuOp.stop_periodic_timer, 0)
    guest.script.wait(50)
    assert guest.answers() == [0, 0, 0, 0, 0]
    assert guest.sent == [2, 2, 2, 2]


@pytest.mark.parametrize("longmode", [True, False])
def test_set_timer_op(*, longmode: bool) -> None:
    """Served by the VMM without a port: at its time, in 100 ms if that is nonsense, never if 0."""
    for time, fires in ((60 * MS, 1), (1 << 63, 0), (0, 0)):
        guest = CallingGuest(vmm=UserspaceTimers()).add(LONG_MODE).maps_shared_info()
        bind_timer(guest)
        args = (time,) if longmode else (time & 0xFFFF_FFFF, time >> 32)
        guest.call(Nr.set_timer_op, *args, longmode=longmode, compat=not longmode)
        guest.script.wait(80)
        assert guest.answers() == [0, 0, 0]
        assert len(guest.sent) == fires
        guest.script.wait(80)
        guest.answers()
        assert len(guest.sent) == (1 if time else 0)


def test_the_flag_for_past_timeouts() -> None:
    """`qemu` ignores it, as KVM and newer Xens do; `userspace-timers` refuses with -ETIME."""
    for vmm, answer in ((Qemu(), 0), (UserspaceTimers(), -ETIME)):
        guest = CallingGuest(vmm=vmm)
        guest.script.wait(5)
        guest.script.singleshot(-MS, VCPU_SSHOTTMR_FUTURE)
        guest.script.singleshot(MS, VCPU_SSHOTTMR_FUTURE)
        assert guest.answers() == [answer, 0]


def test_timers_of_other_vcpus() -> None:
    """-EINVAL, and nothing is set or stopped."""
    guest = CallingGuest()
    guest.script.singleshot(MS, named=1)
    guest.call(Nr.vcpu_op, VcpuOp.stop_singleshot_timer, 1)
    assert guest.answers() == [-EINVAL, -EINVAL]
    assert guest.vmm.state.singleshot == {}


# ---- version, memory, scheduling


def test_versions_and_features() -> None:
    """Version and features are told, nothing else."""
    guest = ask(Nr.xen_version, [(XenVer.get_features, pack("<II", index, 9), 0) for index in (0, 1)])
    assert [guest.left(call, 4, 4) for call in (0, 1)] == [FEATURES, 0]
    guest = CallingGuest().call(Nr.xen_version, XenVer.version).call(Nr.xen_version, XenVer.extraversion)
    assert guest.answers() == [4 << 16 | 17, -ENOSYS]


@pytest.mark.parametrize(("layout", "long"), [("<HxxIQQ", True), ("<HxxIII", False)])
def test_mapping_memory(layout: str, *, long: bool) -> None:
    """The shared page, with the vcpu_info of each vCPU in it; the grant table; nothing else."""
    expected = [
        ((DOMID_SELF, 0, 0, SHARED_INFO_GFN), 0),
        ((DOMID_SELF, 0, 1, SHARED_INFO_GFN), -EINVAL),
        ((DOMID_SELF, 1, 0, 5), 0),
        ((DOMID_SELF, 1, 64, 5), -EINVAL),
        ((DOMID_SELF, 2, 0, 5), -EINVAL),
        ((OTHER_DOMAIN, 0, 0, 5), -ESRCH),
        ((DOMID_SELF, 0, 0, NOWHERE >> 12), -EINVAL),
    ]
    guest = CallingGuest()
    for numbers, _answer in expected[:-1]:
        guest.call(
            Nr.memory_op, MemoryOp.add_to_physmap, at=pack(layout, *numbers), longmode=long, compat=not long
        )
    assert guest.answers() == [answer for _numbers, answer in expected[:-1]]
    assert guest.vm.get_attr(HvmAttr.SHARED_INFO) == SHARED_INFO_GFN
    infos = [guest.attribute(VcpuAttr.VCPU_INFO, vcpu) for vcpu in (0, 1)]
    assert infos == [SHARED_INFO_GFN << 12, (SHARED_INFO_GFN << 12) + 64]
    numbers, answer = expected[-1]
    ask(Nr.memory_op, [(MemoryOp.add_to_physmap, pack("<HxxIQQ", *numbers), answer), (0, b"", -ENOSYS)])


def test_an_own_vcpu_info_stays() -> None:
    """A vCPU that has registered one keeps it when the shared page is mapped."""
    guest = CallingGuest().call(Nr.vcpu_op, VcpuOp.register_vcpu_info, 1, at=pack("<QII", AREA >> 12, 0, 0))
    assert guest.maps_shared_info().answers() == [0, 0]
    assert guest.attribute(VcpuAttr.VCPU_INFO, 1) == AREA


def test_shutting_down() -> None:
    """Reasons that QEMU knows are fine; what the kernel serves never comes here; the rest isn't there."""
    reasons = [(SchedOp.shutdown, pack("<I", n), 0 if n in (0, 1, 3, 5) else -EINVAL) for n in range(7)]
    ask(Nr.sched_op, [*reasons, (SchedOp.block, b"", -ENOSYS), (SchedOp.yield_, b"", 0)])


# ---- HVM parameters and vectors


def test_parameters() -> None:
    """The store's page and port are told, there is no console, and one parameter can be set."""
    get, set_ = HvmOp.get_param, HvmOp.set_param
    guest = ask(
        Nr.hvm_op,
        [
            (get, pack("<HxxIQ", DOMID_SELF, 1, 0), 0),
            (get, pack("<HxxIQ", DOMID_SELF, 2, 0), 0),
            (get, pack("<HxxIQ", DOMID_SELF, 17, 0), -EINVAL),
            (get, pack("<HxxIQ", DOMID_SELF, 18, 0), -EINVAL),
            (get, pack("<HxxIQ", DOMID_SELF, 4, 0), -ENOSYS),
            (get, pack("<HxxIQ", OTHER_DOMAIN, 1, 0), -ESRCH),
            (set_, pack("<HxxIQ", OTHER_DOMAIN, 0, 0), -ESRCH),
            (set_, pack("<HxxIQ", DOMID_SELF, 4, 0), -ENOSYS),
            (set_, pack("<HxxIQ", DOMID_SELF, 0, 9 << 56), -ENOSYS),
            (set_, pack("<HxxIQ", DOMID_SELF, 0, 2 << 56 | 0x0F), -EINVAL),
            (set_, pack("<HxxIQ", DOMID_SELF, 0, 2 << 56 | 0xF3), 0),
            (HvmOp.pagetable_dying, b"", -ENOSYS),
        ],
    )
    assert [guest.left(call, 8, 8) for call in (0, 1)] == [0xFEFF9, 1]
    assert guest.vm.get_attr(HvmAttr.UPCALL_VECTOR) == 0xF3
    assert guest.vm.get_attr(HvmAttr.LONG_MODE) == 1


def test_upcall_vectors() -> None:
    """Of a vCPU that is there, from 16 on."""
    expected = [(0, 0xF3, 0), (1, 0x0F, -EINVAL), (2, 0xF3, -EINVAL)]
    guest = ask(
        Nr.hvm_op, [(HvmOp.set_evtchn_upcall_vector, pack("<IBxxx", v, n), a) for v, n, a in expected]
    )
    assert [guest.attribute(VcpuAttr.UPCALL_VECTOR, vcpu) for vcpu in (0, 1)] == [0xF3, 0]


# ---- PIRQs and grants


def test_pirqs() -> None:
    """Mapped from 16 on or as asked, bound once, known until they are unmapped."""
    map_, layout = PhysdevOp.map_pirq, "<Hxxiii"
    guest = ask(
        Nr.physdev_op,
        [
            (map_, pack(layout, DOMID_SELF, 1, 9, -1), 0),
            (map_, pack(layout, DOMID_SELF, 1, 10, 20), 0),
            (map_, pack(layout, DOMID_SELF, 1, 11, 20), -EBUSY),
            (map_, pack(layout, DOMID_SELF, 1, 24, -1), -EINVAL),
            (map_, pack(layout, DOMID_SELF, 1, 9, 256), -EINVAL),
            (map_, pack(layout, DOMID_SELF, 0, 9, -1), -EINVAL),
            (map_, pack(layout, OTHER_DOMAIN, 1, 9, -1), -EPERM),
            (PhysdevOp.eoi, pack("<I", 16), 0),
            (PhysdevOp.eoi, pack("<I", 17), -ENOENT),
            (PhysdevOp.irq_status_query, pack("<II", 16, 0), 0),
            (PhysdevOp.irq_status_query, pack("<II", 17, 0), -ENOENT),
            (PhysdevOp.get_nr_pirqs, b"", -ENOSYS),
        ],
    )
    assert (guest.left(0, 4, 12), guest.left(9, 4, 4)) == (16, 1)
    bind = EvtchnOp.bind_pirq
    ask(
        Nr.event_channel_op,
        [(bind, pack("<III", p, 0, 0), a) for p, a in ((16, 0), (16, -EBUSY), (17, -EINVAL))],
        guest,
    )
    unmap, layout = PhysdevOp.unmap_pirq, "<Hxxi"
    ask(
        Nr.physdev_op,
        [
            (unmap, pack(layout, DOMID_SELF, 20), 0),
            (unmap, pack(layout, DOMID_SELF, 20), -ENOENT),
            (unmap, pack(layout, DOMID_SELF, 256), -EINVAL),
            (unmap, pack(layout, OTHER_DOMAIN, 16), -EPERM),
        ],
        guest,
    )


def test_there_are_no_more_pirqs() -> None:
    """240 can be mapped."""
    call = (PhysdevOp.map_pirq, pack("<Hxxiii", DOMID_SELF, 1, 9, -1))
    ask(Nr.physdev_op, [*[(*call, 0)] * 240, (*call, -28)])


def test_grants() -> None:
    """A table of version 1 and 64 frames."""
    guest = ask(
        Nr.grant_table_op,
        [
            (GrantTableOp.query_size, pack("<HxxIIhxx", DOMID_SELF, 0, 0, 0), 0),
            (GrantTableOp.query_size, pack("<HxxIIhxx", OTHER_DOMAIN, 0, 0, 0), 0),
            (GrantTableOp.set_version, pack("<I", 1), 0),
            (GrantTableOp.set_version, pack("<I", 2), -ENOSYS),
            (GrantTableOp.set_version, pack("<I", 3), -EINVAL),
            (GrantTableOp.get_version, pack("<HxxI", DOMID_SELF, 0), 0),
            (GrantTableOp.get_version, pack("<HxxI", OTHER_DOMAIN, 0), -ESRCH),
            (GrantTableOp.copy, b"", -ENOSYS),
        ],
    )
    assert (guest.left(0, 4, 4), guest.left(0, 2, 12), guest.left(5, 4, 4)) == (64, 0, 1)
    assert guest.left(1, 2, 12) == (1 << 16) - ESRCH


# ---- what the recording doesn't show


def test_memory_that_the_recording_does_not_show() -> None:
    """What Linux passes is taken where that is known; other calls get what they got when recorded."""
    guest = CallingGuest(unseen=True)
    guest.call(Nr.event_channel_op, EvtchnOp.bind_virq, NOWHERE)
    guest.call(Nr.event_channel_op, EvtchnOp.reset, NOWHERE, rax=77, handled="userspace")
    guest.call(Nr.vcpu_op, VcpuOp.set_periodic_timer, 0, NOWHERE, rax=78, handled="userspace")
    assert guest.answers() == [0, 77, 78]
    assert guest.attribute(VcpuAttr.TIMER).port == 2


# ---- migration


def migrated(guest: CallingGuest) -> tuple[list[int], Vm]:
    """The answers, and the VM that the guest's is migrated to."""
    found = guest.answers()
    host = EmulatedHost(profile=LINUX_7_3)
    shape = HEADER.vm
    assert shape is not None
    target = Vm.on(host.create_vm(shape, cpu_vendor="amd"), shape)
    guest.vmm.on_migrate(guest.vm, target)
    return found, target


def test_qemu_moves_all_it_knows() -> None:
    """Interception, outbound ports, IDs, areas and timers are on the target as before."""
    guest = CallingGuest().add(LONG_MODE).maps_shared_info()
    bind_timer(guest, 1).call(Nr.event_channel_op, EvtchnOp.bind_ipi, at=pack("<II", 1, 0))
    found, target = migrated(guest)
    assert found == [0, 0, 0]
    assert [vcpu.get_vcpu_id() for vcpu in target.vcpus] == [0, 1]
    assert target.vcpus[1].get_timer().port == 2
    assert target.get_attr(HvmAttr.SHARED_INFO) == SHARED_INFO_GFN
    assert target.outbound_eventfds
    target.deassign(3)
    target.deassign(1)


def test_userspace_timers_moves_its_timers() -> None:
    """No ID is written, and a timer that runs goes on on the target."""
    guest = CallingGuest(vmm=UserspaceTimers()).add(LONG_MODE).maps_shared_info()
    bind_timer(guest)
    guest.script.singleshot(500 * MS)
    found, target = migrated(guest)
    assert found == [0, 0, 0]
    assert [vcpu.get_vcpu_id() for vcpu in target.vcpus] == [0xFFFF_FFFF] * 2
    due = target.vmm_timers.next_expiry()
    assert due is not None
    assert 500 * MS <= due < 600 * MS


def test_user_mode_and_unknown_numbers() -> None:
    """-EPERM before anything else, -ENOSYS for what there is no handler for, in all bits."""
    guest = CallingGuest().call(Nr.vm_assist, 0).call(1 << 32 | Nr.hvm_op, HvmOp.pagetable_dying)
    guest.call(Nr.event_channel_op, EvtchnOp.bind_ipi, at=pack("<II", 0, 0), cpl=3)
    assert guest.answers() == [-ENOSYS, -ENOSYS, -EPERM]
