"""The part of Unicorn's C API that the vCPU needs, with argument arrays that are built once (`Registers`)."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable, Sequence
from ctypes import c_int, c_uint32, c_uint64, c_void_p
from mmap import mmap
from typing import Final

from pytest_xenkvm.cpu import pool
from pytest_xenkvm.cpu.unicorn_library import LIBRARY, UnicornError, check, describe, unicorn_const, x86_const

__all__ = ["Context", "Registers", "Unicorn", "UnicornError", "describe"]

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

MSR_EFER: Final = 0xC000_0080
MSR_VM_HSAVE_PA: Final = 0xC001_0117
_MSRS_OF_A_CONTEXT: Final = (MSR_EFER, MSR_VM_HSAVE_PA)
"""Those written here that a `Context` has. Some have it not: the MTRRs and the banks of machine checks."""
_HOOK_INSTRUCTION: Final[int] = unicorn_const.UC_HOOK_INSN

_UNTIL: Final = 0
"""Where a run would end by itself. When a run ends, Unicorn looks this address up in the guest's page tables;
if it isn't mapped, that shows as a page fault that the guest never made (CR2, error code)."""
_emu_start: Final[Callable[..., int]] = LIBRARY.uc_emu_start
_emu_stop: Final[Callable[..., int]] = LIBRARY.uc_emu_stop
_read_batch: Final[Callable[..., int]] = LIBRARY.uc_reg_read_batch
_write_batch: Final[Callable[..., int]] = LIBRARY.uc_reg_write_batch
_InCallback: Final = ctypes.CFUNCTYPE(c_uint32, c_void_p, c_uint32, c_int, c_void_p)
_OutCallback: Final = ctypes.CFUNCTYPE(None, c_void_p, c_uint32, c_int, c_uint32, c_void_p)


class _MsrArgument(ctypes.Structure):
    _fields_ = (("number", c_uint32), ("value", c_uint64))


class Registers:
    """A fixed set of registers that is read or written in one call; `values` holds what travels."""

    def __init__(self, owner: Unicorn, numbers: Sequence[int]) -> None:
        count = len(numbers)
        self.values: ctypes.Array[c_uint64] = (c_uint64 * count)()
        base = ctypes.addressof(self.values)
        pointers = (c_void_p * count)(*(base + 8 * index for index in range(count)))
        ids = (c_int * count)(*numbers)
        self._keep = (owner, pointers, ids)
        self._arguments = (owner.handle, ctypes.addressof(ids), ctypes.addressof(pointers), count)

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

    def __init__(self, owner: Unicorn) -> None:
        self._owner = owner  # closed after its contexts are freed
        self._handle = owner.handle
        self._context = c_void_p()
        check(LIBRARY.uc_context_alloc(self._handle, ctypes.byref(self._context)))
        weakref.finalize(self, LIBRARY.uc_context_free, self._context)
        check(LIBRARY.uc_context_save(self._handle, self._context))

    def save(self) -> None:
        """Save the state again."""
        LIBRARY.uc_context_save(self._handle, self._context)

    def restore(self) -> None:
        """Bring it back."""
        LIBRARY.uc_context_restore(self._handle, self._context)

    def bytes_at(self, offset: int, size: int) -> bytes:
        """Bytes of Unicorn's own structure."""
        return ctypes.string_at((self._context.value or 0) + offset, size)


class Unicorn:
    """An x86-64 CPU with AMD-V and the memory that it sees, like new.

    When it is dropped, and its `Registers` and `Context`s with it, another may get the same engine (`pool`).
    """

    def __init__(self) -> None:
        """Raises UnicornError."""
        self._engine = pool.take()
        weakref.finalize(self, pool.give_back, self._engine).atexit = False
        self.handle: Final = self._engine.handle
        """For those who call Unicorn with it; they keep this object, too."""
        self.interrupts: Final = self._engine.interrupts
        """Exceptions (their vectors) and SVM intercepts (0x100 + exit code) since `start`."""

    def use_up(self) -> None:
        """Nobody is to get this engine afterwards: a guest may do to it what can't be undone."""
        self._engine.reusable = False

    def hook_ports(self, read: Callable[[int, int], int], write: Callable[[int, int, int], None]) -> None:
        """Let IN call `read(port, size)` and OUT `write(port, size, value)`; neither may raise."""

        def read_port(_engine: int, port: int, size: int, _user: int) -> int:
            return read(port, size)

        def write_port(_engine: int, port: int, size: int, value: int, _user: int) -> None:
            write(port, size, value)

        self.use_up()
        hook = self._engine.hook
        hook(_HOOK_INSTRUCTION, _InCallback(read_port), c_int(x86_const.UC_X86_INS_IN))
        hook(_HOOK_INSTRUCTION, _OutCallback(write_port), c_int(x86_const.UC_X86_INS_OUT))

    def map(self, address: int, memory: mmap) -> None:
        """Let the CPU see `memory`, the very same bytes, at physical `address`; raises UnicornError."""
        self._engine.map(address, memory)

    def unmap(self, address: int) -> None:
        """Take from the CPU what was mapped at `address`; raises UnicornError."""
        self._engine.unmap(address)

    def flush_code(self) -> None:
        """Forget translations: whoever but the guest changes code must say so."""
        self._engine.flush_code()

    def registers(self, *numbers: int) -> Registers:
        """A set of registers to read and write together."""
        return Registers(self, numbers)

    def read_msr(self, number: int) -> int:
        """An MSR, outside of guest mode."""
        argument = _MsrArgument(number, 0)
        check(LIBRARY.uc_reg_read(self.handle, _MSR, ctypes.byref(argument)))
        value: int = argument.value
        return value

    def write_msr(self, number: int, value: int) -> None:
        """Set an MSR, outside of guest mode."""
        if number not in _MSRS_OF_A_CONTEXT:
            self.use_up()
        argument = _MsrArgument(number, value)
        check(LIBRARY.uc_reg_write(self.handle, _MSR, ctypes.byref(argument)))

    def save(self) -> Context:
        """The CPU's state now."""
        return Context(self)

    def start(self, rip: int, count: int) -> int:
        """Run from `rip` until something interrupts, or for `count` instructions: an error number.

        The guest should have a page at linear address 0 (see `_UNTIL`). `count` is never 0: code translated
        for counted and uncounted runs must not mix.
        """
        self.interrupts.clear()
        return _emu_start(self.handle, rip, _UNTIL, 0, count)
