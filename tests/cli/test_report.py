"""`xenkvm report`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from report_kit import RULES, failed, replay, report

from pytest_xenkvm.cli.main import run
from pytest_xenkvm.report.results import merge, report_bytes

UNIQUE, FORWARDS, ADVISED = RULES
HELD = {UNIQUE: "held"}
VIOLATED = {UNIQUE: "violated"}

Save = Callable[..., str]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a report of these replays and returns its path."""

    def save_(name: str, *replays: Any) -> str:
        path = tmp_path / name
        path.write_bytes(report_bytes(report(*replays)))
        return str(path)

    return save_


def test_a_report_in_short(capsys: pytest.CaptureFixture[str], save: Save) -> None:
    """Without options, what went wrong is printed, and the headline."""
    path = save("r.json", replay(verdicts=VIOLATED), replay("b.xkt", HELD, **failed("one\x1b[31m")))
    assert run(["report", path]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"a.xkt: {UNIQUE} (MUST): violated 1 of 4 times",
        "b.xkt: not judged: one\\x1b[31m",
        "1 replay, 5 events: 1 error · 0/1 rules · linux-7.3",
    ]


def test_reports_are_merged(capsys: pytest.CaptureFixture[str], save: Save, tmp_path: Path) -> None:
    """Several reports become one file, or are printed as one object."""
    one, two = save("1.json", replay(verdicts=HELD)), save("2.json", replay("b.xkt", VIOLATED))
    merged = merge([report(replay(verdicts=HELD)), report(replay("b.xkt", VIOLATED))])
    assert run(["report", one, two, "-o", str(tmp_path / "new" / "all.json")]) == 0
    assert (tmp_path / "new" / "all.json").read_bytes() == report_bytes(merged)
    assert not capsys.readouterr().out
    assert run(["report", two, one, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == merged


@pytest.mark.parametrize(
    ("old", "new", "code", "last"),
    [
        (HELD, VIOLATED, 1, "1 broke, 0 fixed, 0 not judged any more, 0 still wrong"),
        (VIOLATED, HELD, 0, "0 broke, 1 fixed, 0 not judged any more, 0 still wrong"),
        (VIOLATED, VIOLATED, 0, "0 broke, 0 fixed, 0 not judged any more, 1 still wrong"),
        (HELD, {}, 0, "0 broke, 0 fixed, 1 not judged any more, 0 still wrong"),
    ],
)
def test_comparing(  # noqa: PLR0913, PLR0917 - both sides and what is said
    capsys: pytest.CaptureFixture[str],
    save: Save,
    old: dict[str, str],
    new: dict[str, str],
    code: int,
    last: str,
) -> None:
    """The exit code is 1 if anything broke, whatever else changed."""
    arguments = [save("new.json", replay(verdicts=new)), "--against", save("old.json", replay(verdicts=old))]
    assert run(["report", *arguments]) == code
    assert capsys.readouterr().out.splitlines()[-1] == last
    assert run(["report", *arguments, "--json"]) == code
    counts = json.loads(capsys.readouterr().out)
    assert f"{len(counts['broke'])} broke, {len(counts['fixed'])} fixed" in last


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["none.json"], "none.json: No such file or directory"),
        (["bad.json"], "bad.json: is no JSON, expected a report"),
        (["other.json"], 'other.json: is no report, expected an object whose "format" is "xenkvm-report"'),
        (["good.json", "bad.json"], "bad.json: is no JSON"),
        (["good.json", "--against", "bad.json"], "bad.json: is no JSON"),
        (["empty.json", "--against", "good.json"], "empty.json: holds no replay"),
        (["good.json", "-o", "x.txt"], "x.txt: ends in .txt, expected .json or .html"),
        (["good.json", "-o", "good.json/x.json"], "cannot be written"),
        (["."], "Is a directory"),
        ([], "Missing argument"),
    ],
)
def test_unusable_input_is_one_sentence(  # noqa: PLR0913, PLR0917 - as above
    capsys: pytest.CaptureFixture[str],
    save: Save,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    arguments: list[str],
    sentence: str,
) -> None:
    """What can't be read, compared or written is said in one sentence, with exit code 2."""
    monkeypatch.chdir(tmp_path)
    save("good.json", replay(verdicts=HELD))
    save("empty.json")
    Path("bad.json").write_text("{")
    Path("other.json").write_text('{"format": "coverage"}')
    assert run(["report", *arguments]) == 2
    assert sentence in capsys.readouterr().err
