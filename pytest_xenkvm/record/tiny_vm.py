"""The smallest VM that makes Xen hypercalls: one vCPU in real mode, driven by ioctls on /dev/kvm.

The recorder looks at it through its own probes before it trusts them. Request numbers and layouts are those
of the UAPI header linux/kvm.h, x86-64.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from pathlib import Path
from struct import Struct
from types import TracebackType
from typing import Final

from attrs import define, field

from pytest_xenkvm.abi.ioctls import (
    ATTR_HEADER,
    ATTR_SIZE,
    HVM_CONFIG,
    KVM_XEN_HVM_CONFIG,
    KVM_XEN_HVM_SET_ATTR,
)
from pytest_xenkvm.abi.layout import U32, U64
from pytest_xenkvm.abi.numbers import KVM_EXIT_XEN, PAGE_SIZE, HvmAttr, XenHvmFlag
from pytest_xenkvm.trace.importers.probed_vm import KVM_SET_USER_MEMORY_REGION

KVM_CHECK_EXTENSION: Final = 0xAE03
_KVM_CREATE_VM: Final = 0xAE01
_KVM_GET_VCPU_MMAP_SIZE: Final = 0xAE04
_KVM_CREATE_VCPU: Final = 0xAE41
_KVM_RUN: Final = 0xAE80
_KVM_GET_REGS: Final = 0x8090AE81
_KVM_SET_REGS: Final = 0x4090AE82
_KVM_GET_SREGS: Final = 0x8138AE83
_KVM_SET_SREGS: Final = 0x4138AE84

_REGION: Final = Struct("<IIQQQ")
_REGS: Final = Struct("<18Q")
"""rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp, r8 ... r15, rip, rflags."""
_RIP, _RFLAGS = 16, 17
_RESERVED_RFLAG: Final = 2
_SREGS_SIZE: Final = 312
_CS_BASE_AND_SELECTOR: Final = Struct("<QIH")
_CS_LIMIT: Final = 0xFFFF

_EXIT_REASON: Final = 8
_XEN_RESULT: Final = 32 + 24
"""In struct kvm_run: the union at 32, then type, padding, longmode, cpl, input (8 bytes each pair)."""
KVM_EXIT_HLT: Final = 5

_MSR: Final = 0x4000_0000
_CALL: Final = {"amd": b"\x0f\x01\xd9", "intel": b"\x0f\x01\xc1"}
_HLT: Final = b"\xf4"
CODE: Final = PAGE_SIZE
"""Guest address of the code page."""


@define(slots=False, eq=False)
class TinyVm:
    """A VM with one vCPU, whose KVM vCPU id is `vcpu_id`; a context manager. Raises OSError.

    `vendor`: "amd" or "intel", the host's CPU.
    """

    vendor: str
    vcpu_id: int = 0
    device: Path = Path("/dev/kvm")
    _files: list[int] = field(factory=list, init=False)

    def __enter__(self) -> TinyVm:  # noqa: PYI034 - Python 3.10 has no Self
        try:
            self._create()
        except BaseException:
            self._close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def configure(self, *, xen_version: int) -> None:
        """Intercept hypercalls, and let the kernel answer XENVER_version."""
        config = HVM_CONFIG.pack(XenHvmFlag.INTERCEPT_HCALL, _MSR, 0, 0, 0, 0)
        fcntl.ioctl(self._vm, KVM_XEN_HVM_CONFIG, config)
        version = ATTR_HEADER.pack(HvmAttr.XEN_VERSION) + U32.pack(xen_version)
        fcntl.ioctl(self._vm, KVM_XEN_HVM_SET_ATTR, version.ljust(ATTR_SIZE, b"\0"))

    def hypercall(self, number: int, *, answer: int = 0) -> int:
        """Let the guest make a hypercall with arguments of 0; return its EAX afterwards.

        `answer`: what the VMM answers if the call is forwarded.
        """
        registers = [0] * 18
        registers[0], registers[_RIP], registers[_RFLAGS] = number, CODE, _RESERVED_RFLAG
        fcntl.ioctl(self._vcpu, _KVM_SET_REGS, _REGS.pack(*registers))
        while (reason := self._run()) == KVM_EXIT_XEN:
            self._state[_XEN_RESULT : _XEN_RESULT + U64.size] = U64.pack(answer)
        if reason != KVM_EXIT_HLT:
            raise OSError(
                f"KVM_RUN of the probes' own test ended with reason {reason}, expected {KVM_EXIT_HLT}"
            )
        after = fcntl.ioctl(self._vcpu, _KVM_GET_REGS, bytes(_REGS.size))
        return int(_REGS.unpack(after)[0])

    def _run(self) -> int:
        fcntl.ioctl(self._vcpu, _KVM_RUN, 0)
        return int(U32.unpack_from(self._state, _EXIT_REASON)[0])

    def _create(self) -> None:
        device = os.open(self.device, os.O_RDWR | os.O_CLOEXEC)
        self._files.append(device)
        self._vm = fcntl.ioctl(device, _KVM_CREATE_VM, 0)
        self._files.append(self._vm)
        self._page = mmap.mmap(-1, PAGE_SIZE)
        self._page[: len(_CALL[self.vendor]) + 1] = _CALL[self.vendor] + _HLT
        address = _address(self._page)
        fcntl.ioctl(self._vm, KVM_SET_USER_MEMORY_REGION, _REGION.pack(0, 0, CODE, PAGE_SIZE, address))
        self._vcpu = fcntl.ioctl(self._vm, _KVM_CREATE_VCPU, self.vcpu_id)
        self._files.append(self._vcpu)
        self._state = mmap.mmap(self._vcpu, fcntl.ioctl(device, _KVM_GET_VCPU_MMAP_SIZE, 0))
        special = bytearray(fcntl.ioctl(self._vcpu, _KVM_GET_SREGS, bytes(_SREGS_SIZE)))
        _CS_BASE_AND_SELECTOR.pack_into(special, 0, 0, _CS_LIMIT, 0)
        fcntl.ioctl(self._vcpu, _KVM_SET_SREGS, bytes(special))

    def _close(self) -> None:
        if hasattr(self, "_state"):
            self._state.close()
        while self._files:
            os.close(self._files.pop())


def _address(memory: mmap.mmap) -> int:
    """Return where a writable mapping lies in this process."""
    import ctypes  # noqa: PLC0415 - only here, and not quick to load

    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
