"""Whether the VMM that the command line names takes part, or that of a fixture, which is nearer."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final, cast

import pytest

_OWN: Final = __name__.rpartition(".")[0]
_FIXTURE: Final = "xenkvm_vmm"


def in_place_of_option(function: pytest.Function) -> str | None:
    """Where the fixture is that takes `--xenkvm-vmm`'s place for an item: its file and line.

    None if the command line names no VMM, or if that fixture asks for the one that it overrides.
    """
    info = function._fixtureinfo  # noqa: SLF001 - nothing else tells which fixtures an item gets
    known = cast("Sequence[pytest.FixtureDef[object]]", info.name2fixturedefs.get(_FIXTURE, ()))
    if function.config.option.xenkvm_vmm is None or not known:
        return None
    nearest = known[-1]
    if nearest.func.__module__.startswith(_OWN) or _FIXTURE in nearest.argnames:
        return None
    code = nearest.func.__code__
    return f"{os.path.relpath(code.co_filename, function.config.rootpath)}:{code.co_firstlineno}"
