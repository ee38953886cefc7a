"""How an operation of the core fails."""

from __future__ import annotations

import errno as _errno

_NAMES = {**_errno.errorcode, _errno.EOPNOTSUPP: "EOPNOTSUPP"}
"""Python prefers an alias of the kernel's EOPNOTSUPP."""


class KvmError(Exception):
    """An operation that the kernel refuses with `-errno`. Nothing has changed unless the ABI says so."""

    def __init__(self, errno: int) -> None:
        super().__init__(errno)
        self.errno = errno

    def __str__(self) -> str:
        return f"-{_NAMES.get(self.errno, 'E?')} (-{self.errno})"
