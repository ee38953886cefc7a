"""Memory that a replay's guest runs in: descriptor tables, page tables, stacks and room for its code.

It lies outside the VM's slots, at a physical address of the host's choice, so that nothing of it shows in the
recorded guest's memory. Its page tables map virtual = physical for 0 ... 4 GiB, but for one window of 2 MiB
where the VM has no memory: there it sees itself, in 64-bit, compatibility and 32-bit mode alike.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from functools import cache
from mmap import mmap
from typing import Final

from attrs import frozen

from pytest_xenkvm.core.memory import Slot
from pytest_xenkvm.cpu import descriptors, paging
from pytest_xenkvm.cpu.vmcb import EFER_LMA, EFER_LME, EFER_SCE, CpuState, Segment

_GDT: Final = 0x0000
_IDT_64: Final = 0x1000
_IDT_32: Final = 0x2000
_TSS_64: Final = 0x3000
_TSS_32: Final = 0x3100
_DIRECTORIES: Final = 0x4000
_POINTERS_64: Final = 0x8000
_POINTERS_32: Final = 0x9000
_TOP_TABLE: Final = 0xA000
CODE: Final = 0xB000
HANDLERS_64: Final = 0xC000
HANDLERS_32: Final = 0xD000
COMMON: Final = 0xE000
_KERNEL_STACK: Final = 0x10000
"""Its end: it grows down."""
_STACKS: Final = 0x20000
_STACK_SIZE: Final = 0x100
_STACK_COUNT: Final = 4096
SPARE: Final = _STACKS + _STACK_SIZE * _STACK_COUNT
"""Pages that hosts may use as they like."""
SPARE_PAGES: Final = 64

IMAGE_SIZE: Final = 2 << 20
HANDLER_SIZE: Final = 16
VECTORS: Final = 256
_DESCRIPTOR_SIZE: Final = 8
_TSS_SELECTOR: Final = 0x80
_PRIVILEGE_LEVELS: Final = 4
_LARGE_PAGE: Final = IMAGE_SIZE
_FOUR_GIB: Final = 1 << 32
_ENTRIES: Final = 512
_ENTRY: Final = paging.PRESENT | paging.WRITABLE | paging.USER

_CR0: Final = 0x8005_0033
"""PE, MP, ET, NE, WP, AM, PG."""
_CR4: Final = 0x620
"""PAE, OSFXSR, OSXMMEXCPT."""
_RFLAGS: Final = 0x202
"""Interrupts enabled."""


class Mode(Enum):
    """How the guest's code runs; in paging modes all of them."""

    LONG = "64-bit"
    COMPAT = "compatibility"
    PROTECTED = "32-bit protected"

    @classmethod
    def of(cls, *, longmode: bool, compat: bool) -> Mode:
        """The mode of a recorded event."""
        if compat:
            return cls.COMPAT
        return cls.LONG if longmode else cls.PROTECTED


@frozen
class GuestImage:
    """The guest's memory at guest address `physical`, seen by it at linear address `window`."""

    memory: mmap
    physical: int
    window: int

    @classmethod
    def build(
        cls,
        slots: Sequence[Slot],
        code: Iterable[tuple[int, bytes]],
        *,
        physical: int | None = None,
        highest: int = _FOUR_GIB - _LARGE_PAGE,
    ) -> GuestImage:
        """A guest for a VM with those memory slots, whose code are those bytes at those offsets.

        The window is the first 2 MiB from `highest` down where no slot lies; `physical` None: there.
        """
        window = _free_window(slots, highest)
        image = cls(mmap(-1, IMAGE_SIZE), window if physical is None else physical, window)
        for offset, data in (*_tables(image.physical, window), *code):
            image.memory[offset : offset + len(data)] = data
        return image

    def at(self, offset: int) -> int:
        """The linear address of something in the image."""
        return self.window + offset

    def stack(self, vcpu: int) -> int:
        """Where the stack of a vCPU starts (linear)."""
        return self.at(_STACKS + _STACK_SIZE * (vcpu % _STACK_COUNT + 1))

    def read_physical(self, address: int, size: int) -> bytes | None:
        """The image's own bytes by physical address."""
        offset = address - self.physical
        return self.memory[offset : offset + size] if 0 <= offset <= IMAGE_SIZE - size else None

    def write_physical(self, address: int, data: bytes) -> bool:
        """Store to the image by physical address; False if that is elsewhere."""
        offset = address - self.physical
        if not 0 <= offset <= IMAGE_SIZE - len(data):
            return False
        self.memory[offset : offset + len(data)] = data
        return True

    def holds(self, linear: int) -> bool:
        """Whether a linear address is the image's."""
        return self.window <= linear < self.window + IMAGE_SIZE

    def read_stack(self, linear: int, size: int) -> int:
        """A number on a stack of the guest."""
        offset = linear - self.window
        return int.from_bytes(self.memory[offset : offset + size], "little")

    def push(self, linear: int, value: int, size: int) -> int:
        """Push a number onto a stack of the guest: where its top is then."""
        offset = linear - self.window - size
        self.memory[offset : offset + size] = value.to_bytes(size, "little")
        return linear - size

    def top_table(self, *, long: bool) -> int:
        """Offset in the image of the table that CR3 points at, in long mode or in 32-bit mode."""
        return _TOP_TABLE if long else _POINTERS_32

    def clean_pointers(self) -> None:
        """Store the page-directory pointers of 32-bit mode anew.

        QEMU's TCG (7.2, as AMD-V's CPU) marks them as accessed, and KVM then refuses to load them.
        """
        data = _pointers_32(self.physical)
        self.memory[_POINTERS_32 : _POINTERS_32 + len(data)] = data

    def state(self, mode: Mode, cpl: int) -> CpuState:
        """The CPU state in which the guest runs code of that mode and privilege level."""
        long = mode is not Mode.PROTECTED
        code = _segment("code_64" if mode is Mode.LONG else "code_32", cpl)
        data = _segment("data", cpl)
        return CpuState(
            cr0=_CR0,
            cr3=self.physical + (_TOP_TABLE if long else _POINTERS_32),
            cr4=_CR4,
            efer=(EFER_LMA | EFER_LME if long else 0) | EFER_SCE,
            cpl=cpl,
            rflags=_RFLAGS,
            cs=code,
            ss=data,
            ds=data,
            es=data,
            fs=data,
            gs=data,
            gdtr=descriptors.table(self.at(_GDT), _TSS_SELECTOR),
            idtr=descriptors.table(self.at(_IDT_64 if long else _IDT_32), VECTORS * (16 if long else 8)),
            tr=descriptors.tss(_TSS_SELECTOR, self.at(_TSS_64 if long else _TSS_32)),
        )


