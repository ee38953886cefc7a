"""`--xenkvm-trace @NAME`, which pytest would take for a file of arguments."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

START_UP: Final = Path(__file__).parents[2] / "packaging" / "pytest_xenkvm.pth"


@pytest.mark.parametrize(
    ("written", "spelt"),
    [
        (["pytest", "--xenkvm-trace", "@a"], ["pytest", "--xenkvm-trace=@a"]),
        (
            ["pytest", "--xenkvm-trace", "@a", "-v", "--xenkvm-trace", "@b"],
            ["pytest", "--xenkvm-trace=@a", "-v", "--xenkvm-trace=@b"],
        ),
        (["pytest", "--xenkvm-trace", "a.xkt"], ["pytest", "--xenkvm-trace=a.xkt"]),
        (["pytest", "--xenkvm-trace", "-v"], ["pytest", "--xenkvm-trace", "-v"]),
        (["pytest", "@args", "--xenkvm-trace"], ["pytest", "@args", "--xenkvm-trace"]),
    ],
)
def test_names_are_joined_to_the_option(
    monkeypatch: pytest.MonkeyPatch, written: list[str], spelt: list[str]
) -> None:
    """At start-up, what stands right behind the option is joined to it, and nothing else."""
    monkeypatch.setattr(sys, "argv", written)
    monkeypatch.setattr(sys, "orig_argv", ["python", "-m", "pytest", *written[1:]])
    exec(START_UP.read_text(), {}, {})  # noqa: S102 - what Python does with it
    assert sys.argv == spelt


@pytest.mark.parametrize(
    ("started_as", "argv"),
    [
        (["python", "prog.py", "--xenkvm-trace", "a"], ["prog.py", "--xenkvm-trace", "a"]),
        (["python", "-m", "pytest", "--", "--xenkvm-trace", "a"], ["-m", "--", "--xenkvm-trace", "a"]),
    ],
)
def test_other_arguments_are_left_alone(
    monkeypatch: pytest.MonkeyPatch, started_as: list[str], argv: list[str]
) -> None:
    """Other programs' arguments, and what stands behind --, stay as they are."""
    monkeypatch.setattr(sys, "argv", [*argv])
    monkeypatch.setattr(sys, "orig_argv", started_as)
    exec(START_UP.read_text(), {}, {})  # noqa: S102 - what Python does with it
    assert sys.argv == argv


def test_command_as_written_in_the_readme(tmp_path: Path) -> None:
    """`pytest --xenkvm-trace @NAME` runs the bundled trace, as installed, in an empty directory."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--xenkvm-trace", "@linux-boot-1vcpu", "-p", "no:cacheprovider"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "linux-boot-1vcpu.xkt" in done.stdout
    assert "warning" not in done.stdout
