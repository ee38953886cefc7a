"""A VM's Xen state read from one VM and written to a fresh one, as a live migration does."""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT, EINVAL, ENOENT
from typing import Any, Final

import pytest
from attrs import evolve
from emulated_vms import HIGH_MEMORY, SHAPE, make_vm

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import HvmAttr, VcpuAttr
from pytest_xenkvm.core.profile import LINUX_6_12, LINUX_7_2, LINUX_7_3, HostLimits, Profile
from pytest_xenkvm.hosts.attribute_codec import attribute_type
from pytest_xenkvm.hosts.emulated import EmulatedVm
from pytest_xenkvm.vmm import (
    KvmError,
    Refused,
    Route,
    RunstateInfo,
    TimerSetting,
    Vm,
    XenSnapshot,
    restore_snapshot,
    take_snapshot,
)
from pytest_xenkvm.vmm.files import IoctlMade
from pytest_xenkvm.vmm.snapshot import Backing

PROFILES: Final = (LINUX_6_12, LINUX_7_2, LINUX_7_3)
UNSET: Final = 2**32 - 1
HOLE: Final = 0x20_0000
"""A guest address without memory."""
EVTCHN_PENDING: Final = 0x1800
"""Where the pending bits of ports 0 to 15 are, with shared_info on page 1."""
NOW: Final = 5_000_000


def busy_vm(profile: Profile = LINUX_7_3) -> tuple[Vm, EmulatedVm]:
    """A VM on which every attribute that can be read holds something of its own."""
    vm, host_vm = make_vm(profile)
    host_vm.pass_time(ns=NOW)
    vm.xen_hvm_config()
    vm.set_long_mode(on=True)
    vm.set_shared_info(1)
    vm.set_upcall_vector(0xF1)
    vm.set_xen_version(4, 17)
    vm.set_runstate_update_flag(on=True)
    for vcpu in vm.vcpus:
        vcpu.set_vcpu_id(vcpu.index + 7)
        vcpu.set_upcall_vector(0xF3 + vcpu.index)
        vcpu.set_vcpu_time_info(0x2000 + 64 * vcpu.index)
        vcpu.set_runstate_addr(0x3FF0 + 64 * vcpu.index)
        vcpu.set_runstate_data(RunstateInfo(2, 1006, vcpu.index, 1005 - vcpu.index, 1, 0))
        vcpu.set_timer(9 + vcpu.index, expires_ns=NOW + 1000 + vcpu.index)
    vm.vcpus[0].set_vcpu_info(0x5000)
    vm.vcpus[1].set_vcpu_info_hva(vm.gpa_to_hva(0x6040) or 0)
    return vm, host_vm


def migrate(
    vm: Vm, profile: Profile = LINUX_7_3, **options: bool
) -> tuple[Vm, XenSnapshot, tuple[Refused, ...]]:
    """The fresh VM, the snapshot that was written to it, and what it refused."""
    snapshot = take_snapshot(vm)
    fresh, _host_vm = make_vm(profile)
    return fresh, snapshot, restore_snapshot(snapshot, fresh, **options)


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_everything_survives(profile: Profile) -> None:
    """What was read from one VM is read from the fresh one too, the clock included; nothing is refused."""
    vm, _host_vm = busy_vm(profile)
    fresh, snapshot, refused = migrate(vm, profile)
    assert refused == ()
    assert take_snapshot(fresh) == snapshot


def test_a_snapshot_holds_values_as_they_are_read() -> None:
    """Its values are what the attributes read, by attribute and vCPU; an area that is off isn't in."""
    snapshot = take_snapshot(busy_vm()[0])
    assert snapshot.clock_ns == NOW
    assert snapshot.vm == {
        HvmAttr.LONG_MODE: 1,
        HvmAttr.RUNSTATE_UPDATE_FLAG: 1,
        HvmAttr.XEN_VERSION: 0x40011,
        HvmAttr.UPCALL_VECTOR: 0xF1,
        HvmAttr.SHARED_INFO: 1,
    }
    assert snapshot.vcpus[1] == {
        VcpuAttr.VCPU_ID: 8,
        VcpuAttr.UPCALL_VECTOR: 0xF4,
        VcpuAttr.VCPU_INFO_HVA: Backing(0x6040),
        VcpuAttr.VCPU_TIME_INFO: 0x2040,
        VcpuAttr.RUNSTATE_DATA: RunstateInfo(2, 1006, 1, 1004, 1, 0),
        VcpuAttr.RUNSTATE_ADDR: 0x4030,
        VcpuAttr.TIMER: TimerSetting(port=10, expires_ns=NOW + 1001),
    }


