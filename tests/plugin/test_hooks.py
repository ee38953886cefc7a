"""Rules from conftest.py files and plugins."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from small_traces import ANSWERED, RULES, write

Run = Callable[..., pytest.RunResult]
Collect = Callable[..., list[str]]


def test_a_plugin_may_add_rules(
    project: pytest.Pytester, traces: Path, run_anyhow: Run, collect: Collect
) -> None:
    """Rules of a plugin come beside those of a conftest.py."""
    del traces
    project.makepyfile(more=RULES.replace('"demo.', '"demo.more-'))
    assert "traces/good.xkt::demo.more-answered" in collect("-p", "more")
    run_anyhow("-p", "more").assert_outcomes(passed=5, skipped=2)


def test_a_folders_rules_judge_its_own_traces(
    project: pytest.Pytester, traces: Path, collect: Collect
) -> None:
    """Rules of a conftest.py in a folder are items of the traces there only."""
    (traces / "conftest.py").write_text(RULES.replace('"demo.', '"demo.local-'))
    write(project.path / "top.xkt", *ANSWERED)
    local = {name.partition("::")[0] for name in collect() if "local-" in name}
    assert local == {"traces/good.xkt"}


def test_an_id_must_be_new(traces: Path, run: Run) -> None:
    """A rule with the id of another one is a collection error of one sentence."""
    (traces / "conftest.py").write_text(RULES)
    result = run()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.fnmatch_lines(["two rules have the id 'demo.*': ids must be unique"])
