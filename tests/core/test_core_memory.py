"""Guest memory in slots, and where the host maps it."""

from __future__ import annotations

import pytest
from xen_vms import PAGE

from pytest_xenkvm.core.memory import HVA_BASE, HVA_LIMIT, GuestMemory, is_user_range


@pytest.fixture
def memory() -> GuestMemory:
    """Two pages at 0, a hole of one page, then two slots of a page each that touch."""
    memory = GuestMemory([(0, bytearray(2 * PAGE)), (3 * PAGE, bytearray(PAGE)), (4 * PAGE, bytearray(PAGE))])
    for page in (0, 1, 3, 4):
        assert memory.write(page * PAGE, bytes([page + 1]) * PAGE)
    return memory


@pytest.mark.parametrize(
    ("gpa", "size", "data"),
    [
        (PAGE - 1, 2, b"\1\2"),
        (2 * PAGE - 1, 1, b"\2"),
        (2 * PAGE - 1, 2, None),
        (2 * PAGE, 1, None),
        (3 * PAGE - 1, 2, None),
        (3 * PAGE, 1, b"\4"),
        (4 * PAGE - 1, 1, b"\4"),
        (4 * PAGE - 1, 2, None),
        (4 * PAGE, 1, b"\5"),
        (5 * PAGE, 1, None),
        (2**64 - 1, 1, None),
    ],
)
def test_a_range_is_memory_if_one_slot_holds_all_of_it(
    memory: GuestMemory, gpa: int, size: int, data: bytes | None
) -> None:
    """Ranges that touch a hole or go from one slot to the next are not there, for reads and for writes."""
    assert memory.read(gpa, size) == data
    assert memory.has(gpa, size) == (data is not None)
    before = [bytes(slot.buffer[0:PAGE]) for slot in memory.slots]
    assert memory.write(gpa, bytes(size)) == (data is not None)
    assert memory.read(gpa, size) == (data and bytes(size))
    if data is None:
        assert [bytes(slot.buffer[0:PAGE]) for slot in memory.slots] == before


@pytest.mark.parametrize(
    ("gpa", "offset"),
    [(0, 0), (2 * PAGE - 1, 2 * PAGE - 1), (3 * PAGE, 2 * PAGE), (4 * PAGE + 5, 3 * PAGE + 5)],
)
def test_slots_follow_each_other_in_the_host(memory: GuestMemory, gpa: int, offset: int) -> None:
    """A guest address and the host address that backs it lead to each other, whatever slot they are in."""
    assert memory.gpa_to_hva(gpa) == HVA_BASE + offset
    assert memory.hva_to_gpa(HVA_BASE + offset, 1) == gpa


def test_what_is_no_memory_has_no_host_address(memory: GuestMemory) -> None:
    """Holes, what lies behind the last slot, and host ranges over two slots lead nowhere."""
    assert memory.gpa_to_hva(2 * PAGE) is None
    assert memory.gpa_to_hva(5 * PAGE) is None
    assert memory.hva_to_gpa(HVA_BASE - 1, 1) is None
    assert memory.hva_to_gpa(HVA_BASE + 4 * PAGE, 1) is None
    assert memory.hva_to_gpa(HVA_BASE + 2 * PAGE - 1, 2) is None


def test_the_end_of_the_address_space_is_the_end_of_user_ranges() -> None:
    """A range that ends at the limit is a process's, one byte more is not."""
    assert is_user_range(HVA_LIMIT - PAGE, PAGE)
    assert not is_user_range(HVA_LIMIT - PAGE + 1, PAGE)
