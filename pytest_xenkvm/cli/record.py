"""`xenkvm record`: real VMs on this host, recorded while they run."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Final

import click
from attrs import define

from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.cli.recorded import recorded_lines
from pytest_xenkvm.record.control import Ending, Signals, signals_noted, start
from pytest_xenkvm.record.errors import RecordError
from pytest_xenkvm.record.host import host_facts
from pytest_xenkvm.record.leftovers import find_leftovers, remove_leftovers
from pytest_xenkvm.record.session import Recorder, Setup, recording
from pytest_xenkvm.record.tracefs import Tracefs, find_tracefs
from pytest_xenkvm.trace.errors import TraceError

_NOTHING_EXIT: Final = 1
_SIGNAL_BASE: Final = 128
_BUFFERS_KB: Final = 256 << 10
"""Kernel memory for all CPUs' buffers together, unless --buffer-size says otherwise."""
_LEAST_KB, _MOST_KB = 1 << 10, 8 << 10
_REFRESH_S: Final = 0.5

_EPILOG: Final = """\b
Examples:
  xenkvm record -o boot.xkt -- qemu-system-x86_64 -accel kvm,xen-version=0x40011,kernel-irqchip=split ...
  xenkvm record --pid 4711 --duration 60        a VM that runs already: its hypercalls, no configuration
  xenkvm record                                 all VMs, until Ctrl-C: recording.xkt, recording-2.xkt, ...
  xenkvm record --clean                         remove what killed recordings have left in tracefs
  xenkvm record --host kvm @linux-boot -o again.xkt   do a trace again on this machine, which needs no root

Recording running VMs takes root. The exit code is that of COMMAND (128 + N if signal N ended it); without a
COMMAND 0, or 1 if no Xen VM was seen.
"""


@click.command("record", epilog=_EPILOG, context_settings={"ignore_unknown_options": False})
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("recording.xkt"),
    show_default=True,
    metavar="TRACE",
    help="The trace, ending in .xkt. A second VM goes to TRACE-2.xkt, and so on.",
)
@click.option(
    "--host",
    type=click.Choice(["kvm"]),
    help="COMMAND is a trace: do it again on this machine's KVM, and record what happens.",
)
@click.option("--pid", type=click.IntRange(1), metavar="PID", help="Record this process and what it starts.")
@click.option(
    "--duration", type=click.FloatRange(0, min_open=True), metavar="S", help="Stop after S seconds."
)
@click.option("--max-events", type=click.IntRange(1), metavar="N", help="Stop after N events.")
@click.option(
    "--buffer-size",
    type=click.IntRange(64, 1 << 20),
    metavar="KB",
    help="The kernel's buffer for each CPU. Default: 8192, less on hosts of many CPUs.",
)
@click.option("--force", is_flag=True, help="Replace TRACE if it exists.")
@click.option("--clean", is_flag=True, help="Remove what killed recordings have left in tracefs.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but what went wrong.")
@click.option(
    "--tracefs", type=click.Path(path_type=Path), metavar="FOLDER", help="Where tracefs is mounted."
)
def record(  # noqa: PLR0913 - an argument an option
    command: tuple[str, ...],
    output: Path,
    *,
    host: str | None,
    pid: int | None,
    duration: float | None,
    max_events: int | None,
    buffer_size: int | None,
    force: bool,
    clean: bool,
    quiet: bool,
    tracefs: Path | None,
) -> int:
    """Record the Xen hypercalls of VMs on this host, with their configuration and results, while they run.

    With COMMAND, which is started, or --pid: the VMs of that process and of those that it starts. Otherwise
    all VMs of the host. A VM that was created while the recording went on gives a trace that replays on its
    own (scope "full"), if the kernel lets its functions be probed.
    """
    if host is not None:
        useless = {"--pid": pid, "--duration": duration, "--buffer-size": buffer_size, "--clean": clean}
        for option, value in useless.items():
            if value:
                raise UserError(f"{option} doesn't go with --host: no running VM is recorded")
        _record_scenario(command, output, limit=max_events, force=force, quiet=quiet)
        return 0
    try:
        mounted = find_tracefs(tracefs)
        _leftovers(mounted, clean=clean)
        if clean and not command and pid is None:
            return 0
        _check(command, pid, output, force=force)
        setup = Setup(tracefs=mounted, buffer_kb=buffer_size or _buffer_kb(), follow=bool(command or pid))
        facts = host_facts()
        ending = Ending(signals=Signals(), pid=pid, duration=duration, max_events=max_events)
        with (
            signals_noted(ending.signals),
            recording(
                setup, facts, outputs=lambda number: numbered(output, number), force=force, limit=max_events
            ) as recorder,
        ):
            _run(recorder, ending, command, quiet=quiet)
        return _status(recorder, ending, quiet=quiet)
    except TraceError as error:
        if ending.child is not None and ending.child.poll() is None:
            click.echo(f"the recording failed, and the command goes on: {error}", err=True)
            ending.child.wait()
        raise
    except RecordError as error:
        raise UserError(str(error)) from error


