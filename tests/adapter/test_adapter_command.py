"""`xenkvm replay` with a VMM in a process of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from adapter_kit import PRELUDE

from pytest_xenkvm.cli.main import run


def test_a_failure_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An adapter that fails makes the input unusable, in a sentence and what it wrote to stderr."""
    (tmp_path / "adapter.py").write_text(PRELUDE + "hello(); sys.exit('out of order')")
    command = f"{sys.executable} -I -S {tmp_path / 'adapter.py'}"
    assert run(["replay", "@linux-boot", "--vmm", f"cmd:{command}"]) == 2
    *complaints, sentence = capsys.readouterr().err.splitlines()
    assert complaints == ["The adapter's stderr ended with:", "out of order"]
    assert sentence.startswith("xenkvm: @linux-boot: the VMM adapter ")
    assert sentence.endswith("adapter.py: exited with status 1 before it answered configure")


def test_a_program_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    """A command that can't be started is told of like a file that can't be read."""
    assert run(["replay", "@linux-boot", "--vmm", "cmd:./nowhere --flag"]) == 2
    assert "the VMM adapter ./nowhere --flag: can't be started: No such file" in capsys.readouterr().err
