"""What the plugin adds to a run of pytest that has nothing to do with it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Final

import pytest_xenkvm
from benchmarks.figures import Figures, StartUp

ROUNDS: Final = 25
PLUGIN: Final = ("-p", "pytest_xenkvm.plugin.entry")


def _seconds(folder: Path, *arguments: str) -> float:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(pytest_xenkvm.__file__).parents[1]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
    }
    command = [sys.executable, "-m", "pytest", "--collect-only", "-p", "no:cacheprovider", *arguments]
    began = perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=False, capture_output=True)
    return perf_counter() - began


def test_start_up(figures: Figures, tmp_path: Path) -> None:
    """Runs with and without the plugin in turns."""
    _seconds(tmp_path, *PLUGIN)
    pairs = [(_seconds(tmp_path), _seconds(tmp_path, *PLUGIN)) for _ in range(ROUNDS)]
    bare, loaded = (min(times) for times in zip(*pairs, strict=True))
    figures.start_up = StartUp(without_plugin=bare, with_plugin=loaded)
