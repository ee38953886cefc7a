"""What a VMM behaviour holds in its hands: each method is one ioctl, with the errno where it is refused."""

from __future__ import annotations

from collections.abc import Callable
from errno import EBADF, EINVAL
from struct import pack
from typing import Any, Final

import pytest
from emulated_vms import HIGH_MEMORY, SHAPE, RefusingVm, make_vm

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import HvmAttr, VcpuAttr
from pytest_xenkvm.hosts.protocol import GuestCall
from pytest_xenkvm.vmm import KvmError, Route, RunstateInfo, TimerSetting, Vcpu, Vm
from pytest_xenkvm.vmm.files import IoctlMade
from pytest_xenkvm.vmm.ioctl_bytes import Names, as_event

OFF: Final = 2**64 - 1
PRIORITY: Final = 2**32 - 1
NO_BLOB: Final = {"blob_addr_32": 0, "blob_addr_64": 0, "blob_size_32": 0, "blob_size_64": 0}
INFO: Final = RunstateInfo(2, 10, 1, 2, 3, 4)
RUNSTATE: Final = INFO._asdict()
HCALL: Final = "KVM_XEN_HVM_SET_ATTR"
VCPU: Final = "KVM_XEN_VCPU_SET_ATTR"


def evtchn(send_port: int, type_: int, flags: int, deliver: dict[str, Any]) -> dict[str, Any]:
    """The EVTCHN attribute as a trace has it."""
    return {
        "type": 3,
        "evtchn": {"send_port": send_port, "type": type_, "flags": flags, "deliver": deliver},
    }


def to_port(port: int, vcpu: int) -> dict[str, Any]:
    """Delivery to a local port."""
    return {"port": {"port": port, "vcpu": vcpu, "priority": PRIORITY}}


