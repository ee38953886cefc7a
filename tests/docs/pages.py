"""The how-to pages as data: their code blocks, in order, and what commands and output they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import Factory, define, frozen

HOW_TO: Final = Path(__file__).parents[2] / "docs" / "how-to"

_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILE_NAME: Final = re.compile(r"# (\S+)\n")


@frozen
class Command:
    """A command line of a page, and the lines of output shown below it; "..." stands for anything."""

    line: str
    shown: tuple[str, ...]

    @property
    def environment(self) -> dict[str, str]:
        """The variables that are set in front of it."""
        return dict(word.split("=", 1) for word in self._words() if self._is_variable(word))

    @property
    def arguments(self) -> list[str]:
        """The program and its arguments."""
        return [word for word in self._words() if not self._is_variable(word)]

    def missing(self, output: str) -> str | None:
        """The first line shown that isn't in `output` behind those before it; None if all are."""
        rest = iter(output.splitlines())
        for line in self.shown:
            pattern = re.escape(line.strip()).replace(r"\.\.\.", ".*")
            if line != "..." and not any(re.fullmatch(pattern, found.strip()) for found in rest):
                return line
        return None

    def _words(self) -> list[str]:
        return shlex.split(self.line)

    @staticmethod
    def _is_variable(word: str) -> bool:
        return re.match(r"[A-Z]+=", word) is not None


@define
class Project:
    """The files that a page has named so far."""

    files: dict[str, str] = Factory(dict)

    def write(self, folder: Path) -> None:
        """Create them."""
        for name, text in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)


def blocks(page: str, *languages: str) -> list[tuple[str, str]]:
    """The code blocks of a page, as (language, text); of these languages only, if some are given."""
    found = _BLOCK.findall((HOW_TO / page).read_text())
    return [(language, text) for language, text in found if not languages or language in languages]


def steps(page: str) -> Iterator[tuple[Project, Command]]:
    """Each command of a page with the project as the blocks above it describe it.

    A block of Python or TOML is a file, named by the comment on its first line; a later one replaces it.
    """
    files: dict[str, str] = {}
    for language, text in blocks(page, "python", "toml", "console"):
        if language == "console":
            for command in _commands(text):
                yield Project(dict(files)), command
            continue
        name = _FILE_NAME.match(text)
        assert name is not None, f"{page}: a block of {language} doesn't say which file it is"
        files[name[1]] = text


def _commands(text: str) -> Iterator[Command]:
    for chunk in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
        line, *shown = chunk.splitlines()
        yield Command(line, tuple(shown))


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the table whose head begins with the cell `heading`, as lists of cells."""
    rows: list[list[str]] = []
    inside = False
    for line in (HOW_TO / page).read_text().splitlines():
        if line.startswith(f"| {heading} |"):
            inside = True
        elif inside and not line.startswith("|"):
            break
        elif inside and not line.startswith("| ---"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows
