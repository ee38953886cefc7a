"""The worked examples of docs/how-to/guest-programs.md run as they stand there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

import pytest_xenkvm.plugin.guest  # noqa: F401 - stays loaded, or each run in this process would load it anew
from pytest_xenkvm.hosts.assembler import is_installed

Run = Callable[..., pytest.RunResult]
PAGE: Final = Path(__file__).parents[2] / "docs" / "how-to" / "guest-programs.md"
FILES: Final = dict(
    re.findall(r"^```python\n# (test_\w+\.py)\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE)
)
"""The blocks that begin with the name of a test file."""


def test_the_page_has_its_examples() -> None:
    """There is one for 64-bit code, one for 32-bit code and one for CPL 3."""
    assert list(FILES) == ["test_timer.py", "test_32_bit.py", "test_user_mode.py"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("assembler", [True, False], ids=["assembler", "no assembler"])
def test_an_example_passes(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch, name: str, *, assembler: bool
) -> None:
    """A test file passes; without an assembler its part in assembly is skipped, the rest still runs."""
    if assembler and not is_installed():
        pytest.skip("no GNU binutils")
    if not assembler:
        monkeypatch.setenv("PATH", "")
    (project.path / name).write_text(FILES[name])
    outcomes = run(name).parseoutcomes()
    skipped = outcomes.pop("skipped", 0)
    assert (list(outcomes), skipped) == (["passed"], 0 if assembler else 1)


def test_what_is_skipped_says_why(
    project: pytest.Pytester, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reason names the programs that are missing and the package that has them."""
    monkeypatch.setenv("PATH", "")
    (project.path / "test_timer.py").write_text(FILES["test_timer.py"])
    run("-rs", "test_timer.py").stdout.fnmatch_lines(
        ["SKIPPED*test_timer.py:*: no assembler: needs as and ld of GNU binutils (Debian: binutils)"]
    )
