"""A project that has nothing but recorded traces: its CI runs against the built wheel."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final
from xml.etree import ElementTree as ET

import yaml  # type: ignore[import-untyped]
from installing import Shell
from recordings import forget_an_id

PROJECT: Final = Path(__file__).parent / "traces-only"


def test_its_ci_is_green_until_a_recording_is_wrong(shell: Shell) -> None:
    """All jobs pass; a VMM that forgot an ID is found in its recording, and so is a damaged file."""
    shutil.copytree(PROJECT, shell.folder, dirs_exist_ok=True)
    workflow = yaml.safe_load((shell.folder / ".github" / "workflows" / "traces.yml").read_text())
    install, check = [step["run"] for step in workflow["jobs"]["replay"]["steps"] if "run" in step]
    profiles = workflow["jobs"]["replay"]["strategy"]["matrix"]["profile"]
    assert profiles == ["auto", "linux-7.3"]
    shell.run("python3 -m venv .venv && . .venv/bin/activate")
    shell.run(install)
    for profile in profiles:
        output = shell.run(_job(check, profile))
        assert "replayed 2 traces: 2,000 events, " in output
        assert " 0 violated, " in output
        assert _replayed_on(shell.folder / "traces.xml") == (
            ["linux-7.3"] if profile == "linux-7.3" else ["linux-6.12", "linux-7.2"]
        )

    traces = shell.folder / "traces"
    forget_an_id(traces / "debian-12.xkt")
    output = shell.run(_job(check, "linux-7.3"), status=1)
    assert re.findall(r"^FAILED (\S+)", output, re.MULTILINE) == [
        "traces/debian-12.xkt::replay",
        "traces/debian-12.xkt::vcpu-id.set-before-timers",
    ]
    content = bytearray((traces / "debian-14.xkt").read_bytes())
    content[len(content) // 2] ^= 1
    (traces / "debian-14.xkt").write_bytes(content)
    output = shell.run(_job(check, "linux-7.3"), status=1)
    assert "\nFAILED traces/debian-14.xkt::replay - " in output
    assert "/debian-14.xkt, event 0: is damaged: a block's checksum is wrong\n" in output


def _job(command: str, profile: str) -> str:
    return command.replace("${{ matrix.profile }}", profile)


def _replayed_on(report: Path) -> list[str]:
    """The kernels that a JUnit report names, in the suite's properties NAME:ITEM."""
    properties = [each.attrib for each in ET.parse(report).iterfind(".//property")]  # noqa: S314 - our own
    return sorted({each["value"] for each in properties if each["name"].startswith("xenkvm_profile:")})