VM_CALLS: Final[list[tuple[str, Callable[[Vm], object], str, dict[str, Any]]]] = [
    ("check_extension", lambda vm: vm.check_extension(38), "KVM_CHECK_EXTENSION", {"cap": 38}),
    (
        "xen_hvm_config",
        lambda vm: vm.xen_hvm_config(),
        "KVM_XEN_HVM_CONFIG",
        {"flags": 0x22, "msr": 0x4000_0000, **NO_BLOB},
    ),
    (
        "xen_hvm_config",
        lambda vm: vm.xen_hvm_config(flags=0x82, msr=7),
        "KVM_XEN_HVM_CONFIG",
        {"flags": 0x82, "msr": 7, **NO_BLOB},
    ),
    ("set_attr", lambda vm: vm.set_attr(HvmAttr.XEN_VERSION, 9), HCALL, {"type": 4, "xen_version": 9}),
    ("set_long_mode", lambda vm: vm.set_long_mode(on=True), HCALL, {"type": 0, "long_mode": 1}),
    ("set_shared_info", lambda vm: vm.set_shared_info(5), HCALL, {"type": 1, "shared_info": {"gfn": 5}}),
    ("set_shared_info", lambda vm: vm.set_shared_info(None), HCALL, {"type": 1, "shared_info": {"gfn": OFF}}),
    (
        "set_shared_info_hva",
        lambda vm: vm.set_shared_info_hva(vm.gpa_to_hva(0x3000) or 0),
        HCALL,
        {"type": 6, "shared_info": {"hva": {"gpa": 0x3000}}},
    ),
    ("set_upcall_vector", lambda vm: vm.set_upcall_vector(0xF3), HCALL, {"type": 2, "vector": 0xF3}),
    ("set_xen_version", lambda vm: vm.set_xen_version(4, 17), HCALL, {"type": 4, "xen_version": 0x40011}),
    (
        "set_runstate_update_flag",
        lambda vm: vm.set_runstate_update_flag(on=True),
        HCALL,
        {"type": 5, "runstate_update_flag": 1},
    ),
    ("assign_ipi", lambda vm: vm.assign_ipi(7, 4), HCALL, evtchn(7, 5, 0, to_port(7, 4))),
    (
        "assign_interdomain",
        lambda vm: vm.assign_interdomain(7, 8, 4),
        HCALL,
        evtchn(7, 2, 0, to_port(8, 4)),
    ),
    (
        "assign_eventfd",
        lambda vm: vm.assign_eventfd(7, 3),
        HCALL,
        evtchn(7, 2, 0, {"eventfd": {"port": 0, "fd": 3}}),
    ),
    ("deassign", lambda vm: vm.deassign(7), HCALL, evtchn(7, 0, 1, to_port(0, 0))),
    ("reset_evtchn", lambda vm: vm.reset_evtchn(), HCALL, evtchn(0, 0, 4, to_port(0, 0))),
    (
        "evtchn_send",
        lambda vm: vm.evtchn_send(7, 4),
        "KVM_XEN_HVM_EVTCHN_SEND",
        {"port": 7, "vcpu": 4, "priority": PRIORITY},
    ),
    (
        "set_gsi_routing",
        lambda vm: vm.set_gsi_routing([Route(gsi=1, port=7, vcpu_id=4), Route(gsi=2, port=8, vcpu_id=0)]),
        "KVM_SET_GSI_ROUTING",
        {
            "entries": [
                {"gsi": 1, "type": 5, "xen_evtchn": {"port": 7, "vcpu": 4, "priority": PRIORITY}},
                {"gsi": 2, "type": 5, "xen_evtchn": {"port": 8, "vcpu": 0, "priority": PRIORITY}},
            ]
        },
    ),
    ("assign_irqfd", lambda vm: vm.assign_irqfd(3, 9), "KVM_IRQFD", {"fd": 3, "gsi": 9, "flags": 0}),
    ("deassign_irqfd", lambda vm: vm.deassign_irqfd(3, 9), "KVM_IRQFD", {"fd": 3, "gsi": 9, "flags": 1}),
    ("set_irq_line", lambda vm: vm.set_irq_line(9, 1), "KVM_IRQ_LINE", {"irq": 9, "level": 1}),
]
VCPU_CALLS: Final[list[tuple[str, Callable[[Vcpu], object], str, dict[str, Any]]]] = [
    ("set_attr", lambda vcpu: vcpu.set_attr(VcpuAttr.VCPU_ID, 3), VCPU, {"type": 6, "vcpu_id": 3}),
    ("set_vcpu_id", lambda vcpu: vcpu.set_vcpu_id(3), VCPU, {"type": 6, "vcpu_id": 3}),
    ("set_vcpu_info", lambda vcpu: vcpu.set_vcpu_info(0x2040), VCPU, {"type": 0, "gpa": 0x2040}),
    ("set_vcpu_info", lambda vcpu: vcpu.set_vcpu_info(None), VCPU, {"type": 0, "gpa": OFF}),
    ("set_vcpu_info_hva", lambda vcpu: vcpu.set_vcpu_info_hva(64), VCPU, {"type": 9, "hva": 64}),
    ("set_vcpu_time_info", lambda vcpu: vcpu.set_vcpu_time_info(64), VCPU, {"type": 1, "gpa": 64}),
    ("set_vcpu_time_info", lambda vcpu: vcpu.set_vcpu_time_info(None), VCPU, {"type": 1, "gpa": OFF}),
    ("set_runstate_addr", lambda vcpu: vcpu.set_runstate_addr(64), VCPU, {"type": 2, "gpa": 64}),
    ("set_runstate_addr", lambda vcpu: vcpu.set_runstate_addr(None), VCPU, {"type": 2, "gpa": OFF}),
    (
        "set_runstate_current",
        lambda vcpu: vcpu.set_runstate_current(2),
        VCPU,
        {"type": 3, "runstate": RunstateInfo(2)._asdict()},
    ),
    (
        "set_runstate_data",
        lambda vcpu: vcpu.set_runstate_data(INFO),
        VCPU,
        {"type": 4, "runstate": RUNSTATE},
    ),
    ("adjust_runstate", lambda vcpu: vcpu.adjust_runstate(INFO), VCPU, {"type": 5, "runstate": RUNSTATE}),
    (
        "set_timer",
        lambda vcpu: vcpu.set_timer(7, expires_ns=50),
        VCPU,
        {"type": 7, "timer": {"port": 7, "priority": PRIORITY, "expires_ns": 50}},
    ),
    (
        "set_timer",
        lambda vcpu: vcpu.set_timer(7, priority=1),
        VCPU,
        {"type": 7, "timer": {"port": 7, "priority": 1, "expires_ns": 0}},
    ),
    ("set_upcall_vector", lambda vcpu: vcpu.set_upcall_vector(0xF3), VCPU, {"type": 8, "vector": 0xF3}),
]
READS: Final[dict[str, tuple[int, Callable[[Vm], object]]]] = {
    "Vm.get_attr": (ioctls.KVM_XEN_HVM_GET_ATTR, lambda vm: vm.get_attr(HvmAttr.LONG_MODE)),
    "Vm.get_clock": (ioctls.KVM_GET_CLOCK, lambda vm: vm.get_clock()),
    "Vm.set_clock": (ioctls.KVM_SET_CLOCK, lambda vm: vm.set_clock(5)),
    "Vcpu.get_attr": (ioctls.KVM_XEN_VCPU_GET_ATTR, lambda vm: vm.vcpus[1].get_attr(VcpuAttr.VCPU_ID)),
    "Vcpu.get_vcpu_id": (ioctls.KVM_XEN_VCPU_GET_ATTR, lambda vm: vm.vcpus[1].get_vcpu_id()),
    "Vcpu.get_timer": (ioctls.KVM_XEN_VCPU_GET_ATTR, lambda vm: vm.vcpus[1].get_timer()),
    "Vcpu.get_runstate_data": (ioctls.KVM_XEN_VCPU_GET_ATTR, lambda vm: vm.vcpus[1].get_runstate_data()),
}
"""Methods whose ioctl no trace holds, or whose argument says little: the request tells."""
NO_IOCTLS: Final = {
    *("Vm.ioctl", "Vcpu.ioctl", "Vm.on"),  # carry the others
    *("Vm.open_eventfd", "Vm.read_eventfd", "Vm.write_eventfd"),
    *("Vm.read_memory", "Vm.write_memory", "Vm.gpa_to_hva", "Vm.hva_to_gpa"),
    *(
        "Vcpu.read_virtual",
        "Vcpu.write_virtual",
        "Vcpu.translate",
        "Vcpu.start_vmm_timer",
        "Vcpu.stop_vmm_timer",
    ),
}


