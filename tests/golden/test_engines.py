"""Both engines, registers handed to the core and guest code that runs on Unicorn, show and judge the same."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from hashlib import sha256

import pytest
from attrs import evolve, frozen
from golden_traces import FOLDER, NAMES, SUFFIX, in_words

from pytest_xenkvm.cpu import pool
from pytest_xenkvm.cpu.unicorn_library import OpenEngine
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.rules.hosts import ENGINES, MODEL, UNICORN
from pytest_xenkvm.rules.run import ReplayOptions, ReplayResult, TraceSource, run_trace
from pytest_xenkvm.trace import open_trace
from pytest_xenkvm.trace.events import Event, Header
from pytest_xenkvm.vmm.behaviour import Vmm
from pytest_xenkvm.vmm.handles import Vm

BOOTS = ("@linux-boot", "@linux-boot-7.3")
BOOT_EVENTS = 4500
"""So many of a boot are replayed: the set-up, a while with both vCPUs, and the VMM's first events."""


@frozen
class Replayed:
    """A replay: what was observed, and how all bundled rules judged it."""

    observations: list[Observation]
    result: ReplayResult

    def as_bytes(self) -> bytes:
        """All of it written out: where values are equal but not the same, as True and 1 are, it differs."""
        return repr(self).encode()


def replay(trace: TraceSource, options: ReplayOptions) -> Replayed:
    """Replay and judge by every bundled rule."""
    observations: list[Observation] = []
    result = run_trace(trace, BUNDLED, options, observer=observations.append)
    return Replayed(observations, result)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    """Name of the engine that plays the guest."""
    name: str = request.param
    return name


def golden(name: str) -> TraceSource:
    """The golden of that name."""
    return open_trace(FOLDER / f"{name}{SUFFIX}")


@cache
def digest(name: str, engine: str) -> bytes:
    """What a golden's replay came to in 32 bytes; fails if it diverges from the recording."""
    replayed = replay(golden(name), ReplayOptions(engine=engine))
    assert not replayed.result.divergence_count, in_words(replayed.result.divergences[0])
    assert len(replayed.result.verdicts) == len(BUNDLED)
    return sha256(replayed.as_bytes()).digest()


def first_difference(name: str) -> str:
    """Where the engines differ in what they show; the verdicts if they don't."""
    model, unicorn = (replay(golden(name), ReplayOptions(engine=engine)) for engine in ENGINES)
    pairs = zip(model.observations, unicorn.observations, strict=True)
    either = next((pair for pair in pairs if repr(pair[0]) != repr(pair[1])), None)
    one, other = either or (model.result.verdicts, unicorn.result.verdicts)
    return f"{one}\n{other}"


@pytest.mark.parametrize("name", NAMES)
def test_no_divergence_and_the_same_verdicts(name: str, engine: str) -> None:
    """Either engine shows each golden as it was recorded, and all rules judge it alike, to the byte."""
    assert digest(name, engine) == digest(name, MODEL), first_difference(name)


def test_engines_that_others_used_show_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Goldens in any order, one after the other on one Unicorn engine, come to the same bytes as ever."""
    opened: list[OpenEngine] = []

    def open_engine() -> OpenEngine:
        opened.append(OpenEngine())
        return opened[-1]

    monkeypatch.setattr(pool, "OpenEngine", open_engine)
    pool._kept.clear()
    names = [name for name in NAMES if name.startswith(("linux-7.3/directed/", "linux-7.3/lab/"))]
    for name in sorted(names, key=lambda name: sha256(name.encode()).digest()):
        assert digest.__wrapped__(name, UNICORN) == digest(name, MODEL), first_difference(name)
    assert len(names) > pool.KEPT >= len(opened) > 0


@frozen
class Spoiled:
    """A trace with every seventh event left out."""

    trace: TraceSource

    @property
    def name(self) -> str:
        """As the trace."""
        return self.trace.name

    @property
    def header(self) -> Header:
        """As the trace."""
        return self.trace.header

    def events(self) -> Iterator[Event]:
        """Six of seven events."""
        return (event for number, event in enumerate(self.trace.events()) if number % 7)


@pytest.mark.parametrize("name", ["linux-7.3/directed/hypercall-page", "linux-7.3/random/seed-3"])
def test_engines_agree_on_what_diverges(name: str, engine: str) -> None:
    """A golden with every seventh event left out diverges, and is judged, alike on both engines."""
    trace = Spoiled(golden(name))
    replayed = replay(trace, ReplayOptions(engine=engine))
    assert replayed.result.divergence_count
    assert replayed.as_bytes() == replay(trace, ReplayOptions(engine=MODEL)).as_bytes()


class OneIdVmm(Vmm):
    """Gives vCPU 0 an ID and a timer, and forgets vCPU 1: some rules are held, some violated."""

    def configure(self, vm: Vm) -> None:
        """Set up."""
        vm.xen_hvm_config()
        vm.vcpus[0].set_vcpu_id(0)
        vm.vcpus[0].set_timer(9)


@pytest.mark.parametrize("name", BOOTS)
@pytest.mark.parametrize("behaviour", [None, OneIdVmm()], ids=["recorded VMM", "VMM behaviour"])
def test_engines_agree_on_boots(name: str, engine: str, behaviour: Vmm | None) -> None:
    """The start of a boot is shown and judged alike, as recorded and with a VMM behaviour."""
    options = ReplayOptions(engine=engine, behaviour=behaviour, until=BOOT_EVENTS)
    trace = open_trace(name)
    replayed = replay(trace, options)
    assert replayed.result.hypercalls
    assert replayed.as_bytes() == replay(trace, evolve(options, engine=MODEL)).as_bytes()
