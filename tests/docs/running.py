"""Runs what the pages show: commands on the files above them, fragments of Python, lines of shell."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Final

from pages import Block, Command, Project
from settings import PRELUDES, SETTINGS

import pytest_xenkvm
from pytest_xenkvm.trace.files import bundled_traces

_PACKAGE: Final = Path(pytest_xenkvm.__file__).parents[1]
_PROGRAMS: Final = {
    "pytest": "import sys, pytest\nsys.exit(pytest.main())",
    "xenkvm": "from pytest_xenkvm.cli.main import main\nmain()",
}
"""Scripts as an installation makes them: the working directory is not on their path."""

_UNWANTED: Final = {"PYTEST_ADDOPTS", "CI", "BUILD_NUMBER", "PYTHONPATH", "NO_COLOR", "FORCE_COLOR"}

Done = subprocess.CompletedProcess[str]


def carry_out(page: str, project: Project, command: Command, folder: Path) -> Done:
    """Run a page's command in the page's project, in a folder of its own."""
    work, programs = _folders(folder, page, "console")
    project.write(work)
    _install(project, programs)
    for argument in command.arguments:
        if argument.endswith("/"):
            shutil.copy(bundled_traces()["linux-boot"], work / argument / "boot.xkt")
    paths = [str(work)] if "pyproject.toml" in project.files else []
    paths += [path for path in (command.environment.get("PYTHONPATH"),) if path]
    program, *arguments = command.arguments
    return _run([str(programs / program), *arguments], work, programs, *paths)


def run_fragment(block: Block, folder: Path) -> Done:
    """Run Python code that is no file, below its page's prelude; under pytest if it is a test."""
    work, programs = _folders(folder, block.page, "python")
    code = PRELUDES.get(block.page, "") + block.text
    is_test = re.search(r"^def test_", code, re.MULTILINE) is not None
    (work / "test_fragment.py").write_text(code)
    program = [str(programs / "pytest")] if is_test else [sys.executable]
    return _run([*program, "test_fragment.py"], work, programs)


def run_shell(page: str, text: str, folder: Path) -> Done:
    """Run shell code of a page; it ends with the first command that fails."""
    work, programs = _folders(folder, page, "sh")
    return _run(["/bin/sh", "-euc", text], work, programs)


def _folders(folder: Path, page: str, language: str) -> tuple[Path, Path]:
    """A folder to work in, with what the page takes for granted, and one with the programs."""
    work, programs = folder / "work", folder / "bin"
    for made in (work, programs):
        made.mkdir()
    for name, code in _PROGRAMS.items():
        (programs / name).write_text(f"#!{sys.executable}\n{code}\n")
        (programs / name).chmod(0o755)
    if (page, language) in SETTINGS:
        SETTINGS[page, language](work)
    return work, programs


def _run(command: list[str], work: Path, programs: Path, *paths: str) -> Done:
    environment = {name: value for name, value in os.environ.items() if name not in _UNWANTED}
    return subprocess.run(
        command,
        cwd=work,
        env={
            **environment,
            "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": os.pathsep.join([str(_PACKAGE), *paths]),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_PLUGINS": "pytest_xenkvm.plugin.entry",
            "COLUMNS": "80",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def _install(project: Project, folder: Path) -> None:
    """Make the entry points of the project's pyproject.toml known, as an installation would."""
    text = project.files.get("pyproject.toml")
    if text is None:
        return
    sections = re.findall(r'^\[project\.entry-points\."(.+)"\]\n((?:\w+ = ".+"\n)+)', text, re.MULTILINE)
    assert sections
    metadata = folder / "demo-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
    lines = "\n".join(f"[{group}]\n{entries}" for group, entries in sections)
    (metadata / "entry_points.txt").write_text(lines.replace('"', ""))
