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
    program = str(Path(workloads.__file__))
    environment = {**os.environ, "PYTHONPATH": str(Path(pytest_xenkvm.__file__).parents[1])}
    for length, path in synthetic.items():
        command = [sys.executable, program, workload, str(path)]
        peak = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
        figures.memories.append(Memory(events=length, workload=workload, peak_kib=int(peak)))
