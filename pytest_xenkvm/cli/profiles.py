"""`xenkvm profiles`: how the kernels differ, and what a VMM author must do about it."""

from __future__ import annotations

import json
from typing import Final

import click

from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.replay.errors import ReplayError
from pytest_xenkvm.report.profiles import profiles_json, profiles_markdown, profiles_text
from pytest_xenkvm.rules.profiles import all_profiles

_EPILOG: Final = """\b
Examples:
  xenkvm profiles                 the switches in words
  xenkvm profiles --markdown      the page of the documentation
  xenkvm replay boot.xkt --profile linux-7.3    what the new ABI does to your guest
"""


@click.command(epilog=_EPILOG)
@click.option("--markdown", "output", flag_value="markdown", help="Print the documentation page.")
@click.option("--json", "output", flag_value="json", help="Print one JSON object.")
def profiles(output: str | None) -> None:
    """List the kernels that the emulated core can answer like and where they differ."""
    if output == "markdown":
        lines = profiles_markdown()
    else:
        try:
            known = tuple(all_profiles().values())
        except ReplayError as error:
            raise UserError(str(error)) from error
        lines = profiles_text(known) if output is None else iter([json.dumps(profiles_json(known), indent=2)])
    for line in lines:
        click.echo(line)
