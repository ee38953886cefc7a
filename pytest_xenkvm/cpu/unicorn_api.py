"""The part of Unicorn's C API that the vCPU needs, typed; the only module that imports unicorn.

The Python binding's own work for each call is ten times that of the library, so calls go to the C functions,
with argument arrays that are built once (`Registers`). Its functions keep the GIL: guest runs are short and
bounded by their instruction count.
"""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from ctypes import c_int, c_size_t, c_uint32, c_uint64, c_void_p
from mmap import mmap
from typing import Any, Final

from unicorn import unicorn_const, x86_const
from unicorn.unicorn_py3.unicorn import uclib

OK: Final = 0
ERR_INSN_INVALID: Final[int] = unicorn_const.UC_ERR_INSN_INVALID
"""`start` stopped at an instruction that this CPU doesn't have."""

RAX: Final[int] = x86_const.UC_X86_REG_RAX
RBX: Final[int] = x86_const.UC_X86_REG_RBX
RCX: Final[int] = x86_const.UC_X86_REG_RCX
RDX: Final[int] = x86_const.UC_X86_REG_RDX
RSI: Final[int] = x86_const.UC_X86_REG_RSI
RDI: Final[int] = x86_const.UC_X86_REG_RDI
RBP: Final[int] = x86_const.UC_X86_REG_RBP
RSP: Final[int] = x86_const.UC_X86_REG_RSP
GENERAL: Final = tuple(
    getattr(x86_const, f"UC_X86_REG_{name}")
    for name in ("RAX", "RCX", "RDX", "RBX", "RSP", "RBP", "RSI", "RDI", *(f"R{n}" for n in range(8, 16)))
)
"""The general registers in the order in which instructions number them."""
R8: Final[int] = x86_const.UC_X86_REG_R8
R9: Final[int] = x86_const.UC_X86_REG_R9
R10: Final[int] = x86_const.UC_X86_REG_R10
RIP: Final[int] = x86_const.UC_X86_REG_RIP
RFLAGS: Final[int] = x86_const.UC_X86_REG_RFLAGS
CS: Final[int] = x86_const.UC_X86_REG_CS
CR4: Final[int] = x86_const.UC_X86_REG_CR4
_MSR: Final[int] = x86_const.UC_X86_REG_MSR

_TRANSLATION_BUFFER: Final = 4 << 20
"""Bytes of translated code; Unicorn's default reserves 1 GiB of address space an engine."""
_UNTIL: Final = 0
"""Where a run would end by itself. When a run ends, Unicorn looks this address up in the guest's page tables;
if it isn't mapped, that shows as a page fault that the guest never made (CR2, error code)."""
_WRITE: Final = 1 << 30
_ARGUMENTS_SHIFT: Final = 26
_ALL_ACCESS: Final[int] = unicorn_const.UC_PROT_ALL

_LIBRARY: Final = ctypes.PyDLL(uclib._name)  # noqa: SLF001 - the library that the binding found
_InCallback: Final = ctypes.CFUNCTYPE(c_uint32, c_void_p, c_uint32, c_int, c_void_p)
_OutCallback: Final = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_int, c_uint32, c_void_p)
_InterruptCallback: Final = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_void_p)

_ARGUMENTS: Final[dict[str, tuple[Any, ...]]] = {
    "uc_open": (c_int, c_int, c_void_p),
    "uc_close": (c_void_p,),
    "uc_emu_start": (c_void_p, c_uint64, c_uint64, c_uint64, c_size_t),
    "uc_emu_stop": (c_void_p,),
    "uc_mem_map_ptr": (c_void_p, c_uint64, c_size_t, c_uint32, c_void_p),
    "uc_mem_unmap": (c_void_p, c_uint64, c_size_t),
    "uc_reg_read_batch": (c_void_p, c_void_p, c_void_p, c_int),
    "uc_reg_write_batch": (c_void_p, c_void_p, c_void_p, c_int),
    "uc_reg_read": (c_void_p, c_int, c_void_p),
    "uc_reg_write": (c_void_p, c_int, c_void_p),
    "uc_hook_add": (c_void_p, c_void_p, c_int, c_void_p, c_void_p, c_uint64, c_uint64),
    "uc_context_alloc": (c_void_p, c_void_p),
    "uc_context_save": (c_void_p, c_void_p),
    "uc_context_restore": (c_void_p, c_void_p),
    "uc_context_free": (c_void_p,),
    "uc_strerror": (c_int,),
}
for _name, _types in _ARGUMENTS.items():
    getattr(_LIBRARY, _name).argtypes = _types
