"""Recordings of real guests in users' own tests, without a trace in between."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import pytest
from attrs import frozen

from pytest_xenkvm.plugin.session import hooked_importers
from pytest_xenkvm.trace.events import Event, Header
from pytest_xenkvm.trace.importers import (
    DETECT_LINES,
    Given,
    Imported,
    ImportReport,
    all_importers,
    detect,
    find_importer,
    open_recording,
)

_NOTHING: Final = Given()


@frozen
class ImportedTrace:
    """The trace of a recording, in memory, for `xenkvm_replay`."""

    name: str
    imported: Imported

    @property
    def header(self) -> Header:
        """Its header."""
        return self.imported.header

    @property
    def report(self) -> ImportReport:
        """What became of the recording's lines."""
        return self.imported.report

    def events(self) -> Iterator[Event]:
        """Its events, from the start."""
        return iter(self.imported.events)


@frozen
class Imports:
    """Imports recordings for a test."""

    request: pytest.FixtureRequest

    def __call__(
        self, recording: str | Path, *, source: str | None = None, given: Given = _NOTHING
    ) -> ImportedTrace:
        """The trace of `recording`, beside the test file if relative.

        `source` names the importer; None: it is found out. `given` is what the recording can't show. Raises
        TraceError, ImporterError for a `source` that there is not.
        """
        importers = all_importers(hooked_importers(self.request.config, self.request.node.ihook))
        path = self.request.path.parent / recording
        if source is None:
            source = detect(islice(open_recording(path), DETECT_LINES), path=str(path), importers=importers)
        importer = find_importer(source, importers)
        return ImportedTrace(path.name, importer.run(open_recording(path), path=str(path), given=given))
