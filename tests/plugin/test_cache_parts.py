"""What the cache of results is made of: results as text, and a folder of texts."""

from __future__ import annotations

import os
import re
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from attrs import evolve

from pytest_xenkvm.plugin import cache_folder
from pytest_xenkvm.plugin.cache_folder import CacheFolder
from pytest_xenkvm.plugin.stored_result import Unstorable, result_of_text, result_text
from pytest_xenkvm.replay.observation import Divergence, Place
from pytest_xenkvm.rules.bundled import BUNDLED
from pytest_xenkvm.rules.model import Finding
from pytest_xenkvm.rules.run import ReplayOptions, ReplayResult, run_trace
from pytest_xenkvm.trace.events import Event, Ioctl, Wait
from pytest_xenkvm.trace.files import open_trace

# ---- results


@pytest.fixture(scope="module")
def result() -> ReplayResult:
    """A replay with divergences and findings of many kinds: that of a new recording on an old kernel."""
    golden = Path(__file__).parents[2] / "traces" / "golden" / "linux-7.3" / "random" / "seed-11.jsonl.gz"
    return run_trace(open_trace(golden), BUNDLED, ReplayOptions(profile="linux-6.12"))


def back(result: ReplayResult) -> ReplayResult:
    """The result when it has been text."""
    return result_of_text(result_text(result), result.trace, result.profile, BUNDLED)


def test_a_result_comes_back_whole(result: ReplayResult) -> None:
    """Text holds counts, divergences with their events, verdicts and findings."""
    assert len({divergence.kind for divergence in result.divergences}) >= 5
    assert any(verdict.findings for verdict in result.verdicts)
    assert back(result) == result


@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        0,
        -1,
        (1 << 64) - 1,
        "a",
        b"\x00\xff",
        (1, (2,)),
        [1, [2]],
        {"a": {"b": (1, b"c")}},
        ["dict"],
    ],
)
def test_values_keep_their_types(result: ReplayResult, value: Any) -> None:
    """Whatever a divergence expected or observed comes back as what it was."""
    event = Ioctl(name="KVM_XEN_HVM_SET_ATTR", arg={"type": 0, "long_mode": 1}, ret=0)
    divergence = Divergence(
        place=Place(3, after=True),
        kind="out",
        expected=value,
        observed=[value],
        recorded=event,
        happened=event,
    )
    found = back(evolve(result, divergence_count=1, divergences=(divergence,))).divergences[0]
    assert repr(found) == repr(divergence)


@pytest.mark.parametrize(
    ("value", "event"),
    [(1.5, Wait(ns=1)), (object(), Wait(ns=1)), ({1: 2}, Wait(ns=1)), (1, Wait(ns=-1))],
    ids=["float", "object", "key", "event"],
)
def test_what_would_not_come_back_is_refused(result: ReplayResult, value: Any, event: Event) -> None:
    """A value that text has no form for, and an event that no trace can hold, aren't written."""
    divergence = Divergence(
        place=Place(0), kind="out", expected=value, observed=0, recorded=event, happened=event
    )
    with pytest.raises(Unstorable):
        result_text(evolve(result, divergence_count=1, divergences=(divergence,)))


def test_what_cannot_be_told_is_refused(result: ReplayResult) -> None:
    """A text whose divergence has no words, such as a vector that is none, holds no result."""
    divergence = evolve(result.divergences[0], kind="irq", expected=1, observed=2)
    text = result_text(evolve(result, divergence_count=1, divergences=(divergence,)))
    spoilt = text.replace('"kind":"irq","expected":1', '"kind":"irq","expected":"x"')
    assert spoilt != text
    with pytest.raises(Unstorable):
        result_of_text(spoilt, result.trace, result.profile, BUNDLED)


def test_a_result_of_other_rules_is_refused(result: ReplayResult) -> None:
    """Verdicts are those of the rules that are asked for, in their order."""
    text = result_text(result)
    for rules in (BUNDLED[1:], (*BUNDLED[1:], BUNDLED[0])):
        with pytest.raises(Unstorable):
            result_of_text(text, result.trace, result.profile, rules)


def test_findings_come_back(result: ReplayResult) -> None:
    """A finding has its place, event and message, whatever characters that holds."""
    (violated, *_) = (verdict for verdict in result.verdicts if verdict.findings)
    finding = Finding(place=Place(7), event=violated.findings[0].event, message="\x1b\u20ac\ud800")
    verdict = evolve(violated, violations=1, findings=(finding,))
    verdicts = tuple(verdict if each is violated else each for each in result.verdicts)
    assert back(evolve(result, verdicts=verdicts)).verdicts == verdicts


