"""A forwarded hypercall as `qemu` looks at it: sub-operation, and structures behind pointers."""

from __future__ import annotations

from collections.abc import Callable
from errno import EFAULT
from struct import Struct
from typing import Any, Final

from attrs import frozen

from pytest_xenkvm.abi.numbers import U32_MAX
from pytest_xenkvm.core.hypercalls import UnseenMemory
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.vmm.handles import Vcpu

Fields = tuple[Any, ...]
Assume = Callable[["Call"], "Fields | None"]
"""The structure that a call's guest is taken to have passed where the recording doesn't show it."""

WORD: Final = Struct("<I")


class Refusal(Exception):
    """The call is answered with -errno."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno


@frozen
class Call:
    """A hypercall of a vCPU at CPL 0."""

    vcpu: Vcpu
    xen_exit: XenExit
    assume: Assume

    @property
    def op(self) -> int:
        """The sub-operation, 32 bits of it, as Xen takes it."""
        return self.xen_exit.params[0] & U32_MAX

    def pointer(self, arg: int) -> int:
        """Argument `arg` as an address."""
        return self.xen_exit.params[arg]

    def read(self, arg: int, layout: Struct) -> Fields:
        """The structure behind argument `arg`; raises Refusal(EFAULT) if it isn't mapped.

        Where the recording doesn't show it: what the guest is taken to have passed, else UnseenMemory.
        """
        try:
            data = self.vcpu.read_virtual(self.pointer(arg), layout.size)
        except UnseenMemory:
            assumed = self.assume(self)
            if assumed is None:
                raise
            return assumed
        if data is None:
            raise Refusal(EFAULT)
        return layout.unpack(data)

    def write(self, arg: int, offset: int, data: bytes) -> None:
        """Store to the structure behind argument `arg`; raises Refusal(EFAULT) if it isn't mapped."""
        if not self.vcpu.write_virtual(self.pointer(arg) + offset, data):
            raise Refusal(EFAULT)
