"""The conformance suite by its name: `pytest --pyargs pytest_xenkvm.conformance`, wherever it lies.

In the wheel it is a package inside ours. A checkout has it beside ours, where Python doesn't find it under
that name, so that the argument becomes a path there.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import pytest_xenkvm

SUITE: Final = "pytest_xenkvm.conformance"
_PACKAGE: Final = Path(pytest_xenkvm.__file__).parent


def find_suite(arguments: list[str]) -> list[str]:
    """Arguments of pytest, those that name the suite or a module of it as they must be here."""
    if (_PACKAGE / "conformance").is_dir():
        return arguments
    return [_in_checkout(argument) for argument in arguments]


def _in_checkout(argument: str) -> str:
    name, separator, test = argument.partition("::")
    if name != SUITE and not name.startswith(f"{SUITE}."):
        return argument
    path = _PACKAGE.parent.joinpath(*name.split(".")[1:])
    return f"{path if path.is_dir() else path.with_suffix('.py')}{separator}{test}"
