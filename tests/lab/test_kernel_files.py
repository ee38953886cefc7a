"""Kernels and modules in packages, and the cache that keeps them."""

from __future__ import annotations

import bz2
import gzip
import lzma
import shutil
import struct
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest

from pytest_xenkvm.lab.errors import LabError
from pytest_xenkvm.lab.kernels import KernelCache, kernel_of_files
from pytest_xenkvm.lab.modules import modules_of
from pytest_xenkvm.lab.vmlinux import decompress, vmlinux_of

VMLINUX: Final = b"\x7fELF" + bytes(range(256)) * 40


def zstd(data: bytes) -> bytes:
    """Compress as Debian compresses Linux 7."""
    if shutil.which("zstd") is None:
        pytest.skip("no program zstd")
    return subprocess.run(["zstd", "-qc"], input=data, capture_output=True, check=True).stdout  # noqa: S607


COMPRESSIONS: Final[dict[str, Callable[[bytes], bytes]]] = {
    "xz": lzma.compress,
    "gzip": gzip.compress,
    "bzip2": bz2.compress,
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "zstd": zstd,
}


def bzimage(payload: bytes) -> bytes:
    """A boot sector and setup code, then the compressed kernel among other things."""
    head = bytearray(0x400)
    head[0x1F1] = 1  # sectors of setup code
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 64, len(payload))
    return bytes(head) + bytes(64) + payload + b"trailing"


def module(*needs: str) -> bytes:
    """A kernel module, as far as dependencies go."""
    return b"\x7fELF\0junk\0license=GPL\0depends=" + ",".join(needs).encode() + b"\0retpoline=Y\0"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    """What a kernel's packages hold."""
    folder = tmp_path / "unpacked"
    drivers = folder / "usr/lib/modules/7.9/kernel"
    drivers.mkdir(parents=True)
    (folder / "usr/lib/modules/7.9/vmlinuz").write_bytes(bzimage(lzma.compress(VMLINUX) + b"SIZE"))
    (drivers / "kvm-amd.ko.xz").write_bytes(lzma.compress(module("kvm", "ccp")))
    (drivers / "kvm.ko.xz").write_bytes(lzma.compress(module("irqbypass")))
    (drivers / "ccp.ko").write_bytes(module())
    (drivers / "irqbypass.ko").write_bytes(module())
    (drivers / "unrelated.ko").write_bytes(module("nothing"))
    return folder


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_a_kernel_is_unpacked(name: str) -> None:
    """Out of a bzImage of each compression comes the ELF file that was put in."""
    payload = COMPRESSIONS[name](VMLINUX) + (b"" if name == "gzip" else b"SIZE")
    assert vmlinux_of(bzimage(payload)) == VMLINUX


def test_an_unpacked_kernel_stays_as_it_is() -> None:
    """A vmlinux is taken as it is."""
    assert vmlinux_of(VMLINUX) == VMLINUX


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        (b"text", "neither an ELF file .* nor a bzImage"),
        (bzimage(b"unknown!SIZE"), "compressed in a way that is unknown"),
        (bzimage(b"\xfd7zXZ\0rubbish!"), "can't be unpacked"),
        (bzimage(b"\x1f\x8brubbish!"), "can't be unpacked"),
        (bzimage(b"")[:0x210], "neither an ELF file"),
    ],
)
def test_what_is_no_kernel_is_refused(kernel: bytes, words: str) -> None:
    """A file that holds no kernel is refused in a sentence."""
    with pytest.raises(LabError, match=words):
        vmlinux_of(kernel)


def test_a_missing_program_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Python can't unpack by itself takes a program, which is named."""
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LabError, match="takes the program zstd"):
        decompress(b"\x28\xb5\x2f\xfd")


def test_modules_come_in_order(packages: Path) -> None:
    """What a module needs is loaded before it, uncompressed, and nothing else is."""
    found = modules_of(packages)
    assert list(found) == ["irqbypass", "kvm", "ccp", "kvm_amd"]
    assert found["kvm"] == module("irqbypass")


def test_a_missing_module_is_told(packages: Path) -> None:
    """A module that isn't there is named, with the one that needs it, and so is a folder without KVM."""
    (packages / "usr/lib/modules/7.9/kernel/irqbypass.ko").unlink()
    with pytest.raises(LabError, match="kvm needs irqbypass"):
        modules_of(packages)
    with pytest.raises(LabError, match="holds no kernel module kvm_amd"):
        modules_of(packages / "usr/lib/modules/7.9/kernel/none")


