"""Memory areas: guest memory that the kernel keeps mapped so that it can update it at any time.

The states of an area, and what moves it between them (`kvm_gpc_activate`, `kvm_gpc_activate_hva`,
`kvm_gpc_deactivate`, `kvm_gpc_check`, `kvm_gpc_refresh`; all supported kernels):

    off      --activate, range crosses a page or no process address--> unchanged, -EINVAL
    any      --activate, no memory there-->                            refused, -EFAULT
    any      --activate, memory there-->                               usable
    any      --deactivate-->                                           off
    usable   --the VM's memory slots change, given by guest address--> refused
    refused  --refresh, memory there-->                                usable

A *refused* area counts as active: reading the attribute returns the address that failed. Whoever wants to
use it and may sleep maps it anew first, and gets -EFAULT if there is still no memory; whoever may not sleep
takes it as it is (`mapped`).

A page of an area given by guest address can be marked dirty in its slot's log (`kvm_gpc_mark_dirty_in_slot`);
an area given by host address has no slot.
"""

from __future__ import annotations

from errno import EFAULT, EINVAL

from attrs import define, field

from pytest_xenkvm.abi.numbers import INVALID_GPA, PAGE_SIZE
from pytest_xenkvm.core.errors import KvmError
from pytest_xenkvm.core.memory import GuestMemory, is_user_range


@define
class MemoryArea:
    """A structure of guest memory that the kernel writes to. Addresses in bytes."""

    active: bool = False
    gpa: int = INVALID_GPA
    """As the VMM gave it; INVALID_GPA if the area was given by host address."""
    hva: int = 0
    """As the VMM gave it; 0 if the area was given by guest address."""
    mapped: memoryview | None = None
    """The bytes from the area's start to the end of its page; None while the area is not usable."""
    _log: set[int] | None = field(default=None, init=False)
    """Of the slot, while it is mapped by guest address; None if it keeps none."""

    def activate_gpa(self, memory: GuestMemory, gpa: int, size: int) -> None:
        """Map `size` bytes at guest address `gpa`; raises KvmError -EINVAL or -EFAULT as above."""
        _check_one_page(gpa, size)
        self.active, self.gpa, self.hva = True, gpa, 0
        self._map(memory, gpa if memory.has(gpa, size) else None)

    def activate_hva(self, memory: GuestMemory, hva: int, size: int) -> None:
        """Map `size` bytes at host address `hva`; raises KvmError -EINVAL or -EFAULT as above."""
        _check_one_page(hva, size)
        if not is_user_range(hva, size):
            raise KvmError(EINVAL)
        self.active, self.gpa, self.hva = True, INVALID_GPA, hva
        self._map(memory, memory.hva_to_gpa(hva, size))

    def deactivate(self) -> None:
        """Switch the area off."""
        self.active, self.gpa, self.hva, self.mapped, self._log = False, INVALID_GPA, 0, None, None

    def slots_changed(self) -> None:
        """The mapping of an area given by guest address is stale; host addresses stay what they are."""
        if not self.hva:
            self.mapped = None

    def mark_dirty(self) -> None:
        """The kernel has written to the area's page, and says so in the log of its slot."""
        if self._log is not None:
            self._log.add(self.gpa - self.gpa % PAGE_SIZE)

    def refresh(self, memory: GuestMemory) -> memoryview | None:
        """The bytes, mapped anew if need be; None if off, or if there is no memory."""
        if self.mapped is None and self.active:
            self._find(memory, memory.hva_to_gpa(self.hva, 1) if self.hva else self.gpa)
        return self.mapped

    def usable(self, memory: GuestMemory) -> memoryview:
        """The same bytes; raises KvmError -EINVAL if off, -EFAULT if there is no memory."""
        mapped = self.mapped or self.refresh(memory)
        if mapped is None:
            raise KvmError(EFAULT if self.active else EINVAL)
        return mapped

    def _map(self, memory: GuestMemory, gpa: int | None) -> None:
        self._find(memory, gpa)
        if self.mapped is None:
            raise KvmError(EFAULT)

    def _find(self, memory: GuestMemory, gpa: int | None) -> None:
        self.mapped = None if gpa is None else memory.view(gpa, PAGE_SIZE - gpa % PAGE_SIZE)
        self._log = None if gpa is None or self.hva else memory.dirty_log(gpa)


def _check_one_page(address: int, size: int) -> None:
    if address % PAGE_SIZE + size > PAGE_SIZE:
        raise KvmError(EINVAL)
