"""Traces that commands write: which names they take, and how far the writing has come."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from pytest_xenkvm.cli.errors import UserError

_OUTPUTS: Final = (".xkt", ".jsonl", ".jsonl.gz")
_PROGRESS_STEP: Final = 10_000
"""Items between two signs of life."""

T = TypeVar("T")
_F = TypeVar("_F", bound=Callable[..., Any])


def check_output(
    target: Path, sources: Iterable[str | Path] = (), *, force: bool, source: str = "trace"
) -> None:
    """Raise UserError if `target` is no name for a trace, is one of the `sources`, or exists without `force`.

    `source` says what the sources are.
    """
    if not target.name.endswith(_OUTPUTS):
        raise UserError(f"{target}: a trace's name ends in .xkt, .jsonl or .jsonl.gz")
    if not target.exists():
        return
    if any(Path(path).exists() and target.samefile(path) for path in sources):
        raise UserError(f"{target}: is the {source} itself; -o names another file")
    if not force:
        raise UserError(f"{target}: exists already; --force replaces it, -o names another file")


def watched(items: Iterable[T], what: str) -> Iterator[T]:
    """Hand `items` through, and show on a terminal how many there have been."""
    shown = sys.stderr.isatty()
    for count, item in enumerate(items, 1):
        if shown and count % _PROGRESS_STEP == 0:
            click.echo(f"\r{count:,} {what}", nl=False, err=True)
        yield item
    sign_of_life("")


def sign_of_life(words: str) -> None:
    """Replace the last line of a terminal; empty `words` leave nothing behind. Elsewhere nothing is shown."""
    if sys.stderr.isatty():
        click.echo(f"\r\x1b[K{words}", nl=False, err=True)


def output_option(default: str = "") -> Callable[[_F], _F]:
    """The option -o/--output; required unless there is a `default`, in words."""
    return click.option(
        "-o",
        "--output",
        type=click.Path(path_type=Path),
        metavar="TRACE",
        required=not default,
        help=f"Where to: .xkt, or .jsonl for JSON Lines.{default and f' Default: {default}.'}",
    )


force_option: Final = click.option("--force", is_flag=True, help="Replace the output if it exists.")
