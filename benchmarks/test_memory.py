"""How much memory a process takes at its peak, for a short and for a long trace."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_xenkvm
from benchmarks import workloads
from benchmarks.figures import Figures, Memory


@pytest.mark.parametrize("workload", workloads.WORKLOADS)
def test_peak(figures: Figures, synthetic: dict[int, Path], workload: str) -> None:
    """One process for each trace."""
    for length, path in synthetic.items():
        figures.memories.append(Memory(events=length, workload=workload, peak_kib=peak_kib(workload, path)))


def peak_kib(workload: str, path: Path) -> int:
    """What a process takes that does a workload on a trace."""
    environment = {**os.environ, "PYTHONPATH": str(Path(pytest_xenkvm.__file__).parents[1])}
    command = [sys.executable, str(Path(workloads.__file__)), workload, str(path)]
    return int(subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout)