def _segment(kind: str, cpl: int) -> Segment:
    index = 1 + list(_KINDS).index(kind) + len(_KINDS) * cpl
    return _KINDS[kind](index * _DESCRIPTOR_SIZE | cpl, cpl)


_KINDS: Final = {"code_64": descriptors.code_64, "code_32": descriptors.code_32, "data": descriptors.data}
"""The segments that there are for each privilege level, in the order of the GDT."""


def _free_window(slots: Sequence[Slot], highest: int) -> int:
    """The highest 2 MiB from there down where no slot lies; the highest of all if slots are everywhere."""
    for start in range(highest, 0, -_LARGE_PAGE):
        if not any(slot.gpa < start + _LARGE_PAGE and start < slot.end for slot in slots):
            return start
    return highest


def _tables(physical: int, window: int) -> list[tuple[int, bytes]]:
    kernel_stack = window + _KERNEL_STACK
    kernel_64, kernel_32 = _segment("code_64", 0).selector, _segment("code_32", 0).selector
    return [
        (_GDT, _gdt()),
        (_IDT_64, _idt(descriptors.gate_64, kernel_64, window + HANDLERS_64)),
        (_IDT_32, _idt(descriptors.gate_32, kernel_32, window + HANDLERS_32)),
        (_TSS_64, descriptors.tss_64(kernel_stack)),
        (_TSS_32, descriptors.tss_32(kernel_stack, _segment("data", 0).selector)),
        *_page_tables(physical, window),
    ]


@cache
def _gdt() -> bytes:
    segments = (_segment(kind, cpl) for cpl in range(_PRIVILEGE_LEVELS) for kind in _KINDS)
    return bytes(_DESCRIPTOR_SIZE) + b"".join(map(descriptors.descriptor, segments))


def _idt(gate: Callable[[int, int], bytes], selector: int, handlers: int) -> bytes:
    return b"".join(gate(selector, handlers + vector * HANDLER_SIZE) for vector in range(VECTORS))


def _page_tables(physical: int, window: int) -> list[tuple[int, bytes]]:
    directories = [physical + _DIRECTORIES + 0x1000 * index for index in range(4)]
    own = (physical | paging.LARGE | _ENTRY).to_bytes(8, "little")
    return [
        (_DIRECTORIES, _identity_map()),
        (_DIRECTORIES + window // _LARGE_PAGE * 8, own),
        (_POINTERS_64, b"".join((table | _ENTRY).to_bytes(8, "little") for table in directories)),
        (_POINTERS_32, _pointers_32(physical)),
        (_TOP_TABLE, (physical + _POINTERS_64 | _ENTRY).to_bytes(8, "little")),
    ]


def _pointers_32(physical: int) -> bytes:
    tables = (physical + _DIRECTORIES + 0x1000 * index for index in range(4))
    return b"".join((table | paging.PRESENT).to_bytes(8, "little") for table in tables)


@cache
def _identity_map() -> bytes:
    pages = range(0, _FOUR_GIB, _LARGE_PAGE)
    return b"".join((page | paging.LARGE | _ENTRY).to_bytes(8, "little") for page in pages)
