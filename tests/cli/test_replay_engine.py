"""`xenkvm replay --engine`: what plays the guest."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.cli.main import run
from pytest_xenkvm.cpu.engine import Engine, EngineError

GOLDENS: Final = Path(__file__).parents[2] / "traces" / "golden"
OLD: Final = str(GOLDENS / "linux-7.2" / "directed" / "vcpu-id-default.jsonl.gz")
UNICORN: Final = ("--engine", "unicorn")
LOADED: Final = """
import sys
from pytest_xenkvm.cli.main import run
run(sys.argv[1:])
sys.exit("unicorn" in sys.modules)
"""


def test_engines_come_to_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    """Both engines give the same result, divergences and verdicts included."""
    answers = []
    for options in ((), ("--engine", "model"), UNICORN):
        assert run(["replay", OLD, "--profile", "linux-7.3", "--json", *options]) == 1
        answers.append(json.loads(capsys.readouterr().out))
    assert answers[0]["divergences"]
    assert answers[0] == answers[1] == answers[2]


def test_the_engine_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    """The text says which engine played the guest, and so does the command that comes to the divergence."""
    run(["replay", OLD, "--profile", "linux-7.3", *UNICORN])
    text = capsys.readouterr().out
    assert "recorded VMM, engine unicorn\n" in text
    assert f"xenkvm replay {OLD} --profile linux-7.3 --engine unicorn --until 2" in text


def test_a_wrong_engine_is_one_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    """An engine that there isn't is refused, with those that there are."""
    assert run(["replay", OLD, "--engine", "qemu"]) == 2
    assert "'qemu' is not one of 'model', 'unicorn'" in capsys.readouterr().err


def test_an_engine_that_fails_is_one_sentence(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where Unicorn can't go on, the reason is on stderr, with exit code 2."""

    def fail(*_arguments: object, **_more: object) -> int:
        raise EngineError("the guest can't go on at 0x1234: no memory")

    monkeypatch.setattr(Engine, "enter", fail)
    assert run(["replay", OLD, *UNICORN]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("the Unicorn engine failed: the guest can't go on at 0x1234: no memory")


@pytest.mark.parametrize(("options", "imported"), [((), False), (UNICORN, True)])
def test_unicorn_is_imported_only_when_used(options: tuple[str, ...], *, imported: bool) -> None:
    """Only a replay on that engine loads Unicorn."""
    command = [sys.executable, "-c", LOADED, "replay", OLD, "--until", "5", *options]
    root = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    assert done.returncode == imported, done.stderr


@pytest.fixture
def broken_unicorn(tmp_path: Path) -> dict[str, str]:
    """An environment in which the package unicorn can't be imported."""
    (tmp_path / "unicorn.py").write_text("raise ImportError('no library')")
    return {**os.environ, "PYTHONPATH": str(tmp_path)}


SENTENCE: Final = (
    "the package unicorn, which runs guest code, can't be imported (no library): run "
    "`pip install --force-reinstall 'unicorn>=2.1.4,<2.2'`"
)


def test_without_unicorn_the_engine_says_so(broken_unicorn: dict[str, str]) -> None:
    """If the package can't be imported, that is one sentence, with what to do; the engine model works."""
    command = [sys.executable, "-c", "from pytest_xenkvm.cli.main import main; main()", "replay", OLD]
    options = ("--until", "1")
    done = subprocess.run(
        [*command, *options, *UNICORN], env=broken_unicorn, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr.splitlines() == [f"xenkvm: {OLD}: {SENTENCE}, or use the engine model"]
    done = subprocess.run(
        [*command, *options], env=broken_unicorn, capture_output=True, text=True, check=False
    )
    assert "recorded VMM" in done.stdout
    assert not done.stderr


def test_without_unicorn_items_and_guests_say_so(broken_unicorn: dict[str, str], tmp_path: Path) -> None:
    """In pytest, an item of a trace and a test with guest code fail with that sentence alone."""
    (tmp_path / "test_own.py").write_text("def test_guest(xenkvm_guest): pass")
    options = ("--xenkvm-items=trace", "--xenkvm-engine=unicorn", f"--xenkvm-trace={OLD}", "--color=no")
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *options, "test_own.py"],
        env=broken_unicorn,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 1 error" in done.stdout
    assert f"\n{SENTENCE}\n" in done.stdout
    assert f"\n{SENTENCE}, or use the engine model\n" in done.stdout
    assert "Traceback" not in done.stdout + done.stderr
