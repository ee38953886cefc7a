"""Traces of a folder share what pytest finds out about fixtures, and nobody notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_traces import ANSWERED, RULES, write

Run = Callable[..., pytest.RunResult]
Collect = Callable[..., list[str]]

ONE = "--xenkvm-items=trace"


@pytest.fixture
def two(traces: Path) -> Path:
    """A folder of two traces."""
    write(traces / "second.xkt", *ANSWERED)
    return traces


def hooked(project: pytest.Pytester, text: str) -> None:
    """Put something after the rules in conftest.py."""
    project.makeconftest(RULES + text)


def test_fixtures_are_looked_up_once_a_folder(
    project: pytest.Pytester, two: Path, monkeypatch: pytest.MonkeyPatch, collect: Collect
) -> None:
    """Only the first trace of each folder is expanded by pytest."""
    write(two / "inner" / "a.xkt", *ANSWERED)
    write(two / "inner" / "b.xkt", *ANSWERED)
    del project
    expanded = []
    real = pytest.Module._genfunctions  # what takes the time

    def expand(node: pytest.Module, *args: Any) -> Any:
        expanded.append(node.name)
        return real(node, *args)

    monkeypatch.setattr(pytest.Module, "_genfunctions", expand)
    assert len(collect(ONE)) == 4
    assert expanded == ["good.xkt", "a.xkt"]


@pytest.mark.parametrize("kind", ["rule", "trace"])
def test_all_traces_get_the_parameters(
    project: pytest.Pytester, two: Path, run_anyhow: Run, kind: str
) -> None:
    """A parametrised fixture makes the same items of each trace, and each replays with its own."""
    del two
    hooked(
        project,
        "seen = []\n"
        "@pytest.fixture(params=['a', 'b'])\n"
        "def xenkvm_vmm(request, xenkvm_trace):\n"
        "    assert request.node.name.endswith(f'[{request.param}]')\n"
        "    assert request.node.path.name in (xenkvm_trace.name,)\n",
    )
    result = run_anyhow(f"--xenkvm-items={kind}", "-v")
    result.assert_outcomes(passed=4) if kind == "trace" else result.assert_outcomes(passed=12, skipped=4)
    result.stdout.fnmatch_lines(["replayed 4 traces: 20 events, 8 hypercalls"])


def test_a_hook_may_parametrise_one_trace(project: pytest.Pytester, two: Path, collect: Collect) -> None:
    """`pytest_generate_tests` of a conftest.py is called for each trace, and may tell them apart."""
    del two
    hooked(
        project,
        "def pytest_generate_tests(metafunc):\n"
        "    if 'second' in metafunc.definition.nodeid:\n"
        "        metafunc.parametrize('xenkvm_vmm', [None, None], ids=['x', 'y'])\n",
    )
    assert collect(ONE) == [
        f"traces/{name}" for name in ("good.xkt::all", "second.xkt::all[x]", "second.xkt::all[y]")
    ]


def test_folders_have_fixtures_of_their_own(project: pytest.Pytester, two: Path, collect: Collect) -> None:
    """A fixture of an inner conftest.py counts there alone."""
    del project
    write(two / "inner" / "a.xkt", *ANSWERED)
    (two / "inner" / "conftest.py").write_text(
        "import pytest\n@pytest.fixture(params=['p'])\ndef xenkvm_vmm(request): pass\n"
    )
    assert collect(ONE) == [
        f"traces/{name}" for name in ("good.xkt::all", "inner/a.xkt::all[p]", "second.xkt::all")
    ]


def test_a_marker_on_one_trace_is_that_traces(project: pytest.Pytester, two: Path, run: Run) -> None:
    """A hook may mark the collector of a single trace, and its items take the fixture."""
    del two
    hooked(
        project,
        "def pytest_collectstart(collector):\n"
        "    if collector.name == 'second.xkt':\n"
        "        collector.add_marker(pytest.mark.usefixtures('loud'))\n"
        "@pytest.fixture\n"
        "def loud(request): print('loud in', request.node.nodeid)\n",
    )
    result = run(ONE, "-s")
    result.assert_outcomes(passed=2)
    assert result.stdout.str().count("loud in") == 1
    result.stdout.fnmatch_lines(["*loud in traces/second.xkt::all*"])


def test_a_fixture_may_be_added_to_one_item(project: pytest.Pytester, two: Path, run: Run) -> None:
    """A hook that appends to an item's `fixturenames` changes no other trace's."""
    del two
    hooked(
        project,
        "def pytest_collection_modifyitems(items):\n"
        "    items[0].fixturenames.append('loud')\n"
        "@pytest.fixture\n"
        "def loud(request): print('loud in', request.node.nodeid)\n",
    )
    result = run(ONE, "-s")
    assert result.stdout.str().count("loud in") == 1


@pytest.mark.parametrize(
    ("scope", "made"), [("session", 1), ("package", 1), ("module", 2), ("class", 8), ("function", 8)]
)
def test_scopes_are_those_of_test_functions(
    project: pytest.Pytester, two: Path, run: Run, scope: str, made: int
) -> None:
    """A trace is a module to fixtures: one of module scope is made once for each, and closed after it."""
    del two
    hooked(
        project,
        f"@pytest.fixture(scope={scope!r})\n"
        "def xenkvm_vmm():\n    print('\\nmade')\n    yield\n    print('\\nclosed')\n",
    )
    result = run("--xenkvm-items=rule", "-s")
    result.assert_outcomes(passed=6, skipped=2)
    lines = [line for line in result.outlines if line in {"made", "closed"}]
    assert lines == ["made", "closed"] * made
