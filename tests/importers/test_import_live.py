"""Probes of the recorder's own, which show what those of a recording by hand don't, and the live import."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from ftrace_text import CONFIG, KERNEL, KPROBES, POINTER, call, kept, line, set_attr

from pytest_xenkvm.trace.events import Behind, Event, Hypercall, Ioctl, MemorySlot, VmShape, Wrmsr
from pytest_xenkvm.trace.importers import Given, open_text
from pytest_xenkvm.trace.importers.ftrace_lines import parse_line
from pytest_xenkvm.trace.importers.kprobes import KprobeImport, import_kprobes, kprobe_import
from pytest_xenkvm.trace.importers.model import ImportReport

SINGLESHOT, SEND = (24, 8, 0), (32, 4)
MEMORY = (
    "vm_ioctl: (f) kvm=0x1 cmd=0x4020ae46 u0=0x{slot:x} u1=0x{gpa:x} u2=0x{size:x} u3=0x{hva:x}",
    "vm_ioctl_ret: (f <- f) kvm=0x1 cmd=0x4020ae46 ret={ret}",
)


def live() -> KprobeImport:
    """A live import."""
    return kprobe_import(ImportReport(), Given(kernel=KERNEL), path="pipe", recorder="test", live=True)


def taken(texts: Iterable[str], importer: KprobeImport | None = None) -> tuple[KprobeImport, list[Event]]:
    """What comes of `texts`, a microsecond each, after the VM's configuration."""
    importer = importer or live()
    for us, text in enumerate([CONFIG, "hvm_config_ret: (f <- f) kvm=0x1 ret=0", *texts]):
        parsed = parse_line(line(text, us), "pipe", us)
        assert parsed is not None
        importer.take(parsed)
    return importer, list(importer.finish(full=True))


def memory(
    *, slot: int = 0, gpa: int = 0, size: int = 0x10000, hva: int = 0x7000_0000, ret: int = 0
) -> list[str]:
    """KVM_SET_USER_MEMORY_REGION."""
    return [text.format(slot=slot, gpa=gpa, size=size, hva=hva, ret=ret) for text in MEMORY]


def guest_read(address: int, size: int, *words: int, ret: int = 0) -> str:
    """KVM read guest memory."""
    shown = " ".join(f"d{n}=0x{word:x}" for n, word in enumerate([*words, 0, 0, 0][:3]))
    return f"guest_read: (f <- f) kvm=0x1 idx=0 ret={ret} gva=0x{address:x} bytes={size} {shown}"


def test_a_timeout_is_what_the_hosts_timer_was_set_to() -> None:
    """The time to which the host's own timer was set says exactly how far a timeout was ahead."""
    at = 100 * 10**9 + 2_000 + 5_000_000
    _importer, events = taken(
        [
            call(*SINGLESHOT, POINTER),
            guest_read(POINTER, 16, 77_000, 1),
            "start_timer: (f) kvm=0x1 idx=0 abs_ns=77000 delta_ns=0",
            f"timer_expires: hrtimer=0 function=xen_timer_callback expires={at} softexpires={at}",
            kept(),
        ]
    )
    (timer,) = (event for event in events if isinstance(event, Hypercall))
    data = bytes(8) + (1).to_bytes(8, "little")
    assert timer.behind == (
        Behind(arg=2, data=data, now_plus_at=((0, 5_000_000),), extra={"abs_ns": 77_000}),
    )


def test_what_lies_behind_pointers_is_what_the_kernel_read() -> None:
    """Bytes that KVM read during a call stand behind the argument that points there, if it could."""
    _importer, events = taken(
        [
            *[call(*SEND, POINTER), guest_read(POINTER, 4, 0xFFFF_FFFF_0000_0007), kept()],
            *[call(*SEND, POINTER), guest_read(POINTER, 4, 9, ret=2), kept()],
        ]
    )
    first, second = (event for event in events if isinstance(event, Hypercall))
    assert first.behind == (Behind(arg=1, data=b"\7\0\0\0"),)
    assert second.behind is None


