"""`xenkvm report`: merge the reports of several runs, turn them into HTML, compare them with earlier ones."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click
from attrs import asdict

from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.report.compare import compare
from pytest_xenkvm.report.reading import ReportError, read_report
from pytest_xenkvm.report.results import JsonObject, merge
from pytest_xenkvm.report.tally import headline, label, many, outcome
from pytest_xenkvm.report.writing import is_html, rendered, write_whole
from pytest_xenkvm.trace.decode_values import text

BROKE_EXIT: Final = 1
"""Something is wrong that wasn't before."""

_MAX_LINE: Final = 1000

_EPILOG: Final = """\b
Examples:
  xenkvm report results.json                            what it says, in short
  xenkvm report one.json two.json -o all.json           one report of several runs
  xenkvm report results.json -o results.html            to look at
  xenkvm report results.json --against main.json        what broke, what got fixed

Exit codes: 0 done, whatever the reports say, 1 with --against something broke, 2 unusable input (the reason
is on stderr).
"""


@click.command(epilog=_EPILOG)
@click.argument(
    "reports", metavar="RESULTS.json...", nargs=-1, required=True, type=click.Path(path_type=Path)
)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Write the report, of all inputs together, to a .json or .html file.",
)
@click.option(
    "--against",
    type=click.Path(path_type=Path),
    metavar="OLD.json",
    help="Compare with an earlier report; exit code 1 if anything broke.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_context
def report(
    ctx: click.Context,
    *,
    reports: tuple[Path, ...],
    output: Path | None,
    against: Path | None,
    as_json: bool,
) -> None:
    """Merge, convert and compare the reports that `pytest --xenkvm-report` wrote."""
    try:
        if output is not None:
            is_html(output)
        merged = read_merged(reports)
        if output is not None:
            write_whole(output, rendered(merged, output))
    except ReportError as error:
        raise UserError(str(error)) from error
    if against is not None:
        if not merged["replays"]:
            raise UserError(f"{reports[0]}: holds no replay, expected some to compare")
        comparison = compare(merged, read_merged([against]))
        _print(asdict(comparison) if as_json else comparison.lines())
        if comparison.broke:
            ctx.exit(BROKE_EXIT)
    elif as_json:
        _print(merged)
    elif output is None:
        _print(_lines(merged))


def read_merged(paths: Sequence[Path]) -> JsonObject:
    """One report of several files; raises UserError for what is no report."""
    try:
        return merge([read_report(path) for path in paths])
    except ReportError as error:
        raise UserError(str(error)) from error


def _print(said: Mapping[str, Any] | Iterable[str]) -> None:
    if isinstance(said, Mapping):
        click.echo(json.dumps(said))
        return
    for line in said:
        click.echo(text(line, _MAX_LINE))


def _lines(merged: Mapping[str, Any]) -> Iterator[str]:
    """What went wrong, replay by replay, and the headline."""
    for replay in merged["replays"]:
        for error in replay["errors"]:
            yield f"{label(replay)}: not judged: {error}"
        if replay["divergences_total"]:
            yield f"{label(replay)}: {many(replay['divergences_total'], 'divergence')} on {replay['profile']}"
        for verdict in replay["verdicts"]:
            if verdict["state"] == "violated":
                yield f"{label(replay)}: {verdict['rule']} ({verdict['level']}): {outcome(verdict)}"
    total = merged["summary"]
    yield f"{many(total['replays'], 'replay')}, {many(total['events'], 'event')}: {headline(merged)}"
