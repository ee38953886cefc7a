"""Memory slots that the VMM adds, so that KVM must find areas given by guest address anew."""

from __future__ import annotations

from typing import Final

from pytest_xenkvm.abi.numbers import PAGE_SIZE

from .vm import ProbeVm

ELSEWHERE: Final = 0x8000_0000
"""Where slots are added that nobody uses."""


def slot_added(vm: ProbeVm) -> None:
    """Add one more slot of a page, when nothing else is due that would find an area anew."""
    for vcpu in vm.vcpus:
        vcpu.run()
    vm.added += 1
    vm.add_memory(ELSEWHERE + vm.added * 2 * PAGE_SIZE)
