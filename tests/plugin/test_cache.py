"""A replay that was done before isn't done again, unless anything that it depends on has changed."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve
from small_traces import ANSWERED, DIVERGING, HEADER, REFUSED, write

from pytest_xenkvm.plugin import cached

Run = Callable[..., pytest.RunResult]

CACHED = "cached: 1 of them (--xenkvm-no-cache replays all)"


@pytest.fixture
def trace(project: pytest.Pytester) -> Path:
    """A trace that the bundled rules judge, one of which it violates; in a project without a conftest.py."""
    project.makeini("[pytest]\n")
    (project.path / "conftest.py").unlink()
    return write(project.path / "small.xkt", *REFUSED)


def is_cached(result: pytest.RunResult) -> bool:
    """Whether the summary says that one trace was not replayed."""
    return CACHED in result.outlines


def told(result: pytest.RunResult) -> list[str]:
    """All lines but those that say how long it took and where it came from."""
    return [line for line in result.outlines if line != CACHED and not re.search(r" in [\d.]+s", line)]


def entries(project: pytest.Pytester) -> list[Path]:
    """The files of the cache."""
    return sorted((project.path / ".pytest_cache" / "d" / "xenkvm").glob("*"))


def rewrite(path: Path, text: str) -> None:
    """Put another text into an entry, with the digest that belongs to it."""
    digest = hashlib.sha256(f"{path.stem}\n{text}".encode()).hexdigest()
    path.write_text(digest + text)


@pytest.mark.parametrize("events", [ANSWERED, REFUSED, DIVERGING], ids=["held", "violated", "diverging"])
def test_a_second_run_says_the_same(project: pytest.Pytester, trace: Path, run: Run, events: Any) -> None:
    """From the cache come the same lines and the same JUnit properties as from a replay, to the byte."""
    write(trace, *events)
    runs = [run("-rA", f"--junitxml={number}.xml") for number in range(2)]
    assert [is_cached(result) for result in runs] == [False, True]
    assert told(runs[0]) == [line.replace("1.xml", "0.xml") for line in told(runs[1])]
    reports = [(project.path / f"{number}.xml").read_text() for number in range(2)]
    assert len({re.sub(r' (time|timestamp)="[^"]*"', "", report) for report in reports}) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--xenkvm-profile=linux-7.2"],
        ["--xenkvm-engine=unicorn"],
        ["--xenkvm-rules=vcpu-id"],
        ["--xenkvm-no-cache"],
        ["-p", "no:cacheprovider"],
        ["--cache-clear"],
    ],
)
def test_other_options_are_another_replay(trace: Path, run: Run, options: list[str]) -> None:
    """Another profile, engine or selection of rules is replayed, as is all if the cache isn't wanted."""
    del trace
    run()
    assert not is_cached(run(*options))


def test_another_content_is_another_replay(trace: Path, run: Run) -> None:
    """A trace that was written anew is replayed, and the old one is known when it comes back, by any name."""
    run()
    content = trace.read_bytes()
    write(trace, *ANSWERED)
    assert not is_cached(run())
    trace.unlink()
    trace.with_name("other.xkt").write_bytes(content)
    result = run()
    assert is_cached(result)
    result.stdout.fnmatch_lines(["run this again: pytest other.xkt::*"])


def test_another_source_is_another_replay(trace: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """With another source of the package, or on other versions, a trace is replayed."""
    del trace
    run()
    assert is_cached(run())
    for name, value in (("_code", "another"), ("_runs_on", ["another"])):
        with monkeypatch.context() as changed:
            changed.setattr(cached, name, lambda value=value: value)
            assert not is_cached(run())


def test_the_source_counts_to_the_byte(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package is known by the names and contents of its modules."""
    monkeypatch.setattr(cached, "_PACKAGE", tmp_path)
    known = set()
    for name, content in (("a.py", "1"), ("a.py", "2"), ("sub.py", "2")):
        (tmp_path / name).write_text(content)
        cached._code.cache_clear()
        known.add(cached._code())
    cached._code.cache_clear()
    assert len(known) == 3


OBSERVER = "def pytest_xenkvm_{}(): pass\n"
VMM = """
import pytest
from pytest_xenkvm.vmm import Vmm

@pytest.fixture
def xenkvm_vmm():
    return Vmm()
"""
FOREIGN_RULE = """
from attrs import evolve
from pytest_xenkvm.rules.bundled import BUNDLED

def pytest_xenkvm_rules(config):
    return [evolve(BUNDLED[0], id="demo.another")]
"""
FOREIGN_PROFILE = """
from attrs import evolve
from pytest_xenkvm.core.profile import LINUX_7_3

def pytest_xenkvm_profiles(config):
    return [evolve(LINUX_7_3, name="mine", vcpu_info_alignment={})]
"""


@pytest.mark.parametrize(
    "conftest",
    [
        *(
            OBSERVER.format(hook)
            for hook in ("before_replay", "before_event", "after_event", "divergence", "verdict")
        ),
        VMM,
        FOREIGN_RULE,
    ],
    ids=["before-replay", "before-event", "after-event", "divergence", "verdict", "vmm", "rule"],
)
def test_what_nobody_can_know_is_replayed(
    project: pytest.Pytester, trace: Path, run: Run, conftest: str
) -> None:
    """Where a hook observes, a VMM behaviour takes part or somebody else's rule judges, nothing is cached."""
    del trace
    run()
    project.makeconftest(conftest)
    for _ in range(2):
        result = run()
        assert result.ret in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}
        assert not is_cached(result)


def test_a_profile_counts_by_all_that_it_says(project: pytest.Pytester, trace: Path, run: Run) -> None:
    """A profile of the same name with another switch is another one."""
    del trace
    for alignment, known in ((1, False), (1, True), (4, False)):
        project.makeconftest(FOREIGN_PROFILE.format(alignment))
        assert is_cached(run("--xenkvm-profile=mine")) is known


def test_an_error_is_not_cached(project: pytest.Pytester, trace: Path, run: Run) -> None:
    """A replay that came to no end is tried again, and leaves nothing."""
    write(trace, *ANSWERED[3:], header=evolve(HEADER, scope="hypercalls"))
    first, second = (run() for _ in range(2))
    assert told(first) == told(second)
    assert entries(project) == []


def _truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-9])


