"""The tables and lists of the pages are those of the code."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
from pathlib import Path
from typing import Final

import pytest
from attrs import fields
from pages import HOW_TO, ROOT, blocks, table

from pytest_xenkvm.cli.main import run
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.plugin import hookspecs
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.model import Context
from pytest_xenkvm.trace.events import Event
from pytest_xenkvm.trace.importers.kprobes import PROBES
from pytest_xenkvm.vmm import Vmm

TEST_A_VMM: Final = f"{HOW_TO}/test-a-vmm.md"
WRITE_A_RULE: Final = f"{HOW_TO}/write-a-rule.md"
RECORD: Final = f"{HOW_TO}/record-a-guest.md"
KPROBES: Final = ROOT / HOW_TO / "kprobe_events.txt"


def test_hooks_are_those_of_the_code() -> None:
    """The page of hooks has each with its arguments, those that add first, in the order of the code."""
    rows = (ROOT / "docs" / "reference" / "hooks.md").read_text()
    listed = re.findall(r"^\| `(pytest_xenkvm_\w+\(.*?\))`", rows, re.MULTILINE)
    specs = [(name, spec) for name, spec in vars(hookspecs).items() if name.startswith("pytest_xenkvm_")]
    assert listed == [f"{name}({', '.join(inspect.signature(spec).parameters)})" for name, spec in specs]


def test_optional_methods_are_those_of_the_base() -> None:
    """The table of a behaviour's methods has each of `Vmm` with its parameters."""
    listed = [row[0] for row in table(TEST_A_VMM, "method")]
    methods = [(name, method) for name, method in vars(Vmm).items() if not name.startswith("_")]
    assert listed == [
        f"`{name}({', '.join(list(inspect.signature(method).parameters)[1:])})`" for name, method in methods
    ]


@pytest.mark.parametrize(
    ("page", "index", "kind"),
    [
        (TEST_A_VMM, 0, XenExit),
        (WRITE_A_RULE, 0, Observation),
        (WRITE_A_RULE, 1, Context),
    ],
)
def test_fields_are_those_of_the_code(page: str, index: int, kind: type) -> None:
    """The tables of fields name all of them, in order."""
    text = (ROOT / page).read_text()
    tables = re.findall(r"^\| field \| meaning \|\n\| --- .*\n((?:\|.*\n)+)", text, re.MULTILINE)
    listed = re.findall(r"^\| `(\w+)`", tables[index], re.MULTILINE)
    assert listed == [field.name for field in fields(kind)]


def test_every_kind_of_event_is_accounted_for() -> None:
    """The table of what a VMM replay does has each kind of event that a trace can hold."""
    cells = " ".join(row[0] for row in table(TEST_A_VMM, "kind of event"))
    named = set(re.findall(r"`(\w+)`", cells))
    assert named == {kind.kind for kind in Event.__subclasses__()}


def test_import_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Each option of `xenkvm import` that the page tells of is one, and is explained in its table."""
    assert run(["import", "--help"]) == 0
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    used = {option for block in blocks(RECORD, "sh") for option in _import_options(block.text)}
    explained = {row[0].strip("`") for row in table(RECORD, "option")}
    assert explained
    assert explained == used
    assert explained <= known


def _import_options(text: str) -> list[str]:
    command = text.replace("\\\n", "").partition("xenkvm import")[2].partition("\n")[0]
    return re.findall(r"--[\w-]+", command)


def test_the_probes_are_those_that_the_importer_reads() -> None:
    """The file of kprobe events defines, once each, the probes by which the importer knows a recording."""
    text = KPROBES.read_text()
    probes = re.findall(r"^(?:p|r10):kx/(\w+) kvm_xen_\w+", text, re.MULTILINE)
    assert len(set(probes)) == len(probes) == len(text.splitlines())
    assert set(probes) >= PROBES
    assert set(probes) >= {"hvm_evtchn_send_ret", "start_timer", "set_evtchn_fast", "write_hypercall_page"}


def test_the_page_quotes_the_probe_of_rax() -> None:
    """The line that the reader may have to change stands in the file as it stands in the page."""
    (quoted,) = [block.text for block in blocks(RECORD, "text") if "hypercall_ret kvm" in block.text]
    assert quoted in KPROBES.read_text()


def test_removing_names_every_probe(tmp_path: Path) -> None:
    """The last line of the page's cleaning up removes each kprobe event that was added."""
    (cleaning,) = [block.text for block in blocks(RECORD, "sh") if "sed -E" in block.text]
    (tmp_path / "kprobe_events").touch()
    line = next(line for line in cleaning.splitlines() if line.startswith("sed -E"))
    environment = {**os.environ, "T": str(tmp_path)}
    subprocess.run(["sh", "-euc", line], cwd=ROOT / HOW_TO, env=environment, check=True)  # noqa: S607 - any POSIX shell
    defined = re.findall(r"kx/\w+", KPROBES.read_text())
    assert (tmp_path / "kprobe_events").read_text().split() == [f"-:{name}" for name in defined]
