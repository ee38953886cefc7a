"""Every code block of the pages is run, or validated where it is configuration, or has a reason why not."""

from __future__ import annotations

import configparser
import importlib
import re
import subprocess
import sys
from pathlib import Path
from typing import Final

import pytest
import yaml  # type: ignore[import-untyped]
from pages import FILES, PAGES, Block, Command, Project, blocks, commands, fences, steps
from running import carry_out, run_fragment, run_shell
from settings import NOT_RUN, PRELUDES, SETTINGS, TUTORIAL

tomllib = importlib.import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")  # pytest's own

RUN: Final = ("console", "python", "sh")
VALIDATED: Final = ("toml", "ini", "yaml")
DATA: Final = ("json", "markdown", "text", "xml")
"""Neither code nor configuration: what is written or printed."""

BLOCKS: Final = [block for page in PAGES for block in blocks(page)]
SHELL: Final = [block for block in BLOCKS if block.language == "sh"]
STEPS: Final = [
    pytest.param(page, project, command, id=f"{page}-{number}")
    for page in PAGES
    if page != TUTORIAL
    for number, (project, command) in enumerate(steps(page))
]


def _is_excepted(block: Block) -> bool:
    return any(_is(block, page, begin) for page, begin in NOT_RUN)


def _is(block: Block, page: str, begin: str) -> bool:
    return block.page == page and block.language == "sh" and block.text.startswith(begin)


@pytest.mark.parametrize("page", PAGES)
def test_every_block_is_known_for_what_it_is(page: str) -> None:
    """Each fence begins or ends a block whose language says whether it is run, validated or mere data."""
    found = blocks(page)
    assert fences(page) == 2 * len(found)
    assert {block.language for block in found} <= {*RUN, *VALIDATED, *DATA}


@pytest.mark.parametrize("page", PAGES)
def test_every_console_line_is_a_command(page: str) -> None:
    """A console block begins with `$ `, and each `$ ` that begins a line of a page is in one."""
    consoles = [block for block in blocks(page) if block.language == "console"]
    assert all(block.text.startswith("$ ") for block in consoles)
    found = sum(len(list(commands(block))) for block in consoles)
    assert sum(block.text.count("\n$ ") + block.text.startswith("$ ") for block in blocks(page)) == found


@pytest.mark.parametrize("page", [page for page in PAGES if page != TUTORIAL])
def test_every_file_has_a_command(page: str) -> None:
    """A block that is a whole file is used: a command stands below it before it is replaced."""
    named = [block for block in blocks(page, *FILES) if block.name]
    used = {(name, text) for project, _ in steps(page) for name, text in project.files.items()}
    assert [str(block) for block in named if (block.name, block.text) not in used] == []


@pytest.mark.parametrize(("page", "project", "command"), STEPS)
def test_a_command_prints_what_its_page_shows(
    page: str, project: Project, command: Command, tmp_path: Path
) -> None:
    """A page's command, run on the files above it, succeeds unless a failure is shown, and says so."""
    done = carry_out(page, project, command, tmp_path)
    output = done.stdout + done.stderr
    assert command.missing(output) is None, output
    fails = any("FAILED" in line or re.search(r"\(MUST\): violated \d", line) for line in command.shown)
    assert done.returncode == (1 if fails else 0), output


@pytest.mark.parametrize(
    "block", [block for block in BLOCKS if block.language == "python" and not block.name], ids=str
)
def test_a_fragment_of_python_runs(block: Block, tmp_path: Path) -> None:
    """Code that is no file runs with the names that its page has introduced, and tests pass."""
    done = run_fragment(block, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_can_be_parsed(block: Block) -> None:
    """Shell code, run or not, has no syntax error."""
    done = subprocess.run(["/bin/sh", "-n", "-c", block.text], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in SHELL if not _is_excepted(block)))
def test_shell_runs(page: str, tmp_path: Path) -> None:
    """The shell code of a page, one block after another, does what it is there for without an error."""
    text = "".join(block.text for block in SHELL if block.page == page and not _is_excepted(block))
    done = run_shell(page, text, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.language in VALIDATED], ids=str)
def test_configuration_can_be_parsed(block: Block) -> None:
    """TOML, ini and YAML, whole files or not, are well-formed and not empty."""
    if block.language == "toml":
        assert tomllib.loads(block.text)
    elif block.language == "yaml":
        assert yaml.safe_load(block.text)
    else:
        parser = configparser.ConfigParser(interpolation=None)
        parser.read_string(block.text)
        assert parser.sections()


@pytest.mark.parametrize(("page", "begin"), NOT_RUN)
def test_no_exception_is_stale(page: str, begin: str) -> None:
    """What is not run stands in its page, once."""
    assert len([block for block in BLOCKS if _is(block, page, begin)]) == 1


def test_no_setting_is_stale() -> None:
    """What is prepared for a page has a block that is run with it."""
    there = {(block.page, block.language) for block in BLOCKS}
    assert set(SETTINGS) <= there
    assert {(page, "python") for page in PRELUDES} <= there