def test_the_vmms_answer_is_seen() -> None:
    """A forwarded call's RAX is what the vCPU goes on with, and its mode what the exit said."""
    _importer, events = taken(
        [
            call(47),
            "hypercall_ret: (f <- f) kvm=0x1 idx=0 handled=0 rax=0x2f longmode=0",
            "hypercall_answered: (f <- f) kvm=0x1 idx=0 rax=0xffffffffffffffda",
        ]
    )
    (forwarded,) = (event for event in events if isinstance(event, Hypercall))
    assert (forwarded.handled, forwarded.longmode, forwarded.rax) == ("userspace", False, 0xFFFFFFDA)


def test_the_mode_is_what_efer_says() -> None:
    """Long mode is told by EFER as the hypercall found it, before any register proves it."""
    enter = "hypercall_enter: (f) kvm=0x1 idx=0 efer=0x{:x}"
    tail = "kvm_xen_hypercall: cpl 0 nr 0x11 a0 0x0 a1 0x0 a2 0x0 a3 0x0 a4 0x0 a5 0"
    _importer, events = taken([enter.format(0x500), tail, kept(1), enter.format(0), tail, kept(1)])
    assert [event.longmode for event in events if isinstance(event, Hypercall)] == [True, False]


def test_the_vms_memory_is_what_it_was_given() -> None:
    """Memory slots are those that the VMM set, whatever became of them; one that was refused is none."""
    importer, _events = taken(
        [
            *memory(slot=0, gpa=0, size=0x2000),
            *memory(slot=1, gpa=0x2000, size=0x1000),
            *memory(slot=2, gpa=0x8000, size=0x1000),
            *memory(slot=2, gpa=0x8000, size=0),
            *memory(slot=3, gpa=0x20000, ret=-22),
            "vcpu_created: (f) kvm=0x1 idx=0 id=3",
            "vm_ioctl: (f) kvm=0x1 cmd=0xae60 u0=(fault) u1=(fault) u2=(fault) u3=(fault)",
            "vm_ioctl_ret: (f <- f) kvm=0x1 cmd=0xae60 ret=0",
        ]
    )
    shape: VmShape = importer.vm.shape()
    assert shape.memory == (MemorySlot(gpa=0, size=0x3000), MemorySlot(gpa=0x8000, size=0x1000))
    assert (shape.irqchip, [(vcpu.index, vcpu.id) for vcpu in shape.vcpus]) == ("full", [(0, 3)])


def test_host_addresses_are_those_of_guest_memory() -> None:
    """A host address in a memory slot becomes the guest address behind it; another gets a page of its own."""
    importer, events = taken(
        [
            *memory(gpa=0x100000, hva=0x7000_0000),
            *set_attr("hvm", 6, 0x7000_3000),
            *set_attr("vcpu", 9, 0x6000_0040),
        ]
    )
    shared_info, vcpu_info = (event for event in events if isinstance(event, Ioctl) and "type" in event.arg)
    assert shared_info.arg["shared_info"]["hva"] == {"gpa": 0x103000}
    assert vcpu_info.arg["hva"] == {"gpa": (1 << 47) + 0x40}
    assert importer.vm.shape().memory[-1] == MemorySlot(gpa=1 << 47, size=0x1000)


def test_attributes_that_are_read() -> None:
    """What a GET returned is in the trace, but for times and host addresses that nobody can foretell."""
    got = "vcpu_get_attr_ret: (f <- f) kvm=0x1 idx=0 type={} ret={} d0=0x{:x} d1=0x5"
    _importer, events = taken(
        [got.format(6, 0, 3), got.format(7, 0, 9), got.format(4, 0, 1), got.format(2, -2, 0)]
    )
    reads = [event for event in events if isinstance(event, Ioctl) and event.name == "KVM_XEN_VCPU_GET_ATTR"]
    assert [(read.arg["type"], read.ret, read.out) for read in reads] == [
        (6, 0, {"type": 6, "vcpu_id": 3}),
        (7, 0, {"type": 7, "timer": {"port": 9, "priority": 0}}),
        (4, 0, None),
        (2, -2, None),
    ]


