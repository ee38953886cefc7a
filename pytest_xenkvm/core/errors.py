"""How an operation of the core fails."""

from __future__ import annotations

import errno as _errno


class KvmError(Exception):
    """An operation that the kernel refuses with `-errno`. Nothing has changed unless the ABI says so."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno

    def __str__(self) -> str:
        return f"-{_errno.errorcode.get(self.errno, 'E?')} (-{self.errno})"
