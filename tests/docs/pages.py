"""The pages as data: their code blocks, in order, and what commands and output they show."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from attrs import Factory, define, frozen

ROOT: Final = Path(__file__).parents[2]
HOW_TO: Final = "docs/how-to"

PAGES: Final = (
    "README.md",
    *sorted(
        str(path.relative_to(ROOT))
        for path in (ROOT / "docs").rglob("*.md")
        if not path.read_text(encoding="utf-8").startswith("<!-- Generated from ")  # signatures are no code
    ),
)
"""All pages for users and contributors, as paths from the root of the sources."""

FILES: Final = ("python", "toml", "ini", "yaml")
"""Languages of blocks that may be whole files, each named by the comment on its first line."""

_BLOCK: Final = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FENCE: Final = re.compile(r"^[ >]*(?:```|~~~)", re.MULTILINE)
_FILE_NAME: Final = re.compile(r"# ([\w./-]+\.[a-z]+)\n")


@frozen
class Block:
    """A code block of a page."""

    page: str
    line: int
    """Where its fence stands, counted from 1."""

    language: str
    text: str

    @property
    def name(self) -> str | None:
        """The file that it is; None for a fragment."""
        named = _FILE_NAME.match(self.text) if self.language in FILES else None
        return named and named[1]

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


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


def blocks(page: str, *languages: str) -> list[Block]:
    """The code blocks of a page, of these languages only if some are given."""
    text = (ROOT / page).read_text()
    found = [
        Block(page, text.count("\n", 0, match.start()) + 1, match[1], match[2])
        for match in _BLOCK.finditer(text)
    ]
    return [block for block in found if not languages or block.language in languages]


def fences(page: str) -> int:
    """How many lines of a page begin or end a block, however they are written."""
    return len(_FENCE.findall((ROOT / page).read_text()))


def steps(page: str) -> Iterator[tuple[Project, Command]]:
    """Each command of a page with the project as the files above it make it; a later file replaces one."""
    files: dict[str, str] = {}
    for block in blocks(page, "console", *FILES):
        if block.language == "console":
            for command in commands(block):
                yield Project(dict(files)), command
        elif block.name is not None:
            files[block.name] = block.text


def commands(block: Block) -> Iterator[Command]:
    """The commands of a block of console text."""
    for chunk in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
        line, *shown = chunk.splitlines()
        yield Command(line, tuple(shown))


def table(page: str, heading: str) -> list[list[str]]:
    """The rows of the table whose head begins with the cell `heading`, as lists of cells."""
    rows: list[list[str]] = []
    inside = False
    for line in (ROOT / page).read_text().splitlines():
        if line.startswith(f"| {heading} |"):
            inside = True
        elif inside and not line.startswith("|"):
            break
        elif inside and not line.startswith("| ---"):
            rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows
