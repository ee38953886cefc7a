"""The plugin costs next to nothing where nobody uses it."""

from __future__ import annotations

import sys

import pytest

OURS = {
    "pytest_xenkvm",
    "pytest_xenkvm.plugin",
    "pytest_xenkvm.plugin.entry",
    "pytest_xenkvm.plugin.fixtures",
    "pytest_xenkvm.plugin.hookspecs",
    "pytest_xenkvm.plugin.terminal",
}
HEAVY = {"attr", "attrs", "click", "msgpack", "unicorn"}


@pytest.mark.parametrize("args", [("--collect-only",), (), ("--markers",), ("--fixtures",)])
def test_an_unused_plugin_imports_nothing(project: pytest.Pytester, args: tuple[str, ...]) -> None:
    """A run without traces imports only what registers the plugin and looks for something to sum up."""
    project.makeini("[pytest]\n")
    project.makeconftest(
        "import sys\ndef pytest_unconfigure():\n    sys.stderr.write('loaded ' + ' '.join(sys.modules))"
    )
    project.makepyfile("def test_own(): pass")
    result = project.run(sys.executable, "-m", "pytest", "-p", "pytest_xenkvm.plugin.entry", *args)
    assert result.ret == pytest.ExitCode.OK
    loaded = set(result.stderr.str().partition("loaded ")[2].split())
    assert {name for name in loaded if name.startswith("pytest_xenkvm")} <= OURS
    assert "pytest_xenkvm.plugin.entry" in loaded
    assert not loaded & HEAVY
