"""Assembly text to machine code, with the GNU assembler and linker if they are installed (binutils)."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

_OPTIONS: Final = {64: ("--64", "elf_x86_64"), 32: ("--32", "elf_i386"), 16: ("--32", "elf_i386")}
_TIMEOUT_S: Final = 20


class AssemblyError(Exception):
    """Text that can't be assembled, or no assembler; `str()` is what it says."""


def is_installed() -> bool:
    """Whether `as` and `ld` can be found."""
    return all(shutil.which(tool) for tool in ("as", "ld"))


def assemble(text: str, *, at: int, bits: int = 64) -> bytes:
    """Machine code that runs at linear address `at`; Intel syntax without prefixes; raises AssemblyError."""
    if not is_installed():
        raise AssemblyError("there is no assembler: install GNU binutils (as and ld)")
    flag, emulation = _OPTIONS[bits]
    with TemporaryDirectory() as folder:
        source = f'.intel_syntax noprefix\n.code{bits}\n# 1 "program.s"\n{text}\n'  # lines as in `text`
        Path(folder, "program.s").write_text(source, encoding="utf-8")
        _run(folder, "as", flag, "-o", "program.o", "program.s")
        place = ("-Ttext", hex(at), "-e", hex(at), "--oformat", "binary")
        _run(folder, "ld", "-m", emulation, *place, "-o", "program", "program.o")
        return Path(folder, "program").read_bytes()


def _run(folder: str, tool: str, *arguments: str) -> None:
    try:
        subprocess.run(  # noqa: S603 - the caller's own program text
            [str(shutil.which(tool)), *arguments],
            cwd=folder,
            check=True,
            capture_output=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        raise AssemblyError(error.stderr.decode(errors="replace").strip()) from None
    except subprocess.TimeoutExpired as error:
        raise AssemblyError(f"{tool} took more than {_TIMEOUT_S} s") from error
