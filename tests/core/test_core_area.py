"""The states of a memory area."""

from __future__ import annotations

from errno import EFAULT, EINVAL

import pytest
from attrs import evolve
from xen_vms import PAGE, refusal

from pytest_xenkvm.abi.numbers import INVALID_GPA
from pytest_xenkvm.core.area import MemoryArea
from pytest_xenkvm.core.memory import HVA_BASE, HVA_LIMIT, GuestMemory

MEMORY = GuestMemory([(0, bytearray(2 * PAGE)), (3 * PAGE, bytearray(PAGE))])


def address(area: MemoryArea) -> int:
    """Where in MEMORY the area's bytes are: there what is stored through it shows."""
    mark = b"\x5a\xa5"
    area.usable(MEMORY)[:2] = mark
    (found,) = [gpa for gpa in range(4 * PAGE) if MEMORY.read(gpa, 2) == mark]
    area.usable(MEMORY)[:2] = bytes(2)
    return found


def usable_area() -> MemoryArea:
    """An area at guest address 64."""
    area = MemoryArea()
    area.activate_gpa(MEMORY, 64, 64)
    return area


def test_a_new_area_is_off() -> None:
    """Whoever wants to use an area that was never activated gets -EINVAL."""
    assert refusal(MemoryArea().usable, MEMORY) == EINVAL


@pytest.mark.parametrize("gpa", [0, 1, PAGE - 64, 3 * PAGE])
def test_an_area_at_memory_is_usable(gpa: int) -> None:
    """An area of any alignment that fits its page can be used where it was put."""
    area = MemoryArea()
    area.activate_gpa(MEMORY, gpa, 64)
    assert (address(area), area.gpa, area.hva) == (gpa, gpa, 0)
    assert len(area.usable(MEMORY)) == PAGE - gpa % PAGE


@pytest.mark.parametrize("gpa", [2 * PAGE, 4 * PAGE, INVALID_GPA - 63])
def test_an_area_without_memory_is_refused_and_remembered(gpa: int) -> None:
    """Where there is no memory the answer is -EFAULT, and the area counts as active with that address."""
    area = usable_area()
    assert refusal(area.activate_gpa, MEMORY, gpa, 64) == EFAULT
    assert (area.active, area.gpa, refusal(area.usable, MEMORY)) == (True, gpa, EFAULT)


def test_an_area_across_pages_changes_nothing() -> None:
    """A range that crosses a page is -EINVAL, and the old area stays, by guest and by host address."""
    area = usable_area()
    before = evolve(area)
    assert refusal(area.activate_gpa, MEMORY, PAGE - 63, 64) == EINVAL
    assert refusal(area.activate_hva, MEMORY, HVA_BASE + PAGE - 63, 64) == EINVAL
    assert refusal(area.activate_hva, MEMORY, HVA_LIMIT, 64) == EINVAL
    assert area == before


def test_a_host_address_leads_to_the_guest_memory_behind_it() -> None:
    """An area by host address is backed by the slot that is mapped there, and shows no guest address."""
    area = usable_area()
    area.activate_hva(MEMORY, HVA_BASE + 2 * PAGE + 8, 64)
    assert (address(area), area.gpa, area.hva) == (3 * PAGE + 8, INVALID_GPA, HVA_BASE + 2 * PAGE + 8)


def test_a_host_address_without_memory_is_refused_and_remembered() -> None:
    """A host address that backs nothing is -EFAULT and counts as active."""
    area = usable_area()
    assert refusal(area.activate_hva, MEMORY, PAGE, 64) == EFAULT
    assert (area.active, area.hva, refusal(area.usable, MEMORY)) == (True, PAGE, EFAULT)


def test_deactivating_forgets_the_area() -> None:
    """An area that was switched off is like a new one."""
    area = usable_area()
    area.deactivate()
    assert area == MemoryArea()


def growing(*, by_host: bool) -> tuple[GuestMemory, MemoryArea]:
    """A memory of one page, and an area just behind it, where there is none yet."""
    memory, area = GuestMemory([(0, bytearray(PAGE))]), MemoryArea()
    activate = area.activate_hva if by_host else area.activate_gpa
    assert refusal(activate, memory, PAGE + (HVA_BASE if by_host else 0), 64) == EFAULT
    return memory, area


@pytest.mark.parametrize("by_host", [True, False])
def test_a_refused_area_is_usable_once_there_is_memory(*, by_host: bool) -> None:
    """Whoever wants to use a refused area maps the memory that has come there since."""
    memory, area = growing(by_host=by_host)
    assert area.refresh(memory) is None
    memory.add(PAGE, bytearray(PAGE))
    area.usable(memory)[0] = 0x5A
    assert memory.read(PAGE, 1) == b"\x5a"
    assert area.mapped is not None


def test_other_slots_make_a_mapping_stale() -> None:
    """After a change of slots an area by guest address must be mapped anew, one by host address needn't."""
    area = usable_area()
    area.slots_changed()
    assert (area.active, area.mapped) == (True, None)
    assert address(area) == 64
    area.activate_hva(MEMORY, HVA_BASE, 64)
    area.slots_changed()
    assert area.mapped is not None


def test_dirty_pages_of_an_area() -> None:
    """An area by guest address marks its page in the log of its slot; others have none."""
    memory, area = GuestMemory([(0, bytearray(PAGE))]), MemoryArea()
    memory.add(4 * PAGE, bytearray(2 * PAGE), log_dirty=True)
    for gpa in (64, 5 * PAGE + 64):
        area.activate_gpa(memory, gpa, 64)
        area.mark_dirty()
    hva = memory.gpa_to_hva(4 * PAGE)
    assert hva is not None
    area.activate_hva(memory, hva, 64)
    area.mark_dirty()
    assert memory.dirty_log(4 * PAGE) == {5 * PAGE}
    assert memory.dirty_log(0) is None


def test_an_area_that_is_off_stays_off() -> None:
    """Mapping anew leaves an area alone that nobody activated."""
    area = MemoryArea()
    assert area.refresh(MEMORY) is None
    assert area == MemoryArea()
