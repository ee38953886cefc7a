"""`xenkvm check`: read traces to their ends, and tell what is wrong with them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click

from pytest_xenkvm.trace.decode_values import text
from pytest_xenkvm.trace.errors import TraceError
from pytest_xenkvm.trace.events import Event
from pytest_xenkvm.trace.files import find_traces, open_trace
from pytest_xenkvm.trace.xkt import UNFINISHED

BROKEN_EXIT: Final = 1
"""One of the traces can't be read to its end."""

_PROGRESS_STEP: Final = 100_000
"""Events between two signs of life."""
_MAX_SENTENCE: Final = 2000
"""Characters of what is said about a trace, which is untrusted."""

_EPILOG: Final = """\b
Examples:
  xenkvm check boot.xkt                  one trace
  xenkvm check traces                    all in a folder and the folders in it
  xenkvm check --quiet 'traces/*.xkt'    say only what is broken

Exit codes: 0 all can be read, 1 one is broken, 2 there is no such trace (the reason is on stderr).
"""


@click.command(epilog=_EPILOG)
@click.argument("traces", metavar="TRACE...", nargs=-1, required=True)
@click.option("-q", "--quiet", is_flag=True, help="Print only what is broken.")
@click.pass_context
def check(ctx: click.Context, traces: tuple[str, ...], *, quiet: bool) -> None:
    """Read each TRACE (a file, folder, pattern or @NAME) to its end and tell what is wrong with it.

    Every event is checked against the trace format; nothing is replayed. Of a broken trace the first mistake
    is told, with the line (as JSON Lines) and the event.
    """
    broken = False
    for path in [path for spec in traces for path in find_traces(spec)]:
        try:
            events, unfinished = _read(path)
        except TraceError as error:
            broken = True
            click.echo(text(" ".join(str(error).split()), _MAX_SENTENCE))
        else:
            if not quiet:
                mark = " (its recording was not finished)" * unfinished
                count = f"{events:,} event{'' if events == 1 else 's'}"
                click.echo(f"{text(str(path), _MAX_SENTENCE)}: {count}{mark}")
    if broken:
        ctx.exit(BROKEN_EXIT)


def _read(path: Path) -> tuple[int, bool]:
    """The number of events, and whether the recording goes on or was killed. Raises `TraceError`."""
    trace = open_trace(path)
    try:
        return sum(1 for _ in _watched(path, trace.events())), UNFINISHED in trace.header.extra
    finally:
        if sys.stderr.isatty():
            click.echo("\r\x1b[K", nl=False, err=True)


def _watched(path: Path, events: Iterable[Event]) -> Iterator[Event]:
    """Hand `events` through, and show on a terminal how many there have been."""
    watched = sys.stderr.isatty()
    for count, event in enumerate(events, 1):
        if watched and count % _PROGRESS_STEP == 0:
            click.echo(f"\r{text(path.name)}: {count:,} events read", nl=False, err=True)
        yield event
