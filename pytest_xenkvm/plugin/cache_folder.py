"""A folder of small texts that may vanish, be damaged or be written by several processes at any time.

Nothing here raises for what is wrong with the folder: a text that can't be had isn't there. Texts appear
whole, and the least recently used go when there are too many.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import pytest
from attrs import define, field, frozen

MAX_TEXT: Final = 4 << 20
"""Bytes of a text; a longer one isn't kept."""
MAX_TEXTS: Final = 20_000
MAX_TOTAL: Final = 128 << 20
"""Bytes of all texts."""
MEMO_SIZE: Final = 8 << 20
"""Bytes of a file from which on its digest is remembered; smaller ones are read each time."""

_DIGEST_LENGTH: Final = hashlib.sha256().digest_size * 2
_CHUNK: Final = 1 << 20
_SETTLED_NS: Final = 2_000_000_000
"""A file that changed this recently may change again without its times telling (FAT counts in 2 s)."""
_ABANDONED_S: Final = 3600
"""Drafts and locks that are older belong to nobody."""
_PRUNE_EVERY: Final = 500
"""Texts that a process writes before it looks again whether there are too many."""
_TEXT, _LOCK, _DRAFT = ".txt", ".lock", ".tmp"


@frozen
class _Stamp:
    """What tells that a file was changed. `ctime_ns` can't be set back, as `mtime_ns` can."""

    device: int
    inode: int
    size: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, path: Path) -> _Stamp:
        stat = path.stat()
        return cls(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)

    def is_settled(self) -> bool:
        """Whether a change from now on would show."""
        return time.time_ns() - max(self.mtime_ns, self.ctime_ns) > _SETTLED_NS


@frozen
class Content:
    """What a file held when it was looked at."""

    path: Path
    digest: str
    """SHA-256, in hexadecimal."""
    _stamp: _Stamp

    def is_unchanged(self) -> bool:
        """Whether it still holds that, as far as its size and times tell."""
        try:
            return _Stamp.of(self.path) == self._stamp
        except OSError:
            return False


@define(eq=False)
class CacheFolder:
    """The folder. Names are hexadecimal digits."""

    path: Path
    _written: int = field(default=0, init=False)

    @classmethod
    def made_by(cls, cache: pytest.Cache) -> CacheFolder | None:
        """The folder of this plugin in pytest's cache, unless it can't be made."""
        try:
            return cls(cache.mkdir("xenkvm"))
        except OSError:
            return None

    def read(self, name: str) -> str | None:
        """The text under that name; None if there is none, or it isn't as it was written."""
        path = self.path / f"{name}{_TEXT}"
        try:
            with path.open("rb") as file:
                found = file.read(_DIGEST_LENGTH + MAX_TEXT + 1)
            digest, text = found[:_DIGEST_LENGTH], found[_DIGEST_LENGTH:]
            if len(text) > MAX_TEXT or digest != _digest(name, text):
                return None
            os.utime(path)  # it is in use
            return text.decode()
        except (OSError, UnicodeDecodeError):
            return None

    def write(self, name: str, text: str) -> None:
        """Keep a text under a name, if it isn't too long."""
        content = text.encode()
        if len(content) > MAX_TEXT:
            return
        draft = self.path / f"{name}.{secrets.token_hex(4)}{_DRAFT}"
        with suppress(OSError):
            try:
                draft.write_bytes(_digest(name, content) + content)
                draft.replace(self.path / f"{name}{_TEXT}")
            finally:
                draft.unlink(missing_ok=True)
            if self._written % _PRUNE_EVERY == 0:
                self._prune()
            self._written += 1

    @contextmanager
    def alone(self, name: str) -> Iterator[None]:
        """Wait until no other process is inside with that name. Without locks on the file system, don't."""
        path = self.path / f"{name}{_LOCK}"
        try:
            file = path.open("wb")
        except OSError:
            yield
            return
        with file:
            with suppress(OSError):
                fcntl.flock(file, fcntl.LOCK_EX)
            try:
                yield
            finally:
                with suppress(OSError):
                    path.unlink()

    def content_of(self, path: Path) -> Content | None:
        """The digest of a file; None if it can't be read. That of a large one is remembered."""
        try:
            stamp = _Stamp.of(path)
            if stamp.size < MEMO_SIZE:
                return Content(path, _digest_of_file(path), stamp)
            name = hashlib.sha256(os.fsencode(path.resolve()) + f" {stamp}".encode()).hexdigest()
            digest = self.read(name)
            if digest is None:
                digest = _digest_of_file(path)
                if stamp.is_settled() and _Stamp.of(path) == stamp:
                    self.write(name, digest)
        except OSError:
            return None
        return Content(path, digest, stamp)

    def _prune(self) -> None:
        """Remove the least recently used, and what was left behind."""
        now, texts = time.time(), []
        for entry in os.scandir(self.path):
            with suppress(OSError):  # another process may have removed it
                stat = entry.stat(follow_symlinks=False)
                if entry.name.endswith(_TEXT):
                    texts.append((stat.st_mtime, stat.st_size, entry.path))
                elif now - stat.st_mtime > _ABANDONED_S:
                    Path(entry.path).unlink()
        total = 0
        for number, (_used, size, path) in enumerate(sorted(texts, reverse=True)):
            total += size
            if number >= MAX_TEXTS or total > MAX_TOTAL:
                Path(path).unlink(missing_ok=True)


def _digest(name: str, content: bytes) -> bytes:
    """The text belongs to its name: one that was copied to another isn't what was written there."""
    return hashlib.sha256(name.encode() + b"\n" + content).hexdigest().encode()


def _digest_of_file(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
