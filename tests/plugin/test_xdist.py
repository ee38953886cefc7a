"""With pytest-xdist all is as in one process, and a trace is replayed no more often than need be."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest
from small_traces import DIVERGING, REFUSED, UNSEEN, write
from ssh_server import ssh_worker

__all__ = ["ssh_worker"]

PLUGINS = ["-p", "pytest_xenkvm.plugin.entry", "-p", "xdist.plugin", "-p", "xdist.looponfail"]
TELL = """
import os
import pytest
from pytest_xenkvm.plugin import observing

real = observing.run_trace

def told(trace, *args):
    with open(os.path.join({folder!r}, "replays"), "a") as file:
        file.write(f"{{trace.name}} {{os.getpid()}}\\n")
    return real(trace, *args)

observing.run_trace = told
"""
"""A conftest.py that writes down each replay that is done."""


@pytest.fixture
def four(project: pytest.Pytester, traces: Path) -> pytest.Pytester:
    """A project with four traces that come out in different ways."""
    for name, events in (("refused", REFUSED), ("unseen", UNSEEN), ("diverging@1", DIVERGING)):
        write(traces / f"{name}.xkt", *events)
    conftest = project.path / "conftest.py"
    conftest.write_text(conftest.read_text() + TELL.format(folder=str(project.path)))
    return project


def replays(project: pytest.Pytester) -> Counter[str]:
    """How often each trace was replayed; forgets it."""
    log = project.path / "replays"
    lines = log.read_text().splitlines()
    log.unlink()
    return Counter(line.split()[0] for line in lines)


def outcomes(result: pytest.RunResult) -> list[tuple[str, str]]:
    """Node ids with how they came out, of `-rA`."""
    words = "PASSED|FAILED|XFAIL|SKIPPED"
    lines = (re.match(rf"(?:\[gw\d\] \[ *\d+%\] )?({words}) (\S+::\S+)", line) for line in result.outlines)
    verbose = (re.match(rf"(\S+::\S+) ({words})", line) for line in result.outlines)
    return sorted(
        [(match[2], match[1]) for match in lines if match and "%]" in match[0]]
        or [(match[1], match[2]) for match in verbose if match]
    )


def block(result: pytest.RunResult) -> list[str]:
    """The plugin's own lines."""
    return [line for line in result.outlines if re.match(r"replayed |rules: |VMM", line)]


@pytest.mark.parametrize("how", ["load", "loadfile", "loadscope", "loadgroup", "worksteal"])
def test_all_ways_come_to_the_same(four: pytest.Pytester, how: str) -> None:
    """Node ids, outcomes and the block at the end are those of one process."""
    alone = four.runpytest_subprocess(*PLUGINS, "-v")
    spread = four.runpytest_subprocess(*PLUGINS, "-n2", "--dist", how, "-v")
    assert len(outcomes(alone)) == 16
    assert outcomes(spread) == outcomes(alone)
    assert block(spread) == block(alone)
    assert len(block(alone)) == 2
    replays(four)


@pytest.mark.parametrize("how", ["loadfile", "loadscope", "loadgroup"])
def test_a_trace_stays_on_one_worker(four: pytest.Pytester, how: str) -> None:
    """Where xdist keeps what belongs together on one worker, a trace is replayed once."""
    result = four.runpytest_subprocess(*PLUGINS, "-n2", "--dist", how)
    result.assert_outcomes(passed=9, failed=2, skipped=4, xfailed=1)
    assert replays(four) == dict.fromkeys(("good.xkt", "refused.xkt", "unseen.xkt", "diverging@1.xkt"), 1)


@pytest.mark.parametrize("how", ["load", "worksteal"])
def test_workers_share_a_replay(four: pytest.Pytester, how: str) -> None:
    """Items of bundled rules that are spread over workers get the result of one replay."""
    four.makeini("[pytest]\n")
    conftest = TELL.format(folder=str(four.path))
    four.makeconftest(conftest)
    result = four.runpytest_subprocess(*PLUGINS, "-n2", "--dist", how)
    assert set(replays(four).values()) == {1}
    result.stdout.fnmatch_lines(["replayed 4 traces: *"])
    result.stdout.no_fnmatch_line("cached: *")
    again = four.runpytest_subprocess(*PLUGINS, "-n2", "--dist", how)
    again.stdout.fnmatch_lines(["cached: 4 of them *"])
    assert block(again) == block(result)
    assert not (four.path / "replays").exists()
    assert not list((four.path / ".pytest_cache" / "d" / "xenkvm").glob("*.lock"))


def test_parameters_are_groups_of_their_own(four: pytest.Pytester) -> None:
    """With `--dist loadgroup`, each parameter of `xenkvm_vmm` is a replay that one worker does."""
    conftest = four.path / "conftest.py"
    conftest.write_text(
        conftest.read_text()
        + "@pytest.fixture(params=['a', 'b'])\ndef xenkvm_vmm(request):\n    return None\n"
    )
    four.runpytest_subprocess(*PLUGINS, "-n2", "--dist=loadgroup", "traces/good.xkt", "traces/unseen.xkt")
    assert replays(four) == {"good.xkt": 2, "unseen.xkt": 2}


def test_tests_are_grouped_as_ever(four: pytest.Pytester) -> None:
    """`--dist loadgroup` treats what is no item of a trace as it does without the plugin."""
    four.makepyfile(test_own="import pytest\n@pytest.mark.parametrize('x', range(9))\ndef test_own(x): pass")
    result = four.runpytest_subprocess(*PLUGINS, "-n2", "--dist=loadgroup", "-v", "test_own.py")
    result.assert_outcomes(passed=9)
    assert len(set(re.findall(r"^\[(gw\d)\]", result.stdout.str(), re.MULTILINE))) == 2


@pytest.mark.parametrize("gateway", ["popen", "ssh"])
@pytest.mark.parametrize("how", ["option", "argument", "both"])
def test_a_distant_worker_finds_its_copies(
    four: pytest.Pytester,
    tmp_path_factory: pytest.TempPathFactory,
    request: pytest.FixtureRequest,
    how: str,
    gateway: str,
) -> None:
    """A worker that gets the project by rsync finds the traces there, under the same node ids."""
    there, project = tmp_path_factory.mktemp("there"), four.path
    (project / "test_own.py").write_text("def test_own(): pass")
    option, argument = "--xenkvm-trace=traces", str(project / "traces")
    args = {
        "option": [option, str(project / "test_own.py")],
        "argument": [argument],
        "both": [f"--xenkvm-trace={argument}/*.xkt", argument],
    }[how]
    worker = "popen" if gateway == "popen" else request.getfixturevalue("ssh_worker")
    alone = four.runpytest_subprocess(*PLUGINS, "-v", *args)
    replays(four)
    distant = four.runpytest_subprocess(
        *PLUGINS, "-v", "--dist=load", f"--tx=2*{worker}//chdir={there}", f"--rsyncdir={project}", *args
    )
    assert outcomes(distant) == outcomes(alone)
    assert block(distant) == block(alone)
    assert len(outcomes(alone)) == 16 + (how == "option")
    assert (there / project.name / "traces" / "good.xkt").exists()
    again = re.findall(r"run this again: pytest (.*)", distant.stdout.str())
    assert all(str(there) not in command for command in again)
