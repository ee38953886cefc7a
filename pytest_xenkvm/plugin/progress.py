"""The progress of a long replay, below the line that pytest is writing."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest

from pytest_xenkvm.report.progress import Progress
from pytest_xenkvm.trace.files import Trace


@contextmanager
def progress_of(config: pytest.Config, trace: Trace) -> Iterator[Progress | None]:
    """What is told of the number of events; None where nobody watches: no terminal, `-q`, xdist's workers."""
    terminal = config.pluginmanager.get_plugin("terminalreporter")
    if terminal is None or not terminal.isatty or config.option.verbose < 0:
        yield None
        return
    capture = config.pluginmanager.get_plugin("capturemanager")

    def write(text: str) -> None:
        # Not by pytest's terminal writer, which reckons with what it has written on its line.
        with nullcontext() if capture is None else capture.global_and_fixture_disabled():
            sys.stdout.write(text)
            sys.stdout.flush()

    line = config.get_terminal_writer()
    column = line.width_of_current_line
    progress = Progress(
        write=write,
        total=sum((trace.counts() or {}).values()),
        columns=line.fullwidth,
        before="\n",
        after="\x1b[A" + (f"\x1b[{column}C" if column else ""),  # back up to where pytest goes on
    )
    try:
        yield progress
    finally:
        progress.close()
