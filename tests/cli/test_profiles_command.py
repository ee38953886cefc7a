"""`xenkvm profiles` and `xenkvm rules`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.cli.main import run
from pytest_xenkvm.core.profile import PROFILES
from pytest_xenkvm.core.switches import SWITCHES
from pytest_xenkvm.rules.registry import all_rules

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "profiles.md"


def test_profiles_in_words(capsys: pytest.CaptureFixture[str]) -> None:
    """`xenkvm profiles` tells each switch, how every kernel behaves, and what to do."""
    assert run(["profiles"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in PROFILES)
    assert all(switch.title in out for switch in SWITCHES)
    assert out.count("    Do: ") == len(SWITCHES)


def test_profiles_as_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """`--markdown` prints the documentation page as it is committed."""
    assert run(["profiles", "--markdown"]) == 0
    assert capsys.readouterr().out == PAGE.read_text(encoding="utf-8")


def test_profiles_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    """`--json` prints one JSON object."""
    assert run(["profiles", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == {"profiles", "switches"}


def test_rules_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """`xenkvm rules` prints a line for each rule: id, level, whom it judges, title."""
    assert run(["rules"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:3] for line in lines] == [
        [rule.id, rule.level.value, rule.judges.value] for rule in all_rules()
    ]
    assert all(line.endswith(rule.title) for line, rule in zip(lines, all_rules(), strict=True))


def test_rules_of_a_family(capsys: pytest.CaptureFixture[str]) -> None:
    """A pattern chooses, and `!` excludes."""
    assert run(["rules", "vcpu-id.*,!vcpu-id.unique"]) == 0
    listed = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert listed == [
        rule.id for rule in all_rules() if rule.id.startswith("vcpu-id.") and rule.id != "vcpu-id.unique"
    ]


def test_one_rule_in_full(capsys: pytest.CaptureFixture[str]) -> None:
    """One rule alone is explained: title, source, why, and what to do."""
    (rule,) = (rule for rule in all_rules() if rule.id == "vcpu-id.unset-forwards")
    assert run(["rules", rule.id]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in (rule.id, rule.title, rule.citation, rule.exercised_by, rule.explanation, rule.advice):
        assert " ".join(text.split()) in out


def test_an_unknown_rule(capsys: pytest.CaptureFixture[str]) -> None:
    """A selection that chooses nothing is one sentence and exit code 2."""
    assert run(["rules", "no-such-rule"]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("xenkvm: no rule matches 'no-such-rule'")
    assert captured.err.count("\n") == 1
