"""How the kernels differ, as tables for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import pytest
from attrs import fields

from pytest_xenkvm.core.profile import LINUX_7_2, LINUX_7_3, PROFILES, Profile
from pytest_xenkvm.core.switches import SWITCHES, Switch
from pytest_xenkvm.report.profiles import profiles_json, profiles_markdown, profiles_text

PAGE: Final = Path(__file__).parents[2] / "docs" / "reference" / "profiles.md"
FOR_PEOPLE: Final = {"name", "summary"}


def test_every_difference_has_a_switch() -> None:
    """A field of Profile that isn't the same in all kernels has one row, and no other field has any."""
    differing = [
        field.name
        for field in fields(Profile)
        if field.name not in FOR_PEOPLE
        and len({getattr(profile, field.name) for profile in PROFILES.values()}) > 1
    ]
    assert [switch.field for switch in SWITCHES] == differing


def test_every_field_is_a_difference() -> None:
    """A field that is the same in all kernels is none that Profile needs."""
    assert {field.name for field in fields(Profile)} == FOR_PEOPLE | {switch.field for switch in SWITCHES}


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.field)
def test_different_values_have_different_words(switch: Switch) -> None:
    """Two kernels read the same in a row exactly if they behave the same."""
    for one in PROFILES.values():
        for other in PROFILES.values():
            same = getattr(one, switch.field) == getattr(other, switch.field)
            assert (switch.value(one) == switch.value(other)) == same


@pytest.mark.parametrize("switch", SWITCHES, ids=lambda switch: switch.field)
def test_every_switch_tells_what_to_do(switch: Switch) -> None:
    """Each row says in sentences what shows the difference and what to do, and names function and version."""
    assert switch.shows.endswith(".")
    assert switch.advice.endswith(".")
    assert not switch.title.endswith(".")
    assert switch.source.startswith("kvm_")
    assert any(version in switch.source for version in ("6.12", "7.2", "7.3"))


def test_the_words_of_the_change_that_matters() -> None:
    """The unset ID reads 0 up to 7.2 and the sentinel from 7.3 on."""
    (switch,) = (switch for switch in SWITCHES if switch.field == "unset_vcpu_id")
    assert (switch.value(LINUX_7_2), switch.value(LINUX_7_3)) == ("0", "XEN_VCPU_ID_INVALID (0xffffffff)")


def test_the_page_is_up_to_date() -> None:
    """The committed page is what `xenkvm profiles --markdown` prints."""
    assert PAGE.read_text(encoding="utf-8") == "".join(f"{line}\n" for line in profiles_markdown())


def test_the_page_is_a_page() -> None:
    """One title, a table with a column for each profile, and a section for each switch."""
    lines = list(profiles_markdown())
    assert sum(line.startswith("# ") for line in lines) == 1
    assert [line.removeprefix("## ") for line in lines if line.startswith("## ")] == [
        switch.title for switch in SWITCHES
    ]
    table = [line for line in lines if line.startswith("|")][len(PROFILES) + 2 :]
    assert len(table) == len(SWITCHES) + 2
    assert {line.count("|") for line in table} == {len(PROFILES) + 2}


def test_the_terminal_shows_the_same() -> None:
    """The text names every profile and, under each switch, every kernel's answer; no line is too long."""
    lines = list(profiles_text())
    for profile in PROFILES.values():
        assert f"  {profile.name}  {profile.summary}" in lines
    for switch in SWITCHES:
        start = lines.index(switch.title) + 1
        rows = lines[start : start + len(PROFILES)]
        assert rows == [f"  {profile.name}  {switch.value(profile)}" for profile in PROFILES.values()]
        assert lines[start + len(PROFILES)].startswith("    Seen in: ")
    assert max(map(len, lines)) <= 110


def test_the_json_shows_the_same() -> None:
    """The JSON object has the profiles in order and, for each switch, the answers by profile."""
    found = profiles_json()
    assert [profile["name"] for profile in found["profiles"]] == list(PROFILES)
    assert [switch["field"] for switch in found["switches"]] == [switch.field for switch in SWITCHES]
    for row, switch in zip(found["switches"], SWITCHES, strict=True):
        values: Mapping[str, str] = row["values"]
        assert values == {name: switch.value(profile) for name, profile in PROFILES.items()}
