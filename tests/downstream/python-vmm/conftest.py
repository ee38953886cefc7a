"""All traces are replayed with this VMM; here, not in tests/, so that it counts for bundled traces too."""

from __future__ import annotations

import pytest
from small_vmm.behaviour import SmallVmmBehaviour


@pytest.fixture
def xenkvm_vmm() -> SmallVmmBehaviour:
    """The VMM under test."""
    return SmallVmmBehaviour()
