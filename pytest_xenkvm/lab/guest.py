"""What a guest starts with: the host's files, `/init`, what it shall run."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from attrs import frozen

from pytest_xenkvm.lab import guest_init
from pytest_xenkvm.lab.environment import Environment
from pytest_xenkvm.lab.errors import LabError
from pytest_xenkvm.lab.guest_files import GuestFiles
from pytest_xenkvm.lab.kernels import Kernel
from pytest_xenkvm.lab.programs import add_libraries, add_program, add_shell, find_program

_INTERPRETER: Final = "/xenkvm-lab-python"
"""A link to it: the kernel takes neither blanks nor more than 255 characters there."""
_FOLDERS: Final = ("/dev", "/etc", "/proc", "/root", "/run", "/sys", "/tmp", "/var", guest_init.MODULES)  # noqa: S108
_SEARCHED: Final = ("/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin")
_PASSED: Final = ("PYTHON", "PYTEST", "PY_", "XENKVM", "HYPOTHESIS")
_PASSED_TOO: Final = ("CI", "COLUMNS", "FORCE_COLOR", "LD_LIBRARY_PATH", "NO_COLOR", "TERM")
_PEOPLE: Final = {
    "/etc/passwd": b"root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\n",
    "/etc/group": b"root:x:0:\nnogroup:x:65534:\n",
    "/etc/hosts": b"127.0.0.1 localhost\n",
}
_MIB: Final = 1 << 20
_KERNEL_MIB: Final = 256


@frozen
class Job:
    """A command, and what it needs."""

    command: tuple[str, ...]
    """Program and arguments."""
    folder: Path
    """Where it runs, an absolute path."""
    copies: tuple[Path, ...] = ()
    """More files and folders of the host that it needs."""
    programs: tuple[str, ...] = ()
    """More programs, each a path or a name in PATH."""
    without: tuple[str, ...] = ()
    """Distributions of this environment, by name, that it doesn't need."""
    environment: Mapping[str, str] = {}
    """Variables, beside those that it gets anyway."""
    wants_files: bool = False
    """Whether files that it makes or changes in `folder` shall come back."""
    deadline: float | None = None
    """When the guest ends it (seconds of the epoch); None: never. The guest's clock may be 1 s late."""


def guest_files(job: Job, kernel: Kernel) -> GuestFiles:
    """Gather the first file system of a guest. Raises LabError or OSError if something isn't there."""
    files = GuestFiles()
    files.add(Path("/"))
    for folder in _FOLDERS:
        files.put(folder, mode=stat.S_IFDIR | 0o755)
    files.put("/dev/console", mode=stat.S_IFCHR | 0o600, device=(5, 1))
    for path, text in _PEOPLE.items():
        files.put(path, text)
    environment = Environment.current()
    environment.add_to(files, job.without)
    searched = [environment.scripts]
    for name in (job.command[0], *job.programs):
        program = find_program(name, environment.scripts)
        add_program(files, program)
        searched.append(program.parent)
    for copy in job.copies:
        files.add_tree(copy.absolute())
    if str(job.folder) not in files:
        files.add(job.folder)
    add_shell(files)
    add_libraries(files)
    for number, module in enumerate(kernel.modules):
        files.put(f"{guest_init.MODULES}/{number:02}-{module.name}", module.read_bytes())
    _add_init(files, job, environment, searched)
    return files


def check_size(files: GuestFiles, memory: int) -> None:
    """Raise LabError if `memory` MiB are too few: the kernel keeps the files in half of it."""
    size = files.size() // _MIB
    needed = 2 * size + _KERNEL_MIB
    if memory < needed:
        raise LabError(
            f"the guest's files take {size} MiB, which need --memory {needed} at least, found {memory}: "
            "raise it, or leave out what the command doesn't need with --without"
        )


def _add_init(files: GuestFiles, job: Job, environment: Environment, searched: Sequence[Path]) -> None:
    source = Path(guest_init.__file__).read_bytes()
    files.put("/init", b"#!%s -IS\n%s" % (_INTERPRETER.encode(), source), stat.S_IFREG | 0o755)
    files.put(_INTERPRETER, os.fsencode(environment.interpreters[-1]), stat.S_IFLNK | 0o777)
    config = {
        "command": [str(find_program(job.command[0], environment.scripts)), *job.command[1:]],
        "folder": str(job.folder),
        "environment": _variables(job, searched),
        "wants_files": job.wants_files,
        "deadline": job.deadline,
    }
    files.put(guest_init.CONFIG, json.dumps(config).encode())


def _variables(job: Job, searched: Sequence[Path]) -> dict[str, str]:
    passed = {
        name: value for name, value in os.environ.items() if name.startswith(_PASSED) or name in _PASSED_TOO
    }
    path = dict.fromkeys([*map(str, searched), *_SEARCHED])
    own = {"PATH": ":".join(path), "HOME": "/root", "LANG": "C.UTF-8", "TMPDIR": "/tmp"}  # noqa: S108 - the guest's
    return {**own, **passed, **job.environment}
