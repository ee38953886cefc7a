"""Walking page tables in software: 4-level, PAE and 2-level."""

from __future__ import annotations

from typing import Final

import pytest
from attrs import evolve

from pytest_xenkvm.cpu import paging
from pytest_xenkvm.cpu.vmcb import EFER_LMA, CpuState, Segment

TOP: Final = 0x1000
SEGMENT: Final = Segment()
LONG: Final = CpuState(
    cr0=paging.CR0_PE | paging.CR0_PG,
    cr3=TOP,
    cr4=paging.CR4_PAE,
    efer=EFER_LMA,
    rflags=2,
    cs=SEGMENT,
    ss=SEGMENT,
    ds=SEGMENT,
    es=SEGMENT,
    fs=SEGMENT,
    gs=SEGMENT,
)
PAE: Final = evolve(LONG, efer=0)
TWO_LEVEL: Final = evolve(PAE, cr4=paging.CR4_PSE)
ALL: Final = paging.PRESENT | paging.WRITABLE | paging.USER


def tables(entries: dict[int, int], size: int = 8) -> paging.ReadPhysical:
    """Physical memory with these table entries by address, and zeros in between up to 1 MiB."""

    def read(address: int, length: int) -> bytes | None:
        return entries.get(address, 0).to_bytes(size, "little")[:length] if address < 1 << 20 else None

    return read


FOUR_LEVELS: Final = {
    TOP: 0x2000 | ALL,
    0x2000: 0x3000 | ALL,
    0x3000: 0x4000 | ALL,
    0x3008: 0x4000_0000 | paging.LARGE | ALL,
    0x4000: 0x7000 | ALL,
    0x4008: 0x8000 | paging.PRESENT,
    0x2008: 0x8000_0000 | paging.LARGE | ALL,
}


@pytest.mark.parametrize(
    ("linear", "physical"),
    [
        (0x123, 0x7123),
        (0x1FFF, 0x8FFF),
        (0x2000, None),
        (0x20_1234, 0x4000_1234),
        (0x4000_5678, 0x8000_5678),
        (0x80_0000_0000, None),
        (0xFFFF_0000_0000_0123, 0x7123),
    ],
)
def test_four_levels(linear: int, physical: int | None) -> None:
    """Pages of 4 KiB, 2 MiB and 1 GiB are found; bits 48-63 of the address don't matter."""
    assert paging.translate(LONG, linear, tables(FOUR_LEVELS)) == physical


def test_user_code_needs_the_user_bit() -> None:
    """At CPL 3 a supervisor page is a fault; at CPL 0 it isn't."""
    assert paging.translate(evolve(LONG, cpl=3), 0x1000, tables(FOUR_LEVELS)) is None
    assert paging.translate(evolve(LONG, cpl=3), 0x0, tables(FOUR_LEVELS)) == 0x7000
    assert paging.translate(LONG, 0x1000, tables(FOUR_LEVELS)) == 0x8000


def test_writes_need_the_write_bit() -> None:
    """A read-only page can't be written."""
    assert paging.translate(LONG, 0x1000, tables(FOUR_LEVELS), write=True) is None
    assert paging.translate(LONG, 0x0, tables(FOUR_LEVELS), write=True) == 0x7000


def test_pae() -> None:
    """The top entries of PAE tables have no permission bits; addresses have 32 bits."""
    entries = {TOP + 8: 0x2000 | paging.PRESENT, 0x2000: 0x3000 | ALL, 0x3008: 0x9000 | ALL}
    assert paging.translate(evolve(PAE, cpl=3), 0x4000_1004, tables(entries)) == 0x9004
    assert paging.translate(PAE, 0x1_4000_1004, tables(entries)) == 0x9004
    assert paging.translate(PAE, 0x0, tables(entries)) is None


def test_two_levels() -> None:
    """Entries of 4 bytes; 4 MiB pages only with CR4.PSE."""
    entries = {TOP: 0x2000 | ALL, 0x2004: 0x5000 | ALL, TOP + 4: 0x40_0000 | paging.LARGE | ALL}
    assert paging.translate(TWO_LEVEL, 0x1010, tables(entries, 4)) == 0x5010
    assert paging.translate(TWO_LEVEL, 0x40_1010, tables(entries, 4)) == 0x40_1010
    assert paging.translate(evolve(TWO_LEVEL, cr4=0), 0x40_1010, tables(entries, 4)) is None


def test_without_paging() -> None:
    """Linear is physical, in 32 bits."""
    assert paging.translate(evolve(LONG, cr0=1, efer=0), 0x1_0000_1234, tables({})) == 0x1234


def test_tables_that_are_not_there() -> None:
    """A table outside of memory maps nothing."""
    assert paging.translate(evolve(LONG, cr3=0x1000_0000), 0, tables({})) is None
