"""The pages about adapters say what the code does."""

from __future__ import annotations

import ast
import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any, Final

import pytest
from adapter_kit import PATIENCE_S, ROOT, make_vm, scripted, told, xen_exit

from pytest_xenkvm.cli.main import run
from pytest_xenkvm.vmm.adapter import AdapterError, AdapterVmm, conversation, messages
from pytest_xenkvm.vmm.adapter.messages import FROM_ADAPTER, TO_ADAPTER, Row, check_message
from pytest_xenkvm.vmm.adapter.requests import Desk, Machine

PROTOCOL_PAGE: Final = (ROOT / "docs" / "reference" / "adapter-protocol.md").read_text()
README: Final = (ROOT / "docs" / "adapters" / "README.md").read_text()


def blocks(page: str, language: str) -> list[str]:
    """Its code blocks of one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)


def rows(heading: str) -> list[list[str]]:
    """The rows of all tables of the protocol's page whose head begins with this cell."""
    found: list[list[str]] = []
    inside = False
    for line in PROTOCOL_PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        inside = line.startswith("|") and (inside or cells[0] == heading)
        if inside and cells[0] not in {heading, "---"}:
            found.append(cells)
    return found


def test_the_tables_have_every_message() -> None:
    """Each message has a row with its members, optional ones marked, in the order of the code."""
    listed = {cells[0].strip("`"): cells[1] for cells in rows("`type`")}
    assert listed == {type_: _members(row) for type_, row in {**TO_ADAPTER, **FROM_ADAPTER}.items()}


def _members(row: Row) -> str:
    names = [*row.required, *(f"{name}?" for name in row.optional)]
    return ", ".join(f"`{name}`" for name in names)


def test_the_conversation_is_one(tmp_path: Path) -> None:
    """An adapter that says what the page's says hears what it hears."""
    lines = [(line[0], line[2:]) for line in "".join(blocks(PROTOCOL_PAGE, "text")).splitlines()]
    assert {direction for direction, _ in lines} == {"<", ">"}
    heard = [json.loads(line) for direction, line in lines if direction == ">"]
    said = "\n".join(
        "get()" if direction == ">" else f"write({line + chr(10)!r})" for direction, line in lines
    )
    hearing = "heard = []\nwas = get\ndef get():\n    heard.append(was())\n"
    vmm = scripted(tmp_path, f"{hearing}{said}\nopen(sys.argv[0] + '.heard', 'w').write(json.dumps(heard))")
    vm = make_vm()
    vmm.configure(vm)
    assert vmm.on_hypercall(vm.vcpus[1], xen_exit(24, 7, 1)) == -38
    vmm.close()
    really = json.loads((tmp_path / "adapter.py.heard").read_text())
    really[1]["ids"] = heard[1]["ids"]
    assert [{**message, "harness": ""} for message in really] == [
        {**message, "harness": ""} for message in heard
    ]


def test_the_examples_of_ioctls_work() -> None:
    """Each request that the page shows is done."""
    desk = Desk({"source": Machine(make_vm())})
    assert desk.serve("open_eventfd", {})["ret"] == 3
    shown = "".join(blocks(PROTOCOL_PAGE, "json")).splitlines()
    assert len(shown) == 8
    for line in shown:
        type_, request = check_message(FROM_ADAPTER, json.loads(line))
        assert desk.serve(type_, request)["ret"] == 0, line
    assert desk.machines["source"].vm.vcpus[1].get_vcpu_id() == 1


PROVOKED: Final = {
    "no answer to hypercall 24 (vcpu_op) within": "called(); time.sleep(999)",
    "exited with status 1 before it answered configure": "hello(); get(); sys.exit(1)",
    "was killed by SIGSEGV before it answered start": "os.kill(os.getpid(), 11)",
    "closed its stdin or stdout before": "hello(); get(); os.close(1); time.sleep(999)",
    "exited with status 0 before": 'called(); write(\'{"type":"ans\'); sys.exit(0)',
    "wrote a line that is not JSON": "write('rubbish\\n'); get()",
    "wrote 1048577 bytes without": "write('x' * 1048577); get()",
    "sent a malformed answer": "called(); put('answer', rax='0'); get()",
    "sent done when answer": "called(); put('done'); get()",
    "sent a request for vCPU 2": "called(); put('stop_vmm_timer', vcpu=2); get()",
    "made more than": "hello(); get()\nwhile True: ask('get_clock')",
    "wrote out of turn": 'configured(); get(); write(\'{"type":"answer","rax":0}\\n\' * 2); get()',
    "speaks version 2": "hello(protocol=2)",
    "did not exit within": "called(); put('answer', rax=0); time.sleep(999)",
    "exited with status 3 after": "called(); put('answer', rax=0); sys.exit(3)",
}
"""Programs that do what the page's table of faults has, by how its sentences begin."""


