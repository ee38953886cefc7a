"""Getting a kernel into the cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pytest_xenkvm.lab.debian import Archive, Release
from pytest_xenkvm.lab.errors import LabError
from pytest_xenkvm.lab.kernels import SOURCES, Facts, KernelCache, Source

_LAST_WORDS: Final = 300
"""Characters of what apt complained about."""
Say = Callable[[str], None]
"""Tells the user what is happening, in a line."""


def fetch(name: str, cache: KernelCache, say: Say, *, is_shown: bool = False) -> Facts:
    """Fetch the newest release of a kernel of `SOURCES`, unless the cache holds that one.

    Raises LabError if it can't be had.
    """
    source = SOURCES.get(name)
    if source is None:
        raise LabError(f"{name}: no kernel of the lab; known are {', '.join(SOURCES)}")
    cache.make()  # before anything is fetched for nothing
    with tempfile.TemporaryDirectory(prefix="xenkvm-lab-") as temporary:
        archive = Archive(Path(temporary), is_shown)
        newest = _newest(name, source, archive, say)
        packages = tuple(f"{package.name}={package.version}" for package in newest.packages)
        have = cache.facts(name)
        if have is not None and have.packages == packages:
            say(f"{name}: {have.release} is there already, and the newest")
            return have
        say(f"{name}: fetching {newest.release}")
        unpacked = Path(temporary) / "unpacked"
        archive.unpack(newest, unpacked)
        facts = cache.keep(name, newest.release, packages, unpacked)
        say(f"{name}: {facts.release} is in {cache.folder / name}")
        return facts


def _newest(name: str, source: Source, archive: Archive, say: Say) -> Release:
    complaints = ""
    for suite in source.suites:
        say(f"{name}: looking into Debian's {suite}")
        complaints += archive.update(suite)
        releases = archive.releases(source.series)
        if releases:
            return releases[0]
    words = " ".join(complaints.split())[-_LAST_WORDS:]
    raise LabError(
        f"{name}: none of Debian's {', '.join(source.suites)} has a kernel {source.series} for the lab"
        + (f" (apt: {words})" if words else "")
        + "; give one with --kernel FILE --modules DIR"
    )