def test_the_order_of_writing() -> None:
    """Clock, LONG_MODE, the VM's other attributes, those of the vCPUs with the ID first, then timers."""
    snapshot = take_snapshot(busy_vm()[0])
    made: list[IoctlMade] = []
    restore_snapshot(snapshot, Vm.on(make_vm()[1], SHAPE, made.append))
    clock, *rest = made
    assert clock.request == ioctls.KVM_SET_CLOCK
    written = [
        (each.vcpu, attribute_type(each.before)) for each in rest if isinstance(each.before, bytearray)
    ]
    assert written[:5] == [(None, number) for number in (0, 5, 4, 2, 1)]
    vcpu = [6, 8, 0, 1, 4, 2]
    assert written[5:] == [
        *((0, number) for number in vcpu),
        *((1, number) for number in [6, 8, 9, 1, 4, 2]),
        *((0, 7), (1, 7)),
    ]


@pytest.mark.parametrize("profile", PROFILES, ids=lambda profile: profile.name)
def test_a_vm_that_nobody_set_up_survives(profile: Profile) -> None:
    """A VM as it was created is restored without a refusal: an ID that reads as unset isn't written."""
    fresh, snapshot, refused = migrate(make_vm(profile)[0], profile)
    assert refused == ()
    assert take_snapshot(fresh) == snapshot


def test_an_unset_id_is_refused_when_written() -> None:
    """Asked to write unset IDs, Linux 7.3 answers -EINVAL, and they stay unset."""
    vm, _host_vm = make_vm()
    vm.vcpus[0].set_vcpu_id(3)
    fresh, _snapshot, refused = migrate(vm, write_unset_ids=True)
    assert refused == (Refused(vcpu=1, attribute=VcpuAttr.VCPU_ID, value=UNSET, errno=EINVAL),)
    assert [vcpu.get_vcpu_id() for vcpu in fresh.vcpus] == [3, UNSET]


def test_an_unset_id_looks_set_before_7_3() -> None:
    """Up to Linux 7.2 an unset ID reads 0, and the 0 is written: nothing tells it from a set one."""
    _fresh, snapshot, refused = migrate(make_vm(LINUX_7_2)[0], LINUX_7_2)
    assert [values[VcpuAttr.VCPU_ID] for values in snapshot.vcpus] == [0, 0]
    assert refused == ()


def set_refused(set_: Callable[[], None]) -> None:
    """Make a SET that is refused with -EFAULT."""
    with pytest.raises(KvmError) as caught:
        set_()
    assert caught.value.errno == EFAULT


def test_refused_areas_are_refused_again() -> None:
    """An area without memory reads as the address that failed, here and, refused once more, there."""
    vm, _host_vm = make_vm()
    nowhere = (vm.gpa_to_hva(HIGH_MEMORY) or 0) + 0x10_0000
    set_refused(lambda: vm.set_shared_info(HOLE >> 12))
    set_refused(lambda: vm.vcpus[0].set_vcpu_info(HOLE))
    set_refused(lambda: vm.vcpus[0].set_vcpu_time_info(HOLE))
    set_refused(lambda: vm.vcpus[1].set_vcpu_info_hva(nowhere))
    fresh, snapshot, refused = migrate(vm)
    assert refused == (
        Refused(vcpu=None, attribute=HvmAttr.SHARED_INFO, value=HOLE >> 12, errno=EFAULT),
        Refused(vcpu=0, attribute=VcpuAttr.VCPU_INFO, value=HOLE, errno=EFAULT),
        Refused(vcpu=0, attribute=VcpuAttr.VCPU_TIME_INFO, value=HOLE, errno=EFAULT),
        Refused(vcpu=1, attribute=VcpuAttr.VCPU_INFO_HVA, value=nowhere, errno=EFAULT),
    )
    assert take_snapshot(fresh) == snapshot


