"""Recordings of real kernels go through both formats without a change."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.trace.files import open_trace, write_trace

FOLDER: Final = Path(__file__).parents[2] / "traces" / "golden"
GOLDENS: Final = sorted(path.relative_to(FOLDER).as_posix() for path in FOLDER.rglob("*.jsonl.gz"))


def test_there_are_golden_traces() -> None:
    """The next test has something to work on."""
    assert GOLDENS


@pytest.mark.parametrize("name", GOLDENS)
def test_golden_survives_both_formats(tmp_path: Path, name: str) -> None:
    """JSON Lines to xkt and back gives the text that was recorded, to the letter."""
    golden = open_trace(FOLDER / name)
    events = write_trace(tmp_path / "t.xkt", golden.header, golden.events())
    binary = open_trace(tmp_path / "t.xkt")
    assert sum((binary.counts() or {}).values()) == events
    write_trace(tmp_path / "t.jsonl", binary.header, binary.events())
    assert (tmp_path / "t.jsonl").read_bytes() == gzip.decompress((FOLDER / name).read_bytes())
