"""What a user has: a shell in a folder, and a registry to install from, which is a folder of wheels.

The wheel of this project is built from its sources. Those of what it depends on are packed from what is
installed here, so that no network is needed.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from importlib.metadata import Distribution, distribution
from pathlib import Path
from typing import Final

import pytest
from attrs import define, frozen
from packaging.requirements import Requirement
from packaging.tags import sys_tags
from packaging.utils import canonicalize_name

ROOT: Final = Path(__file__).parents[1]

_OF_THE_INSTALLATION: Final = {"INSTALLER", "REQUESTED", "RECORD", "direct_url.json"}
_UNWANTED: Final = re.compile(r"PYTHON|PYTEST|PIP_|COV|VIRTUAL_ENV|CI$|BUILD_NUMBER|NO_COLOR|FORCE_COLOR")


def once_for_all_workers(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that the first of xdist's workers makes, and the others wait for."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / name, base / f"{name}.done"
    with (base / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()
            make(folder)
            done.touch()
    return folder


@frozen
class Wheels:
    """A folder of wheels."""

    folder: Path

    @staticmethod
    def build(folder: Path) -> None:
        """Fill it: this project's wheel, what that needs, and hatchling, which builds users' packages."""
        options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", str(folder)]
        subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(ROOT)], check=True)
        for needed in _closure("pytest-xenkvm", "hatchling"):
            if canonicalize_name(needed.name) != "pytest-xenkvm":
                _pack(needed, folder)


def _closure(*names: str) -> Iterator[Distribution]:
    """These distributions and all that they require, each once."""
    seen: set[str] = set()
    waiting = list(names)
    while waiting:
        name = canonicalize_name(waiting.pop())
        if name in seen:
            continue
        seen.add(name)
        found = distribution(name)
        yield found
        requirements = map(Requirement, found.requires or [])
        waiting += [
            each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})
        ]


def _pack(installed: Distribution, folder: Path) -> None:
    """Make a wheel of a distribution as it is installed; pip makes scripts and bytecode anew."""
    tags = re.findall(r"^Tag: (.+)$", installed.read_text("WHEEL") or "", re.MULTILINE)
    fitting = {str(tag) for tag in sys_tags()}.intersection(tags)
    name = re.sub(r"[-.]+", "_", installed.name)
    names: list[str] = []
    with zipfile.ZipFile(folder / f"{name}-{installed.version}-{min(fitting)}.whl", "w") as wheel:
        for file in installed.files or []:
            if ".." in file.parts or file.suffix == ".pyc" or file.name in _OF_THE_INSTALLATION:
                continue
            wheel.write(str(file.locate()), str(file))
            names.append(str(file))
        (metadata,) = [name for name in names if re.fullmatch(r"[^/]+\.dist-info/METADATA", name)]
        record = metadata.replace("METADATA", "RECORD")
        wheel.writestr(record, "".join(f"{name},,\n" for name in [*names, record]))


@define
class Shell:
    """A user's shell: commands run one after another, and what they export lasts."""

    folder: Path
    environment: dict[str, str]

    @classmethod
    def in_folder(cls, folder: Path, wheels: Wheels) -> Shell:
        """One in a new folder; `python3` is the Python that runs the tests, pip installs from `wheels`."""
        folder.mkdir()
        programs = folder.with_name("programs")
        programs.mkdir()
        python = programs / "python3"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        environment = {name: value for name, value in os.environ.items() if not _UNWANTED.match(name)}
        return cls(
            folder,
            {
                **environment,
                "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
                "PIP_CONFIG_FILE": os.devnull,
                "PIP_DISABLE_PIP_VERSION_CHECK": "1",
                "PIP_FIND_LINKS": str(wheels.folder),
                "PIP_NO_INDEX": "1",
                "COLUMNS": "80",
            },
        )

    def run(self, command: str, *, status: int = 0) -> str:
        """What the command writes; its exit status must be this one."""
        exported = self.folder.with_name("exported")
        done = subprocess.run(
            ["/bin/sh", "-c", f'{command}\nstatus=$?; env -0 > "{exported}"; exit $status'],
            cwd=self.folder,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == status, done.stdout
        self.environment = dict(
            word.split("=", 1) for word in exported.read_text().split("\0") if "=" in word
        )
        return done.stdout

    def install(self, *what: str) -> None:
        """Make and activate an environment that has these installed."""
        self.run("python3 -m venv .venv && . .venv/bin/activate")
        self.run(" ".join(["pip install --quiet", *what]))