def test_a_refused_runstate_area_is_no_area() -> None:
    """RUNSTATE_ADDR without memory is switched off, so there is nothing to restore."""
    vm, _host_vm = make_vm()
    vm.vcpus[0].set_runstate_addr(0x1000)
    set_refused(lambda: vm.vcpus[0].set_runstate_addr(HOLE))
    fresh, snapshot, refused = migrate(vm)
    assert VcpuAttr.RUNSTATE_ADDR not in snapshot.vcpus[0]
    assert refused == ()
    with pytest.raises(KvmError) as caught:
        fresh.vcpus[0].get_attr(VcpuAttr.RUNSTATE_ADDR)
    assert caught.value.errno == ENOENT


def test_host_addresses_are_translated() -> None:
    """Areas given by host address lie at the same guest address, though the new host maps it elsewhere."""
    vm, _host_vm = make_vm()
    vm.set_shared_info_hva(vm.gpa_to_hva(HIGH_MEMORY) or 0)
    vm.vcpus[0].set_vcpu_info_hva(vm.gpa_to_hva(HIGH_MEMORY + 0x1040) or 0)
    snapshot = take_snapshot(vm)
    other_way_round = evolve(SHAPE, memory=SHAPE.memory[::-1])
    fresh, _fresh_host = make_vm(shape=other_way_round)
    assert restore_snapshot(snapshot, fresh) == ()
    there = fresh.vcpus[0].get_attr(VcpuAttr.VCPU_INFO_HVA)
    assert there == fresh.gpa_to_hva(HIGH_MEMORY + 0x1040) != vm.gpa_to_hva(HIGH_MEMORY + 0x1040)
    assert take_snapshot(fresh) == snapshot


def test_the_guests_runstate_is_right_at_once() -> None:
    """RUNSTATE_ADDR writes the restored account to the guest, not that of a new vCPU."""
    fresh, _snapshot, _refused = migrate(busy_vm()[0])
    runstate = fresh.read_memory(0x3FF0, 4 + 12)
    assert runstate == (2).to_bytes(8, "little") + (1006).to_bytes(8, "little")


def test_a_timer_that_came_due_on_the_way_fires() -> None:
    """With the downtime added to the clock, a due timer fires when restored, into the restored areas."""
    vm, _host_vm = busy_vm()
    snapshot = take_snapshot(vm)
    fresh, _fresh_host = make_vm()
    assert restore_snapshot(evolve(snapshot, clock_ns=NOW + 2000), fresh) == ()
    assert [vcpu.get_timer() for vcpu in fresh.vcpus] == [TimerSetting(port=9), TimerSetting(port=10)]
    assert fresh.read_memory(EVTCHN_PENDING, 2) == bytes((0, 0b110))
    for gpa in (0x5000, 0x6040):
        assert fresh.read_memory(gpa, 1) == b"\1"


def test_a_running_timer_runs_on() -> None:
    """A restored timer fires when the guest's clock reaches its expiry, and not before."""
    vm, _host_vm = busy_vm()
    fresh, fresh_host = make_vm()
    restore_snapshot(take_snapshot(vm), fresh)
    fresh_host.pass_time(ns=999)
    assert fresh.vcpus[0].get_timer().expires_ns == NOW + 1000
    fresh_host.pass_time(ns=1)
    assert fresh.vcpus[0].get_timer().expires_ns == 0


def test_taking_a_snapshot_delivers_a_waiting_timer() -> None:
    """Reading TIMER delivers the event of a timer that had no place for it: the VM isn't left as it was."""
    vm, host_vm = make_vm()
    vm.vcpus[0].set_timer(9, expires_ns=10)
    host_vm.pass_time(ns=20)
    vm.set_shared_info(1)
    assert vm.read_memory(EVTCHN_PENDING, 2) == b"\0\0"
    assert take_snapshot(vm).vcpus[0][VcpuAttr.TIMER] == TimerSetting(port=9)
    assert vm.read_memory(EVTCHN_PENDING, 2) == b"\0\2"


