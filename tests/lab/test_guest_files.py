"""Files gathered from the host, and the archive that the guest's kernel unpacks."""

from __future__ import annotations

import io
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_xenkvm.lab.cpio import MAX_SIZE, CpioWriter
from pytest_xenkvm.lab.errors import LabError
from pytest_xenkvm.lab.guest_files import GuestFiles


def archive(files: GuestFiles) -> dict[str, tuple[int, bytes]]:
    """Write files as an archive and read it as a kernel does: mode and content by path."""
    written = io.BytesIO()
    files.write(written)
    data, at = written.getvalue(), 0
    found: dict[str, tuple[int, bytes]] = {}
    while True:
        assert data[at : at + 6] == b"070701"
        numbers = [int(data[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, length = numbers[1], numbers[6], numbers[11]
        name = data[at + 110 : at + 110 + length - 1].decode()
        start = at + -(-(110 + length) // 4) * 4
        if name == "TRAILER!!!":
            assert start == len(data)
            return found
        found[f"/{name}"] = mode, data[start : start + size]
        at = start + -(-size // 4) * 4


def test_a_file_comes_with_its_folders(tmp_path: Path) -> None:
    """A file has its content and mode, and the folders above it are there before it."""
    path = tmp_path / "folder" / "tool"
    path.parent.mkdir()
    path.write_bytes(b"12345")
    path.chmod(0o755)
    files = GuestFiles()
    files.add(path)
    found = archive(files)
    assert found[str(path)] == (stat.S_IFREG | 0o755, b"12345")
    names = list(found)
    assert names.index(str(path.parent)) < names.index(str(path))
    assert stat.S_ISDIR(found[str(path.parent)][0])


def test_a_link_brings_what_it_leads_to(tmp_path: Path) -> None:
    """A symbolic link stays one, at the end of a path and among its folders, and its target is there, too."""
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "data").write_text("text")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "link").symlink_to(tmp_path / "folder" / "data")
    files = GuestFiles()
    files.add(tmp_path / "link")
    found = archive(files)
    assert found[f"{tmp_path}/link"] == (stat.S_IFLNK | 0o777, f"{tmp_path}/folder/data".encode())
    assert found[f"{tmp_path}/folder"] == (stat.S_IFLNK | 0o777, b"real")
    assert found[f"{tmp_path}/real/data"][1] == b"text"
    assert f"{tmp_path}/folder/data" not in found


def test_links_that_lead_in_a_circle_are_told(tmp_path: Path) -> None:
    """Links that lead to themselves end in an error, and not never."""
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="lead to themselves"):
        GuestFiles().add(tmp_path / "a")


def test_a_tree_comes_without_what_is_skipped(tmp_path: Path) -> None:
    """A folder comes with all below it, except for what is to be skipped, files and folders."""
    for name in ("a/b/c", "a/no/d", "a/e.no"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    files = GuestFiles()
    files.add_tree(tmp_path / "a", lambda _folder, name: name.endswith("no"))
    found = archive(files)
    assert [path for path in found if path.startswith(f"{tmp_path}/a")] == [
        f"{tmp_path}/a",
        f"{tmp_path}/a/b",
        f"{tmp_path}/a/b/c",
    ]


def test_what_is_no_file_is_left_out(tmp_path: Path) -> None:
    """A pipe in a folder is left out: reading it would never end."""
    os.mkfifo(tmp_path / "pipe")
    files = GuestFiles()
    files.add_tree(tmp_path)
    assert f"{tmp_path}/pipe" not in archive(files)


def test_a_broken_link_in_a_tree_stays(tmp_path: Path) -> None:
    """A link that leads nowhere is brought as it is."""
    (tmp_path / "link").symlink_to("nowhere")
    files = GuestFiles()
    files.add_tree(tmp_path)
    assert archive(files)[f"{tmp_path}/link"][1] == b"nowhere"


def test_programs_are_known_by_their_content() -> None:
    """The interpreter is noticed as an ELF file, whatever its name; text isn't."""
    files = GuestFiles()
    files.add(Path(sys.executable).resolve())
    files.add(Path(__file__))
    assert files.elf_files() == [str(Path(sys.executable).resolve())]


def test_a_file_that_shrank_is_filled_up(tmp_path: Path) -> None:
    """A file that changes while it is packed keeps the size in its header: what follows stays whole."""
    (tmp_path / "a").write_bytes(b"123456")
    files = GuestFiles()
    files.add(tmp_path / "a")
    (tmp_path / "a").write_bytes(b"12")
    files.put("/b", b"next")
    found = archive(files)
    assert found[f"{tmp_path}/a"][1] == b"12\0\0\0\0"
    assert found["/b"][1] == b"next"


def test_a_file_too_large_for_the_format_is_refused() -> None:
    """A file of 4 GiB is refused with its name, before anything of it is read."""
    with pytest.raises(LabError, match=r"^/big has 4294967296 bytes"):
        CpioWriter(io.BytesIO()).add_file("big", stat.S_IFREG, io.BytesIO(), MAX_SIZE + 1)


@pytest.mark.skipif(shutil.which("cpio") is None, reason="no program cpio")
def test_other_programs_read_it(tmp_path: Path) -> None:
    """The program cpio unpacks the archive to the same files."""
    source = tmp_path / "in"
    source.mkdir()
    (source / "file").write_text("text")
    (source / "link").symlink_to("file")
    files = GuestFiles()
    files.add_tree(source)
    with (tmp_path / "archive").open("wb") as file:
        files.write(file)
    out = tmp_path / "out"
    out.mkdir()
    command = ["cpio", "--extract", "--quiet", "--no-absolute-filenames", f"--file={tmp_path}/archive"]
    subprocess.run(command, cwd=out, check=True)
    assert (out / str(source)[1:] / "link").read_text() == "text"
