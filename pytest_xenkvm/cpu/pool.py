"""Engines that nobody uses, kept for the next who needs one.

Opening an engine and closing it takes longer than bringing it back to what it was when it was opened. All
engines are opened alike, so any one will do for anybody.

An engine is kept only if nothing was done to it that can't be undone (`OpenEngine.reusable`), and if it sees
little memory, which Unicorn takes away page by page. All others are closed. What is kept sees no memory, so
a VM's memory is freed with the VM.

Threads may share the pool: an engine is in it or in the hands of one. A forked process begins with an empty
one.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Final

from pytest_xenkvm.cpu.unicorn_library import OpenEngine, UnicornError

KEPT: Final = 4
"""So many engines are kept; few VMs live at a time."""
MEMORY_KEPT: Final = 8 << 20
"""Bytes of memory, the engine's own included, that an engine may have seen at the end."""

_kept: Final[deque[OpenEngine]] = deque(maxlen=KEPT)
"""The newest is taken first; appending to a full one drops, and so closes, the oldest. Both are atomic."""
os.register_at_fork(after_in_child=_kept.clear)


def take() -> OpenEngine:
    """An engine as Unicorn opens it; raises UnicornError."""
    try:
        return _kept.pop()
    except IndexError:
        return OpenEngine()


def give_back(engine: OpenEngine) -> None:
    """Keep an engine that nobody uses any more, or close it."""
    if not engine.reusable or engine.mapped > MEMORY_KEPT:
        return
    try:
        engine.reset()
    except UnicornError:  # then it is no engine to go on with
        return
    _kept.append(engine)
