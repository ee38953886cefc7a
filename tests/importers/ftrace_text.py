"""Recordings made of single lines, for what the excerpts in data/ don't hold."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Final

from pytest_xenkvm.trace.events import Hypercall, Ioctl
from pytest_xenkvm.trace.importers import IMPORTERS, Given, Imported, open_text

DATA: Final = Path(__file__).parent / "data"
KPROBES: Final = DATA / "kprobes.txt"
"""Of a real run: the configuration, the first hypercalls, and two stretches of normal life."""
QEMU_LOG: Final = DATA / "qemu.log"
"""QEMU's view of the same hypercalls, as far as `KPROBES` holds them."""

KERNEL: Final = "6.12.117+deb12-cloud-amd64"
POINTER: Final = 0xFFFF_8000_0000_1000
PRIORITY: Final = 0xFFFF_FFFF
CONFIG: Final = "hvm_config: (f) flags=0x22 msr=0x40000000 blob32=0x0 blob64=0x0 sizes=0x0"


def line(text: str, us: int = 0, *, task: str = "CPU 0/KVM-160", flags: str = ".....") -> str:
    """One line of ftrace at `us` microseconds past 100 s."""
    return f"  {task}  [000] {flags} {100 + us // 10**6}.{us % 10**6:06}: {text}"


def call(nr: int, *args: int) -> str:
    """The tracepoint's text for a 64-bit call; the last argument is a pointer, to show the mode."""
    registers = [*args, *[0] * (5 - len(args)), POINTER]
    shown = " ".join(f"a{n} 0x{value:x}" for n, value in enumerate(registers[:5]))
    return f"kvm_xen_hypercall: cpl 0 nr 0x{nr:x} {shown} a5 {registers[5]:x}"


def kept(rax: int = 0) -> str:
    """The kernel answered."""
    return (
        f"hypercall_ret: (kvm_arch_vcpu_ioctl_run+0x1/0x2 [kvm] <- kvm_xen_hypercall) handled=1 rax=0x{rax:x}"
    )


def set_attr(which: str, kind: int, *qwords: int, ret: int = 0) -> list[str]:
    """A SET_ATTR ioctl ("hvm" or "vcpu") and its result."""
    shown = " ".join(f"d{n}=0x{value:x}" for n, value in enumerate([*qwords, *[0] * (4 - len(qwords))]))
    return [f"{which}_set_attr: (f) type={kind} {shown}", f"{which}_set_attr_ret: (f <- f) ret={ret}"]


def delivery(port: int, ret: int, *, by: str, upcall: int | None = None) -> list[str]:
    """A call of kvm_xen_set_evtchn_fast for vCPU 0, returning to the function `by`."""
    taken = [] if upcall is None else [f"kvm_apic_accept_irq: apicid 0 vec {upcall} (Fixed|edge)"]
    return [
        f"set_evtchn_fast: (f) port={port} vcpu_id=0 vcpu_idx=0 prio=0xffffffff",
        *taken,
        f"set_evtchn_fast_ret: ({by}+0x8a/0xc0 [kvm] <- kvm_xen_set_evtchn_fast) ret={ret}",
    ]


def imported(lines: Iterable[str], name: str = "ftrace-kprobes", **given: str | int | None) -> Imported:
    """Import lines with the named importer; the kernel is one whose a4 and a5 are right."""
    return IMPORTERS[name].run(lines, path="recording", given=Given(**{"kernel": KERNEL, **given}))  # type: ignore[arg-type]  # by name


def lives(texts: Iterable[str], name: str = "ftrace-kprobes", **given: str | int) -> Imported:
    """Import a VM that is configured and then goes through `texts`, a microsecond each."""
    return imported((line(text, us) for us, text in enumerate([CONFIG, *texts])), name, **given)


def excerpt() -> Imported:
    """The real excerpt, imported."""
    return imported(open_text(KPROBES))


def ioctls(trace: Imported, name: str) -> list[Ioctl]:
    """The trace's ioctls of that name."""
    return [event for event in trace.events if isinstance(event, Ioctl) and event.name == name]


def hypercalls(trace: Imported) -> list[Hypercall]:
    """The trace's hypercalls."""
    return [event for event in trace.events if isinstance(event, Hypercall)]


def without_config(trace: Imported) -> int:
    """How many events there are besides the configuration."""
    return len(trace.events) - 1


def outbound(send: int, port: int, flags: int = 0, kind: int = 2, vcpu: int = 0) -> list[str]:
    """An EVTCHN attribute of port `send`."""
    return set_attr("hvm", 3, kind << 32 | send, port << 32 | flags, PRIORITY << 32 | vcpu)
