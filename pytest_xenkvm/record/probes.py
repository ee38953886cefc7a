"""The kprobe events that make a trace of scope "full": what they are on, and what they show.

Arguments are named as in the kernel's own sources and typed by its BTF, so no offset of the kernel's private
structures is assumed; those of the UAPI structures are fixed. Reading an argument at a function's return
takes Linux 6.9 or later. All were tried on Linux 6.12.117, 7.2.13 and 7.3-rc7; what each shows is in
docs/reference/importers.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from attrs import evolve, frozen

from pytest_xenkvm.record.tracefs import Instance, Tracefs
from pytest_xenkvm.trace.importers.probed_vm import VM_REQUESTS

_MAX_ACTIVE: Final = 512
"""How many threads may be inside a function whose return is probed; more are counted as misses."""

_VCPU_NAMES: Final = ("vcpu", "v")
_VCPU: Final = "kvm=vcpu->kvm:x64 idx=vcpu->vcpu_idx:s32"
_VM: Final = "kvm=kvm:x64"
_FILE: Final = "kvm=filp->private_data:x64 cmd=$arg2:x32"
_RAX: Final = "rax=vcpu->arch.regs:x64"
"""The array of registers begins with RAX."""


@frozen(kw_only=True)
class Probe:
    """A kprobe event at the beginning of a function, or (`at_return`) at its return.

    `needed`: without it there is no trace of scope "full". `condition`: of its fields, for it to be recorded.
    `in_interrupts`: the function is called in interrupts, too, perhaps while another probe is at work: then a
    kprobe goes unnoticed, but an fprobe (Linux 6.5 and later) doesn't.
    """

    name: str
    function: str
    fields: str
    at_return: bool = False
    needed: bool = True
    in_interrupts: bool = False
    condition: str | None = None

    def definitions(self, group: str) -> Iterator[str]:
        """Yield the lines that may define it: kernels differ in what they call a vCPU."""
        if self.in_interrupts:
            place = f"{self.function}%return" if self.at_return else self.function
            yield f"f:{group}/{self.name} {place} {self.fields}"
        kind = f"r{_MAX_ACTIVE}" if self.at_return else "p"
        for vcpu in _VCPU_NAMES:
            fields = self.fields.replace("vcpu->", f"{vcpu}->")
            yield f"{kind}:{group}/{self.name} {self.function} {fields}"


def _words(pointer: str, count: int, *, first: int = 8) -> str:
    return " ".join(f"d{n}=+{first + 8 * n}({pointer}):x64" for n in range(count))


def _pair(
    name: str, function: str, owner: str, fields: str, condition: str | None = None
) -> tuple[Probe, ...]:
    return (
        Probe(name=name, function=function, fields=f"{owner} {fields}", condition=condition),
        Probe(
            name=f"{name}_ret",
            function=function,
            fields=f"{owner} ret=$retval:s32",
            at_return=True,
            condition=condition,
        ),
    )


_REQUESTED: Final = " || ".join(f"cmd == {request:#x}" for request in VM_REQUESTS)

PROBES: Final[tuple[Probe, ...]] = (
    Probe(name="vm_created", function="kvm_xen_init_vm", fields=_VM),
    Probe(name="vm_destroyed", function="kvm_xen_destroy_vm", fields=_VM),
    Probe(name="vcpu_created", function="kvm_arch_vcpu_postcreate", fields=f"{_VCPU} id=vcpu->vcpu_id:s32"),
    *_pair(
        "vm_ioctl",
        "kvm_vm_ioctl",
        _FILE,
        "u0=+u0($arg3):x64 u1=+u8($arg3):x64 u2=+u16($arg3):x64 u3=+u24($arg3):x64",
        _REQUESTED,
    ),
    Probe(
        name="xen_route",
        function="kvm_xen_setup_evtchn",
        fields=f"{_VM} gsi=+0($arg3):u32 port=+16($arg3):u32 vcpu=+20($arg3):u32 prio=+24($arg3):x32",
    ),
    *_pair(
        "hvm_config",
        "kvm_xen_hvm_config",
        _VM,
        "flags=+0($arg2):x32 msr=+4($arg2):x32 blob32=+8($arg2):x64 blob64=+16($arg2):x64"
        " sizes=+24($arg2):x16",
    ),
    *_pair("hvm_set_attr", "kvm_xen_hvm_set_attr", _VM, f"type=+0($arg2):u16 {_words('$arg2', 4)}"),
    *_pair("vcpu_set_attr", "kvm_xen_vcpu_set_attr", _VCPU, f"type=+0($arg2):u16 {_words('$arg2', 6)}"),
    Probe(
        name="hvm_get_attr_ret",
        function="kvm_xen_hvm_get_attr",
        fields=f"{_VM} type=+0($arg2):u16 ret=$retval:s32 {_words('$arg2', 2)}",
        at_return=True,
    ),
    Probe(
        name="vcpu_get_attr_ret",
        function="kvm_xen_vcpu_get_attr",
        fields=f"{_VCPU} type=+0($arg2):u16 ret=$retval:s32 {_words('$arg2', 2)}",
        at_return=True,
    ),
    *_pair(
        "hvm_evtchn_send",
        "kvm_xen_hvm_evtchn_send",
        _VM,
        "port=+0($arg2):u32 vcpu=+4($arg2):u32 prio=+8($arg2):x32",
    ),
    Probe(name="hypercall_enter", function="kvm_xen_hypercall", fields=f"{_VCPU} efer=vcpu->arch.efer:x64"),
    Probe(
        name="hypercall_ret",
        function="kvm_xen_hypercall",
        fields=f"{_VCPU} handled=$retval:s32 {_RAX} longmode=vcpu->run->xen.u.hcall.longmode:u32",
        at_return=True,
    ),
    Probe(
        name="hypercall_answered",
        function="kvm_xen_hypercall_complete_userspace",
        fields=f"{_VCPU} {_RAX}",
        at_return=True,
        needed=False,
    ),
    Probe(
        name="guest_read",
        function="kvm_read_guest_virt",
        fields=f"{_VCPU} ret=$retval:s32 gva=$arg2:x64 bytes=$arg4:u32 {_words('$arg3', 3, first=0)}",
        at_return=True,
        needed=False,
    ),
    Probe(
        name="start_timer",
        function="kvm_xen_start_timer",
        fields=f"{_VCPU} abs_ns=$arg2:u64 delta_ns=$arg3:s64",
    ),
    *(
        evolve(probe, in_interrupts=True)
        for probe in _pair(
            "set_evtchn_fast", "kvm_xen_set_evtchn_fast", _VM, "port=xe->port:u32 vcpu_id=xe->vcpu_id:u32"
        )
    ),
    Probe(name="inject_vcpu_vector", function="kvm_xen_inject_vcpu_vector", fields=_VCPU),
    *_pair(
        "write_hypercall_page",
        "kvm_xen_write_hypercall_page",
        _VCPU,
        "efer=vcpu->arch.efer:x64 data=$arg2:x64",
    ),
)
"""All of them, in the order in which they are defined."""


def define_probes(tracefs: Tracefs, group: str) -> list[str]:
    """Define all probes that this kernel accepts; return the needed ones that it refuses.

    Raises OSError for want of rights.
    """
    return [
        f"{probe.name} on {probe.function}"
        for probe in PROBES
        if not any(map(tracefs.add_probe, probe.definitions(group))) and probe.needed
    ]


def enable_probes(instance: Instance, group: str) -> None:
    """Record the probes of a group in an instance. Raises OSError."""
    for probe in PROBES:
        if instance.has(f"{group}/{probe.name}"):
            instance.enable(f"{group}/{probe.name}", condition=probe.condition)


def misses(tracefs: Tracefs, group: str) -> dict[str, int]:
    """Return which probes of the group were passed without being noticed, and how often.

    The kernel counts them by name alone: another recording's misses at the same time are among them.
    """
    names = set(tracefs.probes(group))
    profile = tracefs.root / "kprobe_profile"
    rows = map(str.split, profile.read_text().splitlines() if names and profile.exists() else [])
    return {row[0]: int(row[-1]) for row in rows if len(row) > 1 and row[0] in names and int(row[-1])}
