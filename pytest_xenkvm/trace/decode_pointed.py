"""Structures behind a hypercall's pointers, in words. Source of the layouts: Xen's public headers.

Fields are known as far as the trace recorded the bytes (`behind`) or the caller can read guest memory.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from struct import Struct, calcsize
from typing import Final

from attrs import frozen

from pytest_xenkvm.abi import names
from pytest_xenkvm.abi.layout import LAYOUT_32, LAYOUT_64, GuestLayout
from pytest_xenkvm.abi.numbers import (
    SCHED_POLL_MAX_PORTS,
    EvtchnOp,
    GrantTableOp,
    HvmOp,
    Hypercall,
    MemoryOp,
    PhysdevOp,
    SchedOp,
    VcpuOp,
)
from pytest_xenkvm.trace import events
from pytest_xenkvm.trace.decode_values import (
    Words,
    absolute,
    duration,
    enough,
    hexadecimal,
    named,
    number,
    relative,
)

ReadMemory = Callable[[int, int], "bytes | None"]
"""(guest virtual address, size in bytes) -> the bytes, None if they can't be read."""


@cache
def _field_ends(layout: str) -> tuple[int, ...]:
    """Where each field of a struct format ends, in bytes."""
    ends = (at + 1 for at, code in enumerate(layout) if code.isalpha() and code != "x")
    return tuple(calcsize(layout[:end]) for end in ends)


@frozen(kw_only=True)
class Pointers:
    """Where a call's pointers lead: recorded bytes first, then `read`; `now` is the guest's clock in ns."""

    event: events.Hypercall
    read: ReadMemory | None = None
    now: int | None = None

    def behind(self, arg: int, layout: Struct) -> tuple[int, ...]:
        """The fields of `layout` behind argument `arg`, from the first on as far as their bytes are known."""
        found = next((recorded.data for recorded in self.event.behind or () if recorded.arg == arg), b"")
        if len(found) < layout.size:
            pointer = self.event.args[arg] if arg < len(self.event.args) else None
            found = (self.at(pointer, layout.size) if isinstance(pointer, int) else None) or found
        known = sum(end <= len(found) for end in _field_ends(str(layout.format)))
        return layout.unpack(found[: layout.size].ljust(layout.size, b"\0"))[:known]

    def at(self, pointer: int, size: int) -> bytes | None:
        """The `size` bytes at guest virtual address `pointer`, None if they are not known."""
        found = self.read(pointer, size) if self.read else None
        return found if found is not None and len(found) == size else None

    def relative_at(self, arg: int, offset: int) -> int | None:
        """How many ns after the guest's now the time at `offset` behind `arg` lies, if recorded that way."""
        for recorded in self.event.behind or ():
            if recorded.arg == arg:
                return next((delta for at, delta in recorded.now_plus_at if at == offset), None)
        return None


@frozen(kw_only=True)
class Structure:
    """A structure of the 64-bit and the 32-bit ABI: the names of its fields, with the words for each."""

    fields: Sequence[tuple[str, Words]]
    wide: Struct
    narrow: Struct

    def members(self, pointers: Pointers, arg: int) -> list[str]:
        """The known fields of the structure behind argument `arg`."""
        values = pointers.behind(arg, self.wide if pointers.event.longmode else self.narrow)
        return [f"{name}={words(value)}" for (name, words), value in zip(self.fields, values, strict=False)]


_KINDS: Final[Mapping[str, Words]] = {
    "addr": hexadecimal,
    "mfn": hexadecimal,
    "gfn": hexadecimal,
    "gpfn": hexadecimal,
    "value": hexadecimal,
    "vector": hexadecimal,
    "period": duration,
    "dom": named(names.DOMIDS),
    "hvm_param": named(names.HVM_PARAMS),
    "virq": named(names.VIRQS),
    "space": named(names.MAP_SPACES),
    "reason": named(names.SHUTDOWN_REASONS),
}


def _structure(fields: str, wide: str, narrow: str | None = None) -> Structure:
    """`fields`: names, each followed by `:kind` where `_KINDS` has words for it under another name."""
    split = (field.partition(":") for field in fields.split())
    return Structure(
        fields=tuple((name, _KINDS.get(kind or name, number)) for name, _, kind in split),
        wide=Struct(f"<{wide}"),
        narrow=Struct(f"<{narrow or wide}"),
    )


_PORT: Final = _structure("port", "I")
_AREA: Final = _structure("addr", "Q")
_IRQ: Final = _structure("irq", "I")
_DOM: Final = _structure("dom", "H")

