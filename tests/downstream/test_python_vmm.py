"""A VMM in Python with a package of its own: its suite runs against the built wheel."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from installing import Shell

PROJECT: Final = Path(__file__).parent / "python-vmm"
SETS_ID: Final = "            vcpu.set_xen_id(number)\n"


def test_its_suite_is_green_and_finds_a_forgotten_id(shell: Shell) -> None:
    """Traces and its own tests pass; without an ID on vCPU 1 the rule and the tests that say so fail."""
    shutil.copytree(PROJECT, shell.folder, dirs_exist_ok=True)
    shell.install("'.[test]'")
    output = shell.run("pytest")
    assert "VMM under test: small-vmm 0.3" in output
    assert "\nlinux-boot.xkt ." in output
    assert "\ntests/test_timers.py ... " in output
    _check_that_it_offers_itself(shell)

    source = shell.folder / "src" / "small_vmm" / "xen.py"
    text = source.read_text()
    assert SETS_ID in text
    source.write_text(text.replace(SETS_ID, f"            if number == 0:\n    {SETS_ID}"))
    shell.run("pip install --quiet .")
    output = shell.run("pytest -rf", status=1)
    failed = {line.split()[1] for line in output.splitlines() if line.startswith("FAILED ")}
    assert failed == {
        "linux-boot.xkt::vcpu-id.set-before-timers",
        "tests/test_timers.py::test_every_vcpu_has_an_id_and_a_port",
        "tests/test_timers.py::test_no_timer_call_is_forwarded[linux-7.2]",
        "tests/test_timers.py::test_no_timer_call_is_forwarded[linux-7.3]",
    }


def _check_that_it_offers_itself(shell: Shell) -> None:
    """Once installed, the VMM goes by its name, in any folder."""
    output = shell.run("xenkvm replay @linux-boot-1vcpu --vmm small")
    assert ", VMM small-vmm 0.3" in output
    assert " 0 violated" in output
    shell.run("mkdir ../elsewhere")
    output = shell.run("cd ../elsewhere && pytest --xenkvm-trace=@linux-boot-1vcpu --xenkvm-vmm=small")
    assert "VMM under test: small-vmm 0.3" in output