def _emptied(path: Path) -> None:
    path.write_bytes(b"")


def _flipped(path: Path) -> None:
    path.write_text(path.read_text().replace("violated", "vi0lated"))


def _binary(path: Path) -> None:
    path.write_bytes(b"\x80\x04\x95" * 99)


def _nested(path: Path) -> None:
    rewrite(path, "[" * 200_000)


def _huge(path: Path) -> None:
    rewrite(path, " " * (5 << 20) + path.read_text()[64:])


def _folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _renamed(path: Path) -> None:
    path.write_text(path.read_text().replace(path.stem, "0" * 64))


def _changed(**changes: Any) -> Callable[[Path], None]:
    def change(path: Path) -> None:
        rewrite(path, json.dumps({**json.loads(path.read_text()[64:]), **changes}))

    change.__name__ = next(iter(changes))
    return change


def _verdict_without_findings(path: Path) -> None:
    content = json.loads(path.read_text()[64:])
    violated = [verdict for verdict in content["verdicts"] if verdict["state"] == "violated"]
    violated[0]["findings"] = []
    rewrite(path, json.dumps(content))


def _unheld_verdict(path: Path) -> None:
    content = json.loads(path.read_text()[64:])
    content["verdicts"][0] |= {"state": "held", "exercised": 0, "reason": ""}
    rewrite(path, json.dumps(content))


@pytest.mark.parametrize(
    "damage",
    [
        _truncated,
        _emptied,
        _flipped,
        _binary,
        _nested,
        _huge,
        _folder,
        _changed(events="many"),
        _changed(events=-1),
        _changed(divergence_count=1),
        _changed(divergences=None),
        _changed(verdicts=[]),
        _changed(verdicts={}),
        _changed(profile="linux-6.12"),
        _verdict_without_findings,
        _unheld_verdict,
    ],
)
def test_what_is_damaged_is_replayed(
    project: pytest.Pytester, trace: Path, run: Run, damage: Callable[[Path], None]
) -> None:
    """An entry that isn't as it was written, or holds no result of this trace, counts as not there."""
    del trace
    first = run()
    (entry,) = entries(project)
    damage(entry)
    second = run()
    assert not is_cached(second)
    assert told(second) == told(first)
    assert is_cached(run()) is entry.is_file()


def test_an_entry_belongs_to_its_name(project: pytest.Pytester, trace: Path, run: Run) -> None:
    """An entry that was copied over another one doesn't count."""
    run()
    (first,) = entries(project)
    write(trace, *ANSWERED)
    run()
    (second,) = set(entries(project)) - {first}
    second.write_bytes(first.read_bytes())
    assert not is_cached(run())


def test_a_cache_that_cannot_be_written_is_none(project: pytest.Pytester, trace: Path, run: Run) -> None:
    """Where the cache's folder can't be made, traces are replayed and nothing else is said."""
    del trace
    project.makeini("[pytest]\ncache_dir = small.xkt\n")
    result = run("-p", "no:stepwise", "-W", "ignore::pytest.PytestCacheWarning")
    result.stdout.no_fnmatch_line("*INTERNALERROR*")
    result.stdout.fnmatch_lines(["replayed 1 trace: *"])


def test_a_replay_with_conftest_rules_leaves_nothing(
    project: pytest.Pytester, traces: Path, run: Run
) -> None:
    """What can't be found again isn't kept."""
    del traces
    run()
    assert entries(project) == []
