"""Unicorn's C functions, typed, and an engine as they open it; the only module that imports unicorn.

The Python binding's own work for each call is ten times that of the library, so calls go to the C functions.
They keep the GIL: guest runs are short and bounded by their instruction count.
"""

from __future__ import annotations

import ctypes
import weakref
from ctypes import c_int, c_size_t, c_uint32, c_uint64, c_void_p
from mmap import mmap
from typing import Any, Final

from pytest_xenkvm.cpu.errors import NoUnicorn

try:
    from unicorn import unicorn_const, x86_const
    from unicorn.unicorn_py3.unicorn import uclib
except (ImportError, OSError) as error:
    raise NoUnicorn(error) from error

__all__ = ["LIBRARY", "OpenEngine", "UnicornError", "check", "describe", "unicorn_const", "x86_const"]

_TRANSLATION_BUFFER: Final = 4 << 20
"""Bytes of translated code; Unicorn's default reserves 1 GiB of address space an engine."""
_WRITE: Final = 1 << 30
_ARGUMENTS_SHIFT: Final = 26
_ALL_ACCESS: Final[int] = unicorn_const.UC_PROT_ALL

LIBRARY: Final = ctypes.PyDLL(uclib._name)  # noqa: SLF001 - the library that the binding found
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
    getattr(LIBRARY, _name).argtypes = _types
LIBRARY.uc_strerror.restype = ctypes.c_char_p
_emu_stop: Final = LIBRARY.uc_emu_stop


class UnicornError(Exception):
    """Unicorn refused something; `str()` says what."""


def check(error: int) -> None:
    """Raise UnicornError unless the number that a function returned is 0."""
    if error:
        raise UnicornError(describe(error))


def describe(error: int) -> str:
    """What an error number means."""
    text: bytes = LIBRARY.uc_strerror(error)
    return text.decode()


class OpenEngine:
    """An x86-64 CPU with AMD-V, which sees no memory yet. Closed when it is dropped."""

    def __init__(self) -> None:
        """Raises UnicornError."""
        self.handle: Final = c_void_p()
        self.interrupts: Final[list[int]] = []
        """Exceptions (their vectors) and SVM intercepts (0x100 + exit code), as they come."""
        self.reusable = True
        """Nothing was done to it that `reset` can't undo."""
        self._mapped: Final[dict[int, tuple[int, object]]] = {}
        """Size of, and hold on, the memory at each physical address."""
        self._birth: Final = c_void_p()
        mode = unicorn_const.UC_MODE_64
        check(LIBRARY.uc_open(unicorn_const.UC_ARCH_X86, mode, ctypes.byref(self.handle)))
        self._callbacks: Final[list[object]] = []
        weakref.finalize(self, _close, self.handle, self._birth, self._callbacks)
        self._control(unicorn_const.UC_CTL_CPU_MODEL, c_int(x86_const.UC_CPU_X86_EPYC))
        self._control(unicorn_const.UC_CTL_TCG_BUFFER_SIZE, c_uint32(_TRANSLATION_BUFFER))
        self._hook_interrupts()
        check(LIBRARY.uc_context_alloc(self.handle, ctypes.byref(self._birth)))
        check(LIBRARY.uc_context_save(self.handle, self._birth))

    @property
    def mapped(self) -> int:
        """Bytes of memory that it sees."""
        return sum(size for size, _hold in self._mapped.values())

    def map(self, address: int, memory: mmap) -> None:
        """Let the CPU see `memory`, the very same bytes, at physical `address`; raises UnicornError."""
        exported = ctypes.c_char.from_buffer(memory)
        pointer, size = ctypes.addressof(exported), len(memory)
        check(LIBRARY.uc_mem_map_ptr(self.handle, address, size, _ALL_ACCESS, pointer))
        self._mapped[address] = size, exported

    def unmap(self, address: int) -> None:
        """Take the memory away that was mapped there; raises UnicornError."""
        size, _hold = self._mapped.pop(address)
        check(LIBRARY.uc_mem_unmap(self.handle, address, size))

    def flush_code(self) -> None:
        """Forget translations."""
        self._control(unicorn_const.UC_CTL_TB_FLUSH)

    def reset(self) -> None:
        """Make it as it was when it was opened; raises UnicornError if that can't be done.

        Translations, of code and of addresses, are forgotten: Unicorn 2.1 does so when it takes memory away,
        too, but doesn't say so.

        Not undone, so whoever does it says so in `reusable`: hooks; MSRs that are in no saved CPU state; what
        guest code may do to its debug registers, whose breakpoints Unicorn keeps outside of the CPU state.
        """
        for address in list(self._mapped):
            self.unmap(address)
        check(LIBRARY.uc_context_restore(self.handle, self._birth))
        self._control(unicorn_const.UC_CTL_TLB_FLUSH)
        self.flush_code()
        self.interrupts.clear()

    def hook(self, type_: int, callback: object, *instruction: c_int) -> None:
        """Let Unicorn call `callback` (a C function) for as long as it is open."""
        pointer, hook = ctypes.cast(callback, c_void_p), c_size_t()  # type: ignore[arg-type] # it is one
        where = (self.handle, ctypes.byref(hook), type_, pointer, None, 1, 0)
        check(LIBRARY.uc_hook_add(*where, *instruction))
        self._callbacks.append(callback)

    def _hook_interrupts(self) -> None:
        handle, seen = self.handle, self.interrupts

        def interrupted(_engine: int, number: int, _user: int) -> None:
            seen.append(number)
            _emu_stop(handle)

        self.hook(unicorn_const.UC_HOOK_INTR, _InterruptCallback(interrupted))

    def _control(self, type_: int, *arguments: Any) -> None:
        request = type_ | len(arguments) << _ARGUMENTS_SHIFT | _WRITE
        check(LIBRARY.uc_ctl(self.handle, c_int(request), *arguments))


def _close(handle: c_void_p, birth: c_void_p, _callbacks: list[object]) -> None:
    if birth.value is not None:
        LIBRARY.uc_context_free(birth)
    LIBRARY.uc_close(handle)