def test_modules_that_need_each_other_are_told(packages: Path) -> None:
    """A circle ends in a sentence."""
    (packages / "usr/lib/modules/7.9/kernel/irqbypass.ko").write_bytes(module("kvm"))
    with pytest.raises(LabError, match="irqbypass needs kvm"):
        modules_of(packages)


def test_a_kept_kernel_can_be_started(packages: Path, tmp_path: Path) -> None:
    """A kept kernel has its unpacked image, its modules in order and the packages that it is from."""
    cache = KernelCache(tmp_path / "cache")
    assert cache.kernel("linux-7.9") is None
    cache.keep("linux-7.9", "7.9", ("linux-x=1",), packages)
    kernel = cache.fetched("linux-7.9")
    assert kernel.image.read_bytes() == VMLINUX
    assert [path.name for path in kernel.modules] == ["irqbypass.ko", "kvm.ko", "ccp.ko", "kvm_amd.ko"]
    assert kernel.modules[0].read_bytes() == module()
    facts = cache.facts("linux-7.9")
    assert facts
    assert facts.packages == ("linux-x=1",)
    assert cache.size("linux-7.9") > len(VMLINUX)


def test_a_newer_kernel_takes_the_place(packages: Path, tmp_path: Path) -> None:
    """Keeping a kernel again replaces it, and nothing is left beside it."""
    cache = KernelCache(tmp_path / "cache")
    cache.keep("linux-7.9", "7.9", ("linux-x=1",), packages)
    cache.keep("linux-7.9", "7.9", ("linux-x=2",), packages)
    facts = cache.facts("linux-7.9")
    assert facts
    assert facts.packages == ("linux-x=2",)
    assert [path.name for path in cache.folder.iterdir()] == ["linux-7.9"]


def test_half_a_kernel_is_none(packages: Path, tmp_path: Path) -> None:
    """A kernel whose packages lack something isn't kept, and an earlier one stays."""
    cache = KernelCache(tmp_path / "cache")
    cache.keep("linux-7.9", "7.9", ("linux-x=1",), packages)
    (packages / "usr/lib/modules/7.9/kernel/ccp.ko").unlink()
    with pytest.raises(LabError):
        cache.keep("linux-7.9", "7.9", ("linux-x=2",), packages)
    facts = cache.facts("linux-7.9")
    assert facts
    assert facts.packages == ("linux-x=1",)
    assert [path.name for path in cache.folder.iterdir()] == ["linux-7.9"]


def test_packages_without_a_kernel_are_told(tmp_path: Path) -> None:
    """Packages that hold no kernel end in a sentence."""
    with pytest.raises(LabError, match="hold no vmlinuz"):
        KernelCache(tmp_path / "cache").keep("linux-7.9", "7.9", (), tmp_path / "none")


@pytest.mark.parametrize("text", ["{", "[]", '{"release": "7.9"}'])
def test_a_damaged_cache_says_what_to_do(tmp_path: Path, text: str) -> None:
    """Facts that can't be read end in a sentence with the command that mends it."""
    (tmp_path / "linux-7.9").mkdir()
    (tmp_path / "linux-7.9" / "kernel.json").write_text(text)
    with pytest.raises(LabError, match=r"run `xenkvm lab fetch linux-7\.9` again"):
        KernelCache(tmp_path).facts("linux-7.9")


def test_the_cache_is_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """XDG_CACHE_HOME says where it is, else it is below ~/.cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert KernelCache.of_user().folder == Path("/somewhere/pytest-xenkvm/lab")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "/home/user")
    assert KernelCache.of_user().folder == Path("/home/user/.cache/pytest-xenkvm/lab")


def test_a_kernel_of_ones_own(packages: Path, tmp_path: Path) -> None:
    """A vmlinuz and a folder of modules make a kernel; without modules it has none."""
    image = packages / "usr/lib/modules/7.9/vmlinuz"
    kernel = kernel_of_files(image, packages, tmp_path)
    assert kernel.image.read_bytes() == VMLINUX
    assert [path.name for path in kernel.modules] == ["irqbypass.ko", "kvm.ko", "ccp.ko", "kvm_amd.ko"]
    assert kernel_of_files(image, None, tmp_path).modules == ()
