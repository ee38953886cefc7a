"""How long it takes to read a trace bare, and to replay it on either engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import pytest

from benchmarks.figures import Figures, Speed
from benchmarks.workloads import WORKLOADS
from pytest_xenkvm.trace import open_trace

BOOT: Final = "@linux-boot"
LONG: Final = "synthetic"
ROUNDS: Final = {BOOT: 5, LONG: 2}


def _measure(benchmark: Any, trace: str, path: Path, workload: str) -> Speed:
    benchmark.group = trace
    benchmark.pedantic(WORKLOADS[workload], args=(path,), rounds=ROUNDS[trace])
    events = sum((open_trace(path).counts() or {}).values())
    return Speed(trace=trace, events=events, workload=workload, seconds=benchmark.stats.stats.min)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_boot(benchmark: Any, figures: Figures, boot: Path, workload: str) -> None:
    """The bundled boot of a real guest."""
    figures.speeds.append(_measure(benchmark, BOOT, boot, workload))


@pytest.mark.parametrize("workload", WORKLOADS)
def test_long(
    benchmark: Any, figures: Figures, synthetic: dict[int, Path], lengths: tuple[int, int], workload: str
) -> None:
    """A long trace with a boot's mix."""
    figures.speeds.append(_measure(benchmark, LONG, synthetic[lengths[1]], workload))
