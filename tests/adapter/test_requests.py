"""What adapters ask of their VM is done, and they get to know what became of it."""

from __future__ import annotations

import json
from errno import EBADF, EFAULT, EINVAL, ENODATA, ENOENT, ENOTTY
from pathlib import Path
from typing import Any, Final

import pytest
from adapter_kit import MEMORY, make_vm, scripted, xen_exit
from attrs import define, field

from pytest_xenkvm.abi import ioctls
from pytest_xenkvm.abi.numbers import XEN_VCPU_ID_INVALID, HvmAttr, VcpuAttr
from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.core.memory import HVA_BASE
from pytest_xenkvm.core.profile import HostLimits
from pytest_xenkvm.trace.values import Unfit
from pytest_xenkvm.vmm import Vcpu, Vm
from pytest_xenkvm.vmm.adapter import requests
from pytest_xenkvm.vmm.adapter.messages import FROM_ADAPTER, REQUESTS, TO_ADAPTER, check_message
from pytest_xenkvm.vmm.adapter.requests import Desk, Machine

PRIORITY: Final = 2**32 - 1
NEVER_OPENED: Final = 77


@define
class Asking:
    """Asks as an adapter does, of one VM or two."""

    vm: Vm = field(factory=make_vm)
    target: Vm = field(factory=make_vm)
    desk: Desk = field(init=False)

    def __attrs_post_init__(self) -> None:
        self.desk = Desk({"source": Machine(self.vm), "target": Machine(self.target)}, has_timer=True)

    def __call__(self, type_: str, **members: Any) -> dict[str, Any]:
        """The result of a request, as it travels: without what isn't there."""
        checked, request = check_message(FROM_ADAPTER, {"type": type_, **members})
        result = {key: value for key, value in self.desk.serve(checked, request).items() if value is not None}
        check_message(TO_ADAPTER, {"type": "result", **result})
        return result


@pytest.fixture
def ask() -> Asking:
    """An adapter with two fresh VMs."""
    return Asking()


def test_an_ioctl_of_a_vcpu(ask: Asking) -> None:
    """A SET changes the vCPU that it names, and a GET shows it."""
    assert ask("ioctl", name="KVM_XEN_VCPU_SET_ATTR", vcpu=1, arg={"type": 6, "vcpu_id": 5}) == {"ret": 0}
    assert [vcpu.get_vcpu_id() for vcpu in ask.vm.vcpus] == [XEN_VCPU_ID_INVALID, 5]
    result = ask("ioctl", name="KVM_XEN_VCPU_GET_ATTR", vcpu=1, arg={"type": 6})
    assert result == {"ret": 0, "out": {"type": 6, "vcpu_id": 5}}


def test_an_ioctl_of_the_vm(ask: Asking) -> None:
    """Without a vCPU it is the VM's; the target's, if the adapter says so."""
    set_version = {"name": "KVM_XEN_HVM_SET_ATTR", "arg": {"type": 4, "xen_version": 0x40011}}
    assert ask("ioctl", vm="target", **set_version) == {"ret": 0}
    assert ask.vm.get_attr(HvmAttr.XEN_VERSION) == 0
    assert ask.target.get_attr(HvmAttr.XEN_VERSION) == 0x40011


def test_a_refused_ioctl(ask: Asking) -> None:
    """The errno comes back, and nothing else."""
    assert ask("ioctl", name="KVM_XEN_VCPU_SET_ATTR", vcpu=0, arg={"type": 6, "vcpu_id": 99999}) == {
        "ret": -EINVAL
    }
    assert ask("ioctl", name="KVM_XEN_HVM_GET_ATTR", arg={"type": 3}) == {"ret": -ENOENT}


def test_an_extension(ask: Asking) -> None:
    """KVM_CHECK_EXTENSION answers with its value."""
    assert ask("ioctl", name="KVM_CHECK_EXTENSION", arg={"cap": 66}) == {"ret": HostLimits().max_vcpus}


def test_addresses_and_times_by_what_they_mean(ask: Asking) -> None:
    """A host address may be what backs a guest address, a time may start from now; both read back."""
    ask.vm.set_clock(1_000_000)
    shared_info = {"type": 6, "shared_info": {"hva": {"gpa": 0x3000}}}
    assert ask("ioctl", name="KVM_XEN_HVM_SET_ATTR", arg=shared_info) == {"ret": 0}
    assert ask.vm.get_attr(HvmAttr.SHARED_INFO_HVA) == HVA_BASE + 0x3000
    assert ask("ioctl", name="KVM_XEN_HVM_GET_ATTR", arg={"type": 6})["out"] == shared_info
    timer = {"port": 16, "priority": PRIORITY, "expires_ns": {"now_plus": 500}}
    assert ask("ioctl", name="KVM_XEN_VCPU_SET_ATTR", vcpu=0, arg={"type": 7, "timer": timer}) == {"ret": 0}
    assert ask.vm.vcpus[0].get_timer().expires_ns == 1_000_500


