"""`xenkvm lab`: what it says when it can't run, and what is there (guests: tests/lab/test_real_kernel.py)."""

from __future__ import annotations

from pathlib import Path

import pytest

from pytest_xenkvm.cli.main import USAGE_EXIT, run
from pytest_xenkvm.lab.kernels import SOURCES

FACTS = '{"release": "6.12.117+deb12-cloud-amd64", "packages": ["linux-image-x=6.12.117-1"], "modules": []}'


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The lab's cache: an empty one. No program is found."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    return tmp_path / "pytest-xenkvm" / "lab"


@pytest.fixture
def qemu(tmp_path: Path) -> Path:
    """A program of QEMU's name."""
    path = tmp_path / "bin" / "qemu-system-x86_64"
    path.write_text("#!/bin/sh\n")
    path.chmod(0o755)
    return path


def said(capsys: pytest.CaptureFixture[str], *args: str) -> str:
    """Run a command that can't be served; what it said in its one line."""
    assert run(["lab", *args]) == USAGE_EXIT
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_no_qemu(capsys: pytest.CaptureFixture[str]) -> None:
    """Without QEMU the sentence names the program and the package, before any kernel is fetched."""
    line = said(capsys, "run", "--", "true")
    assert line == (
        "xenkvm: qemu-system-x86_64 isn't installed; Debian and Ubuntu: apt-get install qemu-system-x86"
    )


def test_another_machine(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, qemu: Path
) -> None:
    """On another architecture the sentence says which one is needed."""
    del qemu
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    assert "this machine is aarch64" in said(capsys, "run", "--", "true")


@pytest.mark.parametrize("command", [["list"], ["fetch", "linux-6.12"], ["run", "--", "true"]])
def test_a_cache_that_is_no_folder(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    qemu: Path,
    tmp_path: Path,
    command: list[str],
) -> None:
    """A file where the cache's folder should be is told with its path and the variable that names it."""
    del qemu
    place = tmp_path / "file"
    place.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(place))
    assert said(capsys, *command) == (
        f"xenkvm: kernels can't be kept in {place}/pytest-xenkvm/lab (Not a directory): "
        f"XDG_CACHE_HOME is {place}, expected a folder that can be written to"
    )
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(place))
    assert said(capsys, *command).endswith(
        "(Not a directory): XDG_CACHE_HOME isn't set, expected a folder that can be written to"
    )


def test_a_folder_is_no_kernel(capsys: pytest.CaptureFixture[str], qemu: Path, tmp_path: Path) -> None:
    """--kernel with a folder says that it is one, and what is expected."""
    del qemu
    line = said(capsys, "run", "--kernel", str(tmp_path), "--", "true")
    assert line == (
        f"xenkvm: --kernel {tmp_path}: is a folder, expected a vmlinux or vmlinuz, or "
        "linux-6.12, linux-7.2, linux-7.3"
    )


def test_a_kernel_that_isnt_there(capsys: pytest.CaptureFixture[str], qemu: Path) -> None:
    """A kernel that is neither known nor a file is refused with those that are known."""
    del qemu
    line = said(capsys, "run", "--kernel", "linux-5.10", "--", "true")
    assert "--kernel linux-5.10: found no such file" in line
    assert all(name in line for name in SOURCES)


def test_modules_for_a_known_kernel(capsys: pytest.CaptureFixture[str], tmp_path: Path, qemu: Path) -> None:
    """--modules goes with a kernel of one's own only."""
    del qemu
    assert "--modules goes with a kernel of your own" in said(
        capsys, "run", "--modules", str(tmp_path), "--", "x"
    )


def test_a_kernel_to_fetch_without_apt(capsys: pytest.CaptureFixture[str], qemu: Path) -> None:
    """A kernel that isn't there is fetched; without apt the sentence says how to bring one."""
    del qemu
    assert run(["lab", "run", "--", "true"]) == USAGE_EXIT
    *_, last = capsys.readouterr().err.splitlines()
    assert "takes apt-get, which isn't installed" in last
    assert "--kernel FILE --modules DIR" in last


def test_a_file_that_is_no_kernel(capsys: pytest.CaptureFixture[str], qemu: Path) -> None:
    """A file without a kernel in it is refused by its name."""
    assert f"--kernel {qemu}: the kernel is neither an ELF file" in said(
        capsys, "run", "--kernel", str(qemu), "--", "true"
    )


def test_a_variable_that_isnt_set(capsys: pytest.CaptureFixture[str]) -> None:
    """--env NAME wants a variable that is set here."""
    assert run(["lab", "run", "--env", "NO_SUCH_NAME", "--", "true"]) == USAGE_EXIT
    assert "NO_SUCH_NAME isn't set here; say NAME=VALUE" in capsys.readouterr().err


def test_a_variable_without_a_name(capsys: pytest.CaptureFixture[str]) -> None:
    """--env with no name before the = is refused before anything boots."""
    assert run(["lab", "run", "--env", "=x", "--", "true"]) == USAGE_EXIT
    assert "'=x' names no variable; say NAME or NAME=VALUE" in capsys.readouterr().err


def test_fetching_an_unknown_kernel(capsys: pytest.CaptureFixture[str]) -> None:
    """A kernel that isn't of the lab is refused with those that are."""
    assert "linux-5.10: no kernel of the lab" in said(capsys, "fetch", "linux-5.10")


def test_the_list(capsys: pytest.CaptureFixture[str], cache: Path) -> None:
    """Each kernel is listed: fetched ones with release, size and packages, the rest with where they are."""
    folder = cache / "linux-6.12"
    folder.mkdir(parents=True)
    (folder / "kernel.json").write_text(FACTS)
    (folder / "vmlinux").write_bytes(bytes(3 << 20))
    assert run(["lab", "list"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"linux-6.12  6.12.117+deb12-cloud-amd64, 3 MiB in {folder}",
        "            linux-image-x=6.12.117-1",
        "linux-7.2   not fetched; from Debian's sid, forky",
        "linux-7.3   not fetched; from Debian's experimental, sid, forky",
    ]


@pytest.mark.parametrize("command", ["run", "fetch", "list"])
def test_help_teaches(capsys: pytest.CaptureFixture[str], command: str) -> None:
    """Each command explains itself, by examples."""
    assert run(["lab", command, "--help"]) == 0
    out = capsys.readouterr().out
    assert f"Usage: xenkvm lab {command}" in out
    assert f"  xenkvm lab {command} " in out.partition("Example")[2]
