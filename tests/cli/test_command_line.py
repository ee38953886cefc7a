"""The command line as a whole: help, exit codes, errors."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import click
import pytest

from pytest_xenkvm.cli import main
from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.cli.main import COMMANDS, Lazy, run
from pytest_xenkvm.trace.errors import Malformed


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    """`--help` lists every command with what it does, examples and exit codes."""
    assert run(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out and entry.help in out for name, entry in COMMANDS.items())
    assert "xenkvm show boot.xkt --vcpu 1 --failed" in out
    assert "Exit codes: 0" in out


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_explains_itself(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Each command in the table can be loaded and has a help page with examples."""
    assert run([name, "--help"]) == 0
    assert "Examples:" in capsys.readouterr().out


def test_help_loads_no_command() -> None:
    """`xenkvm --help` imports none of the commands' modules, so that it is quick."""
    code = (
        "import sys; from pytest_xenkvm.cli.main import COMMANDS, run; run(['--help']);"
        "sys.exit(any(entry.module in sys.modules for entry in COMMANDS.values()))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    """`--version` prints one line that begins with the program's name."""
    assert run(["--version"]) == 0
    assert capsys.readouterr().out.startswith("xenkvm ")


@pytest.mark.parametrize("args", [["nonsense"], ["show"], ["show", "--nonsense"], ["--nonsense"]])
def test_a_wrong_command_line_is_exit_code_2(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Usage errors go to stderr as click words them."""
    assert run(args) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "Error: " in captured.err


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (UserError("there is no such\nthing"), "xenkvm: there is no such thing\n"),
        (
            Malformed("an odd \x1b[2J end", "a.jsonl", line=3),
            "xenkvm: a.jsonl, line 3: an odd \\x1b[2J end\n",
        ),
        (
            FileNotFoundError(2, "No such file or directory", "b.xkt"),
            "xenkvm: b.xkt: No such file or directory\n",
        ),
        (OSError("disk on fire"), "xenkvm: disk on fire\n"),
    ],
)
def test_expected_errors_are_one_sentence(
    error: Exception, sentence: str, capsys: pytest.CaptureFixture[str], failing: list[BaseException]
) -> None:
    """What the user got wrong is one safe line on stderr and exit code 2, without a traceback."""
    failing.append(error)
    assert run(["fail"]) == 2
    assert capsys.readouterr().err == sentence


def test_ctrl_c_is_exit_code_130(failing: list[BaseException]) -> None:
    """An interrupted command ends as shells expect."""
    failing.append(KeyboardInterrupt())
    assert run(["fail"]) == 130


def test_a_bug_is_not_hidden(failing: list[BaseException]) -> None:
    """An unexpected exception keeps its traceback."""
    failing.append(ZeroDivisionError())
    with pytest.raises(ZeroDivisionError):
        run(["fail"])


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[BaseException]:
    """A command `fail` that raises what the test puts into this list."""
    errors: list[BaseException] = []

    @click.command()
    def fail() -> None:
        raise errors[0]

    monkeypatch.setattr(import_module(__name__), "fail_command", fail, raising=False)
    monkeypatch.setitem(main.COMMANDS, "fail", Lazy(__name__, "fail_command", "Fails."))
    return errors


def test_a_closed_pipe_ends_quietly(tmp_path: Path) -> None:
    """A reader that goes away early (`| head`) leaves nothing on stderr."""
    trace = tmp_path / "long.jsonl"
    header = '{"format":"xenkvm-trace","version":1,"kernel":null,"max_vcpus":null,"cpu_vendor":"amd",'
    header += '"recorder":"test","scope":"hypercalls","vm":null,"notes":""}'
    trace.write_text("\n".join([header, *['{"ev":"vcpu_run","vcpu":0,"ts":1}'] * 20_000]) + "\n")
    command = [sys.executable, "-c", "from pytest_xenkvm.cli.main import main; main()", "show", str(trace)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == main.PIPE_EXIT
