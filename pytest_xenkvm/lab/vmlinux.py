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
from typing import Final

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


_FORMATS: Final[dict[bytes, Callable[[bytes], bytes]]] = {
    b"\x1f\x8b": lambda data: zlib.decompressobj(_GZIP).decompress(data),
    b"BZh": lambda data: bz2.BZ2Decompressor().decompress(data),
    b"\xfd7zXZ\0": lambda data: lzma.LZMADecompressor().decompress(data),
    b"\x5d\0\0": lambda data: lzma.LZMADecompressor().decompress(data),
    b"\x28\xb5\x2f\xfd": _by_program("zstd", "-dqc"),
    b"\x02\x21\x4c\x18": _by_program("lz4", "-dqc"),
}
"""By their first bytes. The ones that go on after the end of a stream ignore what follows it."""


def decompress(data: bytes) -> bytes:
    """Return what `data` holds if it is compressed in a known format, else itself.

    Raises LabError if it is damaged, or needs a program that isn't there.
    """
    for magic, function in _FORMATS.items():
        if data.startswith(magic):
            try:
                return function(data)
            except (zlib.error, lzma.LZMAError, OSError) as error:
                raise LabError(f"a part of the kernel can't be unpacked: {error}; fetch it again") from error
    return data


def vmlinux_of(kernel: bytes) -> bytes:
    """Return the ELF file within a bzImage, or `kernel` itself if it is one already.

    Raises LabError if it is neither.
    """
    if kernel.startswith(_ELF):
        return kernel
    if kernel[_MAGIC : _MAGIC + 4] != b"HdrS":
        raise LabError("the kernel is neither an ELF file (vmlinux) nor a bzImage (vmlinuz)")
    offset, length = struct.unpack_from("<II", kernel, _PAYLOAD)
    start = ((kernel[_SETUP_SECTS] or _DEFAULT_SECTS) + 1) * _SECTOR + offset
    payload = kernel[start : start + length]
    is_gzip = payload.startswith(b"\x1f\x8b")
    unpacked = decompress(payload if is_gzip else payload[:-_SIZE_APPENDED])
    if not unpacked.startswith(_ELF):
        raise LabError("the kernel is compressed in a way that is unknown here: give its vmlinux instead")
    return unpacked
