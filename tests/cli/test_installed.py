"""What installed packages add to the command line: profiles, importers, behaviours, and broken ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.cli.main import run

MODULE: Final = """
from collections import Counter
from attrs import evolve
from pytest_xenkvm.core.profile import LINUX_7_3
from pytest_xenkvm.trace.events import Header, Wait
from pytest_xenkvm.trace.importers import Given, Imported, ImportReport, NamedImporter
from pytest_xenkvm.vmm import Vmm

PROFILES = [evolve(LINUX_7_3, name="linux-7.3-vendor", summary="a vendor's")]

def read(lines, *, path, given=Given()):
    events = [Wait(ns=int(line)) for line in lines if line.isdigit()]
    return Imported(header=Header(scope="hypercalls"), events=events, report=ImportReport(lines=len(events)))

WAITS = NamedImporter(read, "numbers", recognises=lambda line: line == "# waits")

class Mine(Vmm):
    name = "mine 1.0"
"""
OFFERS: Final = """
[xenkvm.profiles]
vendor = offering:PROFILES
[xenkvm.importers]
waits = offering:WAITS
[xenkvm.vmm]
mine = offering:Mine
"""


@pytest.fixture
def offer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Installs a distribution `offers` with these entry points, and starts in a folder of its own."""
    (tmp_path / "offering.py").write_text(MODULE)
    metadata = tmp_path / "offers-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: offers\nVersion: 1\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def offer_(entry_points: str) -> None:
        (metadata / "entry_points.txt").write_text(entry_points)

    return offer_


def test_a_profile_is_offered(offer: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    """`xenkvm replay` takes it, and `xenkvm profiles` tells of it, but not in this project's own page."""
    offer(OFFERS)
    arguments = ["replay", "@linux-boot-1vcpu", "--profile", "linux-7.3-vendor", "--until", "9", "--json"]
    assert run(arguments) == 0
    assert json.loads(capsys.readouterr().out)["profile"] == "linux-7.3-vendor"
    assert run(["profiles"]) == run(["profiles", "--json"]) == 0
    text = capsys.readouterr().out
    assert "  linux-7.3-vendor  a vendor's\n" in text
    assert '"linux-7.3-vendor": "yes"' in text
    assert run(["profiles", "--markdown"]) == 0
    assert "vendor" not in capsys.readouterr().out


@pytest.mark.parametrize("source", [[], ["--from", "waits"]])
def test_an_importer_is_offered(
    offer: Callable[[str], None], capsys: pytest.CaptureFixture[str], tmp_path: Path, source: list[str]
) -> None:
    """`xenkvm import` finds it by the recording's content or by its name."""
    offer(OFFERS)
    (tmp_path / "recording.txt").write_text("# waits\n5\n7\n<idle>-0 [000] d.... 1.000001: x: y\n")
    assert run(["import", "recording.txt", *source]) == 0
    assert "from waits, wrote recording.xkt: 2 events" in capsys.readouterr().err


def test_a_behaviour_is_offered(offer: Callable[[str], None], capsys: pytest.CaptureFixture[str]) -> None:
    """`--vmm NAME` takes part, under the name that it gives itself."""
    offer(OFFERS)
    assert run(["replay", "@linux-boot-1vcpu", "--vmm", "mine", "--until", "9", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["vmm"] == "mine 1.0"


@pytest.mark.parametrize(
    ("group", "arguments"),
    [
        ("xenkvm.rules", ["replay", "@linux-boot-1vcpu"]),
        ("xenkvm.rules", ["rules"]),
        ("xenkvm.profiles", ["replay", "@linux-boot-1vcpu", "--profile", "vendor"]),
        ("xenkvm.profiles", ["profiles"]),
        ("xenkvm.importers", ["import", "recording.txt"]),
        ("xenkvm.vmm", ["replay", "@linux-boot-1vcpu", "--vmm", "bad"]),
    ],
)
def test_what_cant_be_loaded_is_one_sentence(
    offer: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    group: str,
    arguments: list[str],
) -> None:
    """It names the entry point, its package and what went wrong; exit code 2."""
    offer(f"[{group}]\nbad = offering:missing\n")
    (tmp_path / "recording.txt").write_text("")
    assert run(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the entry point bad = offering:missing of offers ({group}) can't be loaded: " in line
    assert line.endswith("AttributeError: module 'offering' has no attribute 'missing'")


@pytest.mark.parametrize(
    ("entry", "arguments", "sentence"),
    [
        (
            "[xenkvm.profiles]\nagain = pytest_xenkvm.core.profile:PROFILES.values\n",
            ["profiles"],
            "expected a Profile",
        ),
        (
            "[xenkvm.importers]\nftrace = offering:WAITS\n",
            ["import", "r"],
            "two importers have the name",
        ),
        ("[xenkvm.rules]\nrules = offering:PROFILES\n", ["rules"], "expected a Rule"),
        ("[xenkvm.importers]\nmine = offering:read\n", ["import", "r"], "expected a NamedImporter"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    offer: Callable[[str], None],
    capsys: pytest.CaptureFixture[str],
    entry: str,
    arguments: list[str],
    sentence: str,
) -> None:
    """A name that is taken, or something else than what the group is for."""
    offer(entry)
    assert run(arguments) == 2
    assert sentence in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--from", "none"], []])
def test_an_importer_that_there_is_not(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, option: list[str]
) -> None:
    """The sentence says which there are."""
    (tmp_path / "recording.txt").write_text("nothing\n")
    assert run(["import", str(tmp_path / "recording.txt"), *option]) == 2
    assert "ftrace-kprobes" in capsys.readouterr().err
