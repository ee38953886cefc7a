"""What an event is called where like events are counted together. Total, as all decoding is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from pytest_xenkvm.abi.numbers import HvmAttr, VcpuAttr
from pytest_xenkvm.trace.decode import hypercall_name
from pytest_xenkvm.trace.decode_values import anything, named, text
from pytest_xenkvm.trace.events import Event, Hypercall, Ioctl, Mem

_ATTRIBUTES: Final[Mapping[str, Any]] = {
    f"KVM_XEN_{whose}_{what}_ATTR": named({attribute.value: attribute.name for attribute in attributes})
    for whose, attributes in (("HVM", HvmAttr), ("VCPU", VcpuAttr))
    for what in ("GET", "SET")
}


def event_label(event: Event) -> str:
    """`VCPUOP_up`, `KVM_XEN_VCPU_SET_ATTR(TIMER)`, `mem write`; else the kind of event."""
    match event:
        case Hypercall():
            return call_label(event)
        case Ioctl():
            words = _ATTRIBUTES.get(event.name)
            return f"{event.name}({anything(event.arg.get('type'), words)})" if words else text(event.name)
        case Mem():
            return f"mem {text(event.op)}"
    return event.kind


def call_label(event: Hypercall) -> str:
    """A hypercall's name, by its number and, where it has sub-operations, its first argument."""
    return hypercall_name(event.nr, event.args[0] if event.args else None)
