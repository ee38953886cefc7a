"""The rules are documented: each has a page, and the committed pages are those of the rules."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.rules.model import Rule
from pytest_xenkvm.rules.pages import INDEX, pages, write_pages

FOLDER: Final = Path(__file__).parents[2] / "docs" / "rules"


def test_the_committed_pages_are_up_to_date() -> None:
    """docs/rules holds exactly what the rules say: `python -m pytest_xenkvm.rules.pages docs/rules`."""
    committed = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir()}
    assert committed == pages(BUNDLED)


def test_ids_are_unique() -> None:
    """No two bundled rules share an id."""
    assert [name for name, times in Counter(rule.id for rule in BUNDLED).items() if times > 1] == []


@pytest.mark.parametrize("rule", BUNDLED, ids=lambda rule: str(rule.id))
def test_a_rule_explains_itself(rule: Rule) -> None:
    """Each rule says what it demands, by what authority, why, when it is judged and what to do."""
    page = pages([rule])[f"{rule.id}.md"]
    for text in (rule.title, rule.explanation, rule.advice):
        assert text.endswith(".")
        assert " ".join(text.split()) in " ".join(page.split())
    assert rule.citation in page
    assert rule.level.value in page
    assert rule.exercised_by in page


def test_writing_replaces_generated_pages_only(tmp_path: Path) -> None:
    """Pages of rules that are gone are removed; what somebody wrote by hand stays."""
    write_pages(tmp_path, BUNDLED[:2])
    (tmp_path / "by-hand.md").write_text("# Mine\n", encoding="utf-8")
    write_pages(tmp_path, BUNDLED[:1])
    assert {path.name for path in tmp_path.iterdir()} == {INDEX, f"{BUNDLED[0].id}.md", "by-hand.md"}
    index = (tmp_path / INDEX).read_text(encoding="utf-8")
    assert BUNDLED[0].title in index
    assert BUNDLED[1].title not in index
