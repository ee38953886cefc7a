"""What the pages take for granted: files that the reader has, names that code uses, and what can't be run."""

from __future__ import annotations

import gzip
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
from pages import ROOT, blocks

from pytest_xenkvm.trace import open_trace, write_trace
from pytest_xenkvm.trace.files import bundled_traces

_RECORDINGS: Final = ROOT / "tests" / "importers" / "data"


def _a_recording(folder: Path) -> None:
    (folder / "ftrace.txt.gz").write_bytes(gzip.compress((_RECORDINGS / "kprobes.txt").read_bytes()))
    shutil.copy(_RECORDINGS / "qemu.log", folder / "qemu-trace.log")
    (folder / "host-kernel.txt").write_text("6.12.117+deb12-cloud-amd64\n")


def _a_recording_and_a_trace(folder: Path) -> None:
    _a_recording(folder)
    shutil.copy(bundled_traces()["linux-boot-1vcpu"], folder / "guest.xkt")


def _traces_of_both_formats(folder: Path) -> None:
    shutil.copy(bundled_traces()["linux-boot-1vcpu"], folder / "boot.xkt")
    trace = open_trace("@linux-boot-1vcpu")
    write_trace(folder / "boot.jsonl.gz", trace.header, trace.events())


def _the_forgetful_vmm(folder: Path) -> None:
    """What the README's first example is about is the tutorial's first behaviour."""
    first = next(block for block in blocks("docs/tutorial.md") if block.name == "conftest.py")
    (folder / "conftest.py").write_text(first.text)


def _the_adapter(folder: Path) -> None:
    """Build the one in C, under the names that the pages give it."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    for name in ("minimal", "my-vmm-adapter"):
        source = ROOT / "docs" / "adapters" / "minimal.c"
        subprocess.run([compiler, "-o", folder / name, source], check=True)


def _traces_and_an_earlier_report(folder: Path) -> None:
    (folder / "traces").mkdir()
    shutil.copy(bundled_traces()["linux-boot-1vcpu"], folder / "traces")
    (folder / "main").mkdir()
    _report(folder, "main/report.json")


def _a_corpus(folder: Path) -> None:
    (folder / "corpus").mkdir()
    shutil.copy(bundled_traces()["linux-boot-1vcpu"], folder / "corpus" / "0001.xkt")


def _reports(folder: Path) -> None:
    for name in ("one.json", "two.json", "main.json", "results.json"):
        _report(folder, name)


def _report(folder: Path, name: str) -> None:
    options = ["--xenkvm-trace=@linux-boot-1vcpu", f"--xenkvm-report={name}"]
    subprocess.run([sys.executable, "-m", "pytest", *options], cwd=folder, capture_output=True, check=True)


SETTINGS: Final[dict[tuple[str, str], Callable[[Path], None]]] = {
    ("README.md", "console"): _the_forgetful_vmm,
    ("README.md", "sh"): _a_recording,
    ("docs/adapters/README.md", "console"): _the_adapter,
    ("docs/reference/adapter-protocol.md", "console"): _the_adapter,
    ("docs/how-to/badge-and-reports.md", "sh"): _reports,
    ("docs/how-to/ci.md", "sh"): _traces_and_an_earlier_report,
    ("docs/how-to/many-traces.md", "console"): _a_corpus,
    ("docs/how-to/many-traces.md", "sh"): _a_corpus,
    ("docs/how-to/record-a-guest.md", "sh"): _a_recording_and_a_trace,
    ("docs/reference/importers.md", "python"): _a_recording,
    ("docs/reference/trace-format.md", "python"): _traces_of_both_formats,
}
"""By page and language: makes, in the folder that a block is run in, the files that the reader has."""

PRELUDES: Final = {
    "docs/explanation/unicorn-engine.md": """
from pytest_xenkvm.trace.events import MemorySlot, VcpuShape, VmShape
shape = VmShape(
    irqchip="split",
    memory=(MemorySlot(gpa=0, size=4 << 20),),
    vcpus=(VcpuShape(index=0, id=0),),
)
""",
    "docs/how-to/guest-programs.md": """
from pytest_xenkvm.hosts.guest_program import Ended
from pytest_xenkvm.vmm import Vmm
class MyVmm(Vmm):
    def configure(self, vm): vm.xen_hvm_config()
    def on_hypercall(self, vcpu, xen_exit): return 7
""",
    "docs/reference/trace-format.md": """
from pathlib import Path
path = Path("boot.xkt")
""",
}
"""By page: the names that its fragments of Python use."""

_A_HOST: Final = "needs root, tracefs and QEMU on a host with KVM's module"
_A_LAB: Final = "starts guests, as tests/lab/test_real_kernel.py does, or fetches their kernels"
_A_CHECKOUT: Final = "is about a checkout of the sources; .ci/run does the same"

NOT_RUN: Final = {
    # page and first line: why
    ("README.md", "python3 -m venv .venv && .venv/bin/pip install --quiet . && .venv/bin/pytest"): (
        "runs in an environment of its own, in tests/downstream/test_readme.py"
    ),
    ("README.md", "python3 -m venv .venv && .venv/bin/pip install --quiet --editable"): (
        "runs these tests; .ci/run does it word for word"
    ),
    ("README.md", "xenkvm shrink boot.xkt"): f"{_A_HOST}, and {_A_LAB}",
    ("docs/how-to/judge-a-kernel.md", "pytest --pyargs pytest_xenkvm.conformance --xenkvm-host=kvm"): (
        "needs a kernel with Xen support; CI runs it in the lab"
    ),
    ("docs/contributing.md", "python3 -m venv .venv"): _A_CHECKOUT,
    ("docs/contributing.md", "python -m pytest -n 2"): _A_CHECKOUT,
    ("docs/contributing.md", "python tools/reference_pages.py"): _A_CHECKOUT,
    ("docs/contributing.md", "pytest linux-boot.xkt"): "test_site.py runs it",
    (
        "docs/contributing.md",
        "coverage run -m pytest",
    ): "runs these tests; tox's environment cov does the same",
    ("docs/how-to/record-a-guest.md", "xenkvm record -o"): _A_HOST,
    ("docs/how-to/record-a-guest.md", "xenkvm record --host"): _A_HOST,
    ("docs/how-to/lab.md", "xenkvm lab fetch"): _A_LAB,
    ("docs/how-to/lab.md", "xenkvm lab run -- uname"): _A_LAB,
    ("docs/how-to/lab.md", "xenkvm lab run --copy"): _A_LAB,
    ("docs/how-to/lab.md", "xenkvm lab run --kernel ./vmlinux"): _A_LAB,
    ("docs/how-to/record-a-guest.md", "modprobe kvm_amd"): _A_HOST,
    ("docs/how-to/record-a-guest.md", "qemu-system-x86_64"): _A_HOST,
    ("docs/how-to/record-a-guest.md", "echo 0 > $I/tracing_on"): _A_HOST,
    ("docs/reference/importers.md", "trace-cmd record"): _A_HOST,
    ("docs/reference/importers.md", "perf record"): _A_HOST,
    ("docs/reference/importers.md", "bpftrace"): _A_HOST,
    ("docs/reference/importers.md", "strace"): _A_HOST,
}
"""Blocks of shell that are parsed only, by how they begin."""

TUTORIAL: Final = "docs/tutorial.md"
"""Its blocks are run one after another in one folder, by test_tutorial.py."""
