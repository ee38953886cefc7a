"""Which rules there are: the bundled ones, those of installed packages, and a selection of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Final

from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.rules.model import Rule
from pytest_xenkvm.trace.installed import NotLoadable, load_all

ENTRY_POINTS: Final = "xenkvm.rules"
"""Entry-point group whose members are iterables of `Rule`."""

_SUGGESTED: Final = 3


class RuleError(ValueError):
    """Rules that can't be had; `str()` is one sentence for the user."""


def all_rules(more: Iterable[Rule] = ()) -> tuple[Rule, ...]:
    """The bundled rules, those of installed packages, and `more`; raises RuleError.

    No id may be given twice.
    """
    found = [*BUNDLED]
    try:
        found.extend(load_all(ENTRY_POINTS, Rule))
    except NotLoadable as error:
        raise RuleError(str(error)) from error
    found.extend(more)
    seen: set[str] = set()
    for rule in found:
        if rule.id in seen:
            raise RuleError(f"two rules have the id {rule.id!r}: ids must be unique")
        seen.add(rule.id)
    return tuple(found)


def select_rules(rules: Sequence[Rule], selection: str | None) -> tuple[Rule, ...]:
    """Those rules that `selection` names: comma-separated ids or patterns ("vcpu-id.*"), "!" excludes.

    An empty selection is all rules; one that only excludes starts from all. Raises RuleError for a name
    that matches nothing.
    """
    names = [name.strip() for name in (selection or "").split(",") if name.strip()]
    if not names:
        return tuple(rules)
    wanted = [name for name in names if not name.startswith("!")]
    unwanted = [name.removeprefix("!") for name in names if name.startswith("!")]
    for name in (*wanted, *unwanted):
        if not any(_matches(rule, name) for rule in rules):
            raise RuleError(f"no rule matches {name!r}; {_suggestion(rules, name)}")
    return tuple(
        rule
        for rule in rules
        if (not wanted or any(_matches(rule, name) for name in wanted))
        and not any(_matches(rule, name) for name in unwanted)
    )


def _suggestion(rules: Sequence[Rule], name: str) -> str:
    """What may have been meant, and where all rules are."""
    ids = [rule.id for rule in rules]
    last_parts = {rule_id.rpartition(".")[2]: rule_id for rule_id in ids}
    near = dict.fromkeys(
        last_parts.get(found, found) for found in get_close_matches(name, [*ids, *last_parts], _SUGGESTED)
    )
    meant = f"did you mean {', '.join(near)}? " if near else ""
    return f"{meant}`xenkvm rules` lists the installed ones"


def _matches(rule: Rule, name: str) -> bool:
    """By id, by pattern, or by family: "vcpu-id" is "vcpu-id.*"."""
    return fnmatchcase(rule.id, name) or rule.id.startswith(f"{name}.")
