"""Programs of the host, with all that they need to run in a guest."""

from __future__ import annotations

import re
import shutil
import stat
import subprocess
from pathlib import Path
from typing import Final

from pytest_xenkvm.lab.errors import LabError
from pytest_xenkvm.lab.guest_files import GuestFiles

_NEEDED: Final = re.compile(r"^\s(?:\S+ => )?(/.+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_LOADED_LATER: Final = ("libgcc_s.so.1",)
"""glibc opens it when a thread is cancelled, which no list of dependencies tells."""
_LOADER_CACHE: Final = Path("/etc/ld.so.cache")
_BUSYBOX_FOLDER: Final = "/usr/bin"
_MAX_SHEBANG: Final = 256


def find_program(name: str, first: Path | None = None) -> Path:
    """Return where a program is: a path, or a name in the folder `first` or in PATH.

    Raises LabError if it is nowhere.
    """
    found = (first and shutil.which(name, path=str(first))) or shutil.which(name)
    if found is None:
        raise LabError(f"there is no program {name}; install it, or give its path")
    return Path(found).absolute()


def add_program(files: GuestFiles, path: Path) -> None:
    """Add a program, and the interpreters that run it if it is a script."""
    files.add(path)
    with path.open("rb") as file:
        first = file.read(_MAX_SHEBANG).split(b"\n", 1)[0]
    if not first.startswith(b"#!"):
        return
    interpreter, *arguments = first[2:].decode(errors="surrogateescape").split()
    if interpreter not in files:
        add_program(files, Path(interpreter))
    if Path(interpreter).name == "env":
        names = [argument for argument in arguments if not argument.startswith("-") and "=" not in argument]
        for name in names[:1]:
            add_program(files, find_program(name))


def add_libraries(files: GuestFiles) -> None:
    """Add the shared libraries that the files need, as the host's loader finds them.

    A library that isn't there is left out: an extension module that nobody imports may lack one.
    """
    wanted = sorted(files.elf_files())
    if not wanted:
        return
    ldd = find_program("ldd")
    # What it can't judge (static programs, other machines' code) it complains about, and goes on.
    found = subprocess.run(  # noqa: S603 - the user's own files
        [ldd, *wanted], capture_output=True, text=True, check=False, errors="surrogateescape"
    )
    needed = set(_NEEDED.findall(found.stdout))
    for library in sorted(needed):
        files.add(Path(library))
    for folder in sorted({Path(library).parent for library in needed}):
        for name in _LOADED_LATER:
            if (folder / name).exists():
                files.add(folder / name)
    if _LOADER_CACHE.exists():
        files.add(_LOADER_CACHE)


def add_shell(files: GuestFiles) -> None:
    """Add `/bin/sh`, and BusyBox's tools where the host has it and no program of that name was added."""
    shell = Path("/bin/sh")
    if shell.exists():
        add_program(files, shell)
    busybox = shutil.which("busybox")
    if busybox is None:
        return
    files.add(Path(_BUSYBOX_FOLDER))
    files.add(Path(busybox))
    listed = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=False)  # noqa: S603
    for name in listed.stdout.split():
        path = f"{_BUSYBOX_FOLDER}/{name}"
        if path not in files:
            files.put(path, busybox.encode(), stat.S_IFLNK | 0o777)
