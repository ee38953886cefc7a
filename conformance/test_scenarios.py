"""Recordings of real kernels, done again on the host: it must answer like the kernel of its own version."""

from __future__ import annotations

import pytest

from .kit.hosts import Builder
from .kit.scenarios import replay_scenario, scenario_names


@pytest.mark.source("traces/golden: recorded on real, unmodified kernels")
@pytest.mark.parametrize("scenario", scenario_names())
def test_scenario(new_vm: Builder, scenario: str) -> None:
    """All outcomes of a recording are those that the same version of the kernel showed."""
    replay_scenario(new_vm, scenario)
