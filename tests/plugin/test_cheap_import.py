"""The plugin costs next to nothing where nobody uses it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

OURS = {
    "pytest_xenkvm",
    "pytest_xenkvm.plugin",
    "pytest_xenkvm.plugin.entry",
    "pytest_xenkvm.plugin.fixtures",
    "pytest_xenkvm.plugin.hookspecs",
    "pytest_xenkvm.plugin.reporting",
    "pytest_xenkvm.plugin.terminal",
}
HEAVY = {"attr", "attrs", "click", "msgpack", "unicorn"}
TELL = "import sys\ndef pytest_unconfigure():\n    sys.stderr.write('loaded ' + ' '.join(sys.modules))"


def _loaded(result: pytest.RunResult) -> set[str]:
    """The modules that a run with the conftest.py `TELL` had loaded in the end."""
    return set(result.stderr.str().partition("loaded ")[2].split())


@pytest.mark.parametrize("args", [("--collect-only",), (), ("--markers",), ("--fixtures",)])
def test_an_unused_plugin_imports_nothing(project: pytest.Pytester, args: tuple[str, ...]) -> None:
    """A run without traces imports only what registers the plugin and looks for something to sum up."""
    project.makeini("[pytest]\n")
    project.makeconftest(TELL)
    project.makepyfile("def test_own(): pass")
    result = project.run(sys.executable, "-m", "pytest", "-p", "pytest_xenkvm.plugin.entry", *args)
    assert result.ret == pytest.ExitCode.OK
    loaded = _loaded(result)
    assert {name for name in loaded if name.startswith("pytest_xenkvm")} <= OURS
    assert "pytest_xenkvm.plugin.entry" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize(
    ("args", "imported"),
    [
        (("traces/good.xkt",), False),
        (("traces/good.xkt", "--xenkvm-engine=model"), False),
        (("traces/good.xkt", "--xenkvm-engine=unicorn", "--collect-only"), False),
        (("traces/good.xkt", "--xenkvm-engine=unicorn"), True),
        (("test_host.py",), False),
        (("test_guest.py",), True),
    ],
)
def test_unicorn_is_imported_only_when_used(
    project: pytest.Pytester, traces: Path, args: tuple[str, ...], *, imported: bool
) -> None:
    """Only a replay on that engine and a guest program load Unicorn."""
    del traces
    project.makeini("[pytest]\n")
    project.makeconftest(TELL)
    project.makepyfile(
        test_host="def test_own(xenkvm_host): xenkvm_host.create_vm()",
        test_guest="def test_own(xenkvm_guest): xenkvm_guest()",
    )
    result = project.run(sys.executable, "-m", "pytest", "-p", "pytest_xenkvm.plugin.entry", *args)
    assert result.ret == pytest.ExitCode.OK
    assert ("unicorn" in _loaded(result)) is imported
