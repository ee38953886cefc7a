"""Eventfds: counters that VMM and kernel share (`fs/eventfd.c`; all supported kernels)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from errno import EAGAIN, EBADF, EINVAL
from typing import Final

from attrs import Factory, define

from pytest_xenkvm.abi.numbers import U64_MAX
from pytest_xenkvm.core.errors import KvmError

EVENTFD_MAX: Final = U64_MAX - 1
"""Largest count that a write can leave."""


@define(eq=False)
class Eventfd:
    """A counter; `listeners` are told of each increase (an irqfd then drains it)."""

    count: int = 0
    listeners: list[Callable[[], None]] = Factory(list)

    def write(self, value: int) -> None:
        """The VMM adds `value` (u64). Raises KvmError: -EINVAL for 2^64-1, -EAGAIN if it would block."""
        if value == U64_MAX:
            raise KvmError(EINVAL)
        if self.count + value > EVENTFD_MAX:
            raise KvmError(EAGAIN)
        self._add(value)

    def signal(self) -> None:
        """The kernel adds 1; the count stops at 2^64-1."""
        self._add(1)

    def drain(self) -> int:
        """Take the count; 0 if there was none."""
        count, self.count = self.count, 0
        return count

    def _add(self, value: int) -> None:
        self.count = min(self.count + value, U64_MAX)
        for listener in tuple(self.listeners):
            listener()


def lookup(files: Mapping[int, Eventfd | None], fd: int) -> Eventfd:
    """The eventfd with number `fd` in the VMM's table of files, where None stands for another kind.

    Raises KvmError: -EBADF if the number is not open, -EINVAL if it is no eventfd (`eventfd_ctx_fdget`).
    """
    if fd not in files:
        raise KvmError(EBADF)
    eventfd = files[fd]
    if eventfd is None:
        raise KvmError(EINVAL)
    return eventfd