_LIBRARY.uc_strerror.restype = ctypes.c_char_p
_emu_start: Final[Callable[..., int]] = _LIBRARY.uc_emu_start
_emu_stop: Final[Callable[..., int]] = _LIBRARY.uc_emu_stop
_read_batch: Final[Callable[..., int]] = _LIBRARY.uc_reg_read_batch
_write_batch: Final[Callable[..., int]] = _LIBRARY.uc_reg_write_batch


class UnicornError(Exception):
    """Unicorn refused something; `str()` says what."""


def _check(error: int) -> None:
    if error:
        raise UnicornError(describe(error))


def describe(error: int) -> str:
    """What an error number of `start` means."""
    text: bytes = _LIBRARY.uc_strerror(error)
    return text.decode()


class _MsrArgument(ctypes.Structure):
    _fields_ = (("number", c_uint32), ("value", c_uint64))


class Registers:
    """A fixed set of registers that is read or written in one call; `values` holds what travels."""

    def __init__(self, handle: c_void_p, numbers: Sequence[int]) -> None:
        count = len(numbers)
        self.values: ctypes.Array[c_uint64] = (c_uint64 * count)()
        base = ctypes.addressof(self.values)
        pointers = (c_void_p * count)(*(base + 8 * index for index in range(count)))
        ids = (c_int * count)(*numbers)
        self._keep = (pointers, ids)
        self._arguments = (handle, ctypes.addressof(ids), ctypes.addressof(pointers), count)

    def read(self) -> list[int]:
        """The registers as they are now."""
        _read_batch(*self._arguments)
        return self.values[:]

    def write(self, values: Sequence[int]) -> None:
        """Set all of them (u64 each)."""
        self.values[:] = values  # type: ignore[call-overload] # any sequence will do
        _write_batch(*self._arguments)


class Context:
    """A saved CPU state of one engine: registers, hidden ones included, not memory."""

    def __init__(self, owner: Unicorn, handle: c_void_p) -> None:
        self._owner = owner  # closed after its contexts are freed
        self._handle = handle
        self._context = c_void_p()
        _check(_LIBRARY.uc_context_alloc(handle, ctypes.byref(self._context)))
        weakref.finalize(self, _LIBRARY.uc_context_free, self._context)
        _check(_LIBRARY.uc_context_save(handle, self._context))

    def save(self) -> None:
        """Save the state again."""
        _LIBRARY.uc_context_save(self._handle, self._context)

    def restore(self) -> None:
        """Bring it back."""
        _LIBRARY.uc_context_restore(self._handle, self._context)

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Bytes of Unicorn's own structure."""
        return ctypes.string_at((self._context.value or 0) + offset, size)


