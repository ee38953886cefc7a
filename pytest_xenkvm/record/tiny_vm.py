"""The smallest VM that makes Xen hypercalls: one vCPU in real mode, driven by ioctls on /dev/kvm.

The recorder looks at it through its own probes before it trusts them. Request numbers and layouts are those
of the UAPI header linux/kvm.h, x86-64.
"""

from __future__ import annotations

import fcntl
import mmap
import os
from struct import Struct
from types import TracebackType
from typing import Final

from attrs import define, field

from pytest_xenkvm.abi import ioctls, kvm
from pytest_xenkvm.abi.layout import U32, U64
from pytest_xenkvm.abi.numbers import KVM_EXIT_XEN, PAGE_SIZE, HvmAttr, XenHvmFlag

_DEVICE: Final = "/dev/kvm"
_GET_REGS: Final = 0x8090AE81
_SET_REGS: Final = 0x4090AE82
_RIP, _RFLAGS, _REGISTERS = 16, 17, 18
_RESERVED_RFLAG: Final = 2
_CS_BASE_LIMIT_AND_SELECTOR: Final = Struct("<QIH")
_CS_LIMIT: Final = 0xFFFF
_EXIT_HLT: Final = 5

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
        config = ioctls.HVM_CONFIG.pack(XenHvmFlag.INTERCEPT_HCALL, _MSR, 0, 0, 0, 0)
        fcntl.ioctl(self._vm, ioctls.KVM_XEN_HVM_CONFIG, config)
        version = ioctls.ATTR_HEADER.pack(HvmAttr.XEN_VERSION) + U32.pack(xen_version)
        fcntl.ioctl(self._vm, ioctls.KVM_XEN_HVM_SET_ATTR, version.ljust(ioctls.ATTR_SIZE, b"\0"))

    def hypercall(self, number: int, *, answer: int = 0) -> int:
        """Let the guest make a hypercall with arguments of 0; return its EAX afterwards.

        `answer`: what the VMM answers if the call is forwarded.
        """
        registers = [0] * _REGISTERS
        registers[0], registers[_RIP], registers[_RFLAGS] = number, CODE, _RESERVED_RFLAG
        fcntl.ioctl(self._vcpu, _SET_REGS, kvm.REGS.pack(*registers))
        while (reason := self._run()) == KVM_EXIT_XEN:
            U64.pack_into(self._state, kvm.RUN_XEN_RESULT_AT, answer)
        if reason != _EXIT_HLT:
            raise OSError(f"KVM_RUN of the probes' own test ended with reason {reason}, expected {_EXIT_HLT}")
        after = fcntl.ioctl(self._vcpu, _GET_REGS, bytes(kvm.REGS.size))
        return int(kvm.REGS.unpack(after)[0])

    def _run(self) -> int:
        fcntl.ioctl(self._vcpu, kvm.KVM_RUN, 0)
        return int(kvm.RUN_EXIT_REASON.unpack_from(self._state)[0])

    def _create(self) -> None:
        device = os.open(_DEVICE, os.O_RDWR | os.O_CLOEXEC)
        self._files.append(device)
        self._vm = fcntl.ioctl(device, kvm.KVM_CREATE_VM, 0)
        self._files.append(self._vm)
        self._page = mmap.mmap(-1, PAGE_SIZE)
        self._page[: len(_CALL[self.vendor]) + 1] = _CALL[self.vendor] + _HLT
        address = _address(self._page)
        fcntl.ioctl(
            self._vm,
            kvm.KVM_SET_USER_MEMORY_REGION,
            kvm.USER_MEMORY_REGION.pack(0, 0, CODE, PAGE_SIZE, address),
        )
        self._vcpu = fcntl.ioctl(self._vm, kvm.KVM_CREATE_VCPU, self.vcpu_id)
        self._files.append(self._vcpu)
        self._state = mmap.mmap(self._vcpu, fcntl.ioctl(device, kvm.KVM_GET_VCPU_MMAP_SIZE, 0))
        special = bytearray(fcntl.ioctl(self._vcpu, kvm.KVM_GET_SREGS, bytes(kvm.SREGS_SIZE)))
        _CS_BASE_LIMIT_AND_SELECTOR.pack_into(special, 0, 0, _CS_LIMIT, 0)
        fcntl.ioctl(self._vcpu, kvm.KVM_SET_SREGS, bytes(special))

    def _close(self) -> None:
        if hasattr(self, "_state"):
            self._state.close()
        while self._files:
            os.close(self._files.pop())


def _address(memory: mmap.mmap) -> int:
    """Return where a writable mapping lies in this process."""
    import ctypes  # noqa: PLC0415 - only here, and not quick to load

    return ctypes.addressof(ctypes.c_char.from_buffer(memory))
