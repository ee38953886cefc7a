"""The files that a guest shall have, gathered from the host under the names that they have there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Final

from attrs import define, field, frozen

from pytest_xenkvm.lab.cpio import CpioWriter

_ELF: Final = b"\x7fELF"
_NO_ELF: Final = (".py", ".pyc", ".pyi", ".txt", ".md", ".json", ".h", ".xkt", ".html")
_DIRECTORY: Final = stat.S_IFDIR | 0o755

Skip = Callable[[str, str], bool]
"""Whether to leave out, given a folder and a name in it."""


@frozen
class _Entry:
    mode: int
    content: bytes = b""
    mtime: int = 0
    source: str | None = None
    size: int = 0
    device: tuple[int, int] = (0, 0)


def _skip_nothing(folder: str, name: str) -> bool:
    del folder, name
    return False


@define
class GuestFiles:
    """Files by their absolute path in the guest.

    A path is added with the folders above it. Symbolic links stay what they are, also among the folders, and
    what they lead to is added. Sockets, devices and files that may not be read are left out.
    """

    _entries: dict[str, _Entry] = field(factory=dict, init=False)
    _elf: list[str] = field(factory=list, init=False)
    _walked: set[str] = field(factory=set, init=False)

    def put(
        self,
        path: str,
        content: bytes = b"",
        mode: int = stat.S_IFREG | 0o644,
        device: tuple[int, int] = (0, 0),
    ) -> None:
        """Put what the host doesn't have in that form; folders above it must have been added."""
        self._entries[path] = _Entry(mode, content, device=device)

    def add(self, path: Path) -> None:
        """Add a file, or a folder without what is in it. Raises OSError if there is none."""
        self._add(path.absolute(), seen=frozenset())

    def add_tree(self, root: Path, skip: Skip = _skip_nothing) -> None:
        """Add a folder with what is in it, except what `skip` says; or a file.

        Raises OSError if there is none.
        """
        self.add(root)
        top = os.path.realpath(root)
        for folder, folders, files in os.walk(top):
            if folder in self._walked:
                folders.clear()  # trees may lie within others
                continue
            self._walked.add(folder)
            folders[:] = [name for name in folders if not skip(folder, name)]
            for name in (*folders, *files):
                if name in files and skip(folder, name):
                    continue
                self._add_one(f"{folder}/{name}")

    def elf_files(self) -> list[str]:
        """Programs and shared libraries among the files."""
        return self._elf

    def __contains__(self, path: str) -> bool:
        return path in self._entries

    def size(self) -> int:
        """Bytes of all contents."""
        return sum(entry.size or len(entry.content) for entry in self._entries.values())

    def write(self, file: BinaryIO) -> None:
        """Write them as a cpio archive."""
        archive = CpioWriter(file)
        for path, entry in self._entries.items():
            name = path.strip("/")
            if entry.source is None:
                archive.add(name, entry.mode, entry.content, mtime=entry.mtime, device=entry.device)
                continue
            with open(entry.source, "rb", buffering=0) as source:  # noqa: PTH123 - thousands of them
                archive.add_file(name, entry.mode, source, entry.size, mtime=entry.mtime)
        archive.close()

    def _add(self, path: Path, seen: frozenset[Path]) -> None:
        """Add a path, and what lies behind the symbolic links on the way to it and at its end."""
        real = Path("/")
        for part in path.parts[1:]:
            real = real.parent if part == ".." else real / part
            self._add_one(str(real))
            if real.is_symlink():
                if real in seen:
                    raise OSError(f"{path}: symbolic links that lead to themselves")
                seen |= {real}
                self._add(real.parent / real.readlink(), seen)
                real = real.resolve()

    def _add_one(self, path: str) -> None:
        if path in self._entries:
            return
        status = os.lstat(path)
        mtime = int(status.st_mtime)
        if stat.S_ISLNK(status.st_mode):
            self._entries[path] = _Entry(status.st_mode, os.fsencode(os.readlink(path)), mtime)  # noqa: PTH115
        elif stat.S_ISDIR(status.st_mode):
            self._entries[path] = _Entry(_DIRECTORY, mtime=mtime)
        elif stat.S_ISREG(status.st_mode) and os.access(path, os.R_OK):
            self._entries[path] = _Entry(status.st_mode, b"", mtime, path, status.st_size)
            if not path.endswith(_NO_ELF) and _starts_as_elf(path):
                self._elf.append(path)


def _starts_as_elf(path: str) -> bool:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - thousands of them
        return file.read(len(_ELF)) == _ELF
