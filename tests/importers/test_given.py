"""What the caller knows: it completes a recording, and never contradicts it."""

from __future__ import annotations

import pytest
from ftrace_text import CONFIG, DATA, call, imported, kept, line, lives, set_attr

from pytest_xenkvm.trace.errors import Malformed
from pytest_xenkvm.trace.events import MemorySlot, VcpuShape, VmShape
from pytest_xenkvm.trace.importers import open_recording

TWO_VCPUS = [line(CONFIG), line(call(29, 0)), line(kept()), line(call(29, 0), task="CPU 1/KVM-161")]
QEMU_LOG = [f"xen_hypercall: cpu {vcpu} cpl 0 input 17 a0 0x1 a1 0x2 a2 0x3 ret 0x4" for vcpu in (0, 1)]
CREATE_VM = "sys_ioctl(fd: 9, cmd: ae01, arg: 0)"
GET_LAPIC = "sys_ioctl(fd: 9, cmd: 8400ae8e, arg: 7ffd0000)"
CREATE_IRQCHIP = "sys_ioctl(fd: 9, cmd: ae60, arg: 0)"
STRACE = [
    "ioctl(3</dev/kvm>, KVM_CREATE_VM, 0) = 4",
    "ioctl(3</dev/kvm>, KVM_CHECK_EXTENSION, KVM_CAP_MAX_VCPUS) = 1024",
    "ioctl(4, KVM_SET_USER_MEMORY_REGION, {slot=0, flags=0, guest_phys_addr=0, memory_size=8192, x=0}) = 0",
    "ioctl(4, KVM_CREATE_IRQCHIP, 0) = 0",
    "ioctl(4, KVM_CREATE_VCPU, 0) = 5",
]


def vm(*texts: str) -> list[str]:
    """A VM's life in ftrace, a microsecond a line."""
    return [line(text, us) for us, text in enumerate([CONFIG, *texts])]


@pytest.mark.parametrize(
    ("name", "lines", "given", "message"),
    [
        ("ftrace-kprobes", TWO_VCPUS, {"max_vcpus": 1}, "shows 2 vCPUs, but max_vcpus 1"),
        ("ftrace", TWO_VCPUS, {"max_vcpus": 1}, "shows 2 vCPUs, but max_vcpus 1"),
        ("qemu-log", QEMU_LOG, {"max_vcpus": 1}, "shows 2 vCPUs, but max_vcpus 1"),
        (
            "ftrace-kprobes",
            vm("sys_ioctl(fd: 9, cmd: ae03, arg: 42)", "sys_ioctl -> 0x400"),
            {"max_vcpus": 1023},
            "shows max_vcpus 1024, but max_vcpus 1023",
        ),
        (
            "ftrace-kprobes",
            vm(*set_attr("hvm", 1, 5)),
            {"memory": 0x5000},
            "shows guest memory at 0x5000, but memory of 0x5000 bytes",
        ),
        ("ftrace-kprobes", vm(CREATE_IRQCHIP), {"irqchip": "split"}, "shows irqchip full, but irqchip split"),
        (
            "ftrace-kprobes",
            vm(CREATE_VM, GET_LAPIC),
            {"irqchip": "full"},
            "shows irqchip split, but irqchip full",
        ),
        (
            "ftrace-kprobes",
            vm(GET_LAPIC),
            {"irqchip": "none"},
            "shows a local APIC in the kernel, but irqchip none",
        ),
        ("strace", STRACE, {"max_vcpus": 512}, "shows max_vcpus 1024, but max_vcpus 512"),
        ("strace", STRACE, {"memory": 4096}, "shows memory 8192, but memory 4096"),
        ("strace", STRACE, {"irqchip": "split"}, "shows irqchip full, but irqchip split"),
    ],
)
def test_contradictions_are_refused(
    name: str, lines: list[str], given: dict[str, int | str], message: str
) -> None:
    """A value that the recording shows to be another is an error that says both; without it all is well."""
    with pytest.raises(Malformed, match=f"^recording: {message} was given: leave that out or correct it$"):
        imported(lines, name, **given)
    imported(lines, name)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"kernel": "6.1"}, "shows kernel 6.12.117"),
        ({"kernel": "6.12.117+deb13"}, "shows kernel 6.12.117"),
        ({"cpu_vendor": "intel"}, "shows cpu vendor amd, but cpu vendor intel"),
    ],
)
def test_perfs_header_is_not_contradicted(given: dict[str, str], message: str) -> None:
    """What perf's header tells of the host can't be given otherwise."""
    path = DATA / "one_run" / "perf.txt.gz"
    with pytest.raises(Malformed, match=message):
        imported(open_recording(path), "perf", **given)
    assert (
        imported(open_recording(path), "perf", kernel="6.12.117").header.kernel
        == "6.12.117+deb12-cloud-amd64"
    )


