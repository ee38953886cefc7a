"""The header's codec: a JSON object to `Header` and back, the same for both file formats."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Final

from pytest_xenkvm.abi.numbers import PAGE_SIZE, U32_MAX
from pytest_xenkvm.trace.events import (
    IRQCHIPS,
    SCOPES,
    VENDORS,
    Header,
    MemorySlot,
    VcpuShape,
    VmShape,
)
from pytest_xenkvm.trace.fields import MAX_VCPUS, VCPU, Field, Table
from pytest_xenkvm.trace.values import (
    TEXT,
    U32,
    U64,
    Kind,
    Unfit,
    as_object,
    integer,
    items,
    nullable,
    one_of,
    shown,
    unexpected,
    within,
)

FORMAT: Final = "xenkvm-trace"
VERSION: Final = 1

MAX_MEMORY: Final = 1 << 40
"""Guest memory of a VM in bytes: 1 TiB."""

MAX_SLOTS: Final = 4096
"""Memory slots of a VM."""

_MAX_GPA: Final = 1 << 52
"""x86 has physical addresses of at most 52 bits."""


def _slot(value: Any) -> MemorySlot:
    slot = MemorySlot(**_exactly(value, {"gpa": U64, "size": U64}))
    if slot.gpa % PAGE_SIZE or slot.size % PAGE_SIZE or not slot.size:
        raise Unfit(f"is {slot.size} bytes at {slot.gpa:#x}, expected whole pages")
    if slot.gpa + slot.size > _MAX_GPA:
        raise Unfit(f"ends at {slot.gpa + slot.size:#x}, beyond the 52 bits of a guest address")
    return slot


def _exactly(value: Any, kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Decode an object that has these members and no other: a VM half understood can't be replayed."""
    if as_object(value).keys() != kinds.keys():
        raise Unfit(f"has the keys {shown(', '.join(value))}, expected {', '.join(kinds)}")
    return {key: within(key, kind.decode, value[key]) for key, kind in kinds.items()}


def _memory(value: Any) -> tuple[MemorySlot, ...]:
    if type(value) is list and len(value) > MAX_SLOTS:
        raise unexpected(value, f"a list of at most {MAX_SLOTS}")
    slots: tuple[MemorySlot, ...] = items(Kind(_slot)).decode(value)
    total = sum(slot.size for slot in slots)
    if total > MAX_MEMORY:
        raise Unfit(f"is {total} bytes in all, expected at most {MAX_MEMORY} (1 TiB)")
    ordered = sorted(slots, key=lambda slot: slot.gpa)
    for below, above in pairwise(ordered):
        if below.gpa + below.size > above.gpa:
            raise Unfit(f"has overlapping slots at {below.gpa:#x} and {above.gpa:#x}")
    return slots


def _vcpus(value: Any) -> tuple[VcpuShape, ...]:
    if type(value) is list and len(value) > MAX_VCPUS:
        raise unexpected(value, f"a list of at most {MAX_VCPUS}")
    shape = Kind(lambda vcpu: VcpuShape(**_exactly(vcpu, {"index": VCPU, "id": U32})))
    vcpus: tuple[VcpuShape, ...] = items(shape).decode(value)
    for index, vcpu in enumerate(vcpus):
        if vcpu.index != index:
            raise Unfit(f"is {vcpu.index}, expected {index} (the order of creation)", f"[{index}].index")
    if len({vcpu.id for vcpu in vcpus}) != len(vcpus):
        raise Unfit("has two vCPUs of the same id")
    return vcpus


_VM: Final = {"irqchip": one_of(*IRQCHIPS), "memory": Kind(_memory), "vcpus": Kind(_vcpus)}


def _vm_out(vm: VmShape, _text: bool) -> dict[str, Any]:  # noqa: FBT001 (the signature of every encoder)
    return {
        "irqchip": vm.irqchip,
        "memory": [{"gpa": slot.gpa, "size": slot.size} for slot in vm.memory],
        "vcpus": [{"index": vcpu.index, "id": vcpu.id} for vcpu in vm.vcpus],
    }


def _check_scope(header: Header) -> None:
    if header.scope == "full" and header.vm is None:
        raise Unfit('is null, which only scope "hypercalls" allows', "vm")


_TABLE: Final = Table(
    Header,
    Field("kernel", nullable(TEXT)),
    Field("max_vcpus", nullable(integer(1, U32_MAX))),
    Field("cpu_vendor", one_of(*VENDORS)),
    Field("recorder", TEXT),
    Field("scope", one_of(*SCOPES)),
    Field("vm", nullable(Kind(lambda value: VmShape(**_exactly(value, _VM)), _vm_out))),
    Field("notes", TEXT),
    Field("unseen", items(TEXT), absent=()),
    check=_check_scope,
    reserved=("format", "version"),
)
_UNKNOWN: Final = {"kernel": None, "max_vcpus": None, "recorder": "unknown", "vm": None, "notes": ""}
"""What a header that leaves these keys out means."""


def decode_header(value: Any) -> Header:
    """Build the header from its JSON object. Raises `Unfit`."""
    if type(value) is not dict or value.get("format") != FORMAT:
        raise Unfit(f'is no trace header, expected an object with "format": "{FORMAT}"')
    check_version(value.get("version"))
    try:
        header: Header = _TABLE.decode(
            {**_UNKNOWN, **{key: value[key] for key in value if key not in ("format", "version")}}
        )
    except Unfit as unfit:
        raise Unfit(f"header: {unfit}") from None
    return header


def check_version(version: object) -> None:
    """Check the version of either format. Raises `Unfit`."""
    if type(version) is not int or version != VERSION:
        raise Unfit(f"version {shown(version)} is not supported; this release reads version {VERSION}")


def encode_header(header: Header) -> dict[str, Any]:
    """Return the header's JSON object in canonical order."""
    return {"format": FORMAT, "version": VERSION, **_TABLE.encode(header, text=True)}
