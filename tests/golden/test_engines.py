"""The goldens on both engines: registers handed to the core, and guest code that runs on Unicorn."""

from __future__ import annotations

import pytest
from golden_traces import NAMES, in_words, load

from pytest_xenkvm.core.profile import HostLimits, profile_for_release
from pytest_xenkvm.hosts.emulated import EmulatedHost
from pytest_xenkvm.hosts.unicorn_host import UnicornHost
from pytest_xenkvm.replay.kernel import kernel_replay
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.trace.events import Event, Header

ENGINES: dict[str, type[EmulatedHost | UnicornHost]] = {"model": EmulatedHost, "unicorn": UnicornHost}


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Name of the engine that plays the guest."""
    name: str = request.param
    return name


def replay_on(engine: str, header: Header, events: list[Event]) -> list[Observation]:
    """Replay on an engine."""
    limits = HostLimits() if header.max_vcpus is None else HostLimits(max_vcpus=header.max_vcpus)
    host = ENGINES[engine](profile=profile_for_release(header.kernel), limits=limits)
    return list(kernel_replay(host, header, events))


@pytest.mark.parametrize("name", NAMES)
def test_no_divergence_and_the_recorded_events(name: str, engine: str) -> None:
    """Either engine shows each golden as it was recorded: no divergence, all outcomes judged, in order."""
    header, events = load(name)
    observations = replay_on(engine, header, events)
    found = [divergence for observation in observations for divergence in observation.divergences]
    assert not found, in_words(found[0])
    assert observations == replay_on("model", header, events)


@pytest.mark.parametrize("name", ["linux-7.3/directed/hypercall-page", "linux-7.3/random/seed-3"])
def test_engines_agree_on_what_diverges(name: str, engine: str) -> None:
    """A golden with every seventh event left out diverges alike on both engines."""
    header, events = load(name)
    spoiled = [event for number, event in enumerate(events) if number % 7]
    expected = replay_on("model", header, spoiled)
    assert any(observation.divergences for observation in expected)
    assert replay_on(engine, header, spoiled) == expected
