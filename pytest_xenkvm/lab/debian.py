"""Kernel packages in Debian's archive: found and fetched by apt, with its checks; nothing is installed.

apt works on folders of its own here: the machine's package lists stay as they are, and it takes no privilege.
"""

from __future__ import annotations

import functools
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from attrs import frozen

from pytest_xenkvm.lab.errors import LabError

_ARCHIVE: Final = "http://deb.debian.org/debian"
_KEYRING: Final = "/usr/share/keyrings/debian-archive-keyring.gpg"
_LAST_WORDS: Final = 300
_NAME: Final = re.compile(r"linux-(?P<part>image|binary|modules)-(?P<release>\d\S*-cloud-amd64)")
_WHOLE: Final = ({"binary", "modules"}, {"image"})
"""Packages that make a kernel. Where the first two are, an image is an empty package that depends on them."""


@frozen
class Package:
    """A package in some suite."""

    name: str
    version: str


@frozen
class Release:
    """A kernel in the archive."""

    release: str
    """As `uname -r` says."""
    packages: tuple[Package, ...]

    @property
    def version(self) -> str:
        """The packages' version."""
        return self.packages[0].version


def packages_of(madison: str) -> list[Package]:
    """Read what `apt-cache madison` prints: a line `name | version | origin` each."""
    lines = (line.split("|") for line in madison.splitlines())
    return [Package(line[0].strip(), line[1].strip()) for line in lines if len(line) > 1]


def releases_of(packages: Iterable[Package], series: str) -> list[Release]:
    """Return the kernels of a series that are there with all their packages, the newest first."""
    parts: dict[tuple[str, str], dict[str, Package]] = {}
    for package in packages:
        match = _NAME.fullmatch(package.name)
        if match and re.match(rf"{re.escape(series)}(?!\d)", match["release"]):
            parts.setdefault((match["release"], package.version), {})[match["part"]] = package
    found = []
    for (release, _version), have in parts.items():
        whole = next((names for names in _WHOLE if names <= have.keys()), None)
        if whole:
            found.append(Release(release, tuple(have[name] for name in sorted(whole))))
    return sorted(found, key=functools.cmp_to_key(_compare), reverse=True)


def _compare(one: Release, other: Release) -> int:
    """By version, as Debian compares them: 7.3~rc7 is older than 7.3."""

    def is_older(left: Release, right: Release) -> int:
        command = ["dpkg", "--compare-versions", left.version, "lt", right.version]
        return subprocess.run(command, check=False).returncode == 0  # noqa: S603

    return is_older(other, one) - is_older(one, other)


@frozen
class Archive:
    """Debian's archive, seen through apt with its state in `folder`."""

    folder: Path
    is_shown: bool = False
    """Whether apt tells its progress on stderr."""

    def update(self, suite: str) -> str:
        """Fetch the list of a suite, in place of another's; returns apt's complaints: it may not exist.

        Raises LabError if there is no apt.
        """
        for tool in ("apt-get", "apt-cache", "dpkg", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise LabError(
                    f"fetching a kernel takes {tool}, which isn't installed: on a system without apt, give a "
                    "kernel with --kernel FILE --modules DIR"
                )
        for name in ("lists/partial", "cache/archives/partial"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        main, security = mirrors()
        signed = f"[signed-by={_KEYRING}] " if Path(_KEYRING).exists() else ""
        mirror = security if suite.endswith("-security") else main
        (self.folder / "sources.list").write_text(f"deb {signed}{mirror} {suite} main\n", encoding="utf-8")
        (self.folder / "status").touch()
        return self._apt("apt-get", "update", check=False).stderr

    def releases(self, series: str) -> list[Release]:
        """The kernels of a series, the newest first."""
        listed = self._apt("apt-cache", "pkgnames", "linux-").stdout.split()
        names = [name for name in listed if _NAME.fullmatch(name)]
        if not names:
            return []
        return releases_of(packages_of(self._apt("apt-cache", "madison", *names).stdout), series)

    def unpack(self, release: Release, into: Path) -> None:
        """Fetch the packages of a kernel, checked by apt, and unpack them into a folder."""
        download = self.folder / "download"
        download.mkdir()
        wanted = [f"{package.name}={package.version}" for package in release.packages]
        self._apt("apt-get", "download", *wanted, folder=download)
        for package in sorted(download.glob("*.deb")):
            done = subprocess.run(  # noqa: S603
                ["dpkg-deb", "--extract", package, into],  # noqa: S607
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode:
                raise LabError(f"{package.name} can't be unpacked: {_last_words(done.stderr)}")

    def _apt(
        self, *command: str, folder: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        settings = {
            "Dir::Etc::sourcelist": self.folder / "sources.list",
            "Dir::Etc::sourceparts": "-",
            "Dir::Etc::preferences": "-",
            "Dir::Etc::preferencesparts": "-",
            "Dir::State::lists": self.folder / "lists",
            "Dir::State::status": self.folder / "status",
            "Dir::Cache": self.folder / "cache",
            "APT::Architecture": "amd64",
            "APT::Architectures": "amd64",
            "APT::Sandbox::User": "root",  # who else may not read a folder of the user's
            "Acquire::Languages": "none",
            "Acquire::Check-Valid-Until": "false",  # suites of old releases aren't signed anew
            "APT::Get::List-Cleanup": "false",
        }
        tool, *arguments = command
        options = [part for name, value in settings.items() for part in ("-o", f"{name}={value}")]
        is_shown = self.is_shown and tool == "apt-get"
        done = subprocess.run(  # noqa: S603
            [tool, *options, *([] if is_shown else ["-qq"]), *arguments],
            cwd=folder or self.folder,
            stdin=subprocess.DEVNULL,
            stdout=2 if is_shown else subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
        if check and done.returncode:
            raise LabError(f"{tool} {arguments[0]} failed: {_last_words(done.stderr)}")
        return done


def mirrors() -> tuple[str, str]:
    """Debian's archive and its security archive, as this machine's sources name them, else Debian's own."""
    shown = subprocess.run(
        ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI)"],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    found = [line.split()[1].rstrip("/") for line in shown.stdout.splitlines() if line.startswith("Debian ")]
    main = next((uri for uri in found if not uri.endswith("-security")), _ARCHIVE)
    return main, next((uri for uri in found if uri.endswith("-security")), f"{main}-security")


def _last_words(text: str) -> str:
    return " ".join(text.split())[-_LAST_WORDS:] or "it didn't say why"
