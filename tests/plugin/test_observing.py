"""Hooks that observe replays."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from attrs import evolve
from small_traces import ANSWERED, DIVERGING, HEADER, RULES, write

from pytest_xenkvm.plugin.observing import Watched, run_observed
from pytest_xenkvm.rules import run as rules_run
from pytest_xenkvm.rules.run import ReplayOptions
from pytest_xenkvm.trace.events import VmShape
from pytest_xenkvm.trace.files import open_trace

Run = Callable[..., pytest.RunResult]

OBSERVERS: Final = """
def pytest_xenkvm_before_replay(trace, profile, engine, vmm):
    print("> replay", trace.name, profile, engine, vmm and type(vmm).__name__)

def pytest_xenkvm_before_event(place, event):
    print("> before", place.index, event.kind)

def pytest_xenkvm_after_event(config, observation):
    print("> after", observation.place.index, observation.event.kind, observation.by_vmm)

def pytest_xenkvm_divergence(divergence):
    print("> divergence", divergence.place.index, divergence.kind)

def pytest_xenkvm_verdict(trace, verdict):
    print("> verdict", verdict.rule.id, verdict.state.value)
"""
VMM: Final = """
import pytest
from pytest_xenkvm.vmm import Vmm

class Mine(Vmm):
    on_migrate = None
    def configure(self, vm):
        vm.xen_hvm_config()
    def on_hypercall(self, vcpu, xen_exit):
        return 0

@pytest.fixture
def xenkvm_vmm():
    return Mine()
"""


def told(result: pytest.RunResult) -> list[str]:
    """What the hooks printed."""
    return re.findall("> (.*)", result.stdout.str())


def test_a_kernel_replay_is_observed(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """Each event is told before and after it is done, divergences behind it, verdicts at the end."""
    write(traces / "good.xkt", *DIVERGING)
    project.makeconftest(RULES + OBSERVERS)
    assert told(run("-s", "-k", "replay")) == [
        "replay good.xkt linux-7.3 model None",
        *("before 0 ioctl", "after 0 ioctl False"),
        *("before 1 ioctl", "after 1 ioctl False"),
        *("before 2 ioctl", "after 2 ioctl False", "divergence 2 ret"),
        *("before 3 hypercall", "after 3 hypercall False"),
        *("verdict demo.answered held", "verdict demo.advised held", "verdict demo.msr not-exercised"),
    ]


@pytest.mark.parametrize("shape", [HEADER.vm, None], ids=["known", "unknown"])
def test_a_vmm_replay_is_observed(
    project: pytest.Pytester, traces: Path, run: Run, shape: VmShape | None
) -> None:
    """Events that are left out aren't told; ioctls of the VMM under test are."""
    scope = "full" if shape else "hypercalls"
    write(traces / "good.xkt", *ANSWERED, header=evolve(HEADER, vm=shape, scope=scope))
    project.makeconftest(RULES + OBSERVERS + VMM)
    assert told(run("-s", "-k", "replay", "--xenkvm-engine=unicorn")) == [
        "replay good.xkt linux-7.3 unicorn Mine",
        "after -1 ioctl True",
        *("before 3 hypercall", "after 3 hypercall False"),
        *("before 4 hypercall", "after 4 hypercall False"),
        *("verdict demo.answered held", "verdict demo.advised held", "verdict demo.msr not-exercised"),
    ]


def test_replays_in_tests_are_observed_by_the_tests_own_folder(
    project: pytest.Pytester, traces: Path, run: Run
) -> None:
    """xenkvm_replay calls the hooks of its test's conftest.py files, not those of other folders."""
    del traces
    test = "def test_own(xenkvm_replay):\n    xenkvm_replay('../traces/good.xkt', rules=[])\n"
    for folder in ("one", "two"):
        place = project.mkdir(folder)
        (place / "conftest.py").write_text(
            f"def pytest_xenkvm_before_replay(trace): print('> replay {folder}', trace.name)\n"
        )
        (place / f"test_{folder}.py").write_text(test)
    assert told(run("-s", "one", "two")) == ["replay one good.xkt", "replay two good.xkt"]


def test_a_folder_observes_its_own_replays(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """A conftest.py that pytest loads after it has collected a trace above isn't told of that replay."""
    del project
    hook = "def pytest_xenkvm_before_replay(trace): print('\\nobserved', trace.name)\n"
    write(traces / "zinner" / "b.xkt", *ANSWERED)
    (traces / "zinner" / "conftest.py").write_text(hook)
    result = run("-s")
    assert [line for line in result.outlines if line.startswith("observed")] == ["observed b.xkt"]


def test_what_a_hook_raises_fails_the_replay(project: pytest.Pytester, traces: Path, run: Run) -> None:
    """The first item fails with the hook's own line, the others can't be judged."""
    del traces
    project.makeconftest(RULES + "def pytest_xenkvm_after_event(observation):\n    1 / 0\n")
    result = run("-rs")
    result.assert_outcomes(failed=1, skipped=3)
    result.stdout.fnmatch_lines([">       1 / 0", "SKIPPED *not judged: a hook raised ZeroDivisionError: *"])


class _Hook:
    """A relay in which nobody implements anything."""

    def __getattr__(self, name: str) -> _Hook:
        return self

    def get_hookimpls(self) -> list[object]:
        return []

    def __call__(self, **details: object) -> None:
        raise AssertionError(details)


def test_hooks_that_nobody_implements_cost_nothing(
    traces: Path, pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The replay gets the trace itself and no observer, or the caller's own; no hook is called."""
    trace = open_trace(traces / "good.xkt")
    given: list[tuple[object, object]] = []
    replayed = rules_run.run_trace(trace, [], ReplayOptions())

    def run_trace(
        source: object, _rules: object, _options: object, observer: object, _progress: object
    ) -> object:
        given.append((source, observer))
        return replayed

    monkeypatch.setattr("pytest_xenkvm.plugin.observing.run_trace", run_trace)
    run_observed(Watched(pytestconfig, _Hook(), trace), [], ReplayOptions())
    run_observed(Watched(pytestconfig, _Hook(), trace), [], ReplayOptions(), print)
    assert given == [(trace, None), (trace, print)]
