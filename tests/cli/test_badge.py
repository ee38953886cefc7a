"""`xenkvm badge`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from report_kit import RULES, replay, report

from pytest_xenkvm.cli.main import run
from pytest_xenkvm.report.badge import badge_of
from pytest_xenkvm.report.results import report_bytes

RULE = next(iter(RULES))


@pytest.fixture
def halves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """Two reports in the working directory; the badge of both."""
    monkeypatch.chdir(tmp_path)
    replays = [replay(verdicts={RULE: "held"}), replay("b.xkt", {RULE: "violated"})]
    for number, half in enumerate(replays):
        Path(f"{number}.json").write_bytes(report_bytes(report(half)))
    return badge_of(report(*replays)).svg()


def test_the_badge_is_printed(capsysbinary: pytest.CaptureFixture[bytes], halves: bytes) -> None:
    """Without an option the SVG of all reports together goes to stdout."""
    assert run(["badge", "0.json", "1.json"]) == 0
    assert capsysbinary.readouterr().out == halves


def test_the_badge_is_written(capsys: pytest.CaptureFixture[str], halves: bytes) -> None:
    """The SVG goes to the file, and the Markdown that shows it to stdout."""
    assert run(["badge", "0.json", "1.json", "-o", "doc/b.svg"]) == 0
    assert Path("doc/b.svg").read_bytes() == halves
    assert capsys.readouterr().out == "![xen-kvm: 0/1 rules · linux-7.3](doc/b.svg)\n"


def test_the_endpoint_is_written(capsys: pytest.CaptureFixture[str], halves: bytes) -> None:
    """With --json alone only what shields.io reads is written."""
    del halves
    assert run(["badge", "0.json", "--json", "b.json"]) == 0
    assert json.loads(Path("b.json").read_bytes())["message"] == "1/1 rules · linux-7.3"
    assert not capsys.readouterr().out


def test_what_is_no_report_is_one_sentence(capsys: pytest.CaptureFixture[str], halves: bytes) -> None:
    """Any other file is refused, with exit code 2, and no badge is written."""
    Path("x.svg").write_bytes(halves)
    assert run(["badge", "x.svg", "-o", "b.svg"]) == 2
    assert "x.svg: is no JSON, expected a report" in capsys.readouterr().err
    assert not Path("b.svg").exists()