def test_a_raw_ioctl(ask: Asking) -> None:
    """The bytes of a structure do the same as its members."""
    structure = bytearray(ioctls.ATTR_SIZE)
    structure[0], structure[ioctls.ATTR_HEADER.size] = VcpuAttr.VCPU_ID, 9
    set_id = {"request": ioctls.KVM_XEN_VCPU_SET_ATTR, "vcpu": 0}
    assert ask("raw_ioctl", data=structure.hex(), **set_id)["ret"] == 0
    assert ask.vm.vcpus[0].get_vcpu_id() == 9
    structure[ioctls.ATTR_HEADER.size] = 0
    result = ask("raw_ioctl", request=ioctls.KVM_XEN_VCPU_GET_ATTR, vcpu=0, data=structure.hex())
    assert result["data"][ioctls.ATTR_HEADER.size] == 9
    assert Asking(make_vm(refusing=True))("raw_ioctl", data=structure[:-1].hex(), **set_id) == {
        "ret": -EFAULT
    }
    assert ask("raw_ioctl", request=0xAE80, data="00", vcpu=0) == {"ret": -ENOTTY}


def test_the_clock(ask: Asking) -> None:
    """It is set and read."""
    assert ask("set_clock", ns=2**64 - 1) == {"ret": 0}
    assert ask("get_clock") == {"ret": 2**64 - 1}
    assert ask("get_clock", vm="target") == {"ret": 0}


def test_guest_memory(ask: Asking) -> None:
    """What is stored is read; where no memory is, it is -EFAULT."""
    assert ask("write_memory", gpa=0x1000, data="c0ffee") == {"ret": 0}
    assert ask.vm.read_memory(0x1000, 3) == bytes.fromhex("c0ffee")
    assert ask("read_memory", gpa=0x1000, size=3) == {"ret": 0, "data": bytes.fromhex("c0ffee")}
    assert ask("read_memory", gpa=MEMORY - 1, size=2) == {"ret": -EFAULT}
    assert ask("write_memory", gpa=2**64 - 1, data="00") == {"ret": -EFAULT}


def test_host_addresses(ask: Asking) -> None:
    """They are found both ways."""
    assert ask("gpa_to_hva", gpa=0x2000) == {"ret": HVA_BASE + 0x2000}
    assert ask("hva_to_gpa", hva=HVA_BASE + 0x2000) == {"ret": 0x2000}
    assert ask("gpa_to_hva", gpa=MEMORY) == {"ret": -EFAULT}
    assert ask("hva_to_gpa", hva=0) == {"ret": -EFAULT}


def test_eventfds(ask: Asking) -> None:
    """An eventfd counts; the guest's outbound port signals it; one that was never opened is -EBADF."""
    fd = ask("open_eventfd")["ret"]
    assert ask("write_eventfd", fd=fd, value=3) == {"ret": 0}
    assert ask("read_eventfd", fd=fd) == {"ret": 3}
    assert ask("read_eventfd", fd=fd) == {"ret": 0}
    assert ask("read_eventfd", fd=NEVER_OPENED) == {"ret": -EBADF}
    assign = {"name": "KVM_XEN_HVM_SET_ATTR"}
    evtchn = {"send_port": 7, "type": 2, "flags": 0, "deliver": {"eventfd": {"port": 0, "fd": fd}}}
    assert ask("ioctl", arg={"type": 3, "evtchn": evtchn}, **assign) == {"ret": 0}
    evtchn = {**evtchn, "send_port": 8, "deliver": {"eventfd": {"port": 0, "fd": NEVER_OPENED}}}
    assert ask("ioctl", arg={"type": 3, "evtchn": evtchn}, **assign) == {"ret": -EBADF}


def test_vmm_timers(ask: Asking) -> None:
    """They are started and stopped."""
    assert ask("start_vmm_timer", vcpu=1, expires_ns=700) == {"ret": 0}
    assert ask.vm.vmm_timers.next_expiry() == 700
    assert ask("stop_vmm_timer", vcpu=1) == {"ret": 0}
    assert ask.vm.vmm_timers.next_expiry() is None