def _with_deferred_selector(vm: Vm) -> None:
    vm.set_shared_info(1)
    vm.vcpus[1].set_vcpu_info(None)
    vm.evtchn_send(7, vm.vcpus[1].id)


def _with_routes(vm: Vm) -> None:
    vm.set_gsi_routing([Route(gsi=3, port=7, vcpu_id=0)])
    vm.assign_irqfd(vm.open_eventfd(), 3)


def _with_requested_interrupt(vm: Vm) -> None:
    vm.evtchn_send(7, vm.vcpus[0].id)


@pytest.mark.parametrize(
    "set_up",
    [
        lambda vm: vm.xen_hvm_config(flags=0x82, msr=0x4000_0200),
        lambda vm: vm.assign_ipi(7, 4),
        _with_routes,
        _with_deferred_selector,
        _with_requested_interrupt,
    ],
)
def test_what_cannot_be_read_is_not_there(set_up: Callable[[Vm], Any]) -> None:
    """Config, outbound ports, GSI routes, kept selector bits and interrupts leave no mark on what is read."""
    plain, _host_vm = busy_vm()
    plain.vcpus[1].set_vcpu_info(None)
    vm, _host_vm = busy_vm()
    vm.vcpus[1].set_vcpu_info(None)
    set_up(vm)
    assert take_snapshot(vm) == take_snapshot(plain)


def test_outbound_ports_cannot_be_read() -> None:
    """Reading EVTCHN is -ENOENT."""
    with pytest.raises(KvmError) as caught:
        make_vm()[0].get_attr(HvmAttr.EVTCHN)
    assert caught.value.errno == ENOENT


def test_a_host_without_runstate() -> None:
    """Where there is no runstate, none is in the snapshot, and all else survives."""
    limits = HostLimits(run_delay_info=False)
    vm, _host_vm = make_vm(limits=limits)
    vm.set_xen_version(4, 17)
    snapshot = take_snapshot(vm)
    assert HvmAttr.RUNSTATE_UPDATE_FLAG not in snapshot.vm
    assert VcpuAttr.RUNSTATE_DATA not in snapshot.vcpus[0]
    fresh, _fresh_host = make_vm(limits=limits)
    assert restore_snapshot(snapshot, fresh) == ()
    assert take_snapshot(fresh) == snapshot


def test_a_vm_of_another_shape() -> None:
    """Another number of vCPUs, or memory that isn't there, is a ValueError that says so."""
    vm, _host_vm = make_vm()
    vm.set_shared_info_hva(vm.gpa_to_hva(HIGH_MEMORY) or 0)
    snapshot = take_snapshot(vm)
    fewer, _fewer_host = make_vm(shape=evolve(SHAPE, vcpus=SHAPE.vcpus[:1]))
    with pytest.raises(ValueError, match="the snapshot has 2 vCPUs, the VM 1"):
        restore_snapshot(snapshot, fewer)
    smaller, _smaller_host = make_vm(shape=evolve(SHAPE, memory=SHAPE.memory[:1]))
    with pytest.raises(ValueError, match="no memory at guest address 0x100000000"):
        restore_snapshot(snapshot, smaller)


def test_an_unforeseen_error_is_raised() -> None:
    """A GET that fails in a way that doesn't mean "not there" isn't passed over."""

    class Broken(EmulatedVm):
        def ioctl(self, request: int, argument: int | bytearray, *, vcpu: int | None = None) -> int:
            if request == ioctls.KVM_XEN_VCPU_GET_ATTR:
                return -EFAULT
            return super().ioctl(request, argument, vcpu=vcpu)

    with pytest.raises(KvmError) as caught:
        take_snapshot(Vm.on(Broken(make_vm()[1].machine), SHAPE))
    assert caught.value.errno == EFAULT
