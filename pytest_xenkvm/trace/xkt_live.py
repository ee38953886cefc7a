"""An xkt file that can be read while it grows, and after its writer was killed: for recorders.

Its header says `UNFINISHED` until it is closed, so that readers take its last whole block for its end.
"""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from types import TracebackType
from typing import Final, final

from attrs import evolve

from pytest_xenkvm.trace import blocks
from pytest_xenkvm.trace.events import Header
from pytest_xenkvm.trace.header import VERSION
from pytest_xenkvm.trace.rows import plain_check
from pytest_xenkvm.trace.storage import complaining
from pytest_xenkvm.trace.xkt import UNFINISHED, XktWriter

_COPY: Final = 1 << 20
"""Bytes that are copied at once."""


@final
class LiveXktWriter(XktWriter):
    """Writes an xkt file under its own name from the start, and holds one block in memory.

    A context manager that closes the file whatever happens. The header may be replaced at any time: what it
    has to say is known only when the recording is over. Raises `TraceError` if the file exists, unless it may
    be replaced (`force`), or can't be written.
    """

    def __init__(self, path: Path, header: Header, *, force: bool = False) -> None:
        super().__init__(path, header)
        self._force = force

    def create(self) -> None:
        """Create the file; from then on this is to be closed by way of a `with` block."""
        self._asked = self.header
        with complaining(self.path, "written"):
            self._file = self.path.open("wb" if self._force else "xb")
        self._write_header(self.header, unfinished=True)
        self.flush()

    def __enter__(self) -> LiveXktWriter:
        if not hasattr(self, "_file"):
            self.create()
        return self

    @property
    def size(self) -> int:
        """Bytes in the file by now."""
        return self._file.tell()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Close the file: it is whole then, even if an exception ended the recording."""
        try:
            self._end_if_begun()
            self._rewrite(self._asked, unfinished=False)
            self._finish()
            with complaining(self.path, "written"):
                os.fsync(self._file.fileno())
        finally:
            with complaining(self.path, "written"):
                self._file.close()

    def flush(self) -> None:
        """Hand what has been written to the operating system: it outlives this process."""
        self._end_if_begun()
        with complaining(self.path, "written"):
            self._file.flush()

    def replace_header(self, header: Header) -> None:
        """Give the file another header; events that are written from now on must agree with it.

        The file is copied: that is meant for headers that change rarely.
        """
        if header != self._asked:
            self._end_if_begun()
            self._rewrite(header, unfinished=True)

    def _end_if_begun(self) -> None:
        if self.written > self._first:
            self._end_block()

    def _write_header(self, header: Header, *, unfinished: bool) -> None:
        self._asked = header
        extra = {**header.extra, UNFINISHED: True} if unfinished else header.extra
        self.header = evolve(header, extra=extra)
        content = self._header_content()
        with complaining(self.path, "written"):
            blocks.write_prefix(self._file, VERSION)
            blocks.write_block(self._file, blocks.HEADER, content)
        self._events_at = self._file.tell()
        self._plain = plain_check(self.header)

    def _rewrite(self, header: Header, *, unfinished: bool) -> None:
        """Write the file anew beside the old one, and put it in its place at once."""
        draft = self.path.with_name(f".{self.path.name}.{secrets.token_hex(4)}.tmp")
        try:
            with complaining(self.path, "written"):
                self._file.flush()
                old, events_at = self.path.open("rb"), self._events_at
                new = draft.open("xb")
            with old, self._file:
                self._file = new
                self._write_header(header, unfinished=unfinished)
                with complaining(self.path, "written"):
                    old.seek(events_at)
                    shutil.copyfileobj(old, new, _COPY)
                    new.flush()
                    draft.replace(self.path)
        finally:
            draft.unlink(missing_ok=True)
