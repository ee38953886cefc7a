"""The documentation of rules, made from the `Rule` objects: a Markdown page a rule, and an index.

`python -m pytest_xenkvm.rules.pages FOLDER` writes the pages of the bundled rules.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from textwrap import fill
from typing import Final

from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.rules.model import Judged, Rule

INDEX: Final = "index.md"

_WIDTH: Final = 110
_GENERATED: Final = (
    "<!-- Generated from the rules by pytest_xenkvm.rules.pages: change the rule, not this page. -->\n"
)
_JUDGED: Final = {
    Judged.HOST: "the host: the kernel that serves the VM",
    Judged.VMM: "the VMM: the behaviour under test, or the recorded VMM unless it is a test program",
}
_INTRODUCTION: Final = """\
# Conformance rules

A rule judges what happened in one replay. It is *held* or *violated*, with the events that show it, only if
something in the replay exercised it; otherwise it is *not exercised*, which is never a pass. Rules demand the
ABI of Linux 7.3, whatever kernel the host answers like.

*Host* rules judge the kernel. *VMM* rules judge the VMM behaviour under test or, in a kernel replay, the VMM
of the recording, unless that was a test program.

A selection names rules by id (`vcpu-id.unset-forwards`), by pattern (`*.unset-*`) or by family (`vcpu-id`);
`!` before a name excludes.
"""


def pages(rules: Iterable[Rule]) -> dict[str, str]:
    """The pages of `rules` by file name: one named after each rule's id, and the index."""
    rules = tuple(rules)
    return {**{f"{rule.id}.md": rule_page(rule) for rule in rules}, INDEX: index_page(rules)}


def rule_page(rule: Rule) -> str:
    """A rule in full: its demand, how binding it is, whom it judges, its source, why, and what to do."""
    facts = {
        "Level": rule.level.value,
        "Judges": _JUDGED[rule.judges],
        "Source": rule.citation,
        "Exercised by": rule.exercised_by,
    }
    table = "".join(f"| {name} | {_cell(value)} |\n" for name, value in facts.items() if value)
    return (
        f"{_GENERATED}# {rule.id}\n\n{_paragraph(rule.title)}\n"
        f"| | |\n| --- | --- |\n{table}\n"
        f"## Why\n\n{_paragraph(rule.explanation)}\n## What to do\n\n{_paragraph(rule.advice)}"
    )


def index_page(rules: Iterable[Rule]) -> str:
    """All rules by family, in the order in which they are reported."""
    families: dict[str, list[Rule]] = {}
    for rule in rules:
        families.setdefault(rule.id.partition(".")[0], []).append(rule)
    sections = (
        f"\n## {family}\n\n| rule | level | judges | demand |\n| --- | --- | --- | --- "
        f"|\n{''.join(map(_row, members))}"
        for family, members in families.items()
    )
    return f"{_GENERATED}{_INTRODUCTION}{''.join(sections)}"


def _row(rule: Rule) -> str:
    link = f"[{rule.id}]({rule.id}.md)"
    return f"| {link} | {rule.level.value} | {rule.judges.value} | {_cell(rule.title)} |\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|").replace("\n", " ")


def _paragraph(text: str) -> str:
    return fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False) + "\n"


def write_pages(folder: Path, rules: Iterable[Rule] = BUNDLED) -> None:
    """Write the pages of `rules` to `folder` and remove those of rules that are gone."""
    folder.mkdir(parents=True, exist_ok=True)
    made = pages(rules)
    for path in folder.glob("*.md"):
        if path.name not in made and path.read_text(encoding="utf-8").startswith(_GENERATED):
            path.unlink()
    for name, text in made.items():
        (folder / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write_pages(Path(sys.argv[1]))
