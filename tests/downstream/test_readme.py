"""The README's first command, on the sources as a user gets them, in an environment of its own."""

from __future__ import annotations

import re
import shutil
from typing import Final

from installing import ROOT, Shell

README: Final = (ROOT / "README.md").read_text()


def test_the_main_job_is_done_as_shown(shell: Shell) -> None:
    """It builds and installs the package, and replays a bundled trace without a violation."""
    (command,) = re.findall(r"^python3 -m venv .* traces/linux-boot\.xkt$", README, re.MULTILINE)
    shutil.rmtree(shell.folder)
    unwanted = shutil.ignore_patterns(".*", "golden", "__pycache__", "docs", "benchmarks")
    shutil.copytree(ROOT, shell.folder, ignore=unwanted)
    output = shell.run(command)
    assert "\ntraces/linux-boot.xkt ." in output
    assert "\nreplayed 1 trace: 35,143 events, 9,041 hypercalls, " in output
    assert " 0 violated, " in output
