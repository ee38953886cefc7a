"""Traces by file name: formats recognised, files found, errors said in one sentence."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest
from samples import EVENT_LINES, HEADER, SAMPLE

from pytest_xenkvm.trace import files
from pytest_xenkvm.trace.errors import Malformed, TraceError
from pytest_xenkvm.trace.files import bundled_traces, find_traces, open_trace, write_trace


@pytest.fixture
def sample(tmp_path: Path) -> Path:
    """A small trace in JSON Lines."""
    path = tmp_path / "sample.jsonl"
    path.write_text(SAMPLE)
    return path


@pytest.mark.parametrize("name", ["t.xkt", "t.jsonl", "t.jsonl.gz"])
def test_suffix_decides_what_is_written_and_content_what_is_read(sample: Path, name: str) -> None:
    """A trace written in any format is recognised under any name."""
    source = open_trace(sample)
    path = sample.with_name(name)
    assert write_trace(str(path), source.header, source.events()) == len(EVENT_LINES)
    odd = path.rename(path.with_name("odd.bin"))
    trace = open_trace(str(odd))
    assert trace.header == HEADER
    assert trace.path == odd
    assert trace.name == "odd.bin"
    assert list(trace.events()) == list(source.events())


def test_unknown_suffix_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    """A file whose suffix names no format isn't written."""
    with pytest.raises(TraceError, match=r"t\.txt: does not end in \.xkt, \.jsonl or \.jsonl\.gz"):
        write_trace(tmp_path / "t.txt", HEADER, [])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("content", "clause"),
    [
        (b"", "is empty, expected a trace"),
        (b"\x7fELF\x02\x01\x01\x00\x00", "is neither JSON Lines nor xkt: it begins with b'\\x7fELF"),
        (b"\x89XKT\n\x1a\n\x01\x00", "is neither JSON Lines nor xkt: it begins with b'\\x89XKT"),
        (gzip.compress(b"\0"), "is not JSON: "),
        (b"\n" + SAMPLE.encode(), "is blank, expected one JSON object a line"),
    ],
    ids=["empty", "elf", "text-mode", "gzip", "blank"],
)
def test_other_files_are_refused(tmp_path: Path, content: bytes, clause: str) -> None:
    """A file that is no trace is refused in one sentence that begins with its name."""
    path = tmp_path / "t"
    path.write_bytes(content)
    with pytest.raises(Malformed) as caught:
        open_trace(path)
    assert str(caught.value).startswith(str(path))
    assert clause in str(caught.value)


def test_folders_missing_files_and_pipes_are_refused(tmp_path: Path) -> None:
    """What is no readable regular file is a `TraceError`; a pipe isn't waited for."""
    os.mkfifo(tmp_path / "pipe")
    for name, clause in [
        ("", "is a directory, expected a trace file"),
        ("none.xkt", "cannot be read: No such file or directory"),
        ("pipe", "is not a regular file, expected a trace file"),
        ("n\0", "is no file name"),
        ("x" * 300, "cannot be read: File name too long"),
    ]:
        with pytest.raises(TraceError, match=clause):
            open_trace(tmp_path / name)


def test_folders_are_searched_with_all_folders_in_them(tmp_path: Path) -> None:
    """A folder stands for the traces below it, sorted."""
    for name in ("b.xkt", "a/z.jsonl", "a/y.jsonl.gz", "a/readme.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    found = [path.relative_to(tmp_path).as_posix() for path in find_traces(tmp_path)]
    assert found == ["a/y.jsonl.gz", "a/z.jsonl", "b.xkt"]


def test_a_file_stands_for_itself_and_a_pattern_for_its_matches(sample: Path) -> None:
    """A name is taken literally if there is such a file, and as a pattern otherwise."""
    odd = sample.with_name("[s]ample.jsonl")
    assert find_traces(sample) == [sample]
    assert find_traces(odd) == [sample]
    odd.touch()
    assert find_traces(odd) == [odd]
    assert find_traces(f"{sample.parent}/**/*.jsonl") == sorted([odd, sample])
    sample.with_name("folder.jsonl").mkdir()
    assert find_traces(f"{sample.parent}/[fs]*.jsonl") == [sample]


@pytest.mark.parametrize(
    ("spec", "clause"),
    [("none.xkt", "no such file or folder"), ("*.xkt", "no traces here"), ("", "no traces here")],
)
def test_nothing_found_is_an_error(tmp_path: Path, spec: str, clause: str) -> None:
    """A name, pattern or folder without traces is a `TraceError`."""
    with pytest.raises(TraceError, match=clause):
        find_traces(f"{tmp_path}/{spec}")


@pytest.mark.parametrize("installed", [True, False], ids=["installed", "checkout"])
def test_bundled_traces_go_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: Path, *, installed: bool
) -> None:
    """`@NAME` opens a trace of the installed package, or of the checkout that the package runs from."""
    package = tmp_path / "package"
    folder = package / "_bundled" if installed else tmp_path / "traces"
    folder.mkdir(parents=True)
    (tmp_path / "pyproject.toml").touch()
    monkeypatch.setattr(files, "_PACKAGE", package)
    source = open_trace(sample)
    write_trace(folder / "linux-boot.xkt", source.header, source.events())
    assert bundled_traces() == {"linux-boot": folder / "linux-boot.xkt"}
    assert find_traces("@linux-boot") == [folder / "linux-boot.xkt"]
    assert open_trace("@linux-boot").header == HEADER
    with pytest.raises(
        TraceError, match=r"@boot: there is no bundled trace of this name \(known: @linux-boot\)"
    ):
        open_trace("@boot")


def test_other_folders_of_the_same_name_are_not_bundled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A `traces` folder beside the package counts in a source checkout only."""
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "x.xkt").touch()
    monkeypatch.setattr(files, "_PACKAGE", tmp_path / "package")
    assert bundled_traces() == {}
    with pytest.raises(TraceError, match=r"\(known: none\)"):
        find_traces("@x")
