"""The how-to pages do what they say: their examples run, their tables are those of the code."""

from __future__ import annotations

import inspect
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest
from attrs import fields
from pages import HOW_TO, Command, Project, blocks, steps, table

import pytest_xenkvm
from pytest_xenkvm.cli.main import run
from pytest_xenkvm.core.machine import XenExit
from pytest_xenkvm.plugin import hookspecs
from pytest_xenkvm.replay.observation import Observation
from pytest_xenkvm.rules.model import Context
from pytest_xenkvm.trace.events import Event
from pytest_xenkvm.trace.files import bundled_traces
from pytest_xenkvm.trace.importers.kprobes import PROBES
from pytest_xenkvm.vmm import Vcpu, Vm, Vmm

ROOT: Final = Path(pytest_xenkvm.__file__).parents[1]
PROGRAMS: Final = {
    "pytest": "import sys, pytest\nsys.exit(pytest.main())",
    "xenkvm": "from pytest_xenkvm.cli.main import main\nmain()",
}
"""Scripts as an installation makes them: the working directory is not on their path."""

COMMANDS: Final = {
    "test-a-vmm.md": 10,
    "write-a-rule.md": 3,
    "record-a-guest.md": 1,
    "../explanation/timeline.md": 1,
    "badge-and-reports.md": 1,
    "../reference/hooks.md": 4,
    "../reference/plugin.md": 3,
}
"""How many commands each page shows."""

STEPS: Final = [
    pytest.param(project, command, id=f"{page}-{number}")
    for page in COMMANDS
    for number, (project, command) in enumerate(steps(page))
]


def carry_out(project: Project, command: Command, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a page's command in the page's project, in a folder of its own."""
    work, programs = folder / "work", folder / "bin"
    for made in (work, programs):
        made.mkdir()
    project.write(work)
    _install(project, programs)
    program, *arguments = command.arguments
    for argument in arguments:
        if argument.endswith("/"):
            shutil.copy(bundled_traces()["linux-boot"], work / argument / "boot.xkt")
    script = programs / program
    script.write_text(PROGRAMS[program])
    unwanted = {"PYTEST_ADDOPTS", "CI", "BUILD_NUMBER", "PYTHONPATH", "NO_COLOR", "FORCE_COLOR"}
    environment = {name: value for name, value in os.environ.items() if name not in unwanted}
    paths = [str(ROOT), *([str(work)] if "pyproject.toml" in project.files else [])]
    paths += [path for path in (command.environment.get("PYTHONPATH"),) if path]
    return subprocess.run(
        [sys.executable, script, *arguments],
        cwd=work,
        env={
            **environment,
            "PYTHONPATH": os.pathsep.join(paths),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
            "PYTEST_PLUGINS": "pytest_xenkvm.plugin.entry",
            "COLUMNS": "120",
        },
        capture_output=True,
        text=True,
        check=False,
    )


def _install(project: Project, folder: Path) -> None:
    """Make the entry points of the project's pyproject.toml known, as an installation would."""
    text = project.files.get("pyproject.toml")
    if text is None:
        return
    sections = re.findall(r'^\[project\.entry-points\."(.+)"\]\n((?:\w+ = ".+"\n)+)', text, re.MULTILINE)
    assert sections
    metadata = folder / "demo-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: demo\nVersion: 1.0\n")
    lines = "\n".join(f"[{group}]\n{entries}" for group, entries in sections)
    (metadata / "entry_points.txt").write_text(lines.replace('"', ""))


@pytest.mark.parametrize(("project", "command"), STEPS)
def test_a_command_prints_what_its_page_shows(project: Project, command: Command, tmp_path: Path) -> None:
    """A how-to page's command, run on the files above it, succeeds unless a failure is shown, and says so."""
    done = carry_out(project, command, tmp_path)
    output = done.stdout + done.stderr
    assert command.missing(output) is None, output
    fails = any("FAILED" in line or re.search(r": violated \d", line) for line in command.shown)
    assert done.returncode == (1 if fails else 0), output


def test_no_command_is_overlooked() -> None:
    """Every `$ ` in a page, inside a block or not, is a command that the tests have found."""
    assert {page: len(list(steps(page))) for page in COMMANDS} == COMMANDS
    assert {page: (HOW_TO / page).read_text().count("\n$ ") for page in COMMANDS} == COMMANDS


def test_hooks_are_those_of_the_code() -> None:
    """The page of hooks has each with its arguments, those that add first, in the order of the code."""
    page = "../reference/hooks.md"
    rows = (HOW_TO / page).read_text()
    listed = re.findall(r"^\| `(pytest_xenkvm_\w+\(.*?\))`", rows, re.MULTILINE)
    specs = [(name, spec) for name, spec in vars(hookspecs).items() if name.startswith("pytest_xenkvm_")]
    assert listed == [f"{name}({', '.join(inspect.signature(spec).parameters)})" for name, spec in specs]


def test_optional_methods_are_those_of_the_base() -> None:
    """The table of a behaviour's methods has each of `Vmm` with its parameters."""
    listed = [row[0] for row in table("test-a-vmm.md", "method")]
    methods = [(name, method) for name, method in vars(Vmm).items() if not name.startswith("_")]
    assert listed == [
        f"`{name}({', '.join(list(inspect.signature(method).parameters)[1:])})`" for name, method in methods
    ]