class TestVirtual:
    """Guest memory by virtual addresses."""

    def test_mapped(self, ask: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is read and stored where it is mapped."""
        stored = {}

        def store(vcpu: Vcpu, gva: int, data: bytes) -> bool:
            stored[vcpu.index, gva] = data
            return True

        monkeypatch.setattr(Vcpu, "read_virtual", lambda _vcpu, gva, size: bytes([gva] * size))
        monkeypatch.setattr(Vcpu, "write_virtual", store)
        assert ask("read_virtual", vcpu=0, gva=7, size=2) == {"ret": 0, "data": b"\7\7"}
        monkeypatch.setattr(Vcpu, "translate", lambda _vcpu, gva: gva + 0x1000)
        assert ask("write_virtual", vcpu=1, gva=9, data="0102") == {"ret": 0}
        assert ask("translate", vcpu=1, gva=9) == {"ret": 0x1009}
        assert stored == {(1, 9): b"\1\2"}

    def test_not_mapped(self, ask: Asking, monkeypatch: pytest.MonkeyPatch) -> None:
        """It is -EFAULT elsewhere."""
        monkeypatch.setattr(Vcpu, "read_virtual", lambda *_: None)
        monkeypatch.setattr(Vcpu, "write_virtual", lambda *_: False)
        assert ask("read_virtual", vcpu=0, gva=0, size=1) == {"ret": -EFAULT}
        monkeypatch.setattr(Vcpu, "translate", lambda *_: None)
        assert ask("write_virtual", vcpu=0, gva=0, data="00") == {"ret": -EFAULT}
        assert ask("translate", vcpu=0, gva=0) == {"ret": -EFAULT}

    def test_not_seen(self, ask: Asking, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        """It is -ENODATA if the recording doesn't show it; the answer to that hypercall is not judged."""

        def unseen(*_: object) -> None:
            raise UnseenMemory

        monkeypatch.setattr(Vcpu, "read_virtual", unseen)
        monkeypatch.setattr(Vcpu, "translate", unseen)
        assert ask("read_virtual", vcpu=0, gva=0, size=1) == {"ret": -ENODATA}
        assert ask("translate", vcpu=0, gva=0) == {"ret": -ENODATA}
        ask_and_answer = "called(); ask('read_virtual', vcpu=0, gva=0, size=1); put('answer', rax=1)\n"
        vmm = scripted(tmp_path, ask_and_answer + "get(); put('answer', rax=2); get()")
        vmm.configure(make_vm())
        with pytest.raises(UnseenMemory):
            vmm.on_hypercall(make_vm().vcpus[0], xen_exit())
        assert vmm.on_hypercall(make_vm().vcpus[0], xen_exit()) == 2
        vmm.close()


@pytest.mark.parametrize("type_", ["ioctl", "raw_ioctl", "read_virtual", "write_virtual", "start_vmm_timer"])
def test_a_vcpu_that_is_not_there(ask: Asking, type_: str) -> None:
    """No request is done for a vCPU that the VM doesn't have."""
    members: dict[str, dict[str, Any]] = {
        "ioctl": {"name": "KVM_XEN_VCPU_GET_ATTR", "arg": {"type": 6}},
        "raw_ioctl": {"request": ioctls.KVM_XEN_VCPU_GET_ATTR, "data": "00" * ioctls.ATTR_SIZE},
        "read_virtual": {"gva": 0, "size": 1},
        "write_virtual": {"gva": 0, "data": "00"},
        "start_vmm_timer": {"expires_ns": 0},
    }
    with pytest.raises(Unfit, match="a request for vCPU 2 of a VM with 2"):
        ask(type_, vcpu=2, **members[type_])


def test_every_request_is_served() -> None:
    """There is a handler for each request of the protocol, and for nothing else."""
    assert requests._HANDLERS.keys() == REQUESTS.keys()


def test_what_it_is_told(tmp_path: Path) -> None:
    """Each message carries what the behaviour's method got, and each request arrives and is answered."""
    body = """
hello(capabilities=["timer", "event_channel", "migrate"])
told = [get()]
assert ask("start_vmm_timer", vcpu=1, expires_ns=5) == {"type": "result", "ret": 0}
put("done")
for answer in ("answer", "done", "done"):
    told.append(get())
    put(answer, **({"rax": -38} if answer == "answer" else {}))
told.append(get())
assert ask("read_memory", gpa=0, size=2) == {"type": "result", "ret": 0, "data": "0001"}
assert ask("set_clock", ns=9, vm="target") == {"type": "result", "ret": 0}
put("done")
told.append(get())
open(sys.argv[0] + ".told", "w").write(json.dumps(told))
"""
    vmm = scripted(tmp_path, body)
    vm, target = make_vm(), make_vm()
    vm.write_memory(0, b"\0\1")
    vmm.configure(vm)
    assert vm.vmm_timers.next_expiry() == 5
    assert vmm.on_hypercall(vm.vcpus[1], xen_exit(24, 8, 2**64 - 1, cpl=3, longmode=0)) == -38
    vmm.on_timer(vm.vcpus[1], 5)
    vmm.on_event_channel(vm, 3, 2**64 - 2)
    vmm.on_migrate(vm, target)
    assert target.get_clock() == 9
    vmm.close()
    told = json.loads((tmp_path / "adapter.py.told").read_text())
    assert told == [
        {"type": "configure", "vcpus": 2, "ids": [0, 4]},
        {
            "type": "hypercall",
            "vcpu": 1,
            "longmode": 0,
            "cpl": 3,
            "input": 24,
            "params": [8, 2**64 - 1, 0, 0, 0, 0],
        },
        {"type": "timer", "vcpu": 1, "expires_ns": 5},
        {"type": "event_channel", "fd": 3, "count": 2**64 - 2},
        {"type": "migrate"},
        {"type": "shutdown"},
    ]


def test_one_that_cannot_migrate_is_moved(tmp_path: Path) -> None:
    """Without the capability its VM is moved as that of a behaviour in Python that says nothing about it."""
    vmm = scripted(tmp_path, "configured(); get()")
    vm, target = make_vm(), make_vm()
    vmm.configure(vm)
    vm.vcpus[1].set_vcpu_id(3)
    vmm.on_migrate(vm, target)
    assert target.vcpus[1].get_vcpu_id() == 3
    vmm.close()
