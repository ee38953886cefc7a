"""Hooks that conftest.py files and other plugins may implement: docs/reference/hooks.md has examples.

An implementation names the arguments that it wants. What a hook raises ends the replay that it was called in.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:  # importing the plugin must stay cheap
    from pytest_xenkvm.core.profile import Profile
    from pytest_xenkvm.replay.observation import Divergence, Observation, Place
    from pytest_xenkvm.rules.model import Rule, Verdict
    from pytest_xenkvm.rules.run import TraceSource
    from pytest_xenkvm.trace.events import Event
    from pytest_xenkvm.trace.importers import NamedImporter
    from pytest_xenkvm.vmm.behaviour import VmmBehaviour

# ---- what there is


@pytest.hookspec
def pytest_xenkvm_rules(config: pytest.Config) -> Iterable[Rule] | None:
    """Return rules that traces shall be judged by, besides the bundled ones; their ids must be new.

    A conftest.py adds its rules to the traces in its directory; the one in rootdir to all.
    """


@pytest.hookspec
def pytest_xenkvm_profiles(config: pytest.Config) -> Iterable[Profile] | None:
    """Return profiles that `--xenkvm-profile` may name, besides the bundled ones; their names must be new.

    The option knows those of plugins and of the conftest.py files that pytest loads at its start.
    """


@pytest.hookspec
def pytest_xenkvm_importers(config: pytest.Config) -> Mapping[str, NamedImporter] | None:
    """Return importers, by name, that the fixture `xenkvm_import` turns recordings into traces with."""


@pytest.hookspec
def pytest_xenkvm_vmms(config: pytest.Config) -> Mapping[str, object] | None:
    """Return VMM behaviours by the name that `--xenkvm-vmm` and the marker `xenkvm_vmm` take.

    A value is a class, a function without arguments that makes a behaviour, or a behaviour itself. The
    option knows the names of plugins and of the conftest.py files that pytest loads at its start.
    """


# ---- what happens, in this order


@pytest.hookspec
def pytest_xenkvm_before_replay(
    config: pytest.Config, trace: TraceSource, profile: str, engine: str, vmm: VmmBehaviour | None
) -> None:
    """A trace is about to be replayed on the kernel that `profile` names; `vmm` None: with its own VMM."""


@pytest.hookspec
def pytest_xenkvm_before_event(config: pytest.Config, trace: TraceSource, place: Place, event: Event) -> None:
    """An event is about to be done again; `event` as recorded. Events that are left out are not told."""


@pytest.hookspec
def pytest_xenkvm_after_event(config: pytest.Config, trace: TraceSource, observation: Observation) -> None:
    """An event was done, or the VMM under test has made an ioctl (`observation.by_vmm`)."""


@pytest.hookspec
def pytest_xenkvm_divergence(config: pytest.Config, trace: TraceSource, divergence: Divergence) -> None:
    """An outcome differs from the recorded one; called after `pytest_xenkvm_after_event`."""


@pytest.hookspec
def pytest_xenkvm_verdict(config: pytest.Config, trace: TraceSource, verdict: Verdict) -> None:
    """The replay is over and this is how a rule came out; called for each selected rule, in their order."""