@pytest.mark.parametrize("kind", [Vm, Vcpu])
def test_methods_are_those_of_the_code(kind: type) -> None:
    """The table of a handle's methods has each public one, with its parameters and what it does."""
    listed = [" | ".join(row) for row in table("test-a-vmm.md", f"`{kind.__name__}`")]
    assert listed == [f"`{_signature(method)}` | {_summary(method)}" for method in _methods(kind)]


def _methods(kind: type) -> Iterator[object]:
    for name, value in vars(kind).items():
        if inspect.isfunction(value) and not name.startswith("_"):
            yield value


def _signature(method: object) -> str:
    assert inspect.isfunction(method)
    words: list[str] = []
    _self, *parameters = inspect.signature(method).parameters.values()
    for parameter in parameters:
        if parameter.kind is parameter.KEYWORD_ONLY and "*" not in words:
            words.append("*")
        words.append(parameter.name + ("" if parameter.default is parameter.empty else "=..."))
    return f"{method.__name__}({', '.join(words)})"


def _summary(method: object) -> str:
    return (inspect.getdoc(method) or "").partition("\n")[0]


@pytest.mark.parametrize(
    ("page", "index", "kind"),
    [
        ("test-a-vmm.md", 0, XenExit),
        ("write-a-rule.md", 0, Observation),
        ("write-a-rule.md", 1, Context),
    ],
)
def test_fields_are_those_of_the_code(page: str, index: int, kind: type) -> None:
    """The tables of fields name all of them, in order."""
    text = (HOW_TO / page).read_text()
    tables = re.findall(r"^\| field \| meaning \|\n\| --- .*\n((?:\|.*\n)+)", text, re.MULTILINE)
    listed = re.findall(r"^\| `(\w+)`", tables[index], re.MULTILINE)
    assert listed == [field.name for field in fields(kind)]


def test_every_kind_of_event_is_accounted_for() -> None:
    """The table of what a VMM replay does has each kind of event that a trace can hold."""
    cells = " ".join(row[0] for row in table("test-a-vmm.md", "kind of event"))
    named = set(re.findall(r"`(\w+)`", cells))
    assert named == {kind.kind for kind in Event.__subclasses__()}


def test_import_options_exist(capsys: pytest.CaptureFixture[str]) -> None:
    """Each option of `xenkvm import` that the page tells of is one, and is explained in its table."""
    assert run(["import", "--help"]) == 0
    known = set(re.findall(r"--[\w-]+", capsys.readouterr().out))
    used = {option for _, text in blocks("record-a-guest.md", "sh") for option in _import_options(text)}
    explained = {row[0].strip("`") for row in table("record-a-guest.md", "option")}
    assert explained
    assert explained == used
    assert explained <= known


def _import_options(text: str) -> list[str]:
    command = text.replace("\\\n", "").partition("xenkvm import")[2].partition("\n")[0]
    return re.findall(r"--[\w-]+", command)


def test_the_probes_are_those_that_the_importer_reads() -> None:
    """The file of kprobe events defines, once each, the probes by which the importer knows a recording."""
    text = (HOW_TO / "kprobe_events.txt").read_text()
    probes = re.findall(r"^(?:p|r10):kx/(\w+) kvm_xen_\w+", text, re.MULTILINE)
    assert len(set(probes)) == len(probes) == len(text.splitlines())
    assert set(probes) >= PROBES
    assert set(probes) >= {"hvm_evtchn_send_ret", "start_timer", "set_evtchn_fast", "write_hypercall_page"}


def test_the_page_quotes_the_probe_of_rax() -> None:
    """The line that the reader may have to change stands in the file as it stands in the page."""
    (quoted,) = [text for _, text in blocks("record-a-guest.md", "text") if "hypercall_ret kvm" in text]
    assert quoted in (HOW_TO / "kprobe_events.txt").read_text()


def test_removing_names_every_probe(tmp_path: Path) -> None:
    """The last line of the page's cleaning up removes each kprobe event that was added."""
    (cleaning,) = [text for _, text in blocks("record-a-guest.md", "sh") if "sed -E" in text]
    (tmp_path / "kprobe_events").touch()
    line = next(line for line in cleaning.splitlines() if line.startswith("sed -E"))
    environment = {**os.environ, "T": str(tmp_path)}
    subprocess.run(["sh", "-euc", line], cwd=HOW_TO, env=environment, check=True)  # noqa: S607 - any POSIX shell
    defined = re.findall(r"kx/\w+", (HOW_TO / "kprobe_events.txt").read_text())
    assert (tmp_path / "kprobe_events").read_text().split() == [f"-:{name}" for name in defined]


@pytest.mark.parametrize("text", [text for _, text in blocks("record-a-guest.md", "sh")])
def test_shell_code_can_be_parsed(text: str) -> None:
    """The page's shell code has no syntax error."""
    done = subprocess.run(["sh", "-n", "-c", text], capture_output=True, check=False)  # noqa: S607 - as above
    assert done.returncode == 0, done.stderr
