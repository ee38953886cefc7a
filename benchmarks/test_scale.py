"""Thousands of traces, one of ten million events, and the same traces again."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Final

import pytest

import pytest_xenkvm
from benchmarks.figures import Collection, Figures, Memory, SecondRun, Speed
from benchmarks.synthetic import SOURCE, write_long_trace
from benchmarks.test_memory import peak_kib
from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.trace import bundled_traces, open_trace, write_trace

TRACES: Final = 2000
ITEMS: Final = 1 + len(BUNDLED)
"""Items of a trace."""
HUGE: Final = 10_000_000
ROUNDS: Final = 3

_PLAIN: Final = f"""
import pytest

@pytest.mark.parametrize("rule", range({ITEMS}))
@pytest.mark.parametrize("trace", range({TRACES}))
def test_plain(trace, rule):
    pass
"""
_ONLY_FILES: Final = """
import pytest

class Item(pytest.Item):
    def runtest(self):
        pass

class File(pytest.File):
    def collect(self):
        yield Item.from_parent(self, name="all")

def pytest_collect_file(file_path, parent):
    return File.from_parent(parent, path=file_path) if file_path.suffix == ".xkt" else None
"""
"""The least plugin that makes an item of each file."""
_HEADERS: Final = """
import sys
from pathlib import Path
from pytest_xenkvm.trace import open_trace

for path in sorted(Path(sys.argv[1]).glob("*.xkt") if len(sys.argv) > 1 else ()):
    open_trace(path)
"""


def _run(folder: Path, *command: str) -> None:
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(pytest_xenkvm.__file__).parents[1]),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTEST_ADDOPTS": "",
    }
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, check=False, capture_output=True, text=True
    )
    assert done.returncode in {pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED}, done.stdout + done.stderr


def _pytest(*arguments: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-p", "pytest_xenkvm.plugin.entry", *arguments)


def _of_files(*arguments: str) -> tuple[str, ...]:
    return ("-m", "pytest", "-q", "-p", "only_files", *arguments)


def _cpu_seconds(folder: Path, *command: str) -> float:
    """The least that a process took, which a busy machine disturbs less than its duration."""
    return min(_of_children(lambda: _run(folder, *command)) for _ in range(ROUNDS))


def _of_children(work: Callable[[], None]) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def test_collection(figures: Figures, tmp_path: Path) -> None:
    """A corpus of small traces, beside the least that pytest takes for as many items."""
    corpus, plain, one = tmp_path / "corpus", tmp_path / "plain", tmp_path / "one"
    for folder in (corpus, plain, one):
        folder.mkdir()
    (plain / "test_plain.py").write_text(_PLAIN)
    for folder in (corpus, one):
        (folder / "only_files.py").write_text(_ONLY_FILES)
    small = corpus / "0000.xkt"
    write_trace(small, open_trace(SOURCE).header, ())
    for number in range(1, TRACES):
        (corpus / f"{number:04}.xkt").write_bytes(small.read_bytes())
    (one / small.name).write_bytes(small.read_bytes())  # pytest looks at all that is in a folder
    collect = ("--collect-only", "-p", "no:cacheprovider")
    figures.collection = Collection(
        traces=TRACES,
        items=TRACES * ITEMS,
        headers=_cpu_seconds(corpus, "-c", _HEADERS, str(corpus)) - _cpu_seconds(corpus, "-c", _HEADERS),
        plain=_cpu_seconds(plain, *_pytest(*collect)),
        collected=_cpu_seconds(corpus, *_pytest(*collect, "--xenkvm-items=rule")),
        wholes=_cpu_seconds(corpus, *_pytest(*collect)),
        files=_cpu_seconds(corpus, *_of_files(*collect)),
        start_up=_cpu_seconds(one, *_pytest(*collect)),
        start_up_of_files=_cpu_seconds(one, *_of_files(*collect)),
    )


def test_second_run(figures: Figures, tmp_path: Path) -> None:
    """All bundled traces, then again."""
    names = [f"--xenkvm-trace=@{name}" for name in bundled_traces()]
    seconds = []
    for arguments in (("--cache-clear", *names), names, (*names, "--collect-only")):
        began = perf_counter()
        _run(tmp_path, *_pytest("-o", f"cache_dir={tmp_path}", *arguments))
        seconds.append(perf_counter() - began)
    first, second, start_up = seconds
    figures.second_run = SecondRun(first=first, second=second, start_up=start_up)


def test_huge(figures: Figures, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """Ten million events: how long they take, and how much memory."""
    if not pytestconfig.option.huge:
        pytest.skip("takes minutes; --huge runs it")
    path = tmp_path / "huge.xkt"
    write_long_trace(path, HUGE)
    began = perf_counter()
    peak = peak_kib("model", path)
    figures.memories.append(Memory(events=HUGE, workload="model", peak_kib=peak))
    seconds = perf_counter() - began
    figures.speeds.append(Speed(trace="huge", events=HUGE, workload="model", seconds=seconds))