# ---- the folder


@pytest.fixture
def folder(tmp_path: Path) -> CacheFolder:
    """An empty one."""
    (tmp_path / "cache").mkdir()
    return CacheFolder(tmp_path / "cache")


def test_the_least_recently_used_go(folder: CacheFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """When there are too many texts, or too long ones, those go that were read longest ago."""
    monkeypatch.setattr(cache_folder, "_PRUNE_EVERY", 1)
    monkeypatch.setattr(cache_folder, "MAX_TEXTS", 3)
    for number, name in enumerate("abc"):
        folder.write(name, "x")
        os.utime(folder.path / f"{name}.txt", (number, number))
    assert folder.read("a") == "x"
    folder.write("d", "x")
    assert [name for name in "abcd" if folder.read(name)] == ["a", "c", "d"]
    monkeypatch.setattr(cache_folder, "MAX_TOTAL", 150)
    folder.write("e", "x")
    assert [name for name in "abcde" if folder.read(name)] == ["d", "e"]


def test_what_was_left_behind_goes(folder: CacheFolder) -> None:
    """Drafts and locks of processes that were killed are removed in time."""
    for age in (10, 5000):
        path = folder.path / f"{age}.tmp"
        path.touch()
        os.utime(path, (time.time() - age, time.time() - age))
    folder.write("a", "x")
    assert sorted(path.name for path in folder.path.iterdir()) == ["10.tmp", "a.txt"]


def test_a_text_that_is_too_long_is_not_kept(folder: CacheFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    """No text takes more than `MAX_TEXT` bytes, neither written nor read."""
    folder.write("a", "x" * 50)
    monkeypatch.setattr(cache_folder, "MAX_TEXT", 49)
    assert folder.read("a") is None
    folder.write("b", "x" * 50)
    assert not (folder.path / "b.txt").exists()


def test_a_folder_that_is_gone_holds_nothing(folder: CacheFolder) -> None:
    """Whatever becomes of the folder, reading finds nothing and writing does nothing."""
    folder.path.rmdir()
    folder.write("a", "x")
    assert folder.read("a") is None
    with folder.alone("a"):
        pass
    assert folder.content_of(folder.path / "a.xkt") is None


@pytest.mark.parametrize("memo", [0, 1 << 30], ids=["remembered", "read"])
def test_a_change_shows_whatever_its_times_say(
    folder: CacheFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, memo: int
) -> None:
    """A file of the same size and modification time with another content has another digest."""
    monkeypatch.setattr(cache_folder, "MEMO_SIZE", memo)
    monkeypatch.setattr(cache_folder, "_SETTLED_NS", 0)
    path = tmp_path / "a.xkt"
    path.write_bytes(b"one")
    first = folder.content_of(path)
    assert first is not None
    assert first == folder.content_of(path)
    stat = path.stat()
    path.write_bytes(b"two")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    second = folder.content_of(path)
    assert second is not None
    assert first.digest != second.digest
    assert not first.is_unchanged()
    assert second.is_unchanged()


def test_the_digest_of_a_large_file_is_remembered(
    folder: CacheFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A large file that has rested for a while is read once; one that just changed is read again."""
    monkeypatch.setattr(cache_folder, "MEMO_SIZE", 1)
    path = tmp_path / "a.xkt"
    path.write_bytes(b"content")
    folder.content_of(path)
    assert not list(folder.path.iterdir())
    monkeypatch.setattr(cache_folder, "_SETTLED_NS", 0)
    content = folder.content_of(path)
    monkeypatch.setattr(cache_folder, "_digest_of_file", lambda path: pytest.fail(f"{path} is read again"))
    assert folder.content_of(path) == content
    assert content is not None
    assert re.fullmatch("[0-9a-f]{64}", content.digest)


def test_one_at_a_time(folder: CacheFolder) -> None:
    """Whoever comes second waits; another name doesn't."""
    order = []

    def second() -> None:
        with folder.alone("a"):
            order.append("second")

    with folder.alone("a"):
        waiting = threading.Thread(target=second)
        waiting.start()
        with folder.alone("b"):
            time.sleep(0.2)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]
