"""Hypothesis may take as long as a busy machine takes; projects of users are installed on what users have."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from installing import Shell, Wheels, once_for_all_workers

# pytest imports this file in any run that is started in the checkout's folder, whatever is installed there.
with suppress(ModuleNotFoundError):
    from hypothesis import HealthCheck, settings

    settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("patient")

collect_ignore = [
    f"downstream/{name}" for name in ("python-vmm", "c-vmm", "traces-only", "reports")
]  # run as users would


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Wheels:
    """A registry on disk: this project's wheel, newly built, and the wheels of all that it needs."""
    return Wheels(once_for_all_workers(tmp_path_factory, "wheels", Wheels.build))


@pytest.fixture
def shell(wheels: Wheels, tmp_path: Path) -> Shell:
    """A shell in an empty folder, where `pip install` finds the wheels and nothing else."""
    return Shell.in_folder(tmp_path / "user", wheels)
