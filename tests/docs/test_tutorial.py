"""docs/tutorial.md, followed from an empty directory with the built wheel."""

from __future__ import annotations

import time
from typing import Final

from installing import Shell
from pages import blocks, commands

TUTORIAL: Final = "docs/tutorial.md"
LIMIT_S: Final = 300


def test_the_tutorial_does_what_it_shows(shell: Shell) -> None:
    """Its files and commands, in order, give the output shown, red and then green, within five minutes."""
    begun = time.monotonic()
    statuses: list[int] = []
    for block in blocks(TUTORIAL):
        if block.name is not None:
            (shell.folder / block.name).write_text(block.text)
            continue
        assert block.language == "console"
        for command in commands(block):
            fails = any(line.startswith("FAILED") for line in command.shown)
            output = shell.run(command.line, status=int(fails))
            assert command.missing(output) is None, output
            statuses += [int(fails)] * command.line.startswith("pytest")
    assert statuses == [1, 0, 0, 0]
    assert time.monotonic() - begun < LIMIT_S


def test_the_first_behaviour_is_short() -> None:
    """What a new user writes is ten lines and an import."""
    first = next(block for block in blocks(TUTORIAL) if block.name == "conftest.py")
    _name, *code = (line for line in first.text.splitlines() if line)
    assert len(code) <= 11
