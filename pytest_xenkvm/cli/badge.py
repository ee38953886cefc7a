"""`xenkvm badge`: the badge of a report that pytest wrote."""

from __future__ import annotations

from pathlib import Path

import click

from pytest_xenkvm.cli.report import read_merged
from pytest_xenkvm.report.badge import badge_of
from pytest_xenkvm.report.writing import write_whole

_EPILOG = """\b
Examples:
  pytest --xenkvm-report=results.json
  xenkvm badge results.json -o badge.svg           prints the Markdown that shows it
  xenkvm badge one.json two.json -o badge.svg      of several runs
  xenkvm badge results.json --json badge.json      for shields.io's endpoint badges

Exit codes: 0 the badge is written, 2 unusable input (the reason is on stderr).
"""


@click.command(epilog=_EPILOG)
@click.argument(
    "reports", metavar="RESULTS.json...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option("-o", "--output", type=click.Path(path_type=Path), metavar="FILE", help="Write the SVG there.")
@click.option(
    "--json",
    "endpoint",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write what shields.io reads from an endpoint.",
)
def badge(reports: tuple[Path, ...], output: Path | None, endpoint: Path | None) -> None:
    """Draw a badge that counts the rules held, from reports that pytest wrote.

    Without an option the SVG is printed.
    """
    made = badge_of(read_merged(reports))
    if endpoint is not None:
        write_whole(endpoint, made.endpoint())
    if output is not None:
        write_whole(output, made.svg())
        click.echo(made.markdown(output.as_posix()))
    elif endpoint is None:
        click.echo(made.svg(), nl=False)