def test_enough_memory_is_enough() -> None:
    """Memory that just holds the guest's last page is no contradiction."""
    header = lives(set_attr("hvm", 1, 5), memory=0x6000).header
    assert header.vm is not None
    assert header.vm.memory == (MemorySlot(gpa=0, size=0x6000),)


CREATE_7, GUEST_PAGE = "sys_ioctl(fd: 9, cmd: ae41, arg: 7)", set_attr("vcpu", 1, 1 << 55)


def test_vms_that_cannot_be_are_refused() -> None:
    """Two vCPUs of one id, or memory beyond any guest's, is damage or two VMs: the recording is refused."""
    twice = [line(CREATE_7, task="vmm-9"), line(CREATE_7, task="vmm-9")]
    beyond = [line(text) for text in (call(29, 0), kept(), *GUEST_PAGE)]
    for lines in (twice, beyond):
        with pytest.raises(Malformed, match=r"^recording: shows a VM that can't be: header: vm\."):
            imported([line(CONFIG), *lines])


def test_a_vcpu_that_was_not_created() -> None:
    """A KVM_CREATE_VCPU that failed made no vCPU."""
    texts = [CREATE_7, "sys_ioctl -> 0xa", CREATE_7, "sys_ioctl -> 0xffffffffffffffef"]
    for task in ("vmm-9", "CPU 0/KVM-160"):
        trace = imported([line(CONFIG), *(line(text, task=task) for text in texts)])
        assert trace.header.vm is not None
        assert trace.header.vm.vcpus == (VcpuShape(index=0, id=7),)


def test_ids_that_are_assumed_are_free() -> None:
    """A vCPU whose id was not seen has that of its index, unless another vCPU has that."""
    first = line("sys_ioctl(fd: 9, cmd: ae41, arg: 0)", task="CPU 1/KVM-161")
    trace = imported([line(CONFIG), first, line(call(29, 0))])
    assert trace.header.vm is not None
    assert trace.header.vm.vcpus == (VcpuShape(index=0, id=2), VcpuShape(index=1, id=0))


@pytest.mark.parametrize(("name", "lines"), [("ftrace", TWO_VCPUS), ("qemu-log", QEMU_LOG)])
def test_a_vm_that_the_recording_does_not_show(name: str, lines: list[str]) -> None:
    """Memory and irqchip make the VM, with the vCPUs that made hypercalls; half of it is refused."""
    trace = imported(lines, name, memory=8192, irqchip="split")
    vcpus = (VcpuShape(index=0, id=0), VcpuShape(index=1, id=1))
    assert trace.header.vm == VmShape(irqchip="split", memory=(MemorySlot(gpa=0, size=8192),), vcpus=vcpus)
    assert imported(lines, name).header.vm is None
    with pytest.raises(Malformed, match="irqchip is missing"):
        imported(lines, name, memory=8192)
    with pytest.raises(Malformed, match="memory is missing"):
        imported(lines, name, irqchip="split")