def test_gsi_routes_and_lines() -> None:
    """A table of routes holds those to event channels, a refused one is left out; a GSI's level is seen."""
    route = "xen_route: (f) kvm=0x1 gsi=5 port=33 vcpu=0 prio=0xffffffff"
    ioctl = "vm_ioctl: (f) kvm=0x1 cmd=0x{:x} u0=0x{:x} u1=0x0 u2=0x0 u3=0x0"
    ended = "vm_ioctl_ret: (f <- f) kvm=0x1 cmd=0x{:x} ret={}"
    routing, irq_line = 0x4008AE6A, 0x4008AE61
    _importer, events = taken(
        [
            *[ioctl.format(irq_line, 1 << 32 | 5), ended.format(irq_line, 0)],
            *[ioctl.format(routing, 1), route, ended.format(routing, -22)],
            *[ioctl.format(routing, 1), route, ended.format(routing, 0)],
            *[ioctl.format(irq_line, 1 << 32 | 5), ended.format(irq_line, 0)],
        ]
    )
    table, raised = (event for event in events if isinstance(event, Ioctl) and "XEN" not in event.name)
    target = {"port": 33, "vcpu": 0, "priority": 0xFFFFFFFF}
    assert table.arg == {"entries": [{"gsi": 5, "type": 5, "xen_evtchn": target}]}
    assert (raised.name, raised.arg) == ("KVM_IRQ_LINE", {"irq": 5, "level": 1})


def test_the_hypercall_page() -> None:
    """A write to the hypercall MSR is there with its outcome and the mode that EFER says."""
    _importer, events = taken(
        [
            "write_hypercall_page: (f) kvm=0x1 idx=0 efer=0x0 data=0x5001",
            "write_hypercall_page_ret: (f <- f) kvm=0x1 idx=0 ret=1",
        ]
    )
    (write,) = (event for event in events if isinstance(event, Wrmsr))
    assert (write.ok, write.longmode, write.value, write.inferred) == (False, False, 0x5001, False)


def test_a_live_import_gives_what_a_whole_one_gives() -> None:
    """Handed over bit by bit, the events of a real recording are those of its import in one go."""
    importer = kprobe_import(ImportReport(), Given(kernel=KERNEL), path="x", recorder="ftrace")
    events: list[Event] = []
    for number, text in enumerate(open_text(KPROBES)):
        parsed = parse_line(text, "x", number)
        if parsed is not None:
            importer.take(parsed)
            events += importer.settle(parsed.ns - 20_000_000_000, held=10**6, full=True)
    events += importer.finish(full=True)
    whole = import_kprobes(open_text(KPROBES), path="x", given=Given(kernel=KERNEL))
    assert [event.ts for event in events] == [event.ts for event in whole.events]
    assert [type(event) for event in events] == [type(event) for event in whole.events]


@pytest.mark.parametrize("full", [True, False])
def test_a_call_that_does_not_return_holds_little_back(full: bool) -> None:  # noqa: FBT001
    """What is held back for an outcome still to come is bounded: then the call has no result."""
    importer, held = live(), 50
    events: list[Event] = []
    for us in range(400):
        task = "CPU 0/KVM-160" if us == 0 else "CPU 1/KVM-161"
        for text in (call(47),) if us == 0 else (call(47), kept()):
            parsed = parse_line(line(text, us, task=task), "pipe", us)
            assert parsed is not None
            importer.take(parsed)
        events += importer.settle(10**18, held=held, full=full)
        assert len(importer.timeline.slots) <= held + 1
    assert len(events) == 399 + (not full)
