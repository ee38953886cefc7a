"""`xenkvm convert`: a trace in the other file format."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.cli.output import check_output, force_option, watched
from pytest_xenkvm.trace.decode_values import text
from pytest_xenkvm.trace.events import Event
from pytest_xenkvm.trace.files import Trace, open_trace, write_trace
from pytest_xenkvm.trace.xkt import XktTrace

_EPILOG: Final = """\b
Examples:
  xenkvm convert boot.xkt boot.jsonl               one event a line, to read, edit and diff
  xenkvm convert boot.jsonl.gz boot.xkt            and back: the same events, to the bit
  xenkvm convert --salvage cut-off.xkt whole.xkt   what there is of a recording that was cut off

Exit codes: 0 written, 2 it can't be (the reason is on stderr).
"""


@click.command(epilog=_EPILOG)
@click.argument("source", metavar="TRACE")
@click.argument("target", metavar="OUT", type=click.Path(path_type=Path))
@click.option(
    "--salvage",
    is_flag=True,
    help="Read an .xkt file that its writer couldn't finish up to its last whole block.",
)
@force_option
def convert(source: str, target: Path, *, salvage: bool, force: bool) -> None:
    """Write TRACE (a file, or @NAME) to OUT in the format of its suffix: .xkt, .jsonl or .jsonl.gz.

    Nothing is lost in either direction. OUT appears when it is whole.
    """
    check_output(target, [source], force=force)
    trace = open_trace(source) if not salvage else XktTrace(Path(source), salvage=True)
    events = _some(trace) if salvage else trace.events()
    written = write_trace(target, trace.header, watched(events, "events written"))
    if isinstance(trace, XktTrace) and not trace.complete:
        click.echo(f"{text(trace.name)}: its writer was stopped; this is what it had written", err=True)
    click.echo(f"wrote {text(str(target), 1000)}: {written:,} events", err=True)


def _some(trace: Trace) -> Iterator[Event]:
    """The events of a trace, of which there must be some."""
    events = trace.events()
    first = next(events, None)
    if first is None:
        raise UserError(f"{text(trace.name)}: holds no whole block of events")
    yield first
    yield from events