def test_no_method_is_left_out() -> None:
    """Every public method of Vm and Vcpu stands in one of the tables here."""
    methods = {
        f"{handle.__name__}.{name}"
        for handle in (Vm, Vcpu)
        for name, member in vars(handle).items()
        if not name.startswith("_") and (callable(member) or isinstance(member, staticmethod))
    }
    in_tables = {f"Vm.{name}" for name, *_ in VM_CALLS} | {f"Vcpu.{name}" for name, *_ in VCPU_CALLS}
    assert in_tables | READS.keys() | NO_IOCTLS == methods


def watched(call: Callable[[Vm], object]) -> tuple[IoctlMade, Names]:
    """The one ioctl that a call makes on a host that accepts everything."""
    made: list[IoctlMade] = []
    host_vm = RefusingVm(make_vm()[1].machine, ret=0)
    call(Vm.on(host_vm, SHAPE, made.append))
    (only,) = made
    return only, Names(host_vm)


@pytest.mark.parametrize(("method", "call", "name", "arg"), VM_CALLS)
def test_a_vm_method_is_its_ioctl(
    method: str, call: Callable[[Vm], object], name: str, arg: dict[str, Any]
) -> None:
    """A method of a VM makes exactly one ioctl on the VM's file, with the structure that its name says."""
    event = as_event(*watched(call))
    assert (event.name, event.vcpu, event.arg) == (name, None, arg), method


