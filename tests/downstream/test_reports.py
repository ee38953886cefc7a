"""A project that draws badge and report and compares with what it has accepted, in one tox run."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Final

from installing import Shell
from recordings import forget_an_id

PROJECT: Final = Path(__file__).parent / "reports"
MADE: Final = ("badge.svg", "report.html", "report.json", "summary.md", "junit.xml")
TOX: Final = "python3 -m tox --quiet"


def test_tox_makes_all_files_and_finds_what_broke(shell: Shell) -> None:
    """With its baseline the project is green; a recording of a VMM that forgot an ID is a regression."""
    shutil.copytree(PROJECT, shell.folder, dirs_exist_ok=True)
    output = shell.run(TOX)
    assert all((shell.folder / name).stat().st_size for name in MADE)
    assert 'aria-label="xen-kvm: ' in (shell.folder / "badge.svg").read_text()
    assert "vcpu-id.set-before-timers" in (shell.folder / "report.html").read_text()
    assert "0 broke, 0 fixed, " in output

    forget_an_id(shell.folder / "traces" / "debian-12.xkt")
    output = shell.run(TOX, status=1)
    assert re.search(r"^broke:? .*vcpu-id.set-before-timers", output, re.MULTILINE)

    shell.run(f"{TOX} -e accept")
    baseline = json.loads((shell.folder / "baseline.json").read_text())
    assert baseline == json.loads((shell.folder / "report.json").read_text())
