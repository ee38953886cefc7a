"""The command `xenkvm`: finds the subcommand, and turns expected errors into one sentence and exit code 2.

A subcommand's module is imported only when it is run, so that `xenkvm --help` is quick.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from io import TextIOWrapper
from typing import Any, Final

import click
from attrs import frozen

from pytest_xenkvm.cli.errors import UserError

USAGE_EXIT: Final = 2
"""The user asked for something that can't be done; the reason is on stderr."""
INTERRUPT_EXIT: Final = 130
"""Ctrl-C: 128 + SIGINT, as shells have it."""
PIPE_EXIT: Final = 141
"""Whoever read the output went away: 128 + SIGPIPE."""


_MAX_SENTENCE: Final = 2000
"""Characters of an error message, which may quote an untrusted file."""


@frozen
class Lazy:
    """Where a subcommand lives and what it does in one line."""

    module: str
    attribute: str
    help: str


COMMANDS: Final[dict[str, Lazy]] = {
    "replay": Lazy(
        "pytest_xenkvm.cli.replay", "replay", "Replay a trace, compare outcomes, judge the rules."
    ),
    "show": Lazy("pytest_xenkvm.cli.show", "show", "Print a trace in words, one line an event."),
    "check": Lazy("pytest_xenkvm.cli.check", "check", "Read traces to their ends, and tell what is wrong."),
    "import": Lazy("pytest_xenkvm.cli.import_", "import_", "Turn a recording of a real guest into a trace."),
    "record": Lazy("pytest_xenkvm.cli.record", "record", "Record VMs of this host while they run."),
    "stat": Lazy("pytest_xenkvm.cli.stat", "stat", "Tell what a trace is made of: calls, timers, rates."),
    "diff": Lazy("pytest_xenkvm.cli.diff", "diff", "Tell where two traces, or two replays of one, part."),
    "convert": Lazy("pytest_xenkvm.cli.convert", "convert", "Write a trace in the other file format."),
    "cut": Lazy("pytest_xenkvm.cli.cut", "cut", "Cut a piece out of a trace that still replays."),
    "merge": Lazy("pytest_xenkvm.cli.merge", "merge_command", "Merge recordings of one VM into one trace."),
    "shrink": Lazy(
        "pytest_xenkvm.cli.shrink",
        "shrink_command",
        "Shrink a failing trace to the few events it takes to fail.",
    ),
    "rules": Lazy("pytest_xenkvm.cli.rules", "rules", "List the conformance rules, or explain one of them."),
    "profiles": Lazy(
        "pytest_xenkvm.cli.profiles", "profiles", "Tell how the kernels differ, and what to do."
    ),
    "report": Lazy("pytest_xenkvm.cli.report", "report", "Merge and compare reports of pytest runs."),
    "badge": Lazy("pytest_xenkvm.cli.badge", "badge", "Draw the badge of a report."),
    "lab": Lazy("pytest_xenkvm.cli.lab", "lab", "Run a command on a real kernel with KVM and Xen support."),
}

_EPILOG: Final = """\b
Examples:
  xenkvm replay @linux-boot                     compare with the recording, judge the rules
  xenkvm import ftrace.txt.gz -o boot.xkt       a recording becomes a trace
  xenkvm show boot.xkt --vcpu 1 --failed        what went wrong on vCPU 1
  xenkvm show boot.xkt --count                  which hypercalls, and who answered them
  xenkvm COMMAND --help                         options and more examples

Exit codes: 0 all went well, 1 a replay diverged, a rule was violated or a trace is broken, 2 the
request can't be served (the reason is on stderr), 130 interrupted.
"""


class _Commands(click.Group):
    """A group whose members come from `COMMANDS`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        command: click.Command = getattr(import_module(entry.module), entry.attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run, and write out what is buffered while a closed pipe can still be noticed."""
        try:
            outcome = super().invoke(ctx)
            sys.stdout.flush()
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or Python complains at its end
            ctx.exit(PIPE_EXIT)
        return outcome


def _print_version(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: FBT001 - click's
    del param
    if not value:
        return
    from importlib.metadata import PackageNotFoundError, version  # noqa: PLC0415 - slow, and rarely wanted

    try:
        installed = version("pytest-xenkvm")
    except PackageNotFoundError:
        installed = "(not installed)"
    click.echo(f"xenkvm {installed}")
    ctx.exit()


@click.group(cls=_Commands, epilog=_EPILOG, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--version",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_version,
    help="Print the version and stop.",
)
@click.pass_context
def xenkvm(ctx: click.Context) -> None:
    """Look at recorded Xen hypercalls of KVM guests, replay them and judge them.

    A TRACE is a file (.xkt or .jsonl) or @NAME, one of the traces that come with this program.
    """
    if os.environ.get("NO_COLOR"):
        ctx.color = False


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line `args` (without the program's name; default: the process's own).

    Returns the exit code; what the user got wrong is told on stderr.
    """
    try:
        outcome = xenkvm.main(args, prog_name="xenkvm", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except click.Abort:
        return INTERRUPT_EXIT
    except Exception as error:
        sentence = _explain(error)
        if sentence is None:
            raise
        click.echo(f"xenkvm: {sentence}", err=True)
        return USAGE_EXIT
    return outcome if isinstance(outcome, int) else 0


def _explain(error: Exception) -> str | None:
    """What the user got wrong, in one line fit for a terminal; None if `error` is a bug of ours."""
    # Reading traces takes most of the time it takes to start, so it is loaded when it has been needed.
    from pytest_xenkvm.trace.decode_values import text  # noqa: PLC0415
    from pytest_xenkvm.trace.errors import TraceError  # noqa: PLC0415

    match error:
        case OSError(filename=str(name), strerror=str(reason)):
            sentence = f"{name}: {reason}"
        case OSError() | TraceError() | UserError():
            sentence = str(error)
        case _:
            return None
    return text(" ".join(sentence.split()), _MAX_SENTENCE)


def main() -> None:
    """Entry point of the console script."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # names in a trace needn't suit the terminal
    sys.exit(run())
