"""What the host kvm says where it can't be had, and what it knows of the kernel where it can."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from fake_kvm import DEVICE_FD, FakeKvm

from pytest_xenkvm.abi import kvm
from pytest_xenkvm.abi.numbers import KVM_CAP_MAX_VCPUS, KVM_CAP_XEN_HVM, XenHvmFlag
from pytest_xenkvm.core.profile import LINUX_6_12, LINUX_7_3
from pytest_xenkvm.hosts.devkvm.host import DevKvmHost
from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.rules.hosts import KVM, UNICORN, HostChoice
from pytest_xenkvm.trace.events import Header, MemorySlot, VcpuShape, VmShape

SHAPE = VmShape(irqchip="split", memory=(MemorySlot(gpa=0, size=1 << 20),), vcpus=(VcpuShape(index=0, id=0),))


@pytest.fixture
def cpuinfo(tmp_path: Path) -> Path:
    """What an AMD CPU is described by."""
    path = tmp_path / "cpuinfo"
    path.write_text("processor\t: 0\nvendor_id\t: AuthenticAMD\nprocessor\t: 1\nvendor_id\t: Other\n")
    return path


@pytest.mark.parametrize(
    ("kernel", "sentence"),
    [
        (FakeKvm(cannot_open=FileNotFoundError()), "there is no /dev/kvm: load the kernel's module"),
        (
            FakeKvm(cannot_open=PermissionError(errno.EACCES, "no")),
            "/dev/kvm can't be opened, permission denied: run as root or join the group kvm",
        ),
        (FakeKvm(cannot_open=OSError(errno.EBUSY, "Busy")), "/dev/kvm can't be opened: Busy"),
        (FakeKvm(version=13), "/dev/kvm speaks version 13 of its interface, expected 12"),
        (FakeKvm(capabilities={}), f"the KVM of this kernel ({os.uname().release}) has no Xen support"),
        (
            FakeKvm(capabilities={KVM_CAP_XEN_HVM: 0x1FF}),
            "this kernel's KVM is too old: it has no KVM_CAP_SYNC",
        ),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(cpuinfo: Path, kernel: FakeKvm, sentence: str) -> None:
    """A /dev/kvm that is absent, closed, of another version or without Xen support is named as such."""
    with pytest.raises(HostError) as raised:
        DevKvmHost.open(kernel, cpuinfo=cpuinfo)
    assert str(raised.value).startswith(sentence)
    assert kernel.closed == ([] if kernel.cannot_open else [DEVICE_FD])


def test_an_unknown_cpu_vendor_is_refused(tmp_path: Path) -> None:
    """Only AMD's and Intel's hypercall instructions are known."""
    (tmp_path / "cpuinfo").write_text("vendor_id : CentaurHauls\n")
    with pytest.raises(HostError, match="vendor is CentaurHauls, expected AMD or Intel"):
        DevKvmHost.open(FakeKvm(), cpuinfo=tmp_path / "cpuinfo")


def test_the_host_knows_its_kernel(cpuinfo: Path) -> None:
    """Release, vendor of the first CPU, KVM_MAX_VCPUS and whether there is runstate come from the machine."""
    without_runstate = 0x1FF & ~int(XenHvmFlag.RUNSTATE | XenHvmFlag.RUNSTATE_UPDATE_FLAG)
    kernel = FakeKvm()
    kernel.capabilities |= {KVM_CAP_XEN_HVM: without_runstate, KVM_CAP_MAX_VCPUS: 1024}
    host = DevKvmHost.open(kernel, cpuinfo=cpuinfo)
    assert (host.name, host.cpu_vendor) == (f"kvm {os.uname().release}", "amd")
    assert (host.limits.max_vcpus, host.limits.run_delay_info) == (1024, False)
    del host
    assert kernel.closed == [DEVICE_FD]


def test_the_other_vendors_vm_is_refused(cpuinfo: Path) -> None:
    """A trace of an Intel CPU holds hypercall pages that an AMD CPU doesn't write."""
    host = DevKvmHost.open(FakeKvm(), cpuinfo=cpuinfo)
    with pytest.raises(HostError, match="an Intel CPU is asked for and this one is an AMD"):
        host.create_vm(SHAPE, cpu_vendor="intel")


