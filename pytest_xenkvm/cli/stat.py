"""`xenkvm stat`: what a trace is made of, with a picture on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Hashable, Iterator
from itertools import chain
from shutil import get_terminal_size
from typing import Final

import click

from pytest_xenkvm.cli.output import watched
from pytest_xenkvm.cli.show import header_lines, write
from pytest_xenkvm.report.rates import sparkline
from pytest_xenkvm.report.statistics import (
    CALL_COLUMNS,
    EVENTS,
    FORWARDED,
    HYPERCALLS,
    IOCTL_COLUMNS,
    VCPU_COLUMNS,
    Statistics,
    Timers,
    ranked,
    timers_json,
)
from pytest_xenkvm.trace.files import open_trace

_PICTURE_COLUMNS: Final = 64
_LEAST_COLUMNS: Final = 8

_EPILOG: Final = """\b
Examples:
  xenkvm stat @linux-boot                     hypercalls, vCPUs, timers, ioctls; how often, and when
  xenkvm stat boot.xkt --json | jq .vcpus     for programs

On a terminal each hypercall has a picture of when it was made: from the first event to the last, as high as
it was frequent then, each on a scale of its own. Timers count what the kernel did: armed by a hypercall or an
attribute, fired when their time had come, stopped by a hypercall; forwarded are timer calls left to the VMM.
"""


@click.command(epilog=_EPILOG)
@click.argument("trace")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def stat(ctx: click.Context, /, trace: str, *, as_json: bool) -> None:
    """Tell what TRACE (a file, or @NAME) is made of."""
    opened = open_trace(trace)
    statistics = Statistics(opened.header)
    for event in watched(opened.events(), "events read"):
        statistics.see(event)
    if as_json:
        click.echo(json.dumps(statistics.as_json()))
        return
    write(ctx, chain(header_lines(opened.header), _lines(statistics)))


def _lines(statistics: Statistics) -> Iterator[str]:
    yield _summary(statistics)
    picture = _Picture(statistics)
    if picture.columns:
        for name, what in (("events", EVENTS), ("hypercalls", HYPERCALLS), ("forwarded", FORWARDED)):
            yield f"{name:12}{picture.of(what)}"
    if statistics.hypercalls:
        yield ""
        calls = ranked(statistics.hypercalls)
        rows = [(name, [row[column] for column in CALL_COLUMNS], picture.of(name)) for name, row in calls]
        yield from _table("hypercall", CALL_COLUMNS, rows)
    if statistics.vcpus:
        yield ""
        yield from _vcpus(statistics)
    if statistics.ioctls:
        yield ""
        ioctls = ranked(statistics.ioctls)
        rows = [(name, [row[column] for column in IOCTL_COLUMNS], "") for name, row in ioctls]
        yield from _table("ioctl", IOCTL_COLUMNS, rows)


def _summary(statistics: Statistics) -> str:
    hypercalls = sum(row["count"] for row in statistics.hypercalls.values())
    words = f"{statistics.events:,} events ({statistics.inferred:,} inferred), {hypercalls:,} hypercalls"
    if not statistics.seconds:
        return words
    rate = hypercalls / statistics.seconds
    return f"{words}, in {statistics.seconds:.3f} s: {rate:,.0f} hypercalls/s"


def _vcpus(statistics: Statistics) -> Iterator[str]:
    columns = (*VCPU_COLUMNS, *(f"timer {name}" for name in timers_json(Timers())))
    rows = [
        (
            f"{vcpu}",
            [
                *(row[column] for column in VCPU_COLUMNS),
                *timers_json(statistics.timers.get(vcpu, Timers())).values(),
            ],
            "",
        )
        for vcpu, row in sorted(statistics.vcpus.items())
    ]
    yield from _table("vCPU", columns, rows)


class _Picture:
    """Sparklines for a terminal; empty elsewhere, and without times."""

    def __init__(self, statistics: Statistics) -> None:
        self.rates = statistics.rates
        names = max((len(name) for name in statistics.hypercalls), default=0)
        space = get_terminal_size().columns - names - sum(max(len(name), 9) + 2 for name in CALL_COLUMNS) - 3
        wanted = sys.stdout.isatty() and bool(statistics.seconds)
        self.columns = min(space, _PICTURE_COLUMNS) if wanted and space >= _LEAST_COLUMNS else 0
        self.plain = not (sys.stdout.encoding or "").lower().startswith("utf")

    def of(self, what: Hashable) -> str:
        """When it happened."""
        return sparkline(self.rates.bins(what), self.columns, plain=self.plain)


def _table(first: str, columns: tuple[str, ...], rows: list[tuple[str, list[int], str]]) -> Iterator[str]:
    width = max(len(first), *(len(name) for name, _, _ in rows))
    widths = [max(len(column), 9) for column in columns]
    heading = (f"{column:>{size}}" for column, size in zip(columns, widths, strict=True))
    yield click.style("  ".join([f"{first:{width}}", *heading]), bold=True)
    for name, numbers, picture in rows:
        shown = (f"{number:>{size}}" for number, size in zip(numbers, widths, strict=True))
        yield "  ".join([f"{name:{width}}", *shown, *([picture] if picture else [])])