@pytest.mark.parametrize("sentence", [cells[0].strip("`") for cells in rows("it says")])
def test_what_goes_wrong_is_told_as_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sentence: str
) -> None:
    """Each sentence of the page is what such an adapter is blamed for."""
    if sentence.startswith("can't be started"):
        vmm = AdapterVmm(["./nowhere"])
        with pytest.raises(AdapterError, match=re.escape(sentence)):
            vmm.configure(make_vm())
        return
    body = next(body for begin, body in PROVOKED.items() if sentence.startswith(begin))
    assert f"more than {conversation.MAX_REQUESTS} requests" in PROTOCOL_PAGE
    monkeypatch.setattr(conversation, "MAX_REQUESTS", 3)
    pattern = (
        re.escape(sentence)
        .replace(r"\.\.\.", ".*")
        .replace("100000", "3")
        .replace("within\\ 10\\ s", "within 0.4 s")
    )
    found = told(scripted(tmp_path, body), 0.4 if "killed" in sentence else PATIENCE_S)
    assert re.fullmatch(pattern, found), found


def test_limits_are_those_of_the_code() -> None:
    """Numbers in the page are the code's."""
    assert f"at most {messages.MAX_ACCESS}" in PROTOCOL_PAGE
    assert f"This is version {messages.PROTOCOL}." in PROTOCOL_PAGE
    assert "`timer`, `event_channel` and `migrate` are sent only" in PROTOCOL_PAGE
    assert messages.CAPABILITIES == ("timer", "event_channel", "migrate")


@pytest.mark.parametrize("code", blocks(PROTOCOL_PAGE, "python"))
def test_python_code_runs(code: str) -> None:
    """The page's Python does what it is there for."""
    names: dict[str, Any] = {}
    exec(compile(ast.parse(code), "page", "exec"), names)  # noqa: S102 - the page's own code
    if "schema" in names:
        assert json.loads(names["schema"])["title"] == "hypercall"


BUILDS: Final = re.findall(r"^\| \[(\S+)\]\(\S+\) \| `(.*)` \|$", README, re.MULTILINE)


@pytest.mark.parametrize(("source", "command"), BUILDS)
def test_an_adapter_is_built_as_the_readme_says(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    source: str,
    command: str,
) -> None:
    """The README's commands build an adapter and replay a trace with it, as shown."""
    words = shlex.split(command)
    if shutil.which(words[0]) is None:
        pytest.skip(f"{source} needs the compiler {words[0]}, which isn't there")
    shutil.copy(ROOT / "docs" / "adapters" / source, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GOCACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("GO111MODULE", "off")
    subprocess.run(words, check=True)
    shown = next(block for block in blocks(README, "console") if block.startswith("$ xenkvm"))
    line, expected, *_ = shown.splitlines()
    until = [] if source == "minimal.c" else ["--until", "500"]
    assert run([*shlex.split(line)[2:], *until]) == 0
    told = capsys.readouterr().out.splitlines()[0]
    if until:
        assert told.endswith(f", VMM {_name(source)}")
    else:
        assert told == expected


def _name(source: str) -> str:
    return {"minimal.c": "minimal-c", "minimal.rs": "minimal-rust", "minimal.go": "minimal-go"}[source]


def test_the_readme_has_all_adapters() -> None:
    """Each adapter is in the README's table."""
    folder = ROOT / "docs" / "adapters"
    assert {source for source, _ in BUILDS} == {path.name for path in folder.iterdir()} - {"README.md"}
