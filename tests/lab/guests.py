"""Guests with a real kernel: where one can be had, and how it is run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.lab.errors import LabError
from pytest_xenkvm.lab.kernels import KernelCache
from pytest_xenkvm.lab.qemu import find_qemu

KERNEL: Final = "linux-6.12"
"""The one that must be there when the lab is required: it is in the archive of a stable Debian."""


def needed(name: str) -> None:
    """Skip, or fail if the lab is required, unless a guest with that kernel can be had."""
    try:
        find_qemu()
        KernelCache.of_user().fetched(name)
    except LabError as error:
        if os.environ.get("XENKVM_LAB") == "required" and name == KERNEL:
            pytest.fail(f"XENKVM_LAB=required, but {error}")
        pytest.skip(str(error))


def lab(*args: str) -> list[str]:
    """The command line of a guest."""
    return [sys.executable, "-c", "from pytest_xenkvm.cli.main import main; main()", "lab", "run", *args]


def run(folder: Path, *args: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Run a guest to its end."""
    return subprocess.run(
        lab(*args), cwd=folder, capture_output=True, text=True, timeout=timeout, check=False
    )