@pytest.mark.parametrize(("method", "call", "name", "arg"), VCPU_CALLS)
def test_a_vcpu_method_is_its_ioctl(
    method: str, call: Callable[[Vcpu], object], name: str, arg: dict[str, Any]
) -> None:
    """A method of a vCPU makes exactly one ioctl on that vCPU's file."""
    event = as_event(*watched(lambda vm: call(vm.vcpus[1])))
    assert (event.name, event.vcpu, event.arg) == (name, 1, arg), method


@pytest.mark.parametrize("method", READS)
def test_other_methods_make_their_ioctl(method: str) -> None:
    """Methods that read, and those about the clock, make exactly the ioctl that they are named after."""
    request, call = READS[method]
    made, _names = watched(call)
    assert (made.request, made.vcpu) == (request, 1 if method.startswith("Vcpu") else None)


@pytest.mark.parametrize(
    "call",
    [
        *(call for _method, call, _name, _arg in VM_CALLS),
        *((lambda vm, call=call: call(vm.vcpus[0])) for _method, call, _name, _arg in VCPU_CALLS),
        *(call for _request, call in READS.values()),
    ],
)
def test_a_refusal_is_raised(call: Callable[[Vm], object]) -> None:
    """Whatever the method: where the kernel answers -errno, KvmError carries the errno."""
    host_vm = RefusingVm(make_vm()[1].machine, ret=-EINVAL)
    with pytest.raises(KvmError, match="-EINVAL") as caught:
        call(Vm.on(host_vm, SHAPE))
    assert caught.value.errno == EINVAL
    assert len(host_vm.made) == 1


def test_a_refused_ioctl_is_watched_too() -> None:
    """A watcher is told of ioctls that fail, with the argument as it was before and after."""
    made: list[IoctlMade] = []
    vm = Vm.on(make_vm()[1], SHAPE, made.append)
    with pytest.raises(KvmError):
        vm.vcpus[0].set_vcpu_id(2**32 - 1)
    assert vm.vcpus[0].get_vcpu_id() == 2**32 - 1
    set_, get = made
    assert (set_.ret, get.ret, get.vcpu) == (-EINVAL, 0, 0)
    assert isinstance(get.before, bytearray)
    assert (bytes(get.before[8:12]), bytes(get.after)[8:12]) == (b"\0" * 4, b"\xff" * 4)


def test_typed_values_come_back() -> None:
    """IDs, timers and runstate accounts are read as they were set."""
    vm, host_vm = make_vm()
    host_vm.pass_time(ns=100)
    vcpu = vm.vcpus[1]
    vcpu.set_vcpu_id(4095)
    vcpu.set_timer(7, expires_ns=10**9)
    vcpu.set_runstate_data(INFO)
    assert vcpu.get_vcpu_id() == 4095
    assert vcpu.get_timer() == TimerSetting(port=7, expires_ns=10**9)
    assert vcpu.get_runstate_data() == INFO
    assert vm.vcpus[0].get_timer() == TimerSetting(port=0)


@pytest.mark.parametrize(
    ("set_", "attribute", "value"),
    [
        (lambda vm: vm.set_long_mode(on=True), HvmAttr.LONG_MODE, 1),
        (lambda vm: vm.set_shared_info(3), HvmAttr.SHARED_INFO, 3),
        (lambda vm: vm.set_upcall_vector(0xF3), HvmAttr.UPCALL_VECTOR, 0xF3),
        (lambda vm: vm.set_xen_version(4, 17), HvmAttr.XEN_VERSION, 0x40011),
        (lambda vm: vm.set_runstate_update_flag(on=True), HvmAttr.RUNSTATE_UPDATE_FLAG, 1),
    ],
)
def test_vm_attributes_come_back(set_: Callable[[Vm], None], attribute: HvmAttr, value: int) -> None:
    """An attribute of the VM reads as it was set."""
    vm, _host_vm = make_vm()
    set_(vm)
    assert vm.get_attr(attribute) == value


def test_vcpus_are_told_apart() -> None:
    """The handles have the indices and KVM vCPU ids of the shape."""
    assert [(vcpu.index, vcpu.id) for vcpu in make_vm()[0].vcpus] == [(0, 0), (1, 4)]