def _record_scenario(
    command: tuple[str, ...], output: Path, *, limit: int | None, force: bool, quiet: bool
) -> None:
    from pytest_xenkvm.cli.record_scenario import record_scenario  # noqa: PLC0415 - not needed for tracefs

    if len(command) != 1:
        raise UserError(
            f"--host kvm does one trace again, and {len(command)} were named: "
            "say xenkvm record --host kvm TRACE -o OUTPUT"
        )
    if output.exists() and not force:
        raise UserError(f"{output}: exists already; --force replaces it, or name another file")
    record_scenario(command[0], output, limit=limit, quiet=quiet)


def numbered(output: Path, number: int) -> Path:
    """The file of the first, second, ... VM: TRACE.xkt, TRACE-2.xkt, ..."""
    return output if number == 1 else output.with_name(f"{output.stem}-{number}{output.suffix}")


def _check(command: tuple[str, ...], pid: int | None, output: Path, *, force: bool) -> None:
    if command and pid is not None:
        raise UserError("--pid and a COMMAND were both given: expected one of them")
    if pid is not None and not Path(f"/proc/{pid}").exists():
        raise UserError(f"there is no process {pid}: --pid takes the number of one that runs")
    if output.suffix != ".xkt":
        raise UserError(f"{output}: a recording's name ends in .xkt; `xenkvm show` prints it as text")
    if not output.absolute().parent.is_dir():
        raise UserError(f"{output}: its folder doesn't exist")
    if output.exists() and not force:
        raise UserError(f"{output}: exists already; --force replaces it, or name another file")


def _buffer_kb() -> int:
    return max(_LEAST_KB, min(_MOST_KB, _BUFFERS_KB // (os.cpu_count() or 1)))


def _leftovers(tracefs: Tracefs, *, clean: bool) -> None:
    """Remove what dead recordings have left; on a terminal, ask unless told to."""
    found = find_leftovers(tracefs)
    if not found:
        if clean:
            click.echo("no recording has left anything in tracefs", err=True)
        return
    what = f"{len(found)} killed recording{'s' * (len(found) > 1)} left probes or buffers: {', '.join(found)}"
    if not clean and sys.stdin.isatty() and sys.stderr.isatty():
        if not click.confirm(f"{what}. Remove them?", default=True, err=True):
            return
    else:
        click.echo(f"{what}; removing them", err=True)
    for name in found:
        if not remove_leftovers(tracefs, name):
            click.echo(f"{name}: is in use by another process, and stays", err=True)


def _run(recorder: Recorder, ending: Ending, command: tuple[str, ...], *, quiet: bool) -> None:
    if recorder.doubts and not quiet:
        click.echo(f"recording hypercalls only: {recorder.doubts}", err=True)
    if command:
        ending.child = ending.signals.child = start(command)
        recorder.family.adopt(ending.child.pid)
    elif ending.pid is not None:
        recorder.family.adopt(ending.pid)
    progress = Progress(recorder, shown=not quiet and sys.stderr.isatty())
    try:
        why = ending.watch(recorder, progress)
    finally:
        recorder.stop()
        progress.clear()
    if not quiet:
        click.echo(f"recording ended: {why}", err=True)


def _status(recorder: Recorder, ending: Ending, *, quiet: bool) -> int:
    """Say what was recorded; wait for the command and return its exit code."""
    sorter = recorder.sorter
    for line in recorded_lines(sorter.all, quiet=quiet):
        click.echo(line, err=True)
    if sorter.lost:
        missed = ", ".join(f"{name} {count:,} times" for name, count in recorder.missed.items())
        advice = f"probes passed unnoticed: {missed}" if missed else "a larger --buffer-size helps"
        click.echo(f"{sorter.lost:,} events were lost ({advice})", err=True)
    if not sorter.all:
        click.echo("no VM made a Xen hypercall or was configured for Xen: nothing was written", err=True)
    if ending.child is not None:
        status = ending.child.wait()
        return _SIGNAL_BASE - status if status < 0 else status
    return 0 if sorter.all else _NOTHING_EXIT


@define
class Progress:
    """Counters on a terminal, a line that is written over and over."""

    recorder: Recorder
    shown: bool
    _next: float = 0.0

    def __call__(self) -> None:
        """Show them if it is time to."""
        now = time.monotonic()
        if not self.shown or now < self._next:
            return
        self._next = now + _REFRESH_S
        sorter = self.recorder.sorter
        calls = sum(vm.hypercalls for vm in sorter.all)
        lost = f", {sorter.lost:,} lost" if sorter.lost else ""
        click.echo(
            f"\r\x1b[K{len(sorter.all)} VMs, {calls:,} hypercalls, {sorter.written:,} events written{lost}",
            nl=False,
            err=True,
        )

    def clear(self) -> None:
        """Leave the line empty."""
        if self.shown:
            click.echo("\r\x1b[K", nl=False, err=True)
