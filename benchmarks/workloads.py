"""What is measured: reading a trace's file bare, and replaying it whole on either engine.

As a program, `workloads.py NAME FILE` does one of them and prints the process's peak memory in KiB.
"""

from __future__ import annotations

import re
import sys
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from struct import Struct
from typing import Final

import msgpack  # type: ignore[import-untyped]

from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.rules.hosts import MODEL, UNICORN
from pytest_xenkvm.rules.run import ReplayOptions, run_trace
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.trace.blocks import EVENTS, PREFIX_SIZE

_FRAME: Final = Struct("<cIII")
"""A block's tag, stored length, length, CRC-32 (docs/reference/trace-format.md)."""


def decode(path: Path) -> None:
    """Inflate every block and unpack its rows, nothing else: the least that reading the file can cost."""
    with path.open("rb") as file:
        file.seek(PREFIX_SIZE)
        while len(frame := file.read(_FRAME.size)) == _FRAME.size:
            tag, size, _length, _crc = _FRAME.unpack(frame)
            stored = file.read(size)
            unpacker = msgpack.Unpacker(use_list=False)
            unpacker.feed(zlib.decompress(stored) if tag == EVENTS else stored)
            for _row in unpacker:
                pass


def replay(path: Path, *, engine: str) -> None:
    """Replay from the file with every comparison made, judged by all bundled rules."""
    run_trace(open_trace(path), BUNDLED, ReplayOptions(engine=engine))


WORKLOADS: Final[dict[str, Callable[[Path], None]]] = {
    "decode": decode,
    "model": partial(replay, engine=MODEL),
    "unicorn": partial(replay, engine=UNICORN),
}


def _peak_kib() -> int:
    """VmHWM rather than ru_maxrss, which a new process inherits from the one that started it."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    (peak,) = re.findall(r"^VmHWM:\s*(\d+) kB$", status, re.MULTILINE)
    return int(peak)


if __name__ == "__main__":
    WORKLOADS[sys.argv[1]](Path(sys.argv[2]))
    sys.stdout.write(str(_peak_kib()))