@pytest.mark.parametrize("release", ["6.12.117+deb12-cloud-amd64", "7.3-cloud-amd64"])
def test_auto_expects_the_running_kernels_answers(monkeypatch: pytest.MonkeyPatch, release: str) -> None:
    """On the host kvm, profile `auto` goes by uname, not by the trace; a named profile is taken as it is."""
    running = os.uname()
    monkeypatch.setattr(os, "uname", lambda: os.uname_result((*running[:2], release, *running[3:])))
    expected = LINUX_6_12 if release.startswith("6") else LINUX_7_3
    assert HostChoice(host=KVM).expected_profile(Header(kernel="7.2.13")) is expected
    assert HostChoice(host=KVM, profile="linux-6.12").expected_profile(Header()) is LINUX_6_12


def test_an_engine_makes_no_sense_on_a_real_cpu() -> None:
    """The engine unicorn and the host kvm exclude each other; names that there aren't are refused."""
    with pytest.raises(ReplayError, match="choose either"):
        HostChoice(host=KVM, engine=UNICORN).check()
    with pytest.raises(ReplayError, match="there is no host 'xen'; there are emulated, kvm"):
        HostChoice(host="xen").check()


def test_a_trace_with_other_id_bounds_is_refused(monkeypatch: pytest.MonkeyPatch, cpuinfo: Path) -> None:
    """A recording of a kernel with another KVM_MAX_VCPUS isn't judged by this kernel's answers."""
    host = DevKvmHost.open(FakeKvm(), cpuinfo=cpuinfo)
    monkeypatch.setattr(DevKvmHost, "open", lambda: host)
    assert HostChoice(host=KVM).host_for(Header(max_vcpus=4096)) is host
    with pytest.raises(ReplayError, match="KVM_MAX_VCPUS = 1024 and this kernel has 4096"):
        HostChoice(host=KVM).host_for(Header(max_vcpus=1024))


def test_a_vm_is_created_and_closed(cpuinfo: Path) -> None:
    """The guest's own memory lies outside the trace's; files are closed when nobody holds the VM any more."""
    kernel = FakeKvm()
    host = DevKvmHost.open(kernel, cpuinfo=cpuinfo)
    vm = host.create_vm(SHAPE, cpu_vendor="amd")
    (trace, own) = kernel.slots
    assert trace == (0, 1 << 20)
    assert own[0] >= 1 << 20
    vm.run(0)
    del vm
    assert sorted(kernel.closed) == [102, 103]


@pytest.mark.parametrize(
    ("irqchip", "made"), [("none", ()), ("split", (kvm.KVM_ENABLE_CAP,)), ("full", (kvm.KVM_CREATE_IRQCHIP,))]
)
def test_the_irqchip_is_the_shapes(cpuinfo: Path, irqchip: str, made: tuple[int, ...]) -> None:
    """Split and full irqchips are asked for in KVM's own ways; with neither there is no local APIC."""
    kernel = FakeKvm()
    shape = VmShape(irqchip=irqchip, memory=SHAPE.memory, vcpus=SHAPE.vcpus)
    DevKvmHost.open(kernel, cpuinfo=cpuinfo).create_vm(shape, cpu_vendor="amd")
    asked = kernel.requests()
    assert [request for request in asked if request in (kvm.KVM_ENABLE_CAP, kvm.KVM_CREATE_IRQCHIP)] == [
        *made
    ]
    assert (kvm.KVM_SET_LAPIC in asked) == bool(made)


@pytest.mark.parametrize(
    ("request_", "sentence"),
    [
        (kvm.KVM_CREATE_VCPU, "the vCPU with id 0, one of 1, can't be created (errno 22, Invalid argument)"),
        (kvm.KVM_CREATE_VM, "/dev/kvm refused KVM_CREATE_VM with errno 22 (Invalid argument)"),
        (kvm.KVM_SET_USER_MEMORY_REGION, "/dev/kvm refused a memory slot of 1048576 bytes at 0x0 with"),
    ],
)
def test_a_vm_that_cant_be_had_is_a_host_error(cpuinfo: Path, request_: int, sentence: str) -> None:
    """What the kernel refuses is told in a sentence, and nothing stays open."""
    kernel = FakeKvm(refused={request_: errno.EINVAL})
    host = DevKvmHost.open(kernel, cpuinfo=cpuinfo)
    with pytest.raises(HostError) as raised:
        host.create_vm(SHAPE, cpu_vendor="amd")
    assert str(raised.value).startswith(sentence)
    opened = sum(request in (kvm.KVM_CREATE_VM, kvm.KVM_CREATE_VCPU) for request in kernel.requests())
    assert len(kernel.closed) == opened - (request_ in (kvm.KVM_CREATE_VM, kvm.KVM_CREATE_VCPU))
