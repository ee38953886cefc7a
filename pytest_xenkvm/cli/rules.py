"""`xenkvm rules`: the conformance rules, or one of them in full."""

from __future__ import annotations

from typing import Final

import click

from pytest_xenkvm.cli.errors import UserError
from pytest_xenkvm.rules.model import Rule
from pytest_xenkvm.rules.registry import RuleError, all_rules, select_rules

_EPILOG: Final = """\b
Examples:
  xenkvm rules                          all rules, one a line
  xenkvm rules 'vcpu-id.*'              those of a family
  xenkvm rules vcpu-id.unset-forwards   one in full: why, since when, what to do
"""


@click.command(epilog=_EPILOG)
@click.argument("selection", required=False)
def rules(selection: str | None) -> None:
    """List the conformance rules; SELECTION: ids or patterns, comma-separated, "!" excludes."""
    try:
        chosen = select_rules(all_rules(), selection)
    except RuleError as error:
        raise UserError(str(error)) from error
    if len(chosen) == 1:
        _describe(chosen[0])
        return
    width = max((len(rule.id) for rule in chosen), default=0)
    for rule in chosen:
        click.echo(f"{rule.id:<{width}}  {rule.level.value:<6}  {rule.judges.value:<4}  {rule.title}")


def _describe(rule: Rule) -> None:
    click.echo(click.style(rule.id, bold=True))
    click.echo(f"  {rule.title}")
    click.echo(f"  level {rule.level.value}, judges the {rule.judges.value}")
    click.echo(f"  source: {rule.citation}")
    if rule.exercised_by:
        click.echo(f"  exercised by {rule.exercised_by}")
    for paragraph in (rule.explanation, rule.advice):
        click.echo("")
        click.echo(click.wrap_text(paragraph, 100, "  ", "  ", preserve_paragraphs=True))
