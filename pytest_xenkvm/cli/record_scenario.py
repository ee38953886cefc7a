"""`xenkvm record --host kvm SCENARIO`: a trace is done again on this machine's KVM, and recorded."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Final

import click
from attrs import evolve

from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.hosts.devkvm.host import DevKvmHost
from pytest_xenkvm.hosts.protocol import HostError
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.replay.rerecord import rerecord
from pytest_xenkvm.trace.decode_values import text
from pytest_xenkvm.trace.events import Event
from pytest_xenkvm.trace.files import open_trace, write_trace

_RECORDER: Final = "xenkvm-record"


def record_scenario(scenario: str, output: Path, *, limit: int | None, quiet: bool) -> None:
    """Do the trace `scenario` again, its first `limit` events at most, and write what happened.

    Raises UserError for a host or scenario that doesn't allow it, `TraceError` as files do.
    """
    trace = open_trace(scenario)
    try:
        host = DevKvmHost.open()
        header, events = rerecord(host, trace.header, trace.events(), kernel=host.release, recorder=_RECORDER)
        notes = f"{trace.name}, recorded on {trace.header.kernel}, done again by xenkvm record."
        header = evolve(header, notes=" ".join(filter(None, (notes, trace.header.notes))))
        written = write_trace(output, header, _limited(events, limit))
    except (HostError, ReplayError) as error:
        raise UserError(f"{scenario}: {error}") from error
    if not quiet:
        what = f"{written:,} events, recorded on {host.name}"
        click.echo(f"{text(str(output), 1000)}: {what}", err=True)


def _limited(events: Iterable[Event], limit: int | None) -> Iterator[Event]:
    for count, event in enumerate(events):
        if limit is not None and count >= limit:
            return
        yield event
