"""`xenkvm cut`: a piece of a trace that still replays."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Final

import click
from attrs import evolve

from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.cli.output import check_output, force_option, output_option, watched
from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.report.text import divergence_lines
from pytest_xenkvm.trace.decode_values import duration, text
from pytest_xenkvm.trace.files import open_trace, write_trace
from pytest_xenkvm.traceops.cut import Cutting, Piece, Point, new_divergences
from pytest_xenkvm.traceops.state import TooMuchState

DIVERGED_EXIT: Final = 1
"""The piece was written, but doesn't replay as the whole did."""

_UNITS: Final = {"ns": 1, "us": 1_000, "ms": 1_000_000, "s": 1_000_000_000}
_TIME: Final = re.compile(r"(\d{1,20})(?:\.(\d{1,9}))?(ns|us|ms|s)")
_INDEX: Final = re.compile(r"\d{1,20}")

_EPILOG: Final = """\b
Examples:
  xenkvm cut boot.xkt --from 9000 --to 9120 -o oops.xkt        events 9000 to 9120
  xenkvm cut boot.xkt --from 4.6s --to 4650ms -o start.xkt     by the time since the first event
  xenkvm cut boot.xkt --vcpu 1 -o vcpu1.xkt                    one vCPU's view
  xenkvm cut boot.xkt --to 9999 --bare -o 1.xkt                a part to be merged again

Of what came before the piece, the events that set the VM up stay: ioctls that configure, eventfds, MSR
writes, hypercalls by which the guest sets up what later ones use. A trace of scope "full" gets the state of
guest memory, eventfds and timers besides, as inferred events, and is replayed to see whether its outcomes
are still those that were recorded. --bare leaves all of this out.

Exit codes: 0 written, 1 written, but it diverges where the whole doesn't, 2 it can't be (the reason is on
stderr).
"""


def parse_time(value: str) -> int:
    """Nanoseconds from `4.6s`, `350ms`, `20us` or `7ns`; raises click.BadParameter."""
    found = _TIME.fullmatch(value)
    if found is None:
        message = f"{value!r} is no time: expected a number and a unit, like 4.6s, 350ms, 20us, 7ns"
        raise click.BadParameter(message)
    whole, fraction, unit = found.groups()
    size = _UNITS[unit]
    return int(whole) * size + int((fraction or "0").ljust(9, "0")) * size // 1_000_000_000


def _point(ctx: click.Context, param: click.Parameter, value: str | None) -> Point | None:
    """An event's number, or a time."""
    del ctx, param
    if value is None:
        return None
    return Point(index=int(value)) if _INDEX.fullmatch(value) else Point(ns=parse_time(value))


@click.command(epilog=_EPILOG)
@click.argument("trace")
@click.option("--from", "start", callback=_point, metavar="N|TIME", help="Start at event N, or at a time.")
@click.option("--to", "end", callback=_point, metavar="N|TIME", help="Stop after event N, or after a time.")
@click.option(
    "--vcpu",
    "vcpus",
    type=click.IntRange(0),
    multiple=True,
    metavar="N",
    help="Only events of the vCPU with index N, and those of none; may be given more than once.",
)
@click.option("--bare", is_flag=True, help="Only the events asked for: no set-up, no state, no replay.")
@output_option()
@force_option
@click.pass_context
def cut(ctx: click.Context, /, *, trace: str, output: Path, force: bool, **asked: Any) -> None:
    """Cut a piece out of TRACE (a file, or @NAME) that can be replayed by itself."""
    piece = Piece(**{**asked, "vcpus": frozenset(asked["vcpus"])})
    if piece == Piece(bare=piece.bare):
        raise UserError("nothing says what to cut: expected --from, --to or --vcpu")
    check_output(output, [trace], force=force)
    opened = open_trace(trace)
    shape = opened.header.vm
    missing = [index for index in piece.vcpus if shape is not None and index >= len(shape.vcpus)]
    if missing and shape is not None:
        raise UserError(f"{trace}: has no vCPU {missing[0]}; it has {len(shape.vcpus)}, counted from 0")
    header = evolve(
        opened.header, notes="; ".join(filter(None, (_notes(opened.name, piece), opened.header.notes)))
    )
    cutting = Cutting(opened, piece)
    try:
        write_trace(output, header, watched(_not_empty(trace, cutting), "events written"))
        click.echo(_told(output, cutting), err=True)
        if piece.bare or header.scope != "full":
            return
        until = None if piece.end is None or piece.end.index is None else piece.end.index + 1
        found = new_divergences(open_trace(output), opened, until)
    except (ReplayError, HostError, TooMuchState) as error:
        raise UserError(f"{trace}: {error}; --bare cuts without a replay") from error
    if not found:
        click.echo("replayed: every outcome is as in the whole", err=True)
        return
    click.echo("replayed: it diverges where the whole doesn't; an earlier --from may help. First:", err=True)
    for line in divergence_lines(found[0]):
        click.echo(line, err=True)
    ctx.exit(DIVERGED_EXIT)


def _not_empty(trace: str, cutting: Cutting) -> Any:
    yield from cutting.events()
    if not cutting.cut:
        raise UserError(f"{trace}: no event lies between --from and --to")


def _told(output: Path, cutting: Cutting) -> str:
    more = [
        f"{count:,} {what}"
        for count, what in ((cutting.set_up, "of set-up"), (cutting.state, "of state"))
        if count
    ]
    events = f"{cutting.cut:,} event{'' if cutting.cut == 1 else 's'}"
    return f"wrote {text(str(output), 1000)}: {events}" + (f", after {' and '.join(more)}" if more else "")


def _notes(name: str, piece: Piece) -> str:
    """What was cut, for the header."""
    words = ["Cut"]
    if piece.start is not None:
        words.append(f"from {_point_words(piece.start)}")
    if piece.end is not None:
        words.append(f"to {_point_words(piece.end)}")
    if piece.vcpus:
        words.append(f"vCPU {', '.join(map(str, sorted(piece.vcpus)))} only")
    words.append(f"of {name}")
    words.append("as it was" if piece.bare else "with the set-up before it")
    return " ".join(words)


def _point_words(point: Point) -> str:
    return f"event {point.index}" if point.ns is None else duration(point.ns)