def test_eventfds() -> None:
    """Eventfds are made, added to and drained; one that isn't open is -EBADF."""
    vm, _host_vm = make_vm()
    fd = vm.open_eventfd()
    vm.write_eventfd(fd, 3)
    vm.write_eventfd(fd, 4)
    assert (vm.read_eventfd(fd), vm.read_eventfd(fd)) == (7, 0)
    for use in (lambda: vm.read_eventfd(99), lambda: vm.write_eventfd(99, 1)):
        with pytest.raises(KvmError) as caught:
            use()
        assert caught.value.errno == EBADF


def test_memory() -> None:
    """Guest memory is read and written by guest address, and has host addresses; elsewhere is none."""
    vm, _host_vm = make_vm()
    assert vm.write_memory(HIGH_MEMORY + 1, b"xen")
    assert vm.read_memory(HIGH_MEMORY, 5) == b"\0xen\0"
    hva = vm.gpa_to_hva(HIGH_MEMORY + 1)
    assert hva is not None
    assert vm.hva_to_gpa(hva) == HIGH_MEMORY + 1
    nowhere = HIGH_MEMORY - 1
    assert not vm.write_memory(nowhere, b"xen")
    assert (vm.read_memory(nowhere, 1), vm.gpa_to_hva(nowhere), vm.hva_to_gpa(1)) == (None, None, None)


def test_the_clock_is_set() -> None:
    """The VM's clock goes on from where it was set, forwards or backwards, and the guest sees it."""
    vm, host_vm = make_vm()
    vm.vcpus[0].set_vcpu_time_info(0x2000)
    for clock in (10**9, 5):
        vm.set_clock(clock)
        host_vm.pass_time(ns=3)
        host_vm.run(0)
        assert vm.get_clock() == host_vm.guest_clock(0) == clock + 3
        assert vm.read_memory(0x2010, 8) == pack("<Q", clock + 3)


def test_the_clock_takes_what_was_read() -> None:
    """KVM_SET_CLOCK takes the flags that KVM_GET_CLOCK may return, and answers -EINVAL to others."""
    vm, _host_vm = make_vm()
    vm.ioctl(ioctls.KVM_SET_CLOCK, bytearray(ioctls.CLOCK_DATA.pack(7, 0b1110, 1, 2)))
    assert vm.get_clock() == 7
    with pytest.raises(KvmError, match="-EINVAL"):
        vm.ioctl(ioctls.KVM_SET_CLOCK, bytearray(ioctls.CLOCK_DATA.pack(8, 1, 0, 0)))
    assert vm.get_clock() == 7


@pytest.mark.parametrize("clock", [0, 10**12])
def test_a_running_timer_keeps_its_time(clock: int) -> None:
    """Setting the clock makes a running timer fire neither sooner nor later: it isn't armed again."""
    vm, host_vm = make_vm()
    host_vm.pass_time(ns=1000)
    vm.set_shared_info(1)
    vm.vcpus[0].set_timer(7, expires_ns=1500)
    vm.set_clock(clock)
    host_vm.pass_time(ns=499)
    assert vm.vcpus[0].get_timer().expires_ns == 1500
    host_vm.pass_time(ns=1)
    assert vm.vcpus[0].get_timer().expires_ns == 0


def test_a_clock_far_ahead_is_fine() -> None:
    """The clock takes any u64, stops at the last one, and the guest may be entered then."""
    vm, host_vm = make_vm()
    vm.xen_hvm_config()
    vm.vcpus[0].set_vcpu_time_info(0x2000)
    vm.vcpus[0].set_runstate_addr(0x2040)
    vm.set_clock(2**64 - 1)
    host_vm.pass_time(ns=2)
    call = GuestCall(nr=29, args=(0, 0, 0, 0, 0, 0), longmode=True, cpl=0)
    assert host_vm.hypercall(0, call).rax == 0
    assert vm.get_clock() == 2**64 - 1
