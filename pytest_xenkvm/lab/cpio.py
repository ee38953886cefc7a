"""The archive that a kernel unpacks into its first file system: cpio's "newc" format.

A header of thirteen 8-digit hexadecimal numbers, the name, the content, each padded to 4 bytes; the entry
`TRAILER!!!` ends it. Linux: Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

from typing import BinaryIO, Final

from attrs import define, field

from pytest_xenkvm.lab.errors import LabError

MAX_SIZE: Final = 0xFFFF_FFFF
"""Bytes of one file: the format has 32 bits for it."""
_CHUNK: Final = 1 << 20
_MAGIC: Final = b"070701"
_ALIGN: Final = 4


@define
class CpioWriter:
    """Writes an archive to `file`, entry by entry; `close` ends it."""

    file: BinaryIO
    _inode: int = field(default=0, init=False)

    def add(
        self, name: str, mode: int, content: bytes = b"", *, mtime: int = 0, device: tuple[int, int] = (0, 0)
    ) -> None:
        """Add a folder, link, device or small file.

        `mode` is st_mode, type included; a link's `content` is its target; `mtime` is in seconds of the
        epoch; `device` is major and minor number. `name` has no leading slash.
        """
        self._head(name, mode, len(content), mtime, device)
        self.file.write(content)
        self.file.write(bytes(-len(content) % _ALIGN))

    def add_file(self, name: str, mode: int, source: BinaryIO, size: int, *, mtime: int = 0) -> None:
        """Add a file of `size` bytes read from `source`: cut off or filled up, should it have changed since.

        Raises LabError if it is too large for the format.
        """
        if size > MAX_SIZE:
            raise LabError(f"/{name} has {size} bytes; a lab takes files of at most {MAX_SIZE}: leave it out")
        self._head(name, mode, size, mtime, (0, 0))
        left = size
        while left:
            chunk = source.read(min(left, _CHUNK)) or bytes(min(left, _CHUNK))
            self.file.write(chunk)
            left -= len(chunk)
        self.file.write(bytes(-size % _ALIGN))

    def close(self) -> None:
        """Write the end of the archive; the file stays open."""
        self._head("TRAILER!!!", 0, 0, 0, (0, 0))

    def _head(self, name: str, mode: int, size: int, mtime: int, device: tuple[int, int]) -> None:
        encoded = name.encode(errors="surrogateescape") + b"\0"
        self._inode += 1  # one inode an entry: hard links become copies
        root, one_link, no_checksum = 0, 1, 0
        seconds = min(max(mtime, 0), MAX_SIZE)
        numbers = (
            self._inode,
            mode,
            root,
            root,
            one_link,
            seconds,
            size,
            0,
            0,
            *device,
            len(encoded),
            no_checksum,
        )
        head = _MAGIC + b"".join(b"%08X" % number for number in numbers) + encoded
        self.file.write(head + bytes(-len(head) % _ALIGN))