_STRUCTURES: Final[Mapping[tuple[int, int], Structure]] = {
    (Hypercall.vcpu_op, VcpuOp.register_runstate_memory_area): _AREA,
    (Hypercall.vcpu_op, VcpuOp.set_periodic_timer): _structure("period", "Q"),
    (Hypercall.vcpu_op, VcpuOp.register_vcpu_info): _structure("mfn offset", "QI"),
    (Hypercall.vcpu_op, VcpuOp.register_vcpu_time_memory_area): _AREA,
    (Hypercall.sched_op, SchedOp.shutdown): _structure("reason", "I"),
    (Hypercall.event_channel_op, EvtchnOp.bind_interdomain): _structure("remote_dom:dom remote_port", "HxxI"),
    (Hypercall.event_channel_op, EvtchnOp.bind_virq): _structure("virq vcpu", "II"),
    (Hypercall.event_channel_op, EvtchnOp.bind_pirq): _structure("pirq flags", "II"),
    (Hypercall.event_channel_op, EvtchnOp.close): _PORT,
    (Hypercall.event_channel_op, EvtchnOp.send): _PORT,
    (Hypercall.event_channel_op, EvtchnOp.status): _structure("dom port", "HxxI"),
    (Hypercall.event_channel_op, EvtchnOp.alloc_unbound): _structure("dom remote_dom:dom", "HH"),
    (Hypercall.event_channel_op, EvtchnOp.bind_ipi): _structure("vcpu", "I"),
    (Hypercall.event_channel_op, EvtchnOp.bind_vcpu): _structure("port vcpu", "II"),
    (Hypercall.event_channel_op, EvtchnOp.unmask): _PORT,
    (Hypercall.event_channel_op, EvtchnOp.reset): _DOM,
    (Hypercall.event_channel_op, EvtchnOp.init_control): _structure("control_gfn:gfn offset vcpu", "QII"),
    (Hypercall.event_channel_op, EvtchnOp.expand_array): _structure("array_gfn:gfn", "Q"),
    (Hypercall.event_channel_op, EvtchnOp.set_priority): _structure("port priority", "II"),
    (Hypercall.physdev_op, PhysdevOp.irq_status_query): _IRQ,
    (Hypercall.physdev_op, PhysdevOp.eoi): _IRQ,
    (Hypercall.physdev_op, PhysdevOp.map_pirq): _structure("domid:dom type index pirq", "Hxxiii"),
    (Hypercall.physdev_op, PhysdevOp.unmap_pirq): _structure("domid:dom pirq", "Hxxi"),
    (Hypercall.hvm_op, HvmOp.set_param): _structure("domid:dom index:hvm_param value", "HxxIQ"),
    (Hypercall.hvm_op, HvmOp.get_param): _structure("domid:dom index:hvm_param", "HxxI"),
    (Hypercall.hvm_op, HvmOp.pagetable_dying): _DOM,
    (Hypercall.hvm_op, HvmOp.set_evtchn_upcall_vector): _structure("vcpu vector", "IB"),
    (Hypercall.memory_op, MemoryOp.add_to_physmap): _structure(
        "domid:dom space idx gpfn", "HxxIQQ", "HxxIII"
    ),
    (Hypercall.grant_table_op, GrantTableOp.setup_table): _structure("dom nr_frames", "HxxI"),
    (Hypercall.grant_table_op, GrantTableOp.query_size): _DOM,
    (Hypercall.grant_table_op, GrantTableOp.set_version): _structure("version", "I"),
}
"""What the guest hands in; fields that Xen writes are left out, as nobody recorded them afterwards."""


def _singleshot(pointers: Pointers, arg: int) -> list[str]:
    values = pointers.behind(arg, _layout(pointers).singleshot)
    if not values:
        return []
    timeout, *rest = values
    delta = pointers.relative_at(arg, 0)
    words = absolute(timeout, pointers.now) if delta is None else relative(delta)
    return [f"timeout={words}", *(f"flags={named(names.SINGLESHOT_FLAGS)(flags)}" for flags in rest if flags)]


_POLL_FIELDS: Final = 3


def _poll(pointers: Pointers, arg: int) -> list[str]:
    """The timeout is a length of time: so KVM takes it, whatever Xen's header says."""
    layout = _layout(pointers).sched_poll
    values = pointers.behind(arg, layout)
    if len(values) < _POLL_FIELDS:
        return []
    where, count, timeout = values
    ports = pointers.at(where, 4 * count) if count <= SCHED_POLL_MAX_PORTS else None
    if ports is None:
        shown = f"ports={count} at {where:#x}"
    else:
        shown = f"ports=[{enough(number(port) for (port,) in Struct('<I').iter_unpack(ports))}]"
    delta = pointers.relative_at(arg, layout.size - 8)
    words = f"now{relative(delta)}" if delta else duration(timeout) if timeout else "none"
    return [shown, f"timeout={words}"]


def _layout(pointers: Pointers) -> GuestLayout:
    return LAYOUT_64 if pointers.event.longmode else LAYOUT_32


_SPECIAL: Final[Mapping[tuple[int, int], Callable[[Pointers, int], list[str]]]] = {
    (Hypercall.vcpu_op, VcpuOp.set_singleshot_timer): _singleshot,
    (Hypercall.sched_op, SchedOp.poll): _poll,
}


def structure_words(pointers: Pointers, op: int, arg: int) -> list[str]:
    """The known fields behind argument `arg` of sub-operation `op`; none if it isn't in the tables."""
    key = pointers.event.nr, op
    if key in _SPECIAL:
        return _SPECIAL[key](pointers, arg)
    structure = _STRUCTURES.get(key)
    return structure.members(pointers, arg) if structure else []
