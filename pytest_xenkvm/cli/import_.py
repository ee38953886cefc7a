"""`xenkvm import`: a recording of a real guest becomes a trace."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any, Final

import click
from attrs import evolve

from pytest_xenkvm.abi.numbers import KVM_MAX_VCPUS_ALLOWED, PAGE_SIZE
from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.cli.output import check_output, watched
from pytest_xenkvm.core.profile import is_release, profile_for_release
from pytest_xenkvm.trace.decode_values import text
from pytest_xenkvm.trace.events import IRQCHIPS, VENDORS
from pytest_xenkvm.trace.files import write_trace
from pytest_xenkvm.trace.header import MAX_MEMORY
from pytest_xenkvm.trace.importers import (
    BPFTRACE_SCRIPT,
    DETECT_LINES,
    IMPORTERS,
    Given,
    Imported,
    ImporterError,
    all_importers,
    detect,
    find_importer,
    open_recording,
    with_answers,
)

_UNITS: Final = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SOURCES: Final = "\n".join(f"  {name:16}{known.description}" for name, known in IMPORTERS.items())
_EPILOG: Final = f"""\b
Recordings (--from):
{_SOURCES}

\b
Examples:
  xenkvm import ftrace.txt.gz                              ftrace.xkt, in this folder
  xenkvm import qemu.log -o boot.jsonl --kernel 6.12.117   JSON Lines, to read or to edit
  xenkvm import ftrace.txt --irqchip split --memory 192M   what the recording doesn't show
  xenkvm import ftrace.txt --answers qemu.log              and what QEMU answered in that run
  xenkvm import strace.txt --answers qemu.log              the VM by strace, its hypercalls by QEMU
  xenkvm import trace.dat                                  through trace-cmd, if that is installed
  bpftrace "$(xenkvm import --bpftrace-script)" >rec.txt   to be imported when Ctrl-C has ended it

The report on stderr says what became of every line, and what the trace holds without having been seen.
"""


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Bytes from `4096`, `192M` or `0x1000`."""
    del ctx, param
    if value is None:
        return None
    spelt = value.strip().lower().removesuffix("ib").removesuffix("b") if "0x" not in value else value
    digits = spelt.rstrip("kmgt")
    try:
        size = int(digits, 0) * _UNITS[spelt[len(digits) :]]
    except (KeyError, ValueError):
        size = 0
    if size % PAGE_SIZE or not 0 < size <= MAX_MEMORY:
        message = f"{value!r} is no size of guest memory: expected whole pages up to 1 TiB, like 192M"
        raise click.BadParameter(message)
    return size


def _release(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """A kernel's release."""
    del ctx, param
    if value is not None and not is_release(value):
        message = (
            f"{value!r} is no kernel's release: expected what `uname -r` says on that host, like 6.12.117"
        )
        raise click.BadParameter(message)
    return value


def _print_script(ctx: click.Context, param: click.Parameter, value: bool) -> None:  # noqa: FBT001 (click's)
    """Print where the script for bpftrace is, and do nothing else."""
    del param
    if value:
        click.echo(str(BPFTRACE_SCRIPT))
        ctx.exit()


@click.command("import", epilog=_EPILOG)
@click.argument("recording", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="TRACE",
    help="Where to: .xkt, or .jsonl for JSON Lines. Default: RECORDING's name with .xkt, in this folder.",
)
@click.option(
    "--from",
    "source",
    metavar="SOURCE",
    help="What wrote the recording. Default: found out from its content.",
)
@click.option(
    "--kernel",
    metavar="RELEASE",
    callback=_release,
    help="The recorded host's kernel, as its `uname -r` says.",
)
@click.option(
    "--max-vcpus",
    type=click.IntRange(1, KVM_MAX_VCPUS_ALLOWED[-1]),
    metavar="N",
    help="The recorded host's KVM_MAX_VCPUS.",
)
@click.option("--memory", callback=_size, metavar="SIZE", help="The guest's memory, like 192M.")
@click.option("--cpu-vendor", type=click.Choice(VENDORS), help="The recorded host's CPU.")
@click.option("--irqchip", type=click.Choice(IRQCHIPS), help="Where the VM's interrupt controllers were.")
@click.option(
    "--answers",
    type=click.Path(path_type=Path),
    metavar="LOG",
    help="QEMU's log of the same run: its answers to forwarded hypercalls, which no other recorder sees.",
)
@click.option(
    "--bpftrace-script",
    is_flag=True,
    is_eager=True,
    expose_value=False,
    callback=_print_script,
    help="Print the path of a script for bpftrace that records hypercalls, and exit.",
)
@click.option("--notes", default="", metavar="TEXT", help="Free text for the trace's header, put first.")
@click.option("--force", is_flag=True, help="Replace TRACE if it exists.")
def import_(  # noqa: PLR0913 - an argument an option
    recording: Path,
    output: Path | None,
    source: str | None,
    *,
    answers: Path | None,
    notes: str,
    force: bool,
    **given: Any,
) -> None:
    """Turn RECORDING into a trace that can be shown and replayed.

    It is text, text compressed with gzip, or trace-cmd's trace.dat.
    """
    target = output or _default_output(recording)
    check_output(target, [recording], force=force, source="recording")
    path = str(recording)
    try:
        importers = all_importers()
        source = source or detect(
            islice(open_recording(recording), DETECT_LINES), path=path, importers=importers
        )
        importer = find_importer(source, importers)
    except ImporterError as error:
        raise UserError(str(error)) from error
    lines = watched(open_recording(recording), "lines read")
    imported = importer.run(lines, path=path, given=Given(**given))
    if answers is not None:
        imported = with_answers(imported, _answers(answers), path=str(answers))
    header = evolve(imported.header, notes="; ".join(filter(None, (notes, imported.header.notes))))
    write_trace(target, header, watched(imported.events, "events written"))
    click.echo(str(imported.report), err=True)
    if header.kernel is None:
        click.echo(f"no --kernel given: replays as {profile_for_release(None).name} unless told", err=True)
    if answers is None and imported.forwarded:
        click.echo("--answers LOG, QEMU's log of the same run, names the forwarded hypercalls", err=True)
    click.echo(f"from {source}, wrote {text(str(target), 1000)}: {len(imported.events):,} events", err=True)


def _answers(log: Path) -> Imported:
    return IMPORTERS["qemu-log"].run(open_recording(log), path=str(log), given=Given())


def _default_output(recording: Path) -> Path:
    name = recording.name.removesuffix(".gz")
    return Path(name).with_suffix(".xkt")
