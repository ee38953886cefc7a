"""The uncompressed kernel within a compressed one, and other compressed files that distributions ship.

QEMU starts a `vmlinux` at its PVH entry at once; a bzImage unpacks itself on the emulated CPU, which takes
seconds. Where the payload lies, a bzImage's header says: Documentation/arch/x86/boot.rst, `payload_offset`,
protocol 2.08.
"""

from __future__ import annotations

import bz2
import lzma
import shutil
import struct
import subprocess
import zlib
from collections.abc import Callable
from typing import Final, Protocol

from pytest_xenkvm.lab.errors import LabError

_SETUP_SECTS: Final = 0x1F1
_MAGIC: Final = 0x202
_PAYLOAD: Final = 0x248
_SECTOR: Final = 512
_DEFAULT_SECTS: Final = 4
_SIZE_APPENDED: Final = 4
"""The payload ends with the size of what it holds; only gzip has it in its own format."""
_GZIP: Final = 16 + zlib.MAX_WBITS
_ELF: Final = b"\x7fELF"


def _by_program(*command: str) -> Callable[[bytes], bytes]:
    def decompress(data: bytes) -> bytes:
        program = shutil.which(command[0])
        if program is None:
            raise LabError(f"unpacking the kernel takes the program {command[0]}, which isn't installed")
        done = subprocess.run([program, *command[1:]], input=data, capture_output=True, check=False)  # noqa: S603
        if done.returncode:
            raise LabError(
                f"{command[0]} can't unpack the kernel: {done.stderr.decode(errors='replace').strip()}"
            )
        return done.stdout

    return decompress


class _Stream(Protocol):
    """What zlib, lzma and bz2 have in common; what follows the end of the stream is ignored."""

    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, /) -> bytes: ...


def _by_python(stream: Callable[[], _Stream]) -> Callable[[bytes], bytes]:
    def decompress(data: bytes) -> bytes:
        started = stream()
        unpacked = started.decompress(data)
        if not started.eof:
            raise EOFError("it is cut off")
        return unpacked

    return decompress


_FORMATS: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": _by_python(lambda: zlib.decompressobj(_GZIP)),
    b"BZh": _by_python(bz2.BZ2Decompressor),
    b"\xfd7zXZ\0": _by_python(lzma.LZMADecompressor),
    b"\x5d\0\0": _by_python(lzma.LZMADecompressor),
    b"\x28\xb5\x2f\xfd": _by_program("zstd", "-dqc"),
    b"\x02\x21\x4c\x18": _by_program("lz4", "-dqc"),
}
"""By their first bytes."""


def decompress(data: bytes) -> bytes:
    """Return what `data` holds if it is compressed in a known format, else itself.

    Raises LabError if it is damaged, or needs a program that isn't there.
    """
    for magic, function in _FORMATS.items():
        if data.startswith(magic):
            try:
                return function(data)
            except (zlib.error, lzma.LZMAError, OSError, EOFError) as error:
                raise LabError(f"a part of the kernel can't be unpacked: {error}; fetch it again") from error
    return data


def vmlinux_of(kernel: bytes) -> bytes:
    """Return the ELF file within a bzImage, or `kernel` itself if it is one already.

    Raises LabError if it is neither.
    """
    if kernel.startswith(_ELF):
        return kernel
    if kernel[_MAGIC : _MAGIC + 4] != b"HdrS" or len(kernel) < _PAYLOAD + 8:
        raise LabError("the kernel is neither an ELF file (vmlinux) nor a bzImage (vmlinuz)")
    offset, length = struct.unpack_from("<II", kernel, _PAYLOAD)
    start = ((kernel[_SETUP_SECTS] or _DEFAULT_SECTS) + 1) * _SECTOR + offset
    payload = kernel[start : start + length]
    is_gzip = payload.startswith(b"\x1f\x8b")
    unpacked = decompress(payload if is_gzip else payload[:-_SIZE_APPENDED])
    if not unpacked.startswith(_ELF):
        raise LabError("the kernel is compressed in a way that is unknown here: give its vmlinux instead")
    return unpacked
