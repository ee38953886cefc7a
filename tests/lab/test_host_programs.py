"""Programs, libraries and the Python environment, as the host has them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import pytest_xenkvm
from pytest_xenkvm.lab.environment import Environment
from pytest_xenkvm.lab.errors import LabError
from pytest_xenkvm.lab.guest_files import GuestFiles
from pytest_xenkvm.lab.programs import add_libraries, add_program, find_program


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder that is searched for programs."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    return tmp_path


def script(path: Path, first_line: str) -> Path:
    """Write a program that something interprets."""
    path.write_text(f"{first_line}\n")
    path.chmod(0o755)
    return path


def test_a_program_is_searched_for(folder: Path) -> None:
    """A name is looked up in the given folder, then in PATH; a path is taken as it is."""
    inner = folder / "inner"
    inner.mkdir()
    for place in (folder, inner):
        script(place / "tool", "#!/bin/sh")
    assert find_program("tool") == folder / "tool"
    assert find_program("tool", inner) == inner / "tool"
    assert find_program(str(folder / "tool"), inner) == folder / "tool"


def test_a_missing_program_is_told() -> None:
    """What isn't there is named."""
    with pytest.raises(LabError, match="there is no program no-such-tool"):
        find_program("no-such-tool")


@pytest.mark.parametrize("first_line", ["#!{}/interpreter -x", "#!/usr/bin/env interpreter"])
def test_a_script_brings_its_interpreter(folder: Path, first_line: str) -> None:
    """The interpreter comes along, named by its path or looked up by env."""
    script(folder / "interpreter", "#!/bin/sh")
    files = GuestFiles()
    add_program(files, script(folder / "tool", first_line.format(folder)))
    assert str(folder / "tool") in files
    assert str(folder / "interpreter") in files
    assert str(Path("/bin/sh").resolve()) in files


def test_libraries_come_along() -> None:
    """What a program is linked with is brought, with the dynamic loader and libgcc_s."""
    files = GuestFiles()
    files.add(Path(sys.executable).resolve())
    add_libraries(files)
    names = {Path(path).name for path in files.elf_files()}
    assert {"libc.so.6", "libm.so.6"} <= names
    assert any(name.startswith("ld-linux") for name in names)


def test_the_environment_is_whole() -> None:
    """The standard library, this package and what it needs are brought; Python's tests and .git aren't."""
    files = GuestFiles()
    Environment.current().add_to(files)
    for path in (sys.executable, json.__file__, pytest_xenkvm.__file__, pytest.__file__):
        assert path in files
    checkout = Path(pytest_xenkvm.__file__).parent.parent
    assert str(checkout / ".git") not in files
    assert str(Path(json.__file__).parent.parent / "test") not in files


def test_a_distribution_can_be_left_out() -> None:
    """What --without names stays behind; the rest doesn't."""
    files = GuestFiles()
    Environment.current().add_to(files, ["Hypothesis"])
    import hypothesis  # noqa: PLC0415 - for its place only

    assert hypothesis.__file__ not in files
    assert pytest.__file__ in files


def test_leaving_out_what_isnt_there_is_told() -> None:
    """A misspelt distribution is named."""
    with pytest.raises(LabError, match="--without hypotheses: no such distribution"):
        Environment.current().add_to(GuestFiles(), ["hypotheses"])


def test_an_editable_project_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project that is installed editable is brought though no folder of `sys.path` holds it."""
    project = tmp_path / "with blank" / "project"
    project.mkdir(parents=True)
    info = tmp_path / "site" / "thing-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: thing\nVersion: 1.0\n")
    (info / "direct_url.json").write_text(
        json.dumps({"url": project.as_uri(), "dir_info": {"editable": True}})
    )
    monkeypatch.syspath_prepend(tmp_path / "site")
    assert project in Environment.current().trees


def test_the_working_folder_is_no_part_of_the_environment(tmp_path: Path) -> None:
    """`python -m` puts the working folder on `sys.path`, but what lies there isn't of the environment."""
    show = "from pytest_xenkvm.lab.environment import Environment as E; print(*E.current().trees, sep='\\n')"
    (tmp_path / "show.py").write_text(show)
    shown = subprocess.run(
        [sys.executable, "-m", "show"], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert shown.stdout
    assert str(tmp_path) not in shown.stdout.splitlines()