class Unicorn:
    """An x86-64 CPU with AMD-V and the memory that it sees. Closed when it is dropped."""

    def __init__(self) -> None:
        self._handle = c_void_p()
        handle = self._handle
        mode = unicorn_const.UC_MODE_64
        _check(_LIBRARY.uc_open(unicorn_const.UC_ARCH_X86, mode, ctypes.byref(handle)))
        self._control(unicorn_const.UC_CTL_CPU_MODEL, c_int(x86_const.UC_CPU_X86_EPYC))
        self._control(unicorn_const.UC_CTL_TCG_BUFFER_SIZE, c_uint32(_TRANSLATION_BUFFER))
        self.interrupts: list[int] = []
        """Exceptions (their vectors) and SVM intercepts (0x100 + exit code) since `start`."""
        self._keep: dict[int, object] = {}
        self._hook_interrupts()
        self._finalizer = weakref.finalize(self, _close, handle, self._callback)

    def _hook_interrupts(self) -> None:
        handle, seen = self._handle, self.interrupts

        def interrupted(_engine: int, number: int, _user: int) -> None:
            seen.append(number)
            _emu_stop(handle)

        self._callback = _InterruptCallback(interrupted)
        pointer = ctypes.cast(self._callback, c_void_p)
        hook = c_size_t()
        _check(
            _LIBRARY.uc_hook_add(
                self._handle, ctypes.byref(hook), unicorn_const.UC_HOOK_INTR, pointer, None, 1, 0
            )
        )

    def hook_ports(self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]) -> None:
        """Let IN call `read(port, size)` and OUT `write(port, size, value)`; neither may raise."""

        def read_port(_engine: int, port: int, size: int, _user: int) -> int:
            return read(port, size)

        def write_port(_engine: int, port: int, size: int, value: int, _user: int) -> None:
            write(port, size, value)

        callbacks = (_InCallback(read_port), _OutCallback(write_port))
        instructions = (x86_const.UC_X86_INS_IN, x86_const.UC_X86_INS_OUT)
        for callback, instruction in zip(callbacks, instructions, strict=True):
            pointer, hook = ctypes.cast(callback, c_void_p), c_size_t()
            where = (self._handle, ctypes.byref(hook), unicorn_const.UC_HOOK_INSN, pointer, None, 1, 0)
            _check(_LIBRARY.uc_hook_add(*where, c_int(instruction)))
        self._keep[-1] = callbacks

    def _control(self, type_: int, *arguments: Any) -> None:
        request = type_ | len(arguments) << _ARGUMENTS_SHIFT | _WRITE
        _check(_LIBRARY.uc_ctl(self._handle, c_int(request), *arguments))

    def map(self, address: int, memory: mmap) -> None:
        """Let the CPU see `memory`, the very same bytes, at physical `address`."""
        exported = ctypes.c_char.from_buffer(memory)
        pointer = ctypes.addressof(exported)
        _check(_LIBRARY.uc_mem_map_ptr(self._handle, address, len(memory), _ALL_ACCESS, pointer))
        self._keep[address] = exported

    def unmap(self, address: int, size: int) -> None:
        """Take from the CPU what was mapped at `address`; raises UnicornError."""
        _check(_LIBRARY.uc_mem_unmap(self._handle, address, size))
        self._keep.pop(address, None)

    def flush_code(self) -> None:
        """Forget translations: whoever but the guest changes code must say so."""
        self._control(unicorn_const.UC_CTL_TB_FLUSH)

    def registers(self, *numbers: int) -> Registers:
        """A set of registers to read and write together."""
        return Registers(self._handle, numbers)

    def read_msr(self, number: int) -> int:
        """An MSR, outside of guest mode."""
        argument = _MsrArgument(number, 0)
        _check(_LIBRARY.uc_reg_read(self._handle, _MSR, ctypes.byref(argument)))
        value: int = argument.value
        return value

    def write_msr(self, number: int, value: int) -> None:
        """Set an MSR, outside of guest mode."""
        argument = _MsrArgument(number, value)
        _check(_LIBRARY.uc_reg_write(self._handle, _MSR, ctypes.byref(argument)))

    def save(self) -> Context:
        """The CPU's state now."""
        return Context(self, self._handle)

    def start(self, rip: int, count: int) -> int:
        """Run from `rip` until something interrupts, or for `count` instructions: an error number.

        The guest should have a page at linear address 0 (see `_UNTIL`). `count` is never 0: code translated
        for counted and uncounted runs must not mix.
        """
        self.interrupts.clear()
        return _emu_start(self._handle, rip, _UNTIL, 0, count)


def _close(handle: c_void_p, _callback: object) -> None:
    _LIBRARY.uc_close(handle)
