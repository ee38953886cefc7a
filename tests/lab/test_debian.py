"""Debian's archive: which packages make the kernel that is asked for."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.lab import debian
from pytest_xenkvm.lab.debian import Archive, Package, Release, mirrors, packages_of, releases_of
from pytest_xenkvm.lab.errors import LabError
from pytest_xenkvm.lab.fetch import fetch
from pytest_xenkvm.lab.kernels import SOURCES, Facts, KernelCache

MADISON: Final = """\
linux-image-6.12.99+deb12-cloud-amd64 | 6.12.99-1~deb12u1 | http://deb/security b-s/main amd64 Packages
linux-image-6.12.117+deb12-cloud-amd64 | 6.12.117-1~deb12u1 | http://deb/security b-s/main amd64 Packages
linux-image-6.12.117+deb12-amd64 | 6.12.117-1~deb12u1 | http://deb/security b-s/main amd64 Packages
linux-image-6.1.0-44-cloud-amd64 | 6.1.164-1 | http://deb/security b-s/main amd64 Packages
linux-image-7.2.13+deb14-cloud-amd64 | 7.2.13-1 | http://deb/debian sid/main amd64 Packages
linux-binary-7.2.13+deb14-cloud-amd64 | 7.2.13-1 | http://deb/debian sid/main amd64 Packages
linux-modules-7.2.13+deb14-cloud-amd64 | 7.2.13-1 | http://deb/debian sid/main amd64 Packages
linux-binary-7.3-cloud-amd64 | 7.3~rc7-1~exp1 | http://deb/debian experimental/main amd64 Packages
linux-modules-7.3-cloud-amd64 | 7.3~rc7-1~exp1 | http://deb/debian experimental/main amd64 Packages
linux-binary-7.3.1+deb14-cloud-amd64 | 7.3.1-1 | http://deb/debian sid/main amd64 Packages
linux-binary-7.30-cloud-amd64 | 7.30-1 | http://deb/debian sid/main amd64 Packages
linux-modules-7.30-cloud-amd64 | 7.30-1 | http://deb/debian sid/main amd64 Packages
"""
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg") is None, reason="no dpkg, which compares versions")


@needs_dpkg
@pytest.mark.parametrize(
    ("series", "found"),
    [
        ("6.12", ["6.12.117+deb12-cloud-amd64", "6.12.99+deb12-cloud-amd64"]),
        ("7.2", ["7.2.13+deb14-cloud-amd64"]),
        ("7.3", ["7.3-cloud-amd64"]),
        ("6.1", ["6.1.0-44-cloud-amd64"]),
        ("7.4", []),
    ],
)
def test_the_series_is_found(series: str, found: list[str]) -> None:
    """Kernels of the series and of no other, the newest first, and only those with all their packages."""
    assert [release.release for release in releases_of(packages_of(MADISON), series)] == found


@needs_dpkg
def test_a_kernel_in_two_packages() -> None:
    """Where binary and modules are packages of their own, they are taken, and not the empty image."""
    (release,) = releases_of(packages_of(MADISON), "7.2")
    assert [package.name for package in release.packages] == [
        "linux-binary-7.2.13+deb14-cloud-amd64",
        "linux-modules-7.2.13+deb14-cloud-amd64",
    ]


@needs_dpkg
def test_a_release_is_newer_than_its_candidates() -> None:
    """Versions are compared as Debian does: 7.3~rc7 comes before 7.3."""
    whole = (
        MADISON
        + "linux-modules-7.3.1+deb14-cloud-amd64 | 7.3.1-1 | http://deb/debian sid/main amd64 Packages"
    )
    assert [release.version for release in releases_of(packages_of(whole), "7.3")] == [
        "7.3.1-1",
        "7.3~rc7-1~exp1",
    ]


def put(path: Path, text: str) -> None:
    """Write a shell script."""
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        (
            "Debian http://mirror.example/debian/\nDebian http://mirror.example/debian-security/\nOther http://x/",
            ("http://mirror.example/debian", "http://mirror.example/debian-security"),
        ),
        ("Debian http://mirror.example/debian/", ("http://mirror.example/debian",) * 2),
        ("Ubuntu http://x/ubuntu/", ("http://deb.debian.org/debian",) * 2),
    ],
)
def test_the_mirror_is_the_machines_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str, found: tuple[str, str]
) -> None:
    """The archive is fetched from where this machine's packages are from, if that is Debian."""
    put(tmp_path / "apt-get", f"echo '{listed}'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    main, security = mirrors()
    assert main == found[0]
    assert security.removesuffix("-security") == found[1].removesuffix("-security")
    assert security.endswith("-security")


def test_a_system_without_apt_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without apt the sentence says how to bring a kernel."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(LabError, match=r"takes apt-get, which isn't installed.*--kernel FILE --modules DIR"):
        Archive(tmp_path).update("sid")


def test_apts_own_words_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When apt fails, its last words are in the sentence."""
    for tool in ("apt-cache", "dpkg", "dpkg-deb"):
        put(tmp_path / tool, "true")
    put(tmp_path / "apt-get", "echo 'E: no route to host' >&2; exit 100")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    archive = Archive(tmp_path)
    assert "no route to host" in archive.update("sid")
    with pytest.raises(LabError, match=r"^apt-get download failed: E: no route to host$"):
        archive.unpack(Release("7.9", (Package("linux-x", "1"),)), tmp_path)


class FakeArchive(Archive):
    """An archive whose suites are canned."""

    suites: dict[str, Sequence[Release]]
    asked: list[str]

    def update(self, suite: str) -> str:
        """Complain about a suite that isn't there."""
        self.asked.append(suite)
        return "" if suite in self.suites else f"E: no {suite}"

    def releases(self, series: str) -> list[Release]:
        """The kernels of the suite that was updated last."""
        del series
        return list(self.suites.get(self.asked[-1], ()))


@pytest.fixture
def archive(monkeypatch: pytest.MonkeyPatch) -> type[FakeArchive]:
    """The archive that is fetched from."""
    FakeArchive.suites, FakeArchive.asked = {}, []
    monkeypatch.setattr("pytest_xenkvm.lab.fetch.Archive", FakeArchive)
    return FakeArchive


def test_suites_are_asked_in_turn(archive: type[FakeArchive], tmp_path: Path) -> None:
    """A kernel that no suite has is told with the suites and with what apt complained about."""
    archive.suites = {"trixie": ()}
    with pytest.raises(
        LabError, match=r"none of Debian's bookworm-security, .*\(apt: E: no bookworm-security"
    ):
        fetch("linux-6.12", KernelCache(tmp_path), lambda _line: None)
    assert tuple(archive.asked) == SOURCES["linux-6.12"].suites


def test_the_newest_isnt_fetched_again(archive: type[FakeArchive], tmp_path: Path) -> None:
    """A kernel that is there and the newest stays; later suites aren't asked."""
    archive.suites = {"experimental": [Release("7.3", (Package("linux-x", "2"), Package("linux-y", "2")))]}
    (tmp_path / "linux-7.3").mkdir()
    facts = '{"release": "7.3", "packages": ["linux-x=2", "linux-y=2"], "modules": []}'
    (tmp_path / "linux-7.3" / "kernel.json").write_text(facts)
    told: list[str] = []
    assert fetch("linux-7.3", KernelCache(tmp_path), told.append) == Facts(
        "7.3", ("linux-x=2", "linux-y=2"), ()
    )
    assert archive.asked == ["experimental"]
    assert told[-1] == "linux-7.3: 7.3 is there already, and the newest"


def test_an_unknown_kernel_is_told(tmp_path: Path) -> None:
    """A kernel that isn't of the lab is refused with those that are."""
    with pytest.raises(LabError, match=r"known are linux-6\.12, linux-7\.2, linux-7\.3"):
        fetch("linux-5.10", KernelCache(tmp_path), print)


def test_signatures_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list of sources names Debian's keyring where there is one, and never says to trust anything."""
    for tool in ("apt-cache", "apt-get", "dpkg", "dpkg-deb"):
        put(tmp_path / tool, "true")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    keyring = tmp_path / "keyring.gpg"
    keyring.touch()
    monkeypatch.setattr(debian, "_KEYRING", str(keyring))
    Archive(tmp_path).update("bookworm-security")
    sources = (tmp_path / "sources.list").read_text()
    assert (
        sources == f"deb [signed-by={keyring}] http://deb.debian.org/debian-security bookworm-security main\n"
    )
